"""The model card: README.md of an exported model, with front matter that hubs read, and its attribution list.

    sources = write_sources(datasets, Path("ATTRIBUTION.csv"))        # who made what it learnt from
    Path("README.md").write_text(card_text(facts))

Everything in it comes from `ModelFacts`: of whatever exported folder they are, the same text comes out. What
is unknown is said to be so. Licenses are `training.weights_license`'s.
"""

import datetime
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cluster.dataset import Commit, Dataset
from cluster.learnt import LearntFrom, PartRecord, commits_of, public_source
from configs.load import UserError
from ingest.licenses import url_of
from ingest.pages.card import credits_of, markdown, write_credits
from training.evaluations import SCORES, evaluations_of, places_of
from training.weights_license import Demand, conflicts

log = logging.getLogger(__name__)
ATTRIBUTION = "ATTRIBUTION.csv"
WEB = re.compile("https?://", re.IGNORECASE)
RUN_IT = """\
import wave
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(".", trust_remote_code=True)
sound = pipe(image="picture.jpg", num_inference_steps=STEPS).audios[0]
with wave.open("sound.wav", "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(pipe.sample_rate_hz)
    file.writeframes((sound * 32767).astype("int16").tobytes())
"""
AUDIOLDM_LINES = (
    "",
    '`AudioLDMPipeline.from_pretrained("audioldm")` loads the same model without remote code. It takes',
    '`prompt_embeds` and `negative_prompt_embeds`, which `pipe.prompt_embeds("picture.jpg")` gives; no text',
    "passes its text encoder.",
)
JUDGES = {
    "timbre": "which of the known timbres it is, by a bank of templates",
    "f0": "its fundamental, within 50 cents of the true one",
    "rate": "its rate of onsets, within 10 % of the true one",
}
# licenses that hubs know, in their spelling; any other is `other` with a name
HUB_LICENSES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0"
    " cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0"
    " cc-by-nc-sa-4.0 artistic-2.0 bsd-2-clause bsd-3-clause etalab-2.0 isc unlicense zlib".split()
)


@dataclass(frozen=True)
class PartFacts:
    """A part: its folder, class, number of parameters and the sha256 of its files as shipped.

    Of a model that others learnt from and that does not ship, `kind` says so, and `parameters` is 0.
    """

    name: str
    kind: str
    parameters: int
    sha256: str
    record: PartRecord


@dataclass
class ModelFacts:
    """What a card says of a model.

    `removed`: by reason, of what was pinned and has been taken down since; None where that could not be seen.
    `sources`: lines of the attribution list; None where there is none. `scores`: of evaluate, if any.
    `duration_s`, `sample_rate_hz`: of a sound. `step`: how far the network was trained, if that is known.
    `vocoder`: what makes its waveforms, as scores name it.
    `steps`: in which it is sampled usually.
    """

    name: str
    duration_s: float
    sample_rate_hz: int
    parts: list[PartFacts]
    datasets: list[LearntFrom]
    license: str
    demands: list[Demand]
    removed: Counter[str] | None = None
    sources: int | None = None
    scores: dict[str, Any] | None = None
    has_audioldm: bool = False
    steps: int = 25
    step: int | None = None
    vocoder: str = ""
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())


def card_text(facts: ModelFacts) -> str:
    """Markdown with YAML front matter."""
    sections = [
        "---",
        _front_matter(facts).to_yaml(),
        "---",
        *_what_it_is(facts),
        *_parts(facts),
        *_learnt(facts),
        *_removed(facts),
        *_license(facts),
        *_scores(facts.scores, facts.vocoder),
        *_limits(facts),
    ]
    return "\n".join(sections) + "\n"


def _front_matter(facts: ModelFacts) -> ModelCardData:
    """What hubs read; they refuse a model-index of other shape, so their own class writes it."""
    code = facts.license.lower()
    is_known = code in HUB_LICENSES
    results = [
        EvalResult(
            task_type="image-to-audio",
            dataset_type="held-out",
            dataset_name="held-out clips whose true sound is known",
            metric_type="accuracy",
            metric_name=f"share of sounds with the right {name}",
            metric_value=shares["generated"],
        )
        for name, shares in (facts.scores or {}).get("scores", {}).items()
        if "generated" in shares
    ]
    return ModelCardData(
        library_name="diffusers",
        tags=["image-to-audio", "audio-generation", "stillsound"],
        base_model=_base_models(facts) or None,
        model_name=facts.name,
        eval_results=results or None,
        license=code if is_known else "other",
        license_name=None if is_known else code.partition(":")[0],
        license_link=None if is_known else "LICENSE",
    )


def _base_models(facts: ModelFacts) -> list[str]:
    """Names on the hub among the sources: hub:owner/name/folder@revision is owner/name there."""
    names: list[str] = []
    for part in facts.parts:
        for source in part.record["sources"]:
            name = "/".join(source.removeprefix("hub:").partition("@")[0].split("/")[:2])
            if source.startswith("hub:") and name not in names:
                names.append(name)
    return names


def _what_it_is(facts: ModelFacts) -> list[str]:
    count = sum(part.parameters for part in facts.parts)
    return [
        f"# {markdown(facts.name)}",
        "",
        f"A picture goes in, {facts.duration_s:g} s of sound at {facts.sample_rate_hz:,} Hz comes out:"
        " the sound of the place.",
        f"{count / 1e6:,.1f} M parameters. In this folder, with the packages of `requirements.txt`:",
        "",
        "```python",
        RUN_IT.rstrip().replace("STEPS", str(facts.steps)),
        "```",
        "",
        "`trust_remote_code=True` runs the file `pipeline.py` of this folder: read it first.",
        *(AUDIOLDM_LINES if facts.has_audioldm else ()),
        "",
    ]


def _parts(facts: ModelFacts) -> list[str]:
    lines = [
        "## Parts",
        "",
        "| part | class | parameters | first weights | their license | sha256 |",
        "| --- | --- | ---: | --- | --- | --- |",
    ]
    for part in facts.parts:
        sources = [markdown(public_source(source)) for source in part.record["sources"]]
        origin = ", made from ".join(sources) or "random"
        license = markdown(part.record["license"])
        lines.append(
            f"| {part.name} | {part.kind} | {part.parameters:,} | {origin} | {license} | `{part.sha256}` |"
        )
    hashed = "sha256 is over the names and bytes of a part's .json and .safetensors files;"
    steps = [f"The network was trained for {facts.step:,} steps."] if facts.step else []
    return [*lines, "", *steps, f"{hashed} `model_index.json` has it, too.", ""]


def _learnt(facts: ModelFacts) -> list[str]:
    """Datasets by snapshot, and samples by license."""
    lines = [
        "## What it was trained on",
        "",
        "| dataset | kind | split | snapshot | samples | parts that learnt from it |",
        "| --- | --- | --- | --- | ---: | --- |",
    ]
    for record in facts.datasets:
        samples = f"{record['samples']:,}" if "samples" in record else "not counted"
        users = ", ".join(users_of(facts.parts, record))
        kind = record["kind"] or "unknown"
        name = markdown(record["name"])
        lines.append(
            f"| {name} | {kind} | {record['split']} | `{record['snapshot'][:16]}` | {samples} | {users} |"
        )
    lines += ["", "| dataset | license | samples | text |", "| --- | --- | ---: | --- |"]
    for record in facts.datasets:
        for code, count in record.get("licenses", {}).items():
            text = f"<{url_of(code)}>" if url_of(code) else "as stated by the operator"
            lines.append(f"| {markdown(record['name'])} | {markdown(code)} | {count:,} | {text} |")
    return [*lines, "", *_credits(facts), ""]


def _credits(facts: ModelFacts) -> list[str]:
    lines = ["Latents are clips as codec and image encoder have encoded them: no further samples."]
    if facts.sources is None:
        return [*lines, "Who made them is not listed: the clips were not at hand when this was written."]
    listed = f"`{ATTRIBUTION}` names the {facts.sources:,} sources: title, author, link, license."
    return [*lines, listed, "`provenance.json` has the snapshots unit by unit, for take-downs."]


def users_of(parts: Sequence[PartFacts], record: LearntFrom) -> list[str]:
    """The names of the parts that learnt from a dataset."""
    key = (record["snapshot"], record["split"])
    users: list[str] = []
    for part in parts:
        if key in {(each["snapshot"], each["split"]) for each in part.record["learnt_from"]}:
            users.append(part.name)
    return users


def _removed(facts: ModelFacts) -> list[str]:
    lines = ["## Removed since", ""]
    if facts.removed is None:
        return [*lines, "Not known: the datasets were not at hand when this was written.", ""]
    if not facts.removed:
        return [*lines, f"By {facts.date}, nothing that it learnt from had been taken down.", ""]
    lines += [
        f"By {facts.date}, {facts.removed.total():,} samples were taken down that this model had pinned.",
        "It may have learnt from them: taking down forgets nothing that was learnt.",
        "",
        "| reason | samples |",
        "| --- | ---: |",
    ]
    for reason, count in facts.removed.most_common():
        lines.append(f"| {markdown(reason)} | {count:,} |")
    return [*lines, ""]


def _license(facts: ModelFacts) -> list[str]:
    """The license and why it is that one."""
    url = url_of(facts.license)
    stated = f"[{facts.license}]({url})" if url else markdown(facts.license)
    lines = [
        "## License",
        "",
        f"The weights are under {stated}; `LICENSE` says the same. It is at least as strict as all of these:",
        "",
        "| what it was made from | license | asks of the model |",
        "| --- | --- | --- |",
    ]
    for demand in facts.demands:
        lines.append(f"| {markdown(demand.whose)} | {markdown(demand.code)} | {demand.text} |")
    lines += [
        "",
        "First weights hand on all that their license demands. Of data, share-alike and non-commercial are",
        f"handed on; attribution is given by `{ATTRIBUTION}`. This keeps demands from getting lost, and",
        "is no legal advice.",
    ]
    tension = conflicts(facts.demands)
    if tension:
        codes = ", ".join(tension)
        lines.append(
            f"Whether one license can serve {codes} together was not decided: ask somebody who knows."
        )
    return [*lines, ""]


def _scores(scores: dict[str, Any] | None, vocoder: str) -> list[str]:
    if not scores:
        return ["## Scores", "", "None were measured.", ""]
    lines = [
        "## Scores",
        "",
        f"Of {scores['num_clips']:,} held-out clips of {scores['num_media']:,} media with a known sound;",
        f"{scores['steps']} steps, guidance {scores['guidance']:g}, seed {scores['seed']}. Shares that are",
        "right, with 95 % intervals over media. Real: real sounds through the codec, the ceiling. Chance:",
        "real sounds of other clips. Closed: how much of the gap from chance to real. The judge is signal",
        "analysis, no network that could have seen the data.",
        _heard_through(scores.get("vocoder"), vocoder),
        "",
        "| what the judge hears | generated | real | chance | closed |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, shares in scores["scores"].items():
        judge = f"{name}: {JUDGES[name]}" if name in JUDGES else name
        intervals = scores.get("intervals", {}).get(name, {})
        cells = [_cell(shares, intervals, column) for column in ("generated", "real", "chance", "closed")]
        lines.append(f"| {markdown(judge)} | {' | '.join(cells)} |")
    return [*lines, ""]


def _heard_through(heard: Any, ships: str) -> str:
    """Whose sounds the scores are of: another vocoder's say little of what this folder sounds like."""
    if not heard:
        return "Which vocoder made these sounds is not recorded."
    if heard == ships:
        return f"All sounds were made by {markdown(ships.split()[0])}, as this folder makes them."
    made = f"All sounds were made by {markdown(heard)}"
    return f"{made}, **not** as this folder makes them: by {markdown(ships)}."


def _cell(shares: dict[str, float], intervals: dict[str, list[float]], column: str) -> str:
    if column not in shares:
        return ""
    interval = intervals.get(column)
    around = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
    return f"{shares[column]:.2f}{around}"


def _limits(facts: ModelFacts) -> list[str]:
    samples = max((record.get("samples", 0) for record in facts.datasets), default=0)
    return [
        "## Intended use and limits",
        "",
        "For research, and for pictures where a plausible sound is wanted and not the true one: what it",
        "makes was never recorded, and must not be shown as if it had been. It knows what it learnt from",
        f"({samples:,} samples) and guesses at everything else. Its data was filtered by signal measures",
        "only: speech, persons and places may occur in it, and its sounds may resemble single clips.",
        "Licenses of the data are those that the sources state.",
    ]


# --- Attribution --------------------------------------------------------------------------------------------


def write_sources(datasets: Sequence[LearntFrom], path: Path) -> int | None:
    """ATTRIBUTION.csv: a line per source of a clip that was pinned and is not taken down; how many.

    None, without the file, where clips are not at hand: an incomplete list would pass for a complete one.
    """
    try:
        if not datasets:
            raise UserError("what the model learnt from is not recorded")
        return write_credits(_all_credits(datasets), path)
    except (UserError, OSError) as error:
        path.unlink(missing_ok=True)
        log.warning("%s is left out: %s", path.name, error)
        return None


def _all_credits(datasets: Iterable[LearntFrom]) -> Iterator[list[str]]:
    """Of the clips of all datasets; once for each pinned unit, however many parts learnt from it."""
    units: dict[str, set[str]] = {}
    for record in datasets:
        for dataset, commit in pinned_clips(record):
            credited = units.setdefault(f"{dataset.uri}#{record['split']}", set())
            if commit.unit not in credited:
                credited.add(commit.unit)
                for title, author, link, *more in credits_of(dataset, [commit], {record["split"]} - {""}):
                    # a file of the machine that cut it is nobody else's business
                    yield [title, author, link if WEB.match(link) else "", *more]


def pinned_clips(record: LearntFrom) -> Iterator[tuple[Dataset, Commit]]:
    """The units of clips behind a record: pinned ones, or of latents those that they were made of.

    Each in its newest generation: what was taken down is credited no more. `UserError` or `OSError` where
    they are gone.
    """
    if not record.get("uri"):
        raise UserError(f"where the dataset {record['name']} is stored is not recorded")
    dataset = Dataset.open(record["uri"])
    pinned = {commit.unit: commit for commit in commits_of(record)}
    if dataset.meta["kind"] != "latents":
        yield from _newest(dataset, pinned)
        return
    for parent in dataset.meta["parents"]:
        clips = Dataset.open(parent["uri"], "clips")
        made_of: dict[str, Commit] = {}
        for task in dataset.worklist.iter_units():
            if task.unit in pinned and "commit" in task.items[0].payload:
                commit = Commit.from_json(task.items[0].payload["commit"])
                made_of[commit.unit] = commit
        yield from _newest(clips, made_of)


def _newest(dataset: Dataset, pinned: dict[str, Commit]) -> Iterator[tuple[Dataset, Commit]]:
    """The pinned units of a dataset; `OSError` where one is gone."""
    names = {name.removeprefix("commits/").split(".")[0]: name for name in dataset.commit_names()}
    for unit in sorted(pinned):
        if unit not in names:
            raise OSError(f"{dataset.uri}: has no unit {unit} any more")
        yield dataset, dataset.read_commit(names[unit])


def find_scores(model: Path, given: Mapping[str, str]) -> dict[str, Any] | None:
    """What evaluate measured of this model with the parts `given` beside it, by name, in a folder of its run
    or beside its runs; None where nothing did. The record of an evaluation says of what it is.
    """
    for one in reversed(evaluations_of(str(model), places_of(model))):
        # one by judges alone has none of these scores
        is_scored = (one.folder / SCORES).is_file()
        has_same_parts = all((one.settings.get(name) or "") == path for name, path in given.items())
        if is_scored and has_same_parts:
            log.info("scores of %s go into the model card", one.folder)
            return read_scores(str(one.folder))
    return None


def read_scores(path: str) -> dict[str, Any]:
    """scores.json of evaluate, by itself or in a folder. `UserError` where it is not there or not one."""
    file = Path(path) / SCORES if Path(path).is_dir() else Path(path)
    try:
        scores: dict[str, Any] = json.loads(file.read_text())
        if not isinstance(scores.get("scores"), dict):
            raise ValueError("has no scores")
        for name in ("num_clips", "num_media", "steps", "guidance", "seed"):
            if not isinstance(scores.get(name), int | float):
                raise ValueError(f"has no {name}")
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"scores={path}: {reason}; give the output folder of python -m training evaluate"
        ) from error
    return scores
