"""`ingest report DATASET`: one self-contained HTML page one can look at and listen to.

It shows the way from what was found to what was kept, why the rest was refused, licenses, channels, loudness, the commands
that would make it again, a gallery of frame, spectrogram and player, and, where a run
(`run=`) and its evaluation (`scores=`, a folder) are named, the loss curve and generated next to real sounds. These are
read as files by their documented form; nothing of `training` is imported. The page samples: its size does not grow.
"""

import base64
import io
import json
import random
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import soundfile
import yaml
from PIL import Image

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.card import plain, write_card
from ingest.survey import Histogram, survey

MAX_SNAPSHOT = 1_000_000
TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass
class ReportConfig:
    """`dataset` of clips; `output` defaults to report.html inside a local dataset; `run`, `scores`: folders of training.
    `card`: the dataset card and attribution list are written beside the page, as README.md and ATTRIBUTION.csv inside the
    dataset, else under the page's name."""

    dataset: str
    output: str = ""
    gallery: int = 24
    run: str = ""
    scores: str = ""
    title: str = ""
    card: bool = True


def write_report(config: ReportConfig) -> str:
    """Writes the page and returns its path. `UserError` where the dataset, the run or the scores are not there."""
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
        card, list_of = ("README.md", "ATTRIBUTION.csv") if inside else (f"{output.stem}.card.md", f"{output.stem}.attribution.csv")
        write_card(dataset, found, output.with_name(card), output.with_name(list_of))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    page = environment.from_string(TEMPLATE.read_text()).render(
        title=config.title or config.dataset.rstrip("/").split("/")[-1],
        uri=config.dataset,
        found=found,
        charts=[_bars(histogram) for histogram in found.histograms.values() if histogram.counts.any()],
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
    """What was typed to make the dataset, oldest first, from the records of its runs: typed again, it makes it again."""
    commands = []
    for name in sorted(name for name in dataset.store.list("runs") if name.endswith("/config.yaml")):
        verb = name.split("/")[1].split("-")[1]
        words = yaml.safe_load(dataset.store.read(name)) or {}
        first = [str(words.pop("dataset"))] if "dataset" in words else []
        commands.append(shlex.join(["python", "-m", "ingest", verb, *first, *_flat(words)]))
    return list(dict.fromkeys(commands))


def _flat(settings: dict[str, Any], prefix: str = "") -> list[str]:
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            words += _flat(value, f"{prefix}{name}.")
        else:
            words.append(f"{prefix}{name}={json.dumps(value) if not isinstance(value, str) else value}")
    return words


def _bars(histogram: Histogram) -> dict[str, Any]:
    """Bars of a histogram in a 320 x 90 drawing."""
    width, top = 320 / len(histogram.counts), int(histogram.counts.max())
    bars = [(round(n * width, 1), round(90 * (1 - count / top), 1), round(90 * count / top, 1)) for n, count in enumerate(histogram.counts)]
    return {"label": histogram.label, "low": histogram.low, "high": histogram.high, "top": top, "bars": bars, "width": round(width - 1, 1)}


def _gallery(dataset: Dataset, most: int) -> list[dict[str, Any]]:
    """Up to `most` samples, an equal share of a few random shards, drawn the same way every time."""
    rng, buried, names = random.Random(0), dataset.tombstones(), dataset.commit_names()
    cards: list[dict[str, Any]] = []
    for commit in map(dataset.read_commit, rng.sample(names, min(len(names), 2 * max(1, most // 3)))):
        if not commit.tar:
            continue
        rows = [row for row in dataset.read_index(commit).to_pylist() if row["status"] == "kept" and row["key"] not in buried]
        for row in rng.sample(rows, min(3, len(rows))):
            parts = {m["ext"]: (m["offset"], m["offset"] + m["size"]) for m in row["members"]}
            data = {ext: dataset.store.read_range(commit.tar.name, *parts[ext]) for ext in ("jpg", "flac")}
            facts = {name: row[name] for name in ("key", "title", "license", "start_s", "url", "channel")}
            cards.append({**facts, "image": _uri("image/jpeg", data["jpg"]), **_sound(io.BytesIO(data["flac"]))})
    return cards[:most]


def _sound(file: Any) -> dict[str, str]:
    """Player source and spectrogram picture of a sound file, as data URIs."""
    audio, rate_hz = soundfile.read(file, dtype="float32")
    flac = io.BytesIO()
    soundfile.write(flac, audio, rate_hz, format="FLAC", subtype="PCM_16")
    return {"sound": _uri("audio/flac", flac.getvalue()), "spectrogram": _uri("image/png", spectrogram_png(audio))}


def spectrogram_png(audio: np.ndarray, height_px: int = 96) -> bytes:
    """PNG of the log-magnitude STFT of mono float `audio` [num_samples], low frequencies at the bottom, 80 dB range."""
    n_fft, hop = 512, 160
    padded = np.pad(audio, n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * np.hanning(n_fft)
    level_db = 20 * np.log10(np.abs(np.fft.rfft(frames)) + 1e-6)
    scaled = np.clip((level_db - level_db.max()) / 80 + 1, 0, 1).T[::-1]
    stops = np.array([[8, 10, 30], [60, 20, 110], [170, 45, 110], [245, 125, 60], [252, 250, 190]], dtype=float)
    place = scaled * (len(stops) - 1)
    low = np.minimum(place.astype(int), len(stops) - 2)
    colours = stops[low] + (stops[low + 1] - stops[low]) * (place - low)[..., None]
    image = Image.fromarray(colours.astype(np.uint8)).resize((max(frames.shape[0], 160), height_px))
    png = io.BytesIO()
    image.save(png, "PNG")
    return png.getvalue()


def _run(folder: Path) -> dict[str, Any]:
    """Loss per step as an SVG polyline, with the events (kill, resume) at their steps."""
    metrics = _read_lines(folder / "metrics.jsonl")
    if not metrics:
        raise UserError(f"run={folder}: no metrics.jsonl with a step in it; is this a run folder?")
    losses = np.array([line["loss"] for line in metrics])
    steps = np.array([line["step"] for line in metrics])
    smooth = np.convolve(np.pad(losses, (12, 12), mode="edge"), np.ones(25) / 25, mode="valid")
    top, last = float(np.quantile(losses, 0.995)), int(steps[-1])
    marks = [event for event in _read_lines(folder / "events.jsonl") if event.get("event") in ("killed", "resumed")]
    return {
        "steps": last,
        "first": float(losses[:25].mean()),
        "last": float(losses[-25:].mean()),
        "top": top,
        "raw": _polyline(steps / last, losses / top),
        "smooth": _polyline(steps / last, smooth[: len(steps)] / top),
        "marks": [{"x": 800 * event["step"] / last, "name": event["event"], "step": event["step"]} for event in marks],
    }


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    stride = max(1, len(x) // 1500)
    return " ".join(f"{800 * a:.1f},{200 - 190 * min(b, 1.05):.1f}" for a, b in zip(x[::stride], y[::stride], strict=True))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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
