"""`ingest report DATASET`: one self-contained HTML page one can look at and listen to.

It shows the way from what was found to what was kept, why the rest was refused, licenses, channels,
durations, loudness, the commands that would make it again, a gallery of frame, spectrogram and player, and,
where a run (`run=`) and its evaluation (`scores=`, a folder) are named, the loss curve and generated next to
real sounds. These are read as files by their documented form; nothing of `training` is imported. The page
samples: its size does not grow.
"""

import base64
import io
import itertools
import json
import logging
import math
import random
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
import yaml
from PIL import Image

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from cluster.shards import Status, verify_member
from configs.load import UserError
from ingest.pages.card import plain, write_card
from ingest.pages.croissant import croissant_text
from ingest.pages.survey import NUM_BINS, Histogram, Survey, survey
from ingest.sample import SELECTORS

log = logging.getLogger(__name__)
MAX_SNAPSHOT = 1_000_000
MAX_DRAWN = 200  # shards looked at for the gallery, where most hold nothing
TEMPLATE = Path(__file__).parent / "pages" / "report.html.j2"


@dataclass
class ReportConfig:
    """`dataset` of clips; `output` defaults to report.html inside a local dataset; `run`, `scores`: folders
    of training. `card`: the dataset card, attribution list and Croissant metadata are written beside the
    page, as README.md, ATTRIBUTION.csv and croissant.json inside the dataset, else under the page's name."""

    dataset: str
    output: str = ""
    gallery: int = 24
    run: str = ""
    scores: str = ""
    title: str = ""
    card: bool = True


def write_report(config: ReportConfig) -> str:
    """Writes the page and returns its path.

    `UserError` where the dataset, the run or the scores are not there.
    """
    dataset = Dataset.open(config.dataset, "clips")
    if not config.output and "://" in config.dataset:
        raise UserError(f"output: name a local file for the report of {config.dataset}")
    output = Path(config.output or f"{config.dataset}/report.html")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.open("a").close()
    except OSError as error:
        raise UserError(f"output={output}: not writable ({error.strerror}); name another file") from error
    found = survey(dataset)
    if config.card:
        inside = not config.output  # elsewhere a README.md may be somebody's
        card, list_of = (
            ("README.md", "ATTRIBUTION.csv")
            if inside
            else (f"{output.stem}.card.md", f"{output.stem}.attribution.csv")
        )
        write_card(dataset, found, output.with_name(card), output.with_name(list_of))
        croissant = output.with_name("croissant.json" if inside else f"{output.stem}.croissant.json")
        croissant.write_text(croissant_text(dataset, found, near=inside), encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=config.title or config.dataset.rstrip("/").split("/")[-1],
        uri=config.dataset,
        found=found,
        charts=charts_of(found),
        made_by=commands_of(dataset),
        settings=yaml.safe_dump(dataset.meta["config"], sort_keys=True),
        snapshot=dataset.snapshot().id[:16] if found.kept < MAX_SNAPSHOT else "",
        gallery=_gallery(dataset, config.gallery),
        run=_run(Path(config.run)) if config.run else None,
        scores=_scores(Path(config.scores)) if config.scores else None,
    )
    output.write_text(page)
    return str(output)


def commands_of(dataset: Dataset) -> list[str]:
    """What was typed to make the dataset, oldest first, from the records of its runs: typed again, it makes
    it again.

    Whom a removal names is not told: the records know.
    """
    commands = []
    for name in dataset.store.list("runs"):
        record = re.fullmatch(r"runs/\d{8}T\d{6}-(\w+)-\d+/config\.yaml", name)
        words = _settings_of(dataset, name) if record else None
        if record is None or words is None:
            continue
        verb = record[1]
        if verb == "remove":
            words |= {name: "…" for name in SELECTORS if name in words}
        first = [str(words.pop("dataset"))] if "dataset" in words else []
        commands.append(shlex.join(["python", "-m", "ingest", verb, *first, *_flat(words)]))
    return list(dict.fromkeys(commands))


def _settings_of(dataset: Dataset, name: str) -> dict[str, Any] | None:
    """The settings in the record of a run; None, with a warning, where the record is damaged."""
    try:
        settings = yaml.safe_load(dataset.store.read(name)) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        log.warning(
            "%s/%s: damaged and left out of the report: %s",
            dataset.uri,
            name,
            " ".join(str(error).split())[:200],
        )
        return None
    return settings if isinstance(settings, dict) else None


def _flat(settings: dict[str, Any], prefix: str = "") -> list[str]:
    """`a.b=c` of every leaf.

    What is null was typed as nothing (`a.b=`), and is read so again by settings of text and others alike.
    """
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words += _flat(value, f"{prefix}{name}.")
        else:
            text = (
                value
                if isinstance(value, str)
                else ""
                if value is None
                else json.dumps(value, ensure_ascii=False)
            )
            words.append(f"{prefix}{name}={text}")
    return words


def charts_of(found: Survey) -> list[dict[str, Any]]:
    """Durations of items, then measures of the kept clips; those of which nothing is known are left out."""
    charts = [_lengths(found.lengths_s)] if found.lengths_s.counts.any() else []
    charts += [_clips_per_item(found)] if found.clips_per_item else []
    return charts + [
        _measures(histogram) for histogram in found.histograms.values() if histogram.counts.any()
    ]


def _lengths(histogram: Histogram) -> dict[str, Any]:
    round_ones = {1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3600: "1 h", 36000: "10 h"}
    ticks = [
        (math.log(value / histogram.low, histogram.high / histogram.low), text)
        for value, text in round_ones.items()
    ]
    return _drawing(
        histogram.label, "items", _between(histogram, _duration), histogram.counts.tolist(), ticks
    )


def _measures(histogram: Histogram) -> dict[str, Any]:
    places = (0, 0.25, 0.5, 0.75, 1)
    ticks = [(place, f"{histogram.low + place * (histogram.high - histogram.low):.3g}") for place in places]
    return _drawing(
        histogram.label, "clips", _between(histogram, "{:.3g}".format), histogram.counts.tolist(), ticks
    )


def _between(histogram: Histogram, shown: Callable[[float], str]) -> list[str]:
    return [f"{shown(low)} to {shown(high)}" for low, high in zip(histogram.edges, histogram.edges[1:])]


def _clips_per_item(found: Survey) -> dict[str, Any]:
    """A bar for each number of clips up to that of 99 in 100 items, or for several numbers; the last bar
    holds the rest.
    """
    numbers, total = sorted(found.clips_per_item), found.clips_per_item.total()
    below = np.cumsum([found.clips_per_item[number] for number in numbers])
    most = numbers[int(np.searchsorted(below, 0.99 * total))]
    step = -(-most // NUM_BINS)
    counts = [0] * -(-most // step)
    for number, count in found.clips_per_item.items():
        counts[min((number - 1) // step, len(counts) - 1)] += count
    firsts = [1 + step * place for place in range(len(counts))]
    names = [f"{first} clips" if step == 1 else f"{first} to {first + step - 1} clips" for first in firsts]
    if numbers[-1] > most:
        names[-1] = f"{firsts[-1]} to {numbers[-1]} clips"
    label = f"clips kept of an item, {found.seconds / found.kept:.3g} s each"
    middles = [
        ((place + 0.5) / len(counts), str(firsts[place]))
        for place in sorted({0, len(counts) // 2, len(counts) - 1})
    ]
    return _drawing(label, "items", names, counts, middles)


def _drawing(
    label: str, things: str, names: list[str], counts: list[int], ticks: list[tuple[float, str]]
) -> dict[str, Any]:
    """Bars, 320 wide and 90 high, with a name for each, and `ticks` of a place between 0 and 1 and a text."""
    width, top = 320 / len(counts), max(counts)
    bars = [
        {
            "x": round(n * width, 1),
            "height": round(90 * count / top, 1),
            "name": f"{name}: {count:,} {things}",
        }
        for n, (name, count) in enumerate(zip(names, counts, strict=True))
        if count
    ]
    anchors = {0.0: "start", 1.0: "end"}
    marks = [
        {"x": round(320 * place, 1), "text": text, "anchor": anchors.get(place, "middle")}
        for place, text in ticks
    ]
    return {
        "label": label,
        "top": f"{top:,} {things}",
        "bars": bars,
        "ticks": marks,
        "width": round(width - 1, 1),
    }


def _duration(seconds: float) -> str:
    """Such as 8 s, 1.5 min, 2 h."""
    for name, size_s in (("h", 3600), ("min", 60)):
        if seconds >= size_s:
            return f"{seconds / size_s:.2g} {name}"
    return f"{seconds:.2g} s"


def _gallery(dataset: Dataset, most: int) -> list[dict[str, Any]]:
    """Up to `most` samples, drawn the same way every time: three of each of some shards, then three more of
    each, and so on.
    """
    rng, buried, names = random.Random(0), dataset.tombstones(), dataset.commit_names()
    shards: list[list[tuple[str, dict[str, Any]]]] = []
    for commit in map(dataset.read_commit, rng.sample(names, min(len(names), MAX_DRAWN))):
        if sum(min(len(shard), 3) for shard in shards) >= most:
            break
        if commit.tar:
            rows = [
                row
                for row in dataset.read_index(commit).to_pylist()
                if row["status"] == Status.KEPT and row["key"] not in buried
            ]
            shards.append([(commit.tar.name, row) for row in rng.sample(rows, len(rows))])
    rounds = range(0, max(map(len, shards), default=0), 3)
    picks = (pick for first in rounds for shard in shards for pick in shard[first : first + 3])
    samples = (_sample(dataset, *pick) for pick in picks)
    return list(itertools.islice((sample for sample in samples if sample), most))


def _sample(dataset: Dataset, tar: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """What the page shows of a sample; None, with a warning, where its bytes are missing or damaged."""
    data = {}
    for member in row["members"]:
        start = member["offset"]
        try:
            data[member["ext"]] = dataset.store.read_range(tar, start, start + member["size"])
        except FileNotFoundError:
            data[member["ext"]] = b""
        if not verify_member(data[member["ext"]], member["crc32"]):
            log.warning(
                "%s/%s: %s is damaged and left out of the report; run ingest verify",
                dataset.uri,
                tar,
                row["key"],
            )
            return None
    facts = {name: row[name] for name in ("key", "title", "license", "start_s", "url", "channel")}
    return {**facts, "image": _uri("image/jpeg", data["jpg"]), **_sound(io.BytesIO(data["flac"]))}


def _sound(file: Any) -> dict[str, str]:
    """Player source and spectrogram picture of a sound file, as data URIs."""
    audio, rate_hz = soundfile.read(file, dtype="float32")
    flac = io.BytesIO()
    soundfile.write(flac, audio, rate_hz, format="FLAC", subtype="PCM_16")
    return {
        "sound": _uri("audio/flac", flac.getvalue()),
        "spectrogram": _uri("image/png", spectrogram_png(audio)),
    }


def spectrogram_png(audio: np.ndarray, height_px: int = 96) -> bytes:
    """PNG of the log-magnitude STFT of mono float `audio` [num_samples], low frequencies at the bottom, 80 dB
    range.
    """
    n_fft, hop = 512, 160
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * np.hanning(n_fft)
    level_db = 20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-6)
    scaled = np.clip((level_db - level_db.max()) / 80 + 1, 0, 1).T[::-1]
    stops = np.array(
        [[8, 10, 30], [60, 20, 110], [170, 45, 110], [245, 125, 60], [252, 250, 190]], dtype=float
    )
    place = scaled * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    colours = stops[low] + (stops[low + 1] - stops[low]) * (place - low)[..., None]
    image = Image.fromarray(colours.astype(np.uint8)).resize((max(frames.shape[0], 160), height_px))
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _run(folder: Path) -> dict[str, Any]:
    """Loss per step as an SVG polyline, with the events (kill, resume) at their steps."""
    metrics = [line for line in read_lines(folder / "metrics.jsonl") if line["loss"] is not None]
    if not metrics:
        raise UserError(f"run={folder}: no metrics.jsonl with a step in it; is this a run folder?")
    losses = np.array([line["loss"] for line in metrics])
    steps = np.array([line["step"] for line in metrics])
    smooth = np.convolve(np.pad(losses, (12, 12), mode="edge"), np.ones(25) / 25, mode="valid")
    top, last = float(np.quantile(losses, 0.995)), int(steps[-1])
    marks = [
        event for event in read_lines(folder / "events.jsonl") if event.get("event") in ("killed", "resumed")
    ]
    return {
        "steps": last,
        "first": float(losses[:25].mean()),
        "last": float(losses[-25:].mean()),
        "top": top,
        "raw": _polyline(steps / last, losses / top),
        "smooth": _polyline(steps / last, smooth[: len(steps)] / top),
        "marks": [
            {"x": 800 * event["step"] / last, "name": event["event"], "step": event["step"]}
            for event in marks
        ],
    }


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    stride = max(1, len(x) // 1500)
    return " ".join(
        f"{800 * a:.1f},{200 - 190 * min(b, 1.05):.1f}" for a, b in zip(x[::stride], y[::stride], strict=True)
    )


def _scores(folder: Path) -> dict[str, Any]:
    """The table of an evaluation and its examples: the picture, the real sound, the generated one."""
    path = folder / "scores.json"
    if not path.exists():
        raise UserError(f"scores={folder}: no scores.json there; run python -m training evaluate first")
    examples = []
    for generated in sorted((folder / "wavs").glob("*.generated.wav"))[:12]:
        key = generated.name.removesuffix(".generated.wav")
        image = folder / "images" / f"{key}.jpg"
        real = generated.with_name(f"{key}.real.wav")
        pair = {"generated": _sound(generated), "real": _sound(real)}
        examples.append({"key": key, "image": _uri("image/jpeg", image.read_bytes()), **pair})
    return {"table": json.loads(path.read_text()), "examples": examples}


def _uri(mime: str, data: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"
