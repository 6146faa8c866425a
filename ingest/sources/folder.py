"""A folder of somebody's media -> items: videos, and pictures with a sound of the same stem, with what lies
beside them.

    for path in walk(root, passed_over): ...         every file, linked folders too, each once
    folder_items(root, license)                       the items, and one line that says what was passed over

Beside x.mp4, x.info.json (of yt-dlp) and x.json state license, title and channel, and x.txt is a caption.
Nothing is decoded.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from configs.load import UserError
from ingest.fetch.settings import FetchConfig
from ingest.sample import Item
from ingest.sources.lists import SUFFIXES, checked, pair_items, read_rows
from ingest.sources.metadata import MAX_FACTS_BYTES, MAX_INFO_BYTES, Facts, caption_of, merged, read_facts
from ingest.sources.settings import SourceConfig, license_of
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

INFO, FACTS, CAPTION = ".info.json", ".json", ".txt"
MAX_KINDS = 10  # named in one line
MEDIA_SUFFIXES = frozenset((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES, *SOUND_SUFFIXES))


def walk(root: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """Every file below `root` that is not hidden. `passed_over` counts what is not listed: links in a circle,
    unreadable folders.

    Linked folders come after all others, so that a file's path does not depend on which link is met first.
    """
    seen: set[str] = set()
    links = [root]
    while links:
        link = links.pop(0)
        if link != root and _holds(link, root):
            passed_over["linked folder that holds the folder itself"] += 1
        elif os.path.realpath(link) in seen:
            passed_over["linked folder that is listed already"] += 1
        else:
            yield from _walk_one(link, seen, links, passed_over)


def _holds(link: Path, root: Path) -> bool:
    return Path(os.path.realpath(root)).is_relative_to(os.path.realpath(link))


def _walk_one(top: Path, seen: set[str], links: list[Path], passed_over: Counter[str]) -> Iterator[Path]:
    """The files below `top` but for linked folders, which are appended to `links`."""

    def unreadable(error: OSError) -> None:
        log.warning("%s: cannot be listed: %s", error.filename, error.strerror)
        passed_over["unreadable folder"] += 1

    for parent, folders, names in os.walk(top, onerror=unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        passed_over["hidden folder"] += sum(name.startswith(".") for name in folders)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [Path(parent, name) for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted(names):
            path = Path(parent, name)
            if name.startswith("."):
                passed_over["hidden file"] += path.suffix.lower() in MEDIA_SUFFIXES
            elif path.is_file():
                yield path
            else:
                passed_over["broken link" if path.is_symlink() else "pipe or device"] += 1


def utf8_name(path: Path) -> str:
    """The path as text. `UserError` where its bytes are no UTF-8, which no index can hold."""
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None
    return path.as_posix()


def listing(counts: Counter[str]) -> str:
    """`2 .txt, 1 .rm and 3 more kinds`."""
    counts = +counts
    named = ", ".join(f"{count} {kind}" for kind, count in counts.most_common(MAX_KINDS))
    return f"{named} and {len(counts) - MAX_KINDS} more kinds" if len(counts) > MAX_KINDS else named


def items(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """Videos, and pictures with a sound of the same stem beside them; or what a list in a folder names.

    See `ingest.sources.registry.Source`.
    """
    path = Path(config.path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return _listed_pairs(config, path)
    if not path.is_dir():
        fix = "give one, or a .csv, .parquet or .jsonl list of the files in it"
        raise UserError(f"source.path={config.path}: no such folder; {fix}")
    if not config.license:
        fix = "say under which license the files of the folder are, such as own or CC-BY-4.0"
        raise UserError(f"source.license: {fix}")
    return folder_items(path, config.license, license_of)


def _listed_pairs(config: SourceConfig, path: Path) -> Iterator[Item]:
    first = next(read_rows(path), None)
    if not config.license and first and "license" not in first[1]:
        fix = "add one, or say source.license=own (or another) of all of it"
        raise UserError(f"{path}: no column license; {fix}")
    return checked(path, lambda: pair_items(path, lambda own: license_of(own, config.license)))


def folder_items(root: Path, license: str, stated: Callable[[str, str], str]) -> Iterator[Item]:
    """The items below `root`, in order of their names.

    `stated` turns a sidecar's license and the operator's into a code.
    """
    passed_over: Counter[str] = Counter()
    root = root.resolve()
    stems: dict[str, list[File]] = {}
    sidecars: dict[str, Path] = {}
    for path in walk(root, passed_over):
        name = utf8_name(path.relative_to(root))
        if name.endswith(INFO):
            sidecars[name] = path
            continue
        file = File(name[: len(name) - len(path.suffix)], path.suffix.lower(), path)
        if file.suffix in (FACTS, CAPTION):
            sidecars[file.stem + file.suffix] = path
        else:
            stems.setdefault(untagged(file.stem), []).append(file)
    return _items(stems, sidecars, license, stated, passed_over)


def _items(
    stems: dict[str, list[File]],
    sidecars: dict[str, Path],
    license: str,
    stated: Callable[[str, str], str],
    passed_over: Counter[str],
) -> Iterator[Item]:
    unused: Counter[str] = Counter()
    used_sidecars: set[str] = set()
    for stem, files in sorted(stems.items()):
        chosen = choose(files)
        for choice in chosen:
            facts, read = _beside(choice.picture.stem, stem, sidecars)
            used_sidecars |= read
            yield _item(choice, facts, stated(facts.license, license))
        used = {file for choice in chosen for file in (choice.picture, choice.sound)}
        unused.update(file.suffix or "no suffix" for file in files if file not in used)
    unused.update(Path(name).suffix for name in sidecars if name not in used_sidecars)
    _log_passed_over(unused, passed_over)


def _log_passed_over(unused: Counter[str], others: Counter[str]) -> None:
    """One line, where there is anything to say."""
    others = +others
    if unused:
        more = f"; also passed over: {listing(others)}" if others else ""
        kinds = listing(unused)
        log.info(
            "%d files are neither videos nor pairs of a picture and a sound: %s%s",
            unused.total(),
            kinds,
            more,
        )
    elif others:
        log.info("passed over: %s", listing(others))


def _item(choice: Choice, facts: Facts, license: str) -> Item:
    file = choice.picture
    name = (
        file.stem + file.path.suffix
    )  # always with its suffix: a file's id must not depend on which others are there
    sound_url = str(choice.sound.path) if choice.sound else ""
    title = facts.title or PurePosixPath(untagged(file.stem)).name
    return Item("folder", name, str(file.path), license, sound_url, facts.channel, title, facts.others)


def _beside(stem: str, shared: str, sidecars: dict[str, Path]) -> tuple[Facts, set[str]]:
    """What the files beside one state, and their names.

    `shared`: the stem without the mark of an unmerged stream.
    """
    facts = Facts()
    read = set()
    for name in dict.fromkeys((stem + INFO, shared + INFO, stem + FACTS, shared + FACTS)):
        if name in sidecars:
            info = name.endswith(INFO)
            facts = merged(
                facts, read_facts(_bytes(sidecars[name], MAX_INFO_BYTES if info else MAX_FACTS_BYTES), info)
            )
            read.add(name)
    if shared + CAPTION in sidecars:
        read.add(shared + CAPTION)
        caption = caption_of(_bytes(sidecars[shared + CAPTION], MAX_FACTS_BYTES))
        if caption:
            facts = merged(facts, Facts(others={"caption": caption}))
    return facts, read


def _bytes(path: Path, limit: int) -> bytes:
    """The file, or nothing where it is larger than `limit` or cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        log.warning("%s: cannot be read: %s", path, error.strerror)
        return b""
    if len(data) > limit:
        log.warning("%s: larger than %d bytes; what it states is not used", path, limit)
        return b""
    return data
