"""What a worker of generate does: pictures -> wavs, each with its spectrogram, and a row for the table.

    stage = SoundStage(pipeline, Sampling(guidance=2.0, steps=25, seed=0, batch=8), Path("sounds"))
    stage(task, scratch)                                  # writes sounds/beach.wav, sounds/beach.take2.wav, …

A sound has noise of its own, from the run's seed, the picture as it is shown and the number of its take.
It is computed in lanes: a fixed number of sounds together, free ones filled by repeating the last, because
the same numbers come out of a convolution only at one batch size. So neither the pictures beside it nor their
number change a byte of it. Which pictures there are is training.generate's.
"""

import base64
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import soundfile
import torch
from PIL import Image
from torch import nn

from cluster.dataset import Dataset
from cluster.files import replacing
from cluster.pool import UnitOutput
from cluster.shards import Member, Row, Status, members_of, write_shard
from cluster.worklist import UnitTask, WorkItem
from ingest.pages.spectrogram import spectrogram_png
from ingest.pixels import PictureError, open_picture
from training.data.choice import seed_of
from training.pipeline.codec import BadMelError
from training.pipeline.pipeline import StillsoundPipeline
from training.recipes.diffusion import PARTS

COLUMNS = pa.schema([("sound", pa.string())])
SPECTROGRAM = ".spectrogram.png"
GRIFFIN_LIM = "Griffin-Lim"
NO_SOUND = "no_sound"
NAME_TOO_LONG = "name_too_long"
# of what another try cannot change
FINAL_REASONS = (NO_SOUND, NAME_TOO_LONG)
# on CPUs, a small model computes four sounds in the time of two; a large one gains nothing by a batch
CPU_LANES = 4
SMALL_MODEL = 20_000_000
THUMBNAIL_PX = 320
MAX_NAME_BYTES = 255  # of file systems


class Sound(TypedDict):
    """A row of sounds.jsonl. `path`: of the wav, below the output, or None; `name`: the picture's there.

    `status`: kept or refused, then for `reason`, which `detail` explains. `seconds`: its share of the work.
    """

    name: str
    picture: str
    take: int
    path: str | None
    seed: int | None
    status: str
    reason: str | None
    detail: str | None
    seconds: float


@dataclass(frozen=True)
class Sampling:
    """How sounds are made. `seed`: of the run; `batch`: as in `GenerateConfig`."""

    guidance: float
    steps: int
    seed: int
    batch: int
    page: bool = True


class Job(NamedTuple):
    """A sound that is to be made of a picture that could be opened."""

    row: Row
    sound: Sound
    picture: Image.Image


class SoundStage:
    """One unit of the work list -> wavs in `output`, and a shard of rows and small pictures for the page."""

    def __init__(self, pipeline: StillsoundPipeline, sampling: Sampling, output: Path):
        self.pipeline = pipeline
        self.sampling = sampling
        self.output = output
        self.lanes = lanes_of(pipeline, sampling.batch)

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        rows: list[Row] = []
        waiting: list[Job] = []
        # no more pictures in memory than are computed together: one may have half a gigabyte
        for job in self._opened(task.items, rows):
            waiting.append(job)
            if len(waiting) == self.lanes:
                self._make(waiting)
                waiting = []
        self._make(waiting)
        return UnitOutput(write_shard(scratch, rows, COLUMNS))

    def _opened(self, items: list[WorkItem], rows: list[Row]) -> Iterator[Job]:
        """A job for each item whose picture can be opened; every item's row goes to `rows`."""
        last = ""
        picture: Image.Image | PictureError = PictureError("missing", "")
        identity = ""
        for item in items:
            path = item.payload["picture"]
            if path != last and _is_too_long(item):
                last = path
                picture = PictureError(NAME_TOO_LONG, "its sound would have a name of more than 255 bytes")
            elif path != last:  # the takes of a picture follow each other
                last = path
                picture = _open(path)
                identity = "" if isinstance(picture, PictureError) else pixel_sha256(picture)
            sound = _new_sound(item)
            row = Row(item.item_id, hashlib.sha256(item.item_id.encode()).hexdigest()[:32])
            rows.append(row)
            if isinstance(picture, PictureError):
                _refuse(row, sound, picture.kind, str(picture))
                continue
            sound["seed"] = sound_seed(self.sampling.seed, identity, sound["take"])
            yield Job(row, sound, picture)

    def _make(self, jobs: list[Job]) -> None:
        """Makes and writes the sounds of up to `lanes` jobs."""
        if not jobs:
            return
        started = time.monotonic()
        try:
            wavs = self._sample(jobs)
        except BadMelError as error:
            if len(jobs) > 1:  # each alone: the lanes make the others what they would have been
                for job in jobs:
                    self._make([job])
            else:
                _refuse(jobs[0].row, jobs[0].sound, NO_SOUND, str(error))
            return
        for job, wav in zip(jobs, wavs, strict=True):
            path = f"{wav_name(job.sound['name'], job.sound['take'])}.wav"
            self._write(self.output / path, wav)
            job.sound["path"] = path
        seconds = (time.monotonic() - started) / len(jobs)
        for job in jobs:
            job.sound["seconds"] = round(seconds, 3)
            job.row.columns = {"sound": json.dumps(job.sound)}
            job.row.members = {"jpg": thumbnail(job.picture)}

    def _sample(self, jobs: list[Job]) -> np.ndarray:
        """Waveforms [len(jobs), n]."""
        pictures = [job.picture for job in jobs]
        seeds = [job.sound["seed"] or 0 for job in jobs]
        steps = self.sampling.steps
        return sample_lanes(self.pipeline, pictures, seeds, self.lanes, steps, self.sampling.guidance)

    def _write(self, path: Path, wav: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(wav_bytes(wav, self.pipeline.sample_rate_hz))
        if self.sampling.page:
            write_spectrogram(path, wav)


def _new_sound(item: WorkItem) -> Sound:
    return {
        "name": item.payload["name"],
        "picture": item.payload["picture"],
        "take": item.payload["take"],
        "path": None,
        "seed": None,
        "status": Status.KEPT,
        "reason": None,
        "detail": None,
        "seconds": 0.0,
    }


def _is_too_long(item: WorkItem) -> bool:
    longest = f"partial-{wav_name(item.payload['name'], item.payload['take']).split('/')[-1]}{SPECTROGRAM}"
    return len(os.fsencode(longest)) > MAX_NAME_BYTES


def _open(path: str) -> Image.Image | PictureError:
    try:
        return open_picture(path)
    except PictureError as error:
        return error


def _refuse(row: Row, sound: Sound, reason: str, detail: str) -> None:
    sound["status"] = row.status = Status.REFUSED
    sound["reason"] = row.reason = reason
    sound["detail"] = row.detail = detail
    row.key = None
    row.columns = {"sound": json.dumps(sound)}


def lanes_of(pipeline: StillsoundPipeline, batch: int) -> int:
    """How many sounds are computed together: `batch` on a GPU, on CPUs what suits the model.

    There it does not depend on `batch`, so that every `batch` gives the same bytes.
    """
    if pipeline.device.type != "cpu":
        return batch
    return CPU_LANES if sum(values.numel() for values in pipeline.unet.parameters()) < SMALL_MODEL else 1


def sample_lanes(
    pipeline: StillsoundPipeline,
    pictures: Sequence[Image.Image],
    seeds: Sequence[int],
    lanes: int,
    steps: int,
    guidance: float | None,
) -> np.ndarray:
    """Waveforms [len(pictures), n], each from the noise of its seed; up to `lanes` pictures.

    Free lanes repeat the last one, and are thrown away.
    """
    missing = lanes - len(pictures)
    generators = [torch.Generator().manual_seed(seed) for seed in [*seeds, *[seeds[-1]] * missing]]
    (wavs,) = pipeline(
        image=[*pictures, *[pictures[-1]] * missing],
        generator=generators,
        num_inference_steps=steps,
        guidance_scale=guidance,
        return_dict=False,
    )
    return np.asarray(wavs)[: len(pictures)]


def sound_seed(seed: int, picture: str, take: int) -> int:
    """Of a run with `seed`; `picture`: its `pixel_sha256`."""
    # of 53 bits: other readers of JSON than Python round larger numbers
    return seed_of(seed, f"{picture}:{take}") >> 10


def wav_bytes(wav: np.ndarray, sample_rate_hz: int) -> bytes:
    """A WAV file of 16 bits. `wav`: float [n]."""
    file = io.BytesIO()
    soundfile.write(file, wav, sample_rate_hz, subtype="PCM_16", format="WAV")
    return file.getvalue()


def pixel_sha256(picture: Image.Image) -> str:
    """Of a picture as it is shown: a copy elsewhere, turned by EXIF or in another lossless format is the
    same.
    """
    digest = hashlib.sha256(f"{picture.mode} {picture.width} {picture.height} ".encode())
    digest.update(picture.tobytes())
    return digest.hexdigest()


def wav_name(name: str, take: int) -> str:
    """Path of a sound below the output, without its suffix: the first take is called as the picture.

    >>> wav_name("2024/beach", 1), wav_name("2024/beach", 2)
    ('2024/beach', '2024/beach.take2')
    """
    return name if take == 1 else f"{name}.take{take}"


def write_spectrogram(wav_path: Path, wav: np.ndarray) -> None:
    """`x.spectrogram.png` beside `x.wav`; `wav`: float [n]."""
    with replacing(wav_path.with_name(wav_path.name.removesuffix(".wav") + SPECTROGRAM)) as partial:
        partial.write_bytes(spectrogram_png(wav))


def thumbnail(picture: Image.Image) -> bytes:
    """A JPEG that a page can hold: browsers show neither HEIF nor TIFF, and originals are large."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return data.getvalue()


def fingerprint(pipeline: StillsoundPipeline) -> dict[str, str]:
    """What makes the sounds of two pipelines different, hashed by part, wherever they were loaded from."""
    parts = {name: _part_sha256(part) for name, part in pipeline.components.items()}
    if pipeline.prior is None:
        # folders of sounds that are there already were begun before there were priors
        del parts[PARTS.prior]
    conditioning = pipeline.config.conditioning
    # of files, which a run and its export have by other names
    content = {name: value for name, value in conditioning.items() if not name.endswith("sha256")}
    return {**parts, "conditioning": _sha256_of(content)}


def voice_of(pipeline: StillsoundPipeline) -> str:
    """What makes the waveforms of a pipeline: Griffin-Lim, or its vocoder by class and content."""
    vocoder = pipeline.vocoder
    return GRIFFIN_LIM if vocoder is None else f"{type(vocoder).__name__} {_part_sha256(vocoder)}"


def _part_sha256(part: Any) -> str:
    if part is None:
        return "none"
    if isinstance(part, nn.Module):
        digest = hashlib.sha256(type(part).__name__.encode())
        for name, values in sorted(part.state_dict().items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
            digest.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]
    settings = {name: value for name, value in dict(part.config).items() if not name.startswith("_")}
    return _sha256_of({"class": type(part).__name__, **settings})


def _sha256_of(settings: dict[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Made(NamedTuple):
    """The newest row of a sound. `item_id`: what made it; `text`: a `Sound` as JSON.

    `tar`, `thumbnail`: where the small picture lies in the units; None for a row without one. `earlier`: ids
    that made it before, of other states of its picture.
    """

    item_id: str
    text: str
    tar: str | None
    thumbnail: Member | None
    earlier: tuple[str, ...] = ()

    @property
    def sound(self) -> Sound:
        sound: Sound = json.loads(self.text)
        return sound


def item_id_of(name: str, take: int, photo: Path) -> str:
    """What tells a sound from every other; a picture of another size or time of change is another one."""
    try:
        state = photo.stat()
        version = [state.st_size, state.st_mtime_ns]
    except OSError:  # the worker says why it cannot be read
        version = []
    return json.dumps([name, take, *version])


def made_so_far(units: Dataset) -> dict[tuple[str, int], Made]:
    """By name and take, of all units that are committed; later units replace what earlier ones made."""
    found: dict[tuple[str, int], Made] = {}
    for commit in units.iter_commits():
        for row in units.read_index(commit).to_pylist():
            name, take, *_ = json.loads(row["item_id"])
            tar = commit.tar.name if commit.tar else None
            members = members_of(row)
            text = row["sound"] or _crashed(name, take, row)
            before = found.get((name, take))
            earlier = (*before.earlier, before.item_id) if before else ()
            thumbnail = members[0] if members else None
            found[name, take] = Made(row["item_id"], text, tar, thumbnail, earlier)
    return found


def _crashed(name: str, take: int, row: Mapping[str, Any]) -> str:
    """The row of a sound whose unit killed every worker: the runner, which wrote it, knows no sounds."""
    payload = {"name": name, "picture": "", "take": take}
    sound = _new_sound(WorkItem(row["item_id"], 0, payload))
    sound |= {"status": row["status"], "reason": row["reason"], "detail": row["detail"]}
    return json.dumps(sound)


def data_uri(jpeg: bytes) -> str:
    """A small picture as a page holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
