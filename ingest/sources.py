"""What there is to fetch: a folder, a list of URLs, other people's WebDataset tars, YouTube, iNaturalist -> items.

`enumerate_items(config, …)` yields plain `Item`s in a fixed order; no media is fetched or decoded here. Ids are stable: the
path below the folder, the URL or the list's own id, the tar's name and the sample's key. The license of an item is the
row's own, else the operator's statement `source.license`; a code that is not in the vocabulary becomes `unknown`. YouTube
and iNaturalist have modules of their own, and no such statement: their media say it themselves.
"""

import csv
import glob
import itertools
import json
import math
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.scratch import scratch_folder
from cluster.storage import open_store
from configs.load import UserError, operational
from ingest.fetch import FetchConfig
from ingest.inaturalist import InaturalistConfig, enumerate_inaturalist
from ingest.sample import LICENSES, Item, storable, without_tokens
from ingest.youtube import MARKS, YoutubeConfig, enumerate_youtube

KINDS = ("folder", "urls", "webdataset", "youtube", "inaturalist")
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".ogv", ".avi", ".flv", ".wmv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"}
)
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of a pair, the first that is there
SOUND_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")
MAX_FACTS = 50  # of a sample in somebody's tar
COLUMNS = ("url", "id", "title", "license", "sound_url", "channel")


@dataclass
class SourceConfig:
    """Where items come from. `path`: a folder, a list (.txt, .csv, .parquet), a folder or glob of .tar files; or what
    `ingest.youtube` and `ingest.inaturalist` take. Of the two sections, the one of the kind in use counts.
    """

    path: str = operational()  # another place or a longer list only adds items
    kind: str = "folder"
    license: str = ""  # your statement about all of it; a row's own license goes first
    youtube: YoutubeConfig = operational(YoutubeConfig)
    inaturalist: InaturalistConfig = operational(InaturalistConfig)


def enumerate_items(config: SourceConfig, network: FetchConfig | None = None, output: str = "") -> Iterator[Item]:
    """The items of a source. `UserError` at once for settings that cannot work, a path that is not there, a broken list.

    YouTube and iNaturalist are asked through `network`; pages of iNaturalist's API are kept in `output`, where there is one.
    """
    if config.kind not in KINDS:
        raise UserError(f"source.kind={config.kind}: give one of {', '.join(KINDS)}")
    if config.license == "unknown" or (config.license and config.license not in LICENSES):
        known = ", ".join(code for code in LICENSES if code != "unknown")
        raise UserError(f"source.license={config.license}: give one of {known}")
    if config.kind in ("youtube", "inaturalist"):
        return _from_site(config, network or FetchConfig(), output)
    if config.kind == "folder":
        return _from_folder(config)
    return _from_list(config) if config.kind == "urls" else _from_tars(config)


def _from_site(config: SourceConfig, network: FetchConfig, output: str) -> Iterator[Item]:
    """All items of a site; listed at once, by a fetch process that ends with the list."""
    if config.license:
        more = "; vouch for channels with source.youtube.vouched_channels" if config.kind == "youtube" else ""
        raise UserError(f"source.license={config.license}: the media of {config.kind} state their own{more}; leave it out")
    with scratch_folder("list") as spool:
        if config.kind == "youtube":
            return iter(list(enumerate_youtube(config.path, config.youtube, network, Path(spool))))
        store = open_store(output) if output else None
        return iter(list(enumerate_inaturalist(config.path, config.inaturalist, network, Path(spool), store)))


def _from_folder(config: SourceConfig) -> Iterator[Item]:
    """Videos, and pictures with a sound of the same stem beside them; hidden files are passed over."""
    root = Path(config.path)
    if not root.is_dir():
        raise UserError(f"source.path={config.path}: no such folder")
    if not config.license:
        raise UserError("source.license: say under which license the files of the folder are, such as own or CC-BY-4.0")
    stems: dict[str, list[Path]] = {}
    for path in sorted(root.resolve().rglob("*")):
        name = path.relative_to(root.resolve())
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            stems.setdefault(_text(name.with_suffix("")), []).append(path)
    return _folder_items(stems, config.license)


def _folder_items(stems: dict[str, list[Path]], license: str) -> Iterator[Item]:
    for stem, paths in sorted(stems.items()):
        found = [(path, "") for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
        picture, sound = _first(paths, PICTURE_SUFFIXES), _first(paths, SOUND_SUFFIXES)
        if picture and sound:
            found.append((picture, str(sound)))
        for path, sound_url in found:
            # always with its suffix: a file's id must not depend on which others are there
            yield Item("folder", stem + path.suffix, str(path), license, sound_url, title=PurePosixPath(stem).name)


def _first(paths: list[Path], suffixes: tuple[str, ...]) -> Path | None:
    ranked = [path for suffix in suffixes for path in paths if path.suffix.lower() == suffix]
    return ranked[0] if ranked else None


def _text(path: Path) -> str:
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None
    return path.as_posix()


def _from_list(config: SourceConfig) -> Iterator[Item]:
    """A row per URL. Columns other than those of an item travel in its `meta`."""
    path = Path(config.path)
    if not path.is_file():
        raise UserError(f"source.path={config.path}: no such file; give a .txt, .csv or .parquet list of URLs")
    items = []
    for number, row in _rows(path):
        url = str(row.get("url") or "").strip()
        if not url:
            raise UserError(f"{config.path}: row {number} has no url")
        told = {name: str(row.get(name) or "").strip() for name in COLUMNS}
        meta = {str(name): _plain(value) for name, value in row.items() if name and name not in COLUMNS and value not in (None, "")}
        license = _license(told["license"], config.license)
        items.append(
            Item(
                "urls", told["id"] or without_tokens(url, apart=True), url, license, told["sound_url"], told["channel"], told["title"], meta
            )
        )
    return iter(items)


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """(row number as a person counts, columns) of a list. `UserError` for one that cannot be read."""
    kind = path.suffix.lower()
    if kind not in (".txt", ".csv", ".parquet"):
        raise UserError(f"source.path={path}: give a .txt, .csv or .parquet list of URLs")
    try:
        if kind == ".parquet":
            rows = list(enumerate(pq.read_table(path).to_pylist(), 1))
        elif kind == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                rows = [(reader.line_num, row) for row in reader]
        else:
            lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
            rows = [(number, {"url": line.strip()}) for number, line in lines if line.strip() and not line.strip().startswith("#")]
    except (pa.ArrowException, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as {kind[1:]}: {error}") from error
    if rows and "url" not in rows[0][1]:
        raise UserError(f"{path}: no column url; it has {', '.join(map(str, rows[0][1]))}")
    return rows


def _from_tars(config: SourceConfig) -> Iterator[Item]:
    """Every sample of every tar that has a video, or a picture and a sound."""
    if os.path.isdir(config.path):
        found = sorted(path for path in Path(config.path).resolve().rglob("*.tar"))
    else:
        found = sorted({Path(path).resolve() for path in glob.glob(config.path, recursive=True) if path.endswith(".tar")})
    if not found:
        raise UserError(f"source.path={config.path}: no .tar files there")
    root = Path(os.path.commonpath([path.parent for path in found]))
    return (item for path in found for item in _tar_items(path, _text(path.relative_to(root).with_suffix("")), config.license))


def _tar_items(path: Path, name: str, stated: str) -> Iterator[Item]:
    """Samples of one tar; members of a sample share the name up to the first dot, as WebDataset has it."""
    samples: dict[str, dict[str, dict[str, Any]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, base = storable(member.name).rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isreg() or member.issparse() or not stem:
                    continue
                key, suffix = f"{folder}/{stem}".lstrip("/"), f".{extension.lower()}"
                samples.setdefault(key, {}).setdefault(suffix, {"offset": member.offset_data, "size": member.size, "suffix": suffix})
                if suffix == ".json" and member.size < 1 << 20:
                    facts[key] = _facts(tar.extractfile(member))
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path}: cannot be read as a tar ({error}); fetch it again or take it away") from error
    for key, members in samples.items():
        roles = _roles(members)
        if roles:
            license, channel, title, meta = _told(facts.get(key, {}))
            yield Item("webdataset", f"{name}/{key}", str(path), _license(license, stated), "", channel, title, {**meta, "tar": roles})


def _told(facts: dict[str, Any]) -> tuple[str, str, str, dict[str, Any]]:
    """License, channel, title and other plain facts in a sample's JSON; also where video2dataset puts those of YouTube."""
    nested = facts.get("yt_meta_dict")
    info = (nested.get("info") if isinstance(nested, dict) else None) or {}
    info = info if isinstance(info, dict) else {}
    mark = str(info.get("license") or "")
    license = str(facts.get("license") or (MARKS.get(mark, "unknown") if mark else ""))
    channel = facts.get("channel") or info.get("channel_id") or ""
    title = facts.get("title") or info.get("title") or facts.get("caption") or ""
    plain = {storable(str(name))[:100]: value for name, value in facts.items() if name not in COLUMNS or name == "url"}
    meta = {name: storable(value)[:1000] if isinstance(value, str) else value for name, value in plain.items() if _is_plain(value)}
    return license, storable(str(channel)), storable(str(title)), dict(itertools.islice(meta.items(), MAX_FACTS))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _roles(members: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """{"picture": member} for a video, {"picture", "sound"} for a pair, else {}."""
    video = next((suffix for suffix in sorted(members) if suffix in VIDEO_SUFFIXES), None)
    if video:
        return {"picture": members[video]}
    picture = next((suffix for suffix in PICTURE_SUFFIXES if suffix in members), None)
    sound = next((suffix for suffix in SOUND_SUFFIXES if suffix in members), None)
    return {"picture": members[picture], "sound": members[sound]} if picture and sound else {}


def _facts(file: Any) -> dict[str, Any]:
    try:
        facts = json.loads(file.read())
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _license(own: str, stated: str) -> str:
    """A row's own license if it names one, else the operator's statement; `unknown` for codes outside the vocabulary."""
    return (own if own in LICENSES else "unknown") if own else stated


def _plain(value: Any) -> Any:
    """A value that JSON can hold."""
    return value if isinstance(value, (bool, int, str)) or (isinstance(value, float) and value == value) else str(value)
