"""A folder of media, or a list of the files in one -> items: videos, and pictures with a sound of their stem.

    for path in walk(root, skipped): ...       every file, also in linked folders, each once
    folder_items(root, license_of)             the items, and one line about the files that are none

Beside x.mp4, the sidecars x.info.json (of yt-dlp) and x.json state license, title and channel; x.txt is a
caption. Nothing is decoded.
"""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.lists import SUFFIXES, LicenseOf, checked, pair_items, read_rows
from ingest.sources.metadata import (
    MAX_INFO_BYTES,
    MAX_JSON_BYTES,
    Metadata,
    caption_of,
    merged,
    read_metadata,
)
from ingest.sources.settings import SourceConfig
from ingest.sources.suffixes import (
    PICTURE_SUFFIXES,
    SOUND_SUFFIXES,
    VIDEO_SUFFIXES,
    Choice,
    File,
    choose,
    untagged,
)

log = logging.getLogger(__name__)

INFO = ".info.json"  # written by yt-dlp --write-info-json
JSON = ".json"
CAPTION = ".txt"
MAX_KINDS = 10  # named in one line of the log
MEDIA_SUFFIXES = frozenset((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES, *SOUND_SUFFIXES))


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Videos and pairs below a folder, or what a list in a folder names: see `ingest.sources.registry`."""
    path = Path(config.path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _listed_files(config, path)
    if not path.is_dir():
        advice = "give one, or a .csv, .parquet or .jsonl list of the files in it"
        raise UserError(f"source.path={config.path}: no such folder; {advice}")
    if not config.license:
        advice = "say under which license the files of the folder are, such as own or CC-BY-4.0"
        raise UserError(f"source.license: {advice}")
    return folder_items(path, config.license_of)


def _listed_files(config: SourceConfig, path: Path) -> Iterator[Item]:
    # the columns of one row: a .jsonl may name other columns in each, and then its rows decide
    first = next(read_rows(path), None)
    if not config.license and first and "license" not in first.columns:
        advice = "add one, or say source.license=own (or another) of all of it"
        raise UserError(f"{path}: no column license; {advice}")
    return checked(path, lambda: pair_items(path, config.license_of))


def walk(root: Path, skipped: Counter[str]) -> Iterator[Path]:
    """Every file below `root` that is not hidden.

    `skipped` counts what is not listed: hidden and unreadable folders, links in a circle, devices.
    """
    seen: set[str] = set()
    # linked folders come after all others, so that a file's path does not depend on which link is met first
    links = [root]
    while links:
        link = links.pop(0)
        if link != root and _holds(link, root):
            skipped["linked folder that holds the folder itself"] += 1
        elif os.path.realpath(link) in seen:
            skipped["linked folder that is listed already"] += 1
        else:
            yield from _walk_one(link, seen, links, skipped)


def _holds(link: Path, root: Path) -> bool:
    return Path(os.path.realpath(root)).is_relative_to(os.path.realpath(link))


def _walk_one(top: Path, seen: set[str], links: list[Path], skipped: Counter[str]) -> Iterator[Path]:
    """The files below `top` except those of linked folders, which are appended to `links`."""

    def unreadable(error: OSError) -> None:
        log.warning("%s: cannot be listed: %s", error.filename, error.strerror)
        skipped["unreadable folder"] += 1

    for parent, folders, names in os.walk(top, onerror=unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()  # os.walk descends into what is left here
            continue
        seen.add(real)
        skipped["hidden folder"] += sum(name.startswith(".") for name in folders)
        # in place: os.walk descends into what this list holds, in its order
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                # other hidden files (.DS_Store, .gitignore) are nobody's media and not worth a count
                skipped["hidden file"] += path.suffix.lower() in MEDIA_SUFFIXES
            elif path.is_file():
                yield path
            else:
                skipped["broken link" if path.is_symlink() else "pipe or device"] += 1


def utf8_name(path: Path) -> str:
    """The path as text. `UserError` where its bytes are not UTF-8, which no index can hold."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None
    return path.as_posix()


def listing(counts: Counter[str]) -> str:
    """`2 .txt, 1 .rm and 3 more kinds`."""
    counts = +counts  # without zeros
    most = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(MAX_KINDS))
    return f"{most} and {len(counts) - MAX_KINDS} more kinds" if len(counts) > MAX_KINDS else most


def folder_items(root: Path, license_of: LicenseOf) -> Iterator[Item]:
    """The items below `root`, in order of their names.

    `license_of`: from what a sidecar states ("" for nothing) to the code of the item's license.
    """
    skipped: Counter[str] = Counter()
    root = root.resolve()
    # all names before the first item: the files of one stem may be far apart (x.jpg, x-2.jpg, x.wav)
    stems: dict[str, list[File]] = {}
    sidecars: dict[str, Path] = {}
    for path in walk(root, skipped):
        name = utf8_name(path.relative_to(root))
        if name.endswith(INFO):
            sidecars[name] = path
            continue
        file = File(name[: len(name) - len(path.suffix)], path.suffix.lower(), path)
        if file.suffix in (JSON, CAPTION):
            sidecars[file.stem + file.suffix] = path
        else:
            stems.setdefault(untagged(file.stem), []).append(file)
    return _items(stems, sidecars, license_of, skipped)


def _items(
    stems: dict[str, list[File]], sidecars: dict[str, Path], license_of: LicenseOf, skipped: Counter[str]
) -> Iterator[Item]:
    unused: Counter[str] = Counter()
    used_sidecars: set[str] = set()
    for stem, files in sorted(stems.items()):
        chosen = choose(files)
        for choice in chosen:
            metadata, read = _beside(choice.picture.stem, stem, sidecars)
            used_sidecars |= read
            yield _item(choice, metadata, license_of(metadata.license))
        used = set(itertools.chain.from_iterable(choice.files for choice in chosen))
        unused.update(file.suffix or "no suffix" for file in files if file not in used)
    unused.update(Path(name).suffix for name in sidecars if name not in used_sidecars)
    _log_skipped(unused, +skipped)


def _log_skipped(unused: Counter[str], skipped: Counter[str]) -> None:
    """One line, if anything was skipped."""
    if unused:
        more = f"; also skipped: {listing(skipped)}" if skipped else ""
        message = "%d files are neither videos nor pairs of a picture and a sound: %s%s"
        log.info(message, unused.total(), listing(unused), more)
    elif skipped:
        log.info("skipped: %s", listing(skipped))


def _item(choice: Choice, metadata: Metadata, license: str) -> Item:
    picture = choice.picture
    return Item(
        source="folder",
        # always with its suffix: a file's id must not depend on which others are there
        id=picture.stem + picture.path.suffix,
        url=str(picture.path),
        license=license,
        sound_url=str(choice.sound.path) if choice.sound else "",
        channel=metadata.channel,
        title=metadata.title or PurePosixPath(untagged(picture.stem)).name,
        meta=metadata.extra,
    )


def _beside(stem: str, shared: str, sidecars: dict[str, Path]) -> tuple[Metadata, set[str]]:
    """What the sidecars of one stem state, and their names.

    `shared`: the stem without yt-dlp's mark of an unmerged stream.
    """
    metadata = Metadata()
    read = set()
    # the site's own statement goes before a person's, and a stream's own before that of the whole video
    for name in dict.fromkeys((stem + INFO, shared + INFO, stem + JSON, shared + JSON)):
        if name in sidecars:
            metadata = merged(metadata, _read(sidecars[name], is_info=name.endswith(INFO)))
            read.add(name)
    if shared + CAPTION in sidecars:
        read.add(shared + CAPTION)
        caption = caption_of(_bytes(sidecars[shared + CAPTION], MAX_JSON_BYTES))
        if caption:
            metadata = merged(metadata, Metadata(extra={"caption": caption}))
    return metadata, read


def _read(path: Path, is_info: bool) -> Metadata:
    return read_metadata(_bytes(path, MAX_INFO_BYTES if is_info else MAX_JSON_BYTES), is_info)


def _bytes(path: Path, limit: int) -> bytes:
    """The file, or nothing where it is larger than `limit` bytes or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)  # one byte more shows that it is too large
    except OSError as error:
        log.warning("%s: cannot be read: %s", path, error.strerror)
        return b""
    if len(data) > limit:
        log.warning("%s: larger than %d bytes; what it states is not used", path, limit)
        return b""
    return data
