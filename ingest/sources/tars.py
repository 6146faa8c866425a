"""Other people's WebDataset tars -> items: what stands in them is looked up here, by offset and size;
`ingest.fetch.fetcher` copies it out.

A tar from elsewhere is hostile until read: nothing in it is unpacked, unpickled or opened by a name of its
own, links and devices are passed over, of two members of one name the first counts. One that cannot be read
to its end (or was packed with --sparse) becomes a single item, which fetch refuses as corrupt, and the others
go on: none of its samples is listed until a whole one is in its place.

Members that share the name up to the first dot are a sample, as WebDataset has it; keys with dots of their
own are told apart. What is no sample, or stands twice, is counted in the log.
"""

import glob
import logging
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, storable
from ingest.sources.folder import CAPTION, FACTS, INFO, MEDIA_SUFFIXES, listing, utf8_name, walk
from ingest.sources.metadata import MAX_FACTS_BYTES, MAX_INFO_BYTES, Facts, caption_of, merged, read_facts
from ingest.sources.settings import SourceConfig, license_of
from ingest.sources.suffixes import Choice, File, choose, untagged

log = logging.getLogger(__name__)

STATING = (FACTS, INFO, CAPTION)
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_HEADER_BYTES, MAX_RECORDS = 64 << 10, 1000  # what describes a member
MAX_GLOBAL_HEADERS = 100  # what describes all of them
MAX_MEMBERS, MAX_NAME = 300_000, 1000  # of one tar, and the letters of a member's name
SPARSE = "a sparse member; pack it again without --sparse"
UNREADABLE = (
    tarfile.TarError,
    OSError,
    ValueError,
    OverflowError,
    RecursionError,
    MemoryError,
    EOFError,
    struct.error,
)
"""What `tarfile` raises over one header or another that somebody made up."""


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Every sample of every tar that has a video, or a picture and a sound. See `ingest.sources.registry.Source`."""
    return items_of_tars(find_tars(config.path), lambda own: license_of(own, config.license))


def find_tars(pattern: str) -> list[tuple[str, Path]]:
    """(name below the folder, or below where a glob begins; path) of every tar there. `UserError`: there is
    none.

    Linked folders are followed; compressed tars and what cannot be listed are counted in the log.
    """
    root = Path(pattern).absolute()
    passed_over: Counter[str] = Counter()
    if root.is_dir():
        there = list(walk(root, passed_over))
    else:
        there = [
            Path(path).absolute()
            for path in set(glob.glob(pattern, recursive=True))
            if not Path(path).is_dir()
        ]
        while root.name.endswith((".tar", *COMPRESSED)) or glob.has_magic(str(root)):
            root = root.parent
    found = sorted(path for path in there if path.name.endswith(".tar"))
    packed = Counter(end for path in there for end in COMPRESSED if path.name.endswith(end))
    fix = "members are read by their place in the file: decompress them first (gunzip, unzstd)"
    if not found:
        raise UserError(
            f"source.path={pattern}: no .tar files there{f', but {listing(packed)}; {fix}' if packed else ''}"
        )
    if packed:
        log.warning("%s are passed over; %s", listing(packed), fix)
    if +passed_over:
        log.info("%s: passed over: %s", pattern, listing(passed_over))
    return [(utf8_name(path.relative_to(root).with_suffix("")), Path(utf8_name(path))) for path in found]


def items_of_tars(found: list[tuple[str, Path]], license: Callable[[str], str]) -> Iterator[Item]:
    """The samples of every tar, each under an id of its own. `license` turns what a sample states into a
    code.

    One line in the log says which samples and members are no items.
    """
    passed_over: Counter[str] = Counter()
    names = {name for name, _ in found}
    for name, path in found:
        for item in _items_of_one(name, path, license, passed_over):
            yield _apart(item, name, names)
    if +passed_over:
        log.info("%d samples of the tars are passed over: %s", passed_over.total(), listing(passed_over))


def _apart(item: Item, name: str, names: set[str]) -> Item:
    """A sample y/z of the tar x is not the sample z of a tar x/y."""
    inner = item.id[len(name) + 1 :].split("/")[:-1]
    others = {"/".join([name, *inner[: depth + 1]]) for depth in range(len(inner))}
    return replace(item, id=f"{name}.tar{item.id[len(name) :]}") if others & names else item


def _items_of_one(
    name: str, path: Path, license: Callable[[str], str], passed_over: Counter[str]
) -> Iterator[Item]:
    try:
        members = _read(path)
    except UNREADABLE as error:
        why = storable(
            f"cannot be read as a tar ({type(error).__name__}: {error}); fetch it again or take it away"
        )[:300]
        log.warning("%s: %s", path, why)
        yield Item("webdataset", name, str(path), license(""), meta={"tar": {}, "damage": why})
        return
    if members.repeated:
        passed_over["members whose name came before"] += members.repeated
    for key, files in members.groups.items():
        for sample, choice in _samples(key, files, passed_over):
            facts = members.facts_of(sample, key)
            places = {
                role: _place(file)
                for role, file in (("picture", choice.picture), ("sound", choice.sound))
                if file
            }
            others = {**facts.others, "tar": places}
            yield Item(
                "webdataset",
                f"{name}/{sample}",
                str(path),
                license(facts.license),
                "",
                facts.channel,
                facts.title,
                others,
            )


def _place(file: File) -> dict[str, Any]:
    return {"offset": file.offset, "size": file.size, "suffix": file.suffix}


def _samples(key: str, files: list[File], passed_over: Counter[str]) -> Iterator[tuple[str, Choice]]:
    """(key, what it consists of) of the samples among members that share the name up to the first dot.

    That is one sample, as WebDataset has it, unless members with more dots make samples of their own: of
    a_1.500.mp4, a_1.500.json and a_1.700.mp4 each mp4 is one. What is left then belongs together by its
    longest common stem.
    """
    by_stem: dict[str, list[File]] = {}
    for file in files:
        by_stem.setdefault(untagged(file.stem), []).append(file)
    left: list[File] = []
    count = 0
    while by_stem:
        stem = max(by_stem, key=lambda one: (one.count("."), one))
        here = by_stem.pop(stem)
        chosen = choose(here)
        if chosen:
            named: dict[str, Choice] = {}
            for choice in chosen:
                # streams that make no pair are samples of their own
                named.setdefault(choice.picture.stem if choice.sound is None else stem, choice)
            yield from named.items()
            count += len(named)
            used = {file for choice in named.values() for file in (choice.picture, choice.sound)}
            left += [file for file in here if file not in used]
        elif stem != key and len(stem) > len(key):
            by_stem.setdefault(stem.rpartition(".")[0], []).extend(
                replace(file, stem=stem.rpartition(".")[0]) for file in here
            )
        else:
            left += here
    if not count:
        passed_over[f"without a video or a picture and a sound ({_suffixes(left)})"] += 1
    elif count and any(file.suffix in MEDIA_SUFFIXES for file in left):
        passed_over[f"more media of samples that have theirs ({_suffixes(left)})"] += 1


def _suffixes(files: list[File]) -> str:
    return " ".join(sorted({file.suffix for file in files}))[:80]


class _Members:
    """What a tar holds: members by the name up to the first dot, and what their JSON and captions state."""

    def __init__(self) -> None:
        self.groups: dict[str, list[File]] = {}
        self.facts: dict[str, Facts] = {}  # by name up to the suffix
        self.names: set[str] = set()
        self.repeated = 0

    def add(self, tar: Any, path: Path, member: Any) -> None:
        """A regular member. Of two of one name the first counts."""
        name = storable(member.name).lstrip("/")
        folder, _, base = name.rpartition("/")
        first = base.partition(".")[0]
        if not first:
            return
        stem, suffix = _split(name)
        if stem + suffix in self.names:
            self.repeated += 1
            return
        self.names.add(stem + suffix)
        key = f"{folder}/{first}".lstrip("/")
        self.groups.setdefault(key, []).append(File(stem, suffix, path, member.offset_data, member.size))
        if suffix in STATING and member.size < (MAX_INFO_BYTES if suffix == INFO else MAX_FACTS_BYTES):
            facts = _stated(tar.extractfile(member).read(), suffix)  # the rest of a JSON is let go at once
            known = self.facts.get(stem, Facts())
            self.facts[stem] = merged(facts, known) if suffix == FACTS else merged(known, facts)

    def facts_of(self, sample: str, key: str) -> Facts:
        """What is stated of a sample, else of all that share its name up to the first dot."""
        return self.facts.get(sample) or self.facts.get(key) or Facts()


def _split(name: str) -> tuple[str, str]:
    """The name up to its suffix, and that in small letters; `.info.json` is one suffix."""
    if name.lower().endswith(INFO) and len(name) > len(INFO):
        return name[: -len(INFO)], INFO
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot and "/" not in suffix else (name, "")


def _stated(data: bytes, suffix: str) -> Facts:
    if suffix == CAPTION:
        caption = caption_of(data)
        return Facts(others={"caption": caption} if caption else {})
    return read_facts(data, info=suffix == INFO)


def _read(path: Path) -> _Members:
    members = _Members()
    end, size = -1, path.stat().st_size
    with tarfile.open(path, "r:", tarinfo=_Bounded) as tar:
        for number, member in enumerate(iter(tar.next, None)):
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            if (
                member.offset <= end
                or member.size < 0
                or member.offset_data + (member.size if member.isreg() else 0) > size
            ):
                raise tarfile.ReadError("a member that lies outside of the file")
            if number >= MAX_MEMBERS or len(member.name) > MAX_NAME:
                raise tarfile.ReadError(
                    f"more than {MAX_MEMBERS} members, or a name of more than {MAX_NAME} letters"
                )
            end = member.offset
            if member.isreg():
                members.add(tar, path, member)
        _assert_end(tar)
    return members


def _assert_end(tar: Any) -> None:
    """`ReadError` for a tar cut between two members, with a damaged header (which tarfile takes for the end),
    or with more behind.
    """
    tar.fileobj.seek(tar.offset)
    rest = tar.fileobj.read(1 << 20)
    if len(rest) < tarfile.BLOCKSIZE or rest.strip(b"\0"):
        raise tarfile.ReadError(
            "bytes behind the end mark" if len(rest) >= tarfile.BLOCKSIZE else "no end mark: it was cut"
        )


class _Bounded(tarfile.TarInfo):
    """A member whose headers are small and plain."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # the entry point that tarfile names for subclasses
        if self.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            if not 0 <= self.size <= MAX_HEADER_BYTES or len(tar.pax_headers) > MAX_GLOBAL_HEADERS:
                raise tarfile.ReadError(
                    f"a header of {self.size} bytes, or more than {MAX_GLOBAL_HEADERS} for all members"
                )
            file: Any = tar.fileobj
            text = file.read(self.size)
            file.seek(-len(text), os.SEEK_CUR)
            if self.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                _assert_records(text)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(SPARSE)
        return super()._proc_member(tar)  # type: ignore[misc]


def _assert_records(text: bytes) -> None:
    """`ReadError` unless it is `length key=value` lines: of others, tarfile makes thousands of long keys or
    never comes to an end.
    """
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
