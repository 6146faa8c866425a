"""Other people's WebDataset tars -> items: what stands in them is looked up here, by offset and size; `ingest.fetch` copies it out.

A tar from elsewhere is hostile until read: nothing in it is unpacked, unpickled or opened by a name of its own, links and
devices are passed over, of two members of one name the first counts. One that cannot be read to its end (or was packed with
--sparse) becomes a single item, which fetch refuses as corrupt, and the others go on: none of its samples is listed until a
whole one is in its place.
"""

import glob
import itertools
import json
import logging
import math
import os
import re
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from configs.load import UserError
from ingest.licenses import MAX_CHARS
from ingest.sample import Item, storable

log = logging.getLogger(__name__)

Facts = tuple[str, str, str, dict[str, Any]]  # license, channel, title, others
Members = dict[str, dict[str, Any]]  # suffix -> offset, size, suffix
MAX_HEADER_BYTES, MAX_RECORDS = 64 << 10, 1000  # what describes a member
MAX_GLOBAL_HEADERS = 100  # what describes all of them
MAX_MEMBERS, MAX_NAME = 300_000, 1000  # of one tar, and the letters of a member's name
MAX_FACTS_BYTES = 1 << 20
MAX_FACTS = 50  # of a sample
SPARSE = "a sparse member; pack it again without --sparse"
OWN_FIELDS = ("id", "title", "license", "sound_url", "channel")  # facts that an item has a place for
UNREADABLE = (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError, MemoryError, EOFError, struct.error)
"""What `tarfile` raises over one header or another that somebody made up."""


def find_tars(pattern: str) -> list[tuple[str, Path]]:
    """(name below the folder, or below where a glob begins; path) of every tar there. `UserError`: there is none."""
    root = Path(pattern).absolute()
    if root.is_dir():
        found = sorted(root.rglob("*.tar"))
    else:
        found = sorted(Path(path).absolute() for path in set(glob.glob(pattern, recursive=True)) if path.endswith(".tar"))
        while root.name.endswith(".tar") or glob.has_magic(str(root)):
            root = root.parent
    if not found:
        raise UserError(f"source.path={pattern}: no .tar files there")
    return [(utf8_name(path.relative_to(root).with_suffix("")), Path(utf8_name(path))) for path in found]


def utf8_name(path: Path) -> str:
    """The path as text. `UserError` where its bytes are no UTF-8, which no index can hold."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None
    return path.as_posix()


def tar_items(name: str, path: Path, roles: Callable[[Members], Members], license: Callable[[str], str]) -> Iterator[Item]:
    """The samples of one tar that have what `roles` looks for. `license` turns what a sample states into a code."""
    try:
        samples, facts = _read(path)
    except UNREADABLE as error:
        why = storable(f"cannot be read as a tar ({type(error).__name__}: {error}); fetch it again or take it away")[:300]
        log.warning("%s: %s", path, why)
        yield Item("webdataset", name, str(path), license(""), meta={"tar": {}, "damage": why})
        return
    for key, members in samples.items():
        found = roles(members)
        if found:
            stated, channel, title, meta = facts.get(key) or ("", "", "", {})
            yield Item("webdataset", f"{name}/{key}", str(path), license(stated), "", channel, title, {**meta, "tar": found})


def _read(path: Path) -> tuple[dict[str, Members], dict[str, Facts]]:
    """Members by sample, and what its JSON says. They share the name up to the first dot, as WebDataset has it."""
    samples: dict[str, Members] = {}
    facts: dict[str, Facts] = {}
    end, size = -1, path.stat().st_size
    with tarfile.open(path, "r:", tarinfo=_Bounded) as tar:
        for number, member in enumerate(iter(tar.next, None)):
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if member.offset <= end or member.size < 0 or member.offset_data + (member.size if member.isreg() else 0) > size:
                raise tarfile.ReadError("a member that lies outside of the file")
            if number >= MAX_MEMBERS or len(member.name) > MAX_NAME:
                raise tarfile.ReadError(f"more than {MAX_MEMBERS} members, or a name of more than {MAX_NAME} letters")
            end = member.offset
            folder, _, base = storable(member.name).rpartition("/")
            stem, _, extension = base.partition(".")
            if not member.isreg() or not stem:
                continue
            key, suffix = f"{folder}/{stem}".lstrip("/"), f".{extension.lower()}"
            samples.setdefault(key, {}).setdefault(suffix, {"offset": member.offset_data, "size": member.size, "suffix": suffix})
            if suffix == ".json" and member.size < MAX_FACTS_BYTES and key not in facts:
                facts[key] = _told(_facts(tar.extractfile(member)))  # the rest of a JSON is let go at once
        _assert_end(tar)
    return samples, facts


def _assert_end(tar: Any) -> None:
    """`ReadError` for a tar cut between two members, with a damaged header (which tarfile takes for the end), or with more behind."""
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError("bytes behind the end mark" if len(rest) >= tarfile.BLOCKSIZE else "no end mark: it was cut")


class _Bounded(tarfile.TarInfo):
    """A member whose headers are small and plain."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # the entry point that tarfile names for subclasses
        if self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= self.size <= MAX_HEADER_BYTES or len(tar.pax_headers) > MAX_GLOBAL_HEADERS:
                raise tarfile.ReadError(f"a header of {self.size} bytes, or more than {MAX_GLOBAL_HEADERS} for all members")
            file: Any = tar.fileobj
            text = file.read(self.size)
            file.seek(-len(text), os.SEEK_CUR)
            if self.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                _assert_records(text)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(SPARSE)
        return super()._proc_member(tar)  # type: ignore[misc]


def _assert_records(text: bytes) -> None:
    """`ReadError` unless it is `length key=value` lines: of others, tarfile makes thousands of long keys or never comes to an end."""
    at = 0
    if text.count(b"\n") > MAX_RECORDS:
        raise tarfile.ReadError(f"a header of more than {MAX_RECORDS} facts")
    while at < len(text):
        found = re.match(rb"(\d{1,5}) ([^=\n]{1,200})=", text[at : at + 210])
        length = int(found[1]) if found else 0
        if not found or found.end() >= length or text[at + length - 1 : at + length] != b"\n":
            raise tarfile.ReadError("a header that is no list of facts")
        if found[2].startswith(b"GNU.sparse"):
            raise tarfile.ReadError(SPARSE)
        at += length
    if re.search(rb"\d{1000}", text):
        raise tarfile.ReadError("a number without end")


def _told(facts: dict[str, Any]) -> Facts:
    """License, channel, title and other plain facts in a sample's JSON; also where video2dataset puts those of YouTube."""
    nested = facts.get("yt_meta_dict")
    info = (nested.get("info") if isinstance(nested, dict) else None) or {}
    info = info if isinstance(info, dict) else {}
    license = str(facts.get("license") or info.get("license") or "")
    channel = facts.get("channel") or info.get("channel_id") or ""
    title = facts.get("title") or info.get("title") or facts.get("caption") or ""
    plain = {storable(str(name))[:100]: value for name, value in facts.items() if name not in OWN_FIELDS}
    meta = {name: storable(value)[:1000] if isinstance(value, str) else value for name, value in plain.items() if _is_plain(value)}
    return (
        license[: MAX_CHARS + 1],
        storable(str(channel))[:1000],
        storable(str(title))[:1000],
        dict(itertools.islice(meta.items(), MAX_FACTS)),
    )


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _facts(file: Any) -> dict[str, Any]:
    try:
        facts = json.loads(file.read())
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
