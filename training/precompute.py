"""`training precompute`: a dataset of clips -> a dataset of latents with the same keys; run again = resume.

    models = {"autoencoder": "runs/autoencoder", "image_encoder": "runs/contrastive"}
    precompute(PrecomputeConfig(data="out/clips", output="out/latents", **models))

One unit per commit of the parent. The two models are copied into `<output>/models/`, so that the latents stay
readable whatever becomes of the runs. A sample whose bytes are damaged stays as a refused row. Adds nothing
to an output made of another snapshot of the parent: that is refused with the difference shown.
"""

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import soundfile
import torch

from cluster.dataset import Commit, Dataset, Parent, Snapshot
from cluster.learnt import PROVENANCE
from cluster.pool import UnitOutput
from cluster.scratch import scratch_folder
from cluster.shards import Member, Row, Status, check_member, members_of, write_shard
from cluster.storage import absolute
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import UserError, at_least, operational
from ingest.pixels import PictureError
from training.codecs import level_of, mel_of_codec
from training.data.npy import to_npy
from training.evaluation import EvaluateConfig
from training.moments import moments_of
from training.pipeline.codec import ImageConfig, Processor, embed_image_and_patches, encode_wav
from training.pipeline.mel import LEVELS, MelConfig, MelSettings
from training.pretrained import (
    check_finite,
    fetch_models,
    find_image_encoder,
    find_model,
    folder_sha256,
    load_autoencoder,
    load_image_encoder,
    pictures_version,
    read_processor,
)
from training.provenance import MODELS, of_source
from training.recipes.clips import decode_image, decode_wav, mel_of_clips
from training.roundtrip import REPORT, clips_to_measure, measure_clips, open_codec, summary_line
from training.sequences import (
    LatentSummary,
    SequenceEncoders,
    TextSettings,
    check_sequence_models,
    find_sequence_models,
    presence_of,
    read_texts,
    summary_of,
    text_settings,
)
from training.weights_license import UNKNOWN

log = logging.getLogger(__name__)
LATENT_COLUMNS = pa.schema(
    [("split", pa.string()), ("media_id", pa.string()), ("start_s", pa.float64()), ("license", pa.string())]
)

DAMAGED = "damaged"  # the reason of a row that could not be encoded
PRECISIONS = ("fp32", "bf16")
DECODERS = 2  # threads: Pillow and libsndfile release the GIL
BATCHES_AHEAD = 2  # decoded while one is encoded: one waits ready, one is in the making
MAX_DETAIL = 300  # characters of a row's `detail`


class LatentSettings(TypedDict):
    """The semantic config of a dataset of latents. `pictures`: from version 2 on; `texts`: if it has any."""

    patch_tokens: bool
    precision: str
    mel: MelSettings
    processor: Processor
    sha256: dict[str, str]
    pictures: NotRequired[int]
    texts: NotRequired[dict[str, TextSettings]]


class Decoded(NamedTuple):
    """A clip: its row of latents, waveform float32 [num_samples], pixels float32 [3, s, s], its texts."""

    row: Row
    wav: torch.Tensor
    pixels: torch.Tensor
    texts: dict[str, str]


@dataclass
class PrecomputeConfig:
    """What encodes the clips. Of encoders, what counts for resuming is the hash of their files.

    A sample without a text has [0, width] there. bf16 is off by about a fiftieth of a latent's deviation
    (benchmarks/results/precompute.json). `level` auto is audioldm for published autoencoders, which
    AudioLDM's training code normalised for. Two workers on one GPU: one reads and writes while the other
    encodes.
    """

    data: str = operational()  # the clips: a dataset, a folder or URI
    output: str = operational()  # the dataset of latents to write
    autoencoder: str = operational()  # a run, save_pretrained folder or hub:owner/name[/folder][@revision]
    # likewise; or a checkpoint of timm, a plain state dict, efficientnet-lite0
    image_encoder: str = operational()
    # a run of this recipe: also stores audiomae.npy, float16 [8, width]; "" = none
    audiomae: str = operational("")
    # RoBERTa, T5, CLAP or a contrastive run with captions: also stores text.npy; "" = none
    text_encoder: str = operational("")
    text_column: str = "caption"  # name of the text in a sample's JSON or in its meta
    text_tokens: int = 77  # longer texts are cut
    phoneme_encoder: str = operational("")  # a VITS: also stores phonemes.npy; "" = none
    phoneme_column: str = "transcript"  # name of the transcript in a sample's JSON or in its meta
    phoneme_tokens: int = 310  # longer transcripts are cut
    patch_tokens: bool = False  # also stores tokens.npy, float16 [patches, width]
    precision: str = "fp32"  # fp32, or bf16: twice as fast on GPUs, a little off
    # how loud the autoencoder has clips: recorded, audioldm, or auto, as it was trained
    level: str = operational("auto")
    workers: int = operational(2)  # processes, on Ray; 0 works in this process
    # what each asks of Ray; 0.5 for two on one GPU; 0 computes on CPUs
    gpus_per_worker: float = operational(0.0)
    # validation clips whose loss by the autoencoder is measured afterwards; 0 = none
    roundtrip_clips: int = operational(0)
    vocoder: str = operational("")  # of that measurement; "" = Griffin-Lim
    truth: str = operational("")  # of that measurement: a folder of <media id>.json
    batch_size: int = operational(16)  # clips encoded at once
    threads: int = operational(1)  # of torch, of each worker


def precompute(config: PrecomputeConfig, progress: bool = True) -> LatentSummary:
    """Encodes what is not yet encoded.

    `UserError` for missing models or data, or an output made with other settings.
    """
    output, factory = prepare(config)
    summary = run_units(
        output,
        factory,
        config.workers,
        columns=LATENT_COLUMNS,
        num_gpus=config.gpus_per_worker,
        progress=progress,
    )
    if config.roundtrip_clips:
        _report_roundtrip(config, output)
    found = summary_of(summary, output, text_settings(config))
    for member, count in found.without.items():
        log.info("%d samples have no text for %s: the sequence is absent there", count, member)
    return found


def _report_roundtrip(config: PrecomputeConfig, output: Dataset) -> None:
    """roundtrip.json beside the latents, and a line of it in the log."""
    clips = Dataset.open(absolute(config.data), "clips")
    codec = open_codec(config.autoencoder, config.vocoder, clips, config.level)
    asked = EvaluateConfig(
        model=config.autoencoder,
        data=clips.uri,
        output=output.uri,
        truth=config.truth,
        num_clips=config.roundtrip_clips,
        vocoder=config.vocoder,
        batch=config.batch_size,
    )
    report = measure_clips(codec, clips_to_measure(codec, clips, asked), asked)
    output.store.replace(REPORT, json.dumps(report, indent=1).encode())
    log.info("%s", summary_line(report))


def prepare(config: PrecomputeConfig) -> tuple[Dataset, Callable[[], "PrecomputeStage"]]:
    """The dataset of latents with its models and work list, and what makes a worker's stage."""
    _check(config)
    parent = Dataset.open(absolute(config.data), "clips")
    snapshot = parent.snapshot()
    if not snapshot.commits:
        raise UserError(f"data={config.data}: has no commits yet; run python -m ingest scrape first")
    models = {
        "autoencoder": find_model(config.autoencoder, "autoencoder", "vae"),
        "image_encoder": find_image_encoder(config.image_encoder),
    }
    models |= find_sequence_models(config)
    level = config.level if config.level != "auto" else level_of(models["autoencoder"])
    mel = mel_of_codec(models["autoencoder"], replace(mel_of_clips(parent.meta), level=level))
    processor = read_processor(models["image_encoder"])
    _check_models(models, mel, ImageConfig.from_processor(processor), config, snapshot)
    parents: list[Parent] = [{"uri": parent.uri, "snapshot": snapshot.id}]
    semantic = _semantic(config, mel, processor, models)
    output = Dataset.create_or_open(absolute(config.output), "latents", dict(semantic), parents)
    _keep_models(output, models, config)
    # the generation is in the id: a commit that was rewritten by a removal is encoded anew
    items = [
        (f"{commit.unit}.{commit.generation}", {"commit": commit.to_json()}) for commit in snapshot.commits
    ]
    output.worklist.append(items, unit_size=1)
    return output, partial(PrecomputeStage, parent.uri, output.uri, mel, config)


def _check(config: PrecomputeConfig) -> None:
    """`UserError` for settings that cannot work."""
    at_least(config, 1, "batch_size")
    at_least(config, 0, "roundtrip_clips", meaning="none")
    if config.precision not in PRECISIONS:
        raise UserError(f"precision={config.precision}: give one of {', '.join(PRECISIONS)}")
    if config.level not in ("auto", *LEVELS):
        raise UserError(f"level={config.level}: give one of auto, {', '.join(LEVELS)}")


def _check_models(
    models: dict[str, Path], mel: MelConfig, image: ImageConfig, config: PrecomputeConfig, clips: Snapshot
) -> None:
    """Loads all once, here: an unusable one is refused before a worker starts."""
    check_autoencoder(load_autoencoder(models["autoencoder"]), mel, config.autoencoder)
    check_image_encoder(load_image_encoder(models["image_encoder"]), image, config.image_encoder)
    check_sequence_models(config, models, clips, mel.duration_s)


def _semantic(
    config: PrecomputeConfig, mel: MelConfig, processor: Processor, models: dict[str, Path]
) -> LatentSettings:
    """What makes latents different: settings, and the bytes of the models."""
    semantic: LatentSettings = {
        "patch_tokens": config.patch_tokens,
        "precision": config.precision,
        "mel": mel.settings(),
        "processor": processor,
        "sha256": {name: folder_sha256(path) for name, path in models.items()},
    }
    # version 1 is not written, as before there were versions: older outputs resume
    if pictures_version(processor) > 1:
        semantic["pictures"] = pictures_version(processor)
    if texts := text_settings(config):
        semantic["texts"] = texts
    return semantic


def check_autoencoder(autoencoder: Any, mel: MelConfig, path: str) -> None:
    """`UserError` where an autoencoder is not finite, or does not shrink mels by `mel.downsampling`."""
    check_finite(autoencoder, "autoencoder", path)
    if mel.is_sequence:  # `mel_of_codec` has read it off the codec
        return
    ratio = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if ratio != mel.downsampling:
        need = f"need {mel.downsampling}: give one of three levels"
        raise UserError(f"autoencoder={path}: downsamples mels by {ratio}, {need}")


@torch.no_grad()
def check_image_encoder(tower: Any, image: ImageConfig, path: str) -> None:
    """`UserError` where a tower does not take its processor's pictures, or gives no finite embedding."""
    check_finite(tower, "image_encoder", path)
    try:
        embedding, _ = embed_image_and_patches(tower, torch.zeros(1, 3, image.size_px, image.size_px))
    except (AttributeError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"image_encoder={path}: gives no embedding of a picture of {image.size_px} px ({reason}); "
            "give another"
        ) from error
    if embedding.ndim != 2 or not torch.isfinite(embedding).all():
        raise UserError(f"image_encoder={path}: gives no finite embedding of a picture; give another")


def _keep_models(output: Dataset, models: dict[str, Path], config: PrecomputeConfig) -> None:
    """Copies them beside the latents, with where they are from."""
    for name, folder in models.items():
        for path in sorted(folder.glob("*")):
            is_part = path.is_file() and path.name != PROVENANCE
            if is_part and not output.store.exists(f"models/{name}/{path.name}"):
                output.store.put_file(f"models/{name}/{path.name}", path)
    if output.store.exists(MODELS):
        return
    parts = {name: of_source(getattr(config, name), folder, name) for name, folder in models.items()}
    for name, part in parts.items():
        if part["license"] in UNKNOWN:
            log.warning(
                "%s=%s: nothing beside it states its license; export asks for it", name, getattr(config, name)
            )
    output.store.put(MODELS, json.dumps({"parts": parts}).encode())


class PrecomputeStage:
    """One commit of the parent -> a shard of latents; holds the two models of one worker.

    They are read from beside the latents, not from the runs, which may change while workers start.
    """

    def __init__(self, parent_uri: str, output_uri: str, mel: MelConfig, config: PrecomputeConfig):
        torch.set_num_threads(config.threads)
        self.parent = Dataset.open(parent_uri, "clips")
        self.mel = mel
        self.batch_size = config.batch_size
        self.texts = text_settings(config)
        self.half = config.precision == "bf16"
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self.device = "cuda" if config.gpus_per_worker and torch.cuda.is_available() else "cpu"
        with scratch_folder("models") as folder:
            fetch_models(Dataset.open(output_uri, "latents"), folder)
            self.autoencoder = load_autoencoder(folder / "autoencoder").to(self.device)
            self.image_encoder = load_image_encoder(folder / "image_encoder").to(self.device)
            processor = read_processor(folder / "image_encoder")
            self.image_config = ImageConfig.from_processor(processor)
            self.sequences = SequenceEncoders(
                folder, config.patch_tokens, self.texts, mel.duration_s, self.device
            )

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        rows: list[Row] = []
        for item in task.items:
            commit = Commit.from_json(item.payload["commit"])
            rows += self.encode_commit(commit)
        statistics = dict(moments_of(rows))
        if presence := presence_of(rows, self.texts):
            statistics["sequences"] = {member: each._asdict() for member, each in presence.items()}
        return UnitOutput(write_shard(scratch, rows, LATENT_COLUMNS), statistics)

    def close(self) -> None:
        self.decoders.shutdown(cancel_futures=True)

    def encode_commit(self, commit: Commit) -> list[Row]:
        """A row per clip of the parent, in its order: latents, or refused as damaged or buried."""
        tombstones = self.parent.tombstones()
        # one read of the tar: every member of it is needed
        tar = memoryview(self.parent.store.read(commit.tar.name) if commit.tar else b"")
        rows: list[Row] = []
        waiting: list[tuple[Row, list[Member]]] = []
        for record in self.parent.read_index(commit).to_pylist():
            columns = {name: record[name] for name in LATENT_COLUMNS.names}
            # damaged until it is encoded: a row that nothing reaches must not count as kept
            row = Row(record["item_id"], record["key"], Status.REFUSED, DAMAGED, None, columns)
            rows.append(row)
            if record["status"] != Status.KEPT or record["key"] in tombstones:
                row.reason = record["reason"] or Status.REMOVED
                row.detail = "refused in the parent"
            else:
                waiting.append((row, members_of(record)))
        for batch in self._decoded(tar, waiting):
            if batch:
                self._encode(batch)
        return rows

    def _decoded(self, tar: memoryview, waiting: list[tuple[Row, list[Member]]]) -> Iterator[list[Decoded]]:
        """Batch after batch, the next ones decoded while one is encoded.

        A damaged clip is left out; its row says why.
        """

        def decode(row: Row, members: list[Member]) -> Decoded | None:
            try:
                wav, pixels = read_clip(tar, members, self.image_config)
                texts = read_texts(tar, members, self.texts)
            except (OSError, soundfile.LibsndfileError) as error:
                row.detail = f"{type(error).__name__}: {error}"[:MAX_DETAIL]
                return None
            return Decoded(row, _fit(wav, self.mel.num_samples), pixels, texts)

        ahead: deque[list[Future[Decoded | None]]] = deque()
        for start in range(0, len(waiting), self.batch_size):
            batch = waiting[start : start + self.batch_size]
            ahead.append([self.decoders.submit(decode, row, members) for row, members in batch])
            if len(ahead) > BATCHES_AHEAD:
                yield _whole(ahead.popleft())
        for futures in ahead:
            yield _whole(futures)

    @torch.no_grad()
    def _encode(self, batch: list[Decoded]) -> None:
        """Turns waiting rows into kept ones."""
        wavs = torch.stack([clip.wav for clip in batch]).to(self.device)
        pixels = torch.stack([clip.pixels for clip in batch]).to(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            mean, std = encode_wav(self.autoencoder, wavs, self.mel)
            images, patches = embed_image_and_patches(self.image_encoder, pixels)
            sequences = self.sequences(wavs, patches, [clip.texts for clip in batch])
        tensors = {"latent.npy": torch.stack([mean, std], 1), "image.npy": images, **sequences}
        arrays = {name: _to_arrays(values) for name, values in tensors.items()}
        for index, clip in enumerate(batch):
            members = {name: array[index] for name, array in arrays.items()}
            # checked after the cast: what float16 cannot hold has become infinite
            if not all(np.isfinite(member).all() for member in members.values()):
                clip.row.detail = "the encoders gave numbers that float16 cannot hold"
                continue
            clip.row.status = Status.KEPT
            clip.row.reason = None
            clip.row.members = {name: to_npy(member) for name, member in members.items()}


def _to_arrays(values: torch.Tensor | list[torch.Tensor]) -> list[np.ndarray]:
    """Of each clip, float16; those of one shape leave a GPU together."""
    if isinstance(values, torch.Tensor):
        return list(values.half().cpu().numpy())
    return [one.half().cpu().numpy() for one in values]


def _whole(futures: list[Future[Decoded | None]]) -> list[Decoded]:
    """The clips of a batch that could be decoded, once they all are."""
    clips = [future.result() for future in futures]
    return [clip for clip in clips if clip is not None]


def read_clip(
    tar: bytes | memoryview, members: list[Member], image: ImageConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip's waveform [n] and pixels [3, s, s]. `OSError` where a member is missing or damaged."""
    data: dict[str, bytes] = {}
    for member in members:
        if member.ext in ("flac", "jpg"):
            data[member.ext] = check_member(bytes(tar[member.offset : member.end]), member, "its tar")
    if len(data) < 2:
        raise OSError("flac or jpg is missing")
    try:
        return torch.from_numpy(decode_wav(data["flac"])), decode_image(data["jpg"], image)
    except PictureError as error:
        raise OSError(str(error)) from error


def _fit(wav: torch.Tensor, num_samples: int) -> torch.Tensor:
    return torch.nn.functional.pad(wav[:num_samples], (0, max(0, num_samples - len(wav))))
