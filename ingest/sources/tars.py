"""Other people's WebDataset tars -> items: members are found here, by offset and size; `ingest.fetch.fetcher`
copies them out.

    find_tars("/data/*.tar")                          the tars, with a name for each
    items_of_tars(tars, license_of)                   their samples

Members that share the name up to the first dot are a sample, as WebDataset has it; keys with dots of their
own are kept apart. What is no sample, or repeated, is counted in the log.

A tar is untrusted. Covered: nothing in it is unpacked, unpickled or opened by a name of its own; links and
devices are skipped; of two members of one name the first counts; headers, names and members are bounded. A
tar that cannot be read to its end (or was packed with --sparse) becomes a single item, which fetch refuses as
corrupt: none of its samples is listed until it is whole. Not covered: compressed tars, whose members have no
offset, and the media themselves, which the decoder's sandbox reads.
"""

import glob
import itertools
import logging
import os
import re
import struct
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.load import UserError
from ingest.fetch.fetcher import Member
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item, storable
from ingest.sources.folder import CAPTION, INFO, JSON, MEDIA_SUFFIXES, listing, utf8_name, walk
from ingest.sources.lists import LicenseOf
from ingest.sources.metadata import (
    MAX_INFO_BYTES,
    MAX_JSON_BYTES,
    Metadata,
    caption_of,
    merged,
    read_metadata,
)
from ingest.sources.settings import SourceConfig
from ingest.sources.suffixes import Choice, File, choose, untagged

log = logging.getLogger(__name__)

SIDECARS = (JSON, INFO, CAPTION)
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# of a pax or GNU header before a member: real ones hold a path and some times
MAX_HEADER_BYTES = 64 << 10
MAX_RECORDS = 1000
MAX_GLOBAL_HEADERS = 100  # pax headers that hold for all members, and that tarfile copies into each
MAX_MEMBERS = 300_000  # of one tar: all are held in memory until its end is seen
MAX_NAME = 1000  # characters of a member's name
END_BYTES = 1 << 20  # read behind the last member; tar pads with zeros up to 10 KB by default
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, *LONG_NAMES)
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
"""What `tarfile` raises over one made-up header or another. The texts of our own are stored in rows."""


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Samples with a video, or with a picture and a sound: see `ingest.sources.registry`."""
    return items_of_tars(find_tars(config.path), config.license_of)


def find_tars(pattern: str) -> list[tuple[str, Path]]:
    """(name below the folder, or below where a glob begins; path) of every tar of a folder or glob.

    Linked folders are followed; compressed tars and what cannot be listed are counted in the log.
    `UserError` where there is no tar.
    """
    skipped: Counter[str] = Counter()
    root, files = _files(pattern, skipped)
    # sorted: the order of items must not depend on that of a directory
    tars = sorted(path for path in files if path.name.endswith(".tar"))
    packed: Counter[str] = Counter()
    for suffix in COMPRESSED:
        packed[suffix] = sum(path.name.endswith(suffix) for path in files)
    packed = +packed
    advice = "members are read by their offset in the file: decompress them first (gunzip, unzstd)"
    if not tars:
        but = f", but {listing(packed)}; {advice}" if packed else ""
        raise UserError(f"source.path={pattern}: no .tar files there{but}")
    if packed:
        log.warning("%s are skipped; %s", listing(packed), advice)
    if +skipped:
        log.info("%s: skipped: %s", pattern, listing(skipped))
    return [(utf8_name(path.relative_to(root).with_suffix("")), Path(utf8_name(path))) for path in tars]


def _files(pattern: str, skipped: Counter[str]) -> tuple[Path, list[Path]]:
    """(the folder that names are below, its files) of a folder or a glob."""
    root = Path(pattern).absolute()
    if root.is_dir():
        return root, list(walk(root, skipped))
    matches = set(glob.glob(pattern, recursive=True))  # a set: ** finds a file once for each of its parents
    files = [Path(path).absolute() for path in matches if not Path(path).is_dir()]
    while root.name.endswith((".tar", *COMPRESSED)) or glob.has_magic(str(root)):
        root = root.parent
    return root, files


def items_of_tars(tars: list[tuple[str, Path]], license_of: LicenseOf) -> Iterator[Item]:
    """The samples of every tar, each under an id of its own.

    `license_of`: from what a sample states ("" for nothing) to a code. One line in the log says which samples
    and members are no items.
    """
    skipped: Counter[str] = Counter()
    names = {name for name, _ in tars}
    for name, path in tars:  # one at a time: the members of a tar are held in memory
        for item in _items_of_one(name, path, license_of, skipped):
            yield _apart(item, name, names)
    if +skipped:
        log.info("%d samples of the tars are skipped: %s", skipped.total(), listing(skipped))


def _apart(item: Item, name: str, names: set[str]) -> Item:
    """A sample y/z of the tar x is not the sample z of a tar x/y, which would have the same id."""
    folders = item.id[len(name) + 1 :].split("/")[:-1]
    prefixes = {"/".join([name, *folders[: depth + 1]]) for depth in range(len(folders))}
    return replace(item, id=f"{name}.tar{item.id[len(name) :]}") if prefixes & names else item


def _items_of_one(name: str, path: Path, license_of: LicenseOf, skipped: Counter[str]) -> Iterator[Item]:
    try:
        # to its end before the first sample: a tar cut on a block boundary would lose samples silently
        members = _read(path)
    except UNREADABLE as error:
        cause = f"{type(error).__name__}: {error}"
        # short, in storable letters: it becomes a row, and may quote the tar
        why = storable(f"cannot be read as a tar ({cause}); fetch it again or take it away")[:300]
        log.warning("%s: %s", path, why)
        yield Item("webdataset", name, str(path), license_of(""), meta={"tar": {}, "damage": why})
        return
    if members.repeated:
        skipped["members whose name came before"] += members.repeated
    for key, files in members.groups.items():
        for sample, choice in _samples(key, files, skipped):
            metadata = members.metadata_of(sample, key)
            yield Item(
                source="webdataset",
                id=f"{name}/{sample}",
                url=str(path),
                license=license_of(metadata.license),
                channel=metadata.channel,
                title=metadata.title,
                meta={**metadata.extra, "tar": _members(choice)},
            )


def _members(choice: Choice) -> dict[str, Member]:
    members = {"picture": _member(choice.picture)}
    if choice.sound:
        members["sound"] = _member(choice.sound)
    return members


def _member(file: File) -> Member:
    return {"offset": file.offset, "size": file.size, "suffix": file.suffix}


def _samples(key: str, files: list[File], skipped: Counter[str]) -> Iterator[tuple[str, Choice]]:
    """(key, what it consists of) of the samples among members that share the name up to the first dot.

    That is one sample, as WebDataset has it, unless members with more dots make samples of their own: of
    a_1.500.mp4, a_1.500.json and a_1.700.mp4 each mp4 is one. What remains belongs together by its longest
    common stem.
    """
    by_stem: dict[str, list[File]] = {}
    for file in files:
        by_stem.setdefault(untagged(file.stem), []).append(file)
    unused: list[File] = []
    num_samples = 0
    while by_stem:
        # the most dots first: what makes no sample by itself moves up to the next shorter stem
        stem = max(by_stem, key=lambda stem: (stem.count("."), stem))
        group = by_stem.pop(stem)
        samples = _named(choose(group), stem)
        if samples:
            yield from samples.items()
            num_samples += len(samples)
            used = set(itertools.chain.from_iterable(choice.files for choice in samples.values()))
            unused += [file for file in group if file not in used]
        elif len(stem) > len(key):
            shorter = stem.rpartition(".")[0]
            by_stem.setdefault(shorter, []).extend(replace(file, stem=shorter) for file in group)
        else:
            unused += group
    if not num_samples:
        skipped[f"without a video or a picture and a sound ({_suffixes(unused)})"] += 1
    elif any(file.suffix in MEDIA_SUFFIXES for file in unused):
        skipped[f"more media of samples that have theirs ({_suffixes(unused)})"] += 1


def _named(choices: list[Choice], stem: str) -> dict[str, Choice]:
    """By key: a pair has that of its stem; a stream that makes no pair is a sample of its own."""
    named: dict[str, Choice] = {}
    for choice in choices:
        named.setdefault(choice.picture.stem if choice.sound is None else stem, choice)
    return named


def _suffixes(files: list[File]) -> str:
    return " ".join(sorted({file.suffix for file in files}))[:80]


class _Members:
    """What a tar holds: members by the name up to the first dot, and what their JSON and captions state."""

    def __init__(self) -> None:
        self.groups: dict[str, list[File]] = {}
        self.metadata: dict[str, Metadata] = {}  # by name up to the suffix
        self.names: set[str] = set()
        self.repeated = 0

    def add(self, tar: Any, path: Path, member: Any) -> None:
        """A regular member. Of two of one name the first counts."""
        name = storable(member.name).lstrip("/")
        folder, _, base = name.rpartition("/")
        first = base.partition(".")[0]
        if not first:  # a hidden file: WebDataset gives it no key
            return
        stem, suffix = _split(name)
        if stem + suffix in self.names:
            self.repeated += 1
            return
        self.names.add(stem + suffix)
        key = f"{folder}/{first}".lstrip("/")
        self.groups.setdefault(key, []).append(File(stem, suffix, path, member.offset_data, member.size))
        if suffix in SIDECARS and member.size < (MAX_INFO_BYTES if suffix == INFO else MAX_JSON_BYTES):
            self._add_sidecar(stem, suffix, tar.extractfile(member).read())

    def _add_sidecar(self, stem: str, suffix: str, data: bytes) -> None:
        stated = _stated(data, suffix)
        earlier = self.metadata.get(stem, Metadata())
        # x.json was written for this dataset, so it goes before the site's x.info.json
        self.metadata[stem] = merged(stated, earlier) if suffix == JSON else merged(earlier, stated)

    def metadata_of(self, sample: str, key: str) -> Metadata:
        """What is stated of a sample, else of all that share its name up to the first dot."""
        return self.metadata.get(sample) or self.metadata.get(key) or Metadata()


def _split(name: str) -> tuple[str, str]:
    """The name up to its suffix, and that in lower case; `.info.json` is one suffix."""
    if name.lower().endswith(INFO) and len(name) > len(INFO):
        return name[: -len(INFO)], INFO
    stem, dot, suffix = name.rpartition(".")
    return (stem, f".{suffix.lower()}") if dot and "/" not in suffix else (name, "")


def _stated(data: bytes, suffix: str) -> Metadata:
    if suffix == CAPTION:
        caption = caption_of(data)
        return Metadata(extra={"caption": caption} if caption else {})
    return read_metadata(data, is_info=suffix == INFO)


def _read(path: Path) -> _Members:
    """All members of a tar. One of `UNREADABLE` where it is damaged, cut or hostile."""
    members = _Members()
    size = path.stat().st_size
    last_offset = -1
    with tarfile.open(path, "r:", tarinfo=_Bounded) as tar:
        for index, member in enumerate(iter(tar.next, None)):
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
            _check_place(member, last_offset, size)
            if index >= MAX_MEMBERS or len(member.name) > MAX_NAME:
                limits = f"more than {MAX_MEMBERS} members, or a name of more than {MAX_NAME} letters"
                raise tarfile.ReadError(limits)
            last_offset = member.offset
            if member.isreg():
                members.add(tar, path, member)
        _check_end(tar)
    return members


def _check_place(member: tarfile.TarInfo, last_offset: int, size: int) -> None:
    """`ReadError` for a member that goes backwards, where tarfile would loop, or beyond the file's `size`."""
    end = member.offset_data + (member.size if member.isreg() else 0)
    if member.offset <= last_offset or member.size < 0 or end > size:
        raise tarfile.ReadError("a member that lies outside of the file")


def _check_end(tar: Any) -> None:
    """`ReadError` for a tar cut between two members, or with more behind its end.

    tarfile takes a damaged header for the end.
    """
    tar.fileobj.seek(tar.offset)  # where tarfile stopped, whether it met the end or took damage for it
    tail = tar.fileobj.read(END_BYTES)
    if len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end mark: it was cut")
    if tail.strip(b"\0"):
        raise tarfile.ReadError("bytes behind the end mark")


class _Bounded(tarfile.TarInfo):
    """A member whose headers are short and plain: checked before tarfile parses them."""

    def _proc_member(self, tar: tarfile.TarFile) -> Any:  # the entry point that tarfile names for subclasses
        if self.type in EXTENDED:
            if not 0 <= self.size <= MAX_HEADER_BYTES or len(tar.pax_headers) > MAX_GLOBAL_HEADERS:
                limits = f"a header of {self.size} bytes, or more than {MAX_GLOBAL_HEADERS} for all members"
                raise tarfile.ReadError(limits)
            file: Any = tar.fileobj
            text = file.read(self.size)
            file.seek(-len(text), os.SEEK_CUR)
            if self.type not in LONG_NAMES:
                _check_records(text)
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(SPARSE)
        return super()._proc_member(tar)  # type: ignore[misc]


def _check_records(text: bytes) -> None:
    """`ReadError` unless it is `length key=value` lines (POSIX pax).

    Of others, tarfile makes thousands of long keys or never comes to an end.
    """
    if text.count(b"\n") > MAX_RECORDS:
        raise tarfile.ReadError(f"a header of more than {MAX_RECORDS} facts")
    start = 0
    while start < len(text):
        record = re.match(rb"(\d{1,5}) ([^=\n]{1,200})=", text[start : start + 210])
        end = start + int(record[1]) if record else start
        if not record or start + record.end() >= end or text[end - 1 : end] != b"\n":
            raise tarfile.ReadError("a header that is no list of facts")
        if record[2].startswith(b"GNU.sparse"):
            raise tarfile.ReadError(SPARSE)
        start = end
    if re.search(rb"\d{1000}", text):  # int() of it would take long, and Python refuses 4,300 digits
        raise tarfile.ReadError("a number without end")
