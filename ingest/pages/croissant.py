"""Croissant 1.1 metadata of a dataset of clips: what files there are, what is in them, where they come from,
how to use them.

    Path("croissant.json").write_text(croissant_text(dataset, survey(dataset), near=True))

With the vocabulary for responsible AI (rai:) and provenance (prov:). It names every committed shard and index
with its sha256; of more than `MAX_FILES` units, patterns of names stand for them. Addresses are relative
where the file lies in the dataset. Keys of samples, titles and authors are not in it: nothing has to be taken
out of it after a removal, but it names the shards of its day. Write it again with the report.
"""

import datetime
import itertools
import json
from importlib.metadata import version
from typing import Any

from cluster.dataset import Commit, Dataset, Part
from ingest.licenses import url_of
from ingest.pages.card import CHANGES, plain
from ingest.pages.survey import Survey

VERSIONS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{
        word: f"cr:{word}"
        for word in (
            "arrayShape",
            "citeAs",
            "column",
            "containedIn",
            "equivalentProperty",
            "extract",
            "field",
        )
    },
    **{
        word: f"cr:{word}"
        for word in (
            "fileObject",
            "fileProperty",
            "fileSet",
            "format",
            "includes",
            "isArray",
            "isLiveDataset",
        )
    },
    **{
        word: f"cr:{word}"
        for word in ("jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex")
    },
    **{
        word: f"cr:{word}"
        for word in ("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform")
    },
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "prov": "http://www.w3.org/ns/prov#",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "description": {"@container": "@language"},
    "name": {"@container": "@language"},
}
MAX_FILES = 2000  # units whose files are named one by one
COLUMNS = {
    "key": (
        "sc:Text",
        "Name of the sample, that of its members in the tar up to the dot; none for items that gave no clip.",
    ),
    "status": ("sc:Text", "kept or refused."),
    "reason": ("sc:Text", "Why it was refused."),
    "source": ("sc:Text", "Kind of source."),
    "media_id": ("sc:Text", "The medium within its source."),
    "url": ("sc:URL", "Where the medium was found."),
    "license": ("sc:Text", "License code of the medium."),
    "channel": ("sc:Text", "Who published it."),
    "title": ("sc:Text", "Its title."),
    "split": ("sc:Text", "train, validation or test: by medium, never by clip."),
    "start_s": ("sc:Float", "Where the clip begins in its medium, in seconds."),
    "duration_s": ("sc:Float", "Its length in seconds."),
}
MEMBERS = {
    "flac": ("audio", "sc:AudioObject", "The sound: mono, 16 bit.", "audio/flac"),
    "jpg": ("image", "sc:ImageObject", "The frame on screen at the clip's middle.", "image/jpeg"),
    "json": (
        "facts",
        "sc:Text",
        "Where the sample is from, its permission, scores and tools, as JSON.",
        "application/json",
    ),
}


def croissant_text(dataset: Dataset, found: Survey, near: bool) -> str:
    """The JSON-LD document.

    `near`: it lies in the dataset's folder, so that file addresses are relative to it.
    """
    commits = list(itertools.islice(dataset.iter_commits(), MAX_FILES + 1))
    base = "" if near else f"{dataset.uri.rstrip('/')}/"
    name = plain(dataset.uri.rstrip("/").split("/")[-1])
    about = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{found.kept:,} pairs of a picture and the sound of its place, "
        f"cut from {found.used:,} media.",
        "conformsTo": VERSIONS,
        "license": [url_of(code) or code for code in sorted(found.licenses)] or ["unknown"],
        "datePublished": datetime.date.today().isoformat(),
        "version": "1.0.0",
        "citeAs": f"{name}, a Stillsound dataset with the semantic hash {dataset.meta['semantic_hash'][:16]}",
        "isLiveDataset": True,  # what is withdrawn is taken down
        "keywords": ["image-to-audio", "WebDataset", *sorted(found.sources)],
        **({"url": dataset.uri} if dataset.uri.startswith(("http://", "https://", "s3://")) else {}),
        **_responsible_ai(dataset, found),
        **_provenance(dataset, found),
        "distribution": _files(commits, base),
        "recordSet": [_rows(), *(_members(suffix) for suffix in MEMBERS)],
    }
    return json.dumps(about, indent=1, ensure_ascii=False)


def _files(commits: list[Commit], base: str) -> list[dict[str, Any]]:
    """Every tar and index with its sha256, and sets of them; of too many units the sets alone, by pattern."""
    if len(commits) > MAX_FILES:
        tars: list[dict[str, Any]] = [{"@id": "shards"}]
        files: list[dict[str, Any]] = [_set("shards", "application/x-tar", [f"{base}shards/*.tar"])]
        names = [f"{base}index/*.parquet"]
    else:
        parts = [
            (part, kind)
            for commit in commits
            for part, kind in ((commit.tar, "x-tar"), (commit.index, "x-parquet"))
            if part
        ]
        files = [_file(part, f"application/{kind}", base) for part, kind in parts]
        tars = [{"@id": part.name} for part, kind in parts if kind == "x-tar"]
        names = [f"{base}{commit.index.name}" for commit in commits]
    inside = [_set(suffix, MEMBERS[suffix][3], [f"*.{suffix}"], tars) for suffix in MEMBERS] if tars else []
    return [*files, _set("indexes", "application/x-parquet", names), *inside]


def _file(part: Part, kind: str, base: str) -> dict[str, Any]:
    fields = {
        "contentUrl": base + part.name,
        "contentSize": f"{part.size} B",
        "encodingFormat": kind,
        "sha256": part.sha256,
    }
    return {"@type": "cr:FileObject", "@id": part.name, "name": part.name, **fields}


def _set(
    name: str, kind: str, includes: list[str], within: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    place = {"containedIn": within} if within else {}
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        **place,
        "encodingFormat": kind,
        "includes": includes,
    }


def _rows() -> dict[str, Any]:
    fields = [
        _field(f"rows/{name}", kind, about, {"fileSet": {"@id": "indexes"}, "extract": {"column": name}})
        for name, (kind, about) in COLUMNS.items()
    ]
    about = "A row per sample and per refused item. Keys in tombstones/ were removed later."
    return {"@type": "cr:RecordSet", "@id": "rows", "name": "rows", "description": about, "field": fields}


def _members(suffix: str) -> dict[str, Any]:
    """A record set of one kind of member: its key, which is that of `rows`, and its content."""
    name, kind, about, _ = MEMBERS[suffix]
    by_name = {"extract": {"fileProperty": "filename"}, "transform": {"regex": rf"^(.*)\.{suffix}$"}}
    key = _field(f"{name}/key", "sc:Text", "Key of the sample.", {"fileSet": {"@id": suffix}, **by_name})
    content = _field(
        f"{name}/content", kind, about, {"fileSet": {"@id": suffix}, "extract": {"fileProperty": "content"}}
    )
    key["references"] = {"field": {"@id": "rows/key"}}
    return {"@type": "cr:RecordSet", "@id": name, "name": name, "description": about, "field": [key, content]}


def _field(name: str, kind: str, about: str, source: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": about,
        "dataType": kind,
        "source": source,
    }


def _responsible_ai(dataset: Dataset, found: Survey) -> dict[str, Any]:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found.reasons.most_common()) or "nothing"
    sources = ", ".join(f"{name} ({count:,} clips)" for name, count in found.sources.most_common())
    permission = "Only media under the licenses that license.allow names were kept."
    if dataset.meta["config"].get("clipping", 1) >= 2:  # older datasets were made before opt-outs were read
        permission += (
            " Opt-outs within the media were obeyed, and for web pages robots.txt, TDMRep, AIPREF and RSL;"
            " each sample says what was found."
        )
    refused = f"Rows refused: {reasons}."
    return {
        "rai:dataCollection": f"Media of {sources or 'no source yet'} were fetched by `ingest scrape`. "
        f"{permission}",
        "rai:dataCollectionType": ["Web Scraping"] if set(found.sources) - {"folder"} else ["Others"],
        "rai:dataCollectionMissingData": f"Of {found.listed:,} listed items {found.answered:,} were tried. "
        f"{refused}",
        "rai:dataPreprocessingProtocol": [
            f"Media were {CHANGES}.",
            "Silent, clipped, blank and blurred clips were refused by signal measures.",
        ],
        "rai:dataBiases": "What is published under free licenses, and more by those who publish much; "
        "no balance of places or kinds.",
        "rai:dataLimitations": "Licenses are those that the sources state; they were not checked further.",
        "rai:personalSensitiveInformation": [
            "Speech, persons and places may occur; they were neither looked for nor taken out."
        ],
        "rai:dataUseCases": ["Training and evaluation of models that make sound from pictures."],
        "rai:dataReleaseMaintenancePlan": "Withdrawn media are taken down by `ingest refresh` and "
        "`ingest remove`, down to the latents.",
    }


def _provenance(dataset: Dataset, found: Survey) -> dict[str, Any]:
    tools = ("av", "yt-dlp", "pillow", "soundfile")
    agents = [{"@type": "prov:SoftwareAgent", "name": f"{tool} {version(tool)}"} for tool in tools]
    activity = {
        "@type": "prov:Activity",
        "name": "ingest scrape",
        "description": json.dumps(dataset.meta["config"], sort_keys=True),
        "prov:wasAssociatedWith": [{"@type": "prov:SoftwareAgent", "name": "Stillsound"}, *agents],
    }
    sources = [
        {"@type": "prov:Entity", "name": name, "description": f"{count:,} clips"}
        for name, count in sorted(found.sources.items())
    ]
    return {"prov:wasGeneratedBy": activity, "prov:wasDerivedFrom": sources}
