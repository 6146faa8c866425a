"""Croissant 1.1 metadata of a dataset of clips: what files there are, what is in them, where they come from,
how to use them.

    Path("croissant.json").write_text(croissant_text(dataset, survey(dataset), inside=True))

With the vocabulary for responsible AI (rai:) and provenance (prov:). It names every committed shard and index
with its sha256; of more than `MAX_FILES` units, patterns of names stand for them. Addresses are relative
where the file is in the dataset. Keys of samples, titles and authors are not in it: nothing has to be taken
out of it after a removal, but it names the shards of its day. Write it again with the report.
"""

import datetime
import itertools
import json
from importlib.metadata import version
from typing import NamedTuple

from cluster.dataset import Commit, Dataset, Part
from cluster.jsonl import JsonObject
from ingest.licenses import url_of
from ingest.pages.card import CHANGES, plain
from ingest.pages.survey import Survey

TAR = "application/x-tar"
PARQUET = "application/x-parquet"
VERSIONS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
# the terms of Croissant; mlcroissant warns of a context that is not exactly the standard one
TERMS = (
    "arrayShape citeAs column containedIn equivalentProperty extract field fileObject fileProperty fileSet"
    " format includes isArray isLiveDataset jsonPath key md5 parentField path recordSet references regex"
    " repeated replace samplingRate separator source subField transform".split()
)
CONTEXT: JsonObject = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    **{term: f"cr:{term}" for term in TERMS},
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


class MemberKind(NamedTuple):
    """A kind of file in the shards: its record set, what is in it, and how."""

    record_set: str
    data_type: str
    description: str
    mime: str


# data type and description of each column of the index
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
    "flac": MemberKind("audio", "sc:AudioObject", "The sound: mono, 16 bit.", "audio/flac"),
    "jpg": MemberKind("image", "sc:ImageObject", "The frame on screen at the clip's middle.", "image/jpeg"),
    "json": MemberKind(
        "facts",
        "sc:Text",
        "Where the sample is from, its permission, scores and tools, as JSON.",
        "application/json",
    ),
}


def croissant_text(dataset: Dataset, numbers: Survey, inside: bool) -> str:
    """The JSON-LD document.

    `inside`: it is written into the dataset's folder, so that file addresses are relative to it.
    """
    # one more than may be named shows that there are too many, without reading all
    commits = list(itertools.islice(dataset.iter_commits(), MAX_FILES + 1))
    base = "" if inside else f"{dataset.uri.rstrip('/')}/"
    name = plain(dataset.uri.rstrip("/").split("/")[-1])
    document = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{numbers.kept:,} pairs of a picture and the sound of its place, "
        f"cut from {numbers.used:,} media.",
        "conformsTo": VERSIONS,
        "license": [url_of(code) or code for code in sorted(numbers.licenses)] or ["unknown"],
        "datePublished": datetime.date.today().isoformat(),
        "version": "1.0.0",
        "citeAs": f"{name}, a Stillsound dataset with the semantic hash {dataset.meta['semantic_hash'][:16]}",
        "isLiveDataset": True,  # what is withdrawn is taken down
        "keywords": ["image-to-audio", "WebDataset", *sorted(numbers.sources)],
        **({"url": dataset.uri} if dataset.uri.startswith(("http://", "https://", "s3://")) else {}),
        **_responsible_ai(dataset, numbers),
        **_provenance(dataset, numbers),
        "distribution": _files(commits, base),
        "recordSet": [_rows(), *(_members(suffix) for suffix in MEMBERS)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False)


def _files(commits: list[Commit], base: str) -> list[JsonObject]:
    """Every tar and index with its sha256, and sets of them; of too many units the sets alone, by pattern."""
    files: list[JsonObject] = []
    tars: list[JsonObject] = []  # what the members are in, by id
    if len(commits) > MAX_FILES:
        tars.append({"@id": "shards"})
        files.append(_file_set("shards", TAR, [f"{base}shards/*.tar"]))
        index_names = [f"{base}index/*.parquet"]
    else:
        for commit in commits:
            if commit.tar:
                tars.append({"@id": commit.tar.name})
                files.append(_file_object(commit.tar, TAR, base))
            files.append(_file_object(commit.index, PARQUET, base))
        index_names = [f"{base}{commit.index.name}" for commit in commits]
    files.append(_file_set("indexes", PARQUET, index_names))
    # a dataset without a kept sample has no members
    if tars:
        files += [_file_set(suffix, kind.mime, [f"*.{suffix}"], tars) for suffix, kind in MEMBERS.items()]
    return files


def _file_object(part: Part, mime: str, base: str) -> JsonObject:
    return {
        "@type": "cr:FileObject",
        "@id": part.name,
        "name": part.name,
        "contentUrl": base + part.name,
        "contentSize": f"{part.size} B",
        "encodingFormat": mime,
        "sha256": part.sha256,
    }


def _file_set(
    name: str, mime: str, includes: list[str], within: list[JsonObject] | None = None
) -> JsonObject:
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        **({"containedIn": within} if within else {}),
        "encodingFormat": mime,
        "includes": includes,
    }


def _rows() -> JsonObject:
    """The record set of the indexes."""
    fields = []
    for column, (data_type, description) in COLUMNS.items():
        source = {"fileSet": {"@id": "indexes"}, "extract": {"column": column}}
        fields.append(_field(f"rows/{column}", data_type, description, source))
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "description": "A row per sample and per refused item. Keys in tombstones/ were removed later.",
        "field": fields,
    }


def _members(suffix: str) -> JsonObject:
    """A record set of one kind of member: its key, which is that of `rows`, and its content."""
    kind = MEMBERS[suffix]
    name = kind.record_set
    file_name = {
        "fileSet": {"@id": suffix},
        "extract": {"fileProperty": "filename"},
        "transform": {"regex": rf"^(.*)\.{suffix}$"},
    }
    file_content = {"fileSet": {"@id": suffix}, "extract": {"fileProperty": "content"}}
    key = _field(f"{name}/key", "sc:Text", "Key of the sample.", file_name)
    # so that members can be joined with their rows
    key["references"] = {"field": {"@id": "rows/key"}}
    content = _field(f"{name}/content", kind.data_type, kind.description, file_content)
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "description": kind.description,
        "field": [key, content],
    }


def _field(name: str, data_type: str, description: str, source: JsonObject) -> JsonObject:
    return {
        "@type": "cr:Field",
        "@id": name,
        "name": name,
        "description": description,
        "dataType": data_type,
        "source": source,
    }


def _responsible_ai(dataset: Dataset, numbers: Survey) -> JsonObject:
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in numbers.reasons.most_common()) or "nothing"
    sources = ", ".join(f"{name} ({count:,} clips)" for name, count in numbers.sources.most_common())
    permission = "Only media under the licenses that license.allow names were kept."
    if dataset.meta["config"].get("clipping", 1) >= 2:  # older datasets were made before opt-outs were read
        permission += (
            " Opt-outs within the media were obeyed, and for web pages robots.txt, TDMRep, AIPREF and RSL;"
            " each sample says what was found."
        )
    tried = f"Of {numbers.listed:,} listed items {numbers.answered:,} were tried."
    fetched = f"Media of {sources or 'no source yet'} were fetched by `ingest scrape`."
    return {
        "rai:dataCollection": f"{fetched} {permission}",
        "rai:dataCollectionType": ["Web Scraping"] if set(numbers.sources) - {"folder"} else ["Others"],
        "rai:dataCollectionMissingData": f"{tried} Rows refused: {reasons}.",
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


def _provenance(dataset: Dataset, numbers: Survey) -> JsonObject:
    # the libraries that fetched, decoded and wrote the clips
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
        for name, count in sorted(numbers.sources.items())
    ]
    return {"prov:wasGeneratedBy": activity, "prov:wasDerivedFrom": sources}
