"""`training precompute`: a dataset of clips -> a dataset of latents with the same keys; run again = resume.

    precompute(PrecomputeConfig(data="out/clips", output="out/latents", autoencoder="runs/a", image_encoder="runs/c"))

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
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch

from cluster.dataset import Commit, Dataset
from cluster.pool import UnitOutput
from cluster.progress import RunSummary
from cluster.scratch import scratch_folder
from cluster.shards import Row, Status, verify_member, write_shard
from cluster.storage import absolute
from cluster.units import run_units
from cluster.worklist import UnitTask
from configs.load import UserError, operational
from ingest.pixels import PictureError
from training.data.heldout import HELD_OUT
from training.data.npy import read_npy, to_npy
from training.pipeline.codec import ImageConfig, embed_image_and_patches, encode_wav
from training.pipeline.mel import LEVELS, MelConfig
from training.pretrained import (
    RUN,
    check_finite,
    fetch_models,
    find_model,
    folder_sha256,
    load_autoencoder,
    load_image_encoder,
    pictures_version,
    read_processor,
)
from training.recipes.autoencoder import MEL_FILE
from training.recipes.clips import decode_image, decode_wav, mel_of_clips

log = logging.getLogger(__name__)
LATENT_COLUMNS = pa.schema(
    [("split", pa.string()), ("media_id", pa.string()), ("start_s", pa.float64()), ("license", pa.string())]
)

DAMAGED = "damaged"
PRECISIONS = ("fp32", "bf16")
DECODERS, BATCHES_AHEAD = 2, 2
Decoded = tuple[Row, torch.Tensor, torch.Tensor]  # a clip's row, waveform [num_samples] and pixels [3, s, s]


@dataclass
class PrecomputeConfig:
    """`autoencoder`, `image_encoder`: runs, save_pretrained folders or `hub:owner/name[/folder][@revision]`;
    what counts for resuming is the hash of their files.

    `patch_tokens` stores `tokens.npy` besides, float16 [patches, width]. `precision` bf16 computes under
    autocast: twice as fast on GPUs, and off by about a fiftieth of a latent's deviation
    (benchmarks/results/precompute.json). `level`: how loud the autoencoder has clips: recorded, audioldm
    (mean removed, peak at 0.5), or auto: as ours was trained, and audioldm for published ones, which
    AudioLDM's training code normalised for. `gpus_per_worker`: what each worker asks of Ray, 0.5 for two on
    one GPU, so that one reads and writes while the other encodes; 0 computes on CPUs.
    """

    data: str = operational()
    output: str = operational()
    autoencoder: str = operational()
    image_encoder: str = operational()
    patch_tokens: bool = False
    precision: str = "fp32"
    level: str = operational("auto")
    workers: int = operational(2)
    gpus_per_worker: float = operational(0.0)
    batch_size: int = operational(16)
    threads: int = operational(1)


def precompute(config: PrecomputeConfig, progress: bool = True) -> RunSummary:
    """Encodes what is not yet encoded.

    `UserError` for missing models or data, or an output made with other settings.
    """
    output, factory = prepare(config)
    return run_units(
        output,
        factory,
        config.workers,
        columns=LATENT_COLUMNS,
        num_gpus=config.gpus_per_worker,
        progress=progress,
    )


def prepare(config: PrecomputeConfig) -> tuple[Dataset, Callable[[], "PrecomputeStage"]]:
    """The dataset of latents with its models and work list, and what makes a worker's stage."""
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size}: give 1 or more")
    if config.precision not in PRECISIONS:
        raise UserError(f"precision={config.precision}: give one of {', '.join(PRECISIONS)}")
    if config.level not in ("auto", *LEVELS):
        raise UserError(f"level={config.level}: give one of auto, {', '.join(LEVELS)}")
    parent = Dataset.open(absolute(config.data), "clips")
    models = {
        "autoencoder": find_model(config.autoencoder, "autoencoder"),
        "image_encoder": find_model(config.image_encoder, "image_encoder", "image_encoder"),
    }
    level = config.level if config.level != "auto" else level_of(models["autoencoder"])
    mel, snapshot = replace(mel_of_clips(parent.meta), level=level), parent.snapshot()
    if not snapshot.commits:
        raise UserError(f"data={config.data}: has no commits yet; run python -m ingest scrape first")
    check_autoencoder(load_autoencoder(models["autoencoder"]), mel, config.autoencoder)
    processor = read_processor(models["image_encoder"])
    check_image_encoder(
        load_image_encoder(models["image_encoder"]),
        ImageConfig.from_processor(processor),
        config.image_encoder,
    )
    semantic: dict[str, Any] = {"patch_tokens": config.patch_tokens, "precision": config.precision}
    semantic |= {
        "mel": mel.settings(),
        "processor": processor,
        "sha256": {name: folder_sha256(path) for name, path in models.items()},
    }
    if pictures_version(processor) > 1:
        semantic["pictures"] = pictures_version(processor)
    output = Dataset.create_or_open(
        absolute(config.output), "latents", semantic, [{"uri": parent.uri, "snapshot": snapshot.id}]
    )
    _keep_models(output, models)
    items = [
        (f"{commit.unit}.{commit.generation}", {"commit": commit.to_json()}) for commit in snapshot.commits
    ]
    output.worklist.append(items, unit_size=1)
    return output, partial(PrecomputeStage, parent.uri, output.uri, mel, config)


def check_autoencoder(autoencoder: Any, mel: MelConfig, said: str) -> None:
    """`UserError` where an autoencoder is not finite, or its levels do not give the ratio between mels and
    latents that is used here.
    """
    check_finite(autoencoder, "autoencoder", said)
    ratio = 2 ** (len(autoencoder.config.block_out_channels) - 1)
    if ratio != mel.downsampling:
        raise UserError(
            f"autoencoder={said}: downsamples mels by {ratio}, need {mel.downsampling}: give one of three levels"
        )


@torch.no_grad()
def check_image_encoder(tower: Any, image: ImageConfig, said: str) -> None:
    """`UserError` where a tower does not take the pictures that its processor makes, or gives no embedding."""
    check_finite(tower, "image_encoder", said)
    try:
        embedding, _ = embed_image_and_patches(tower, torch.zeros(1, 3, image.size_px, image.size_px))
    except (AttributeError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"image_encoder={said}: gives no embedding of a picture of {image.size_px} px ({reason}); give another"
        ) from error
    if embedding.ndim != 2 or not torch.isfinite(embedding).all():
        raise UserError(f"image_encoder={said}: gives no finite embedding of a picture; give another")


def level_of(autoencoder: Path) -> str:
    """How loud a codec has its clips: what its training wrote beside it; of a run from before that, recorded;
    else AudioLDM's.
    """
    written = autoencoder / MEL_FILE
    if written.is_file():
        return str(json.loads(written.read_text()).get("level", LEVELS[0]))
    if any((folder / RUN).is_file() for folder in (autoencoder, autoencoder.parent)):
        return "recorded"
    log.warning(
        "the autoencoder is a published one: clips enter it without their mean and with a peak of 0.5; level=recorded leaves them"
    )
    return "audioldm"


def _keep_models(output: Dataset, models: dict[str, Path]) -> None:
    for name, folder in models.items():
        for path in sorted(folder.glob("*")):
            if path.is_file() and not output.store.exists(f"models/{name}/{path.name}"):
                output.store.put_file(f"models/{name}/{path.name}", path)


class PrecomputeStage:
    """One commit of the parent -> a shard of latents; holds the two models of one worker, taken from beside
    the latents.
    """

    def __init__(self, parent_uri: str, output_uri: str, mel: MelConfig, config: PrecomputeConfig):
        torch.set_num_threads(config.threads)
        self.parent, self.mel, self.batch_size = Dataset.open(parent_uri, "clips"), mel, config.batch_size
        self.patch_tokens, self.half = config.patch_tokens, config.precision == "bf16"
        self.decoders = ThreadPoolExecutor(DECODERS, "decoder")
        self.device = "cuda" if config.gpus_per_worker and torch.cuda.is_available() else "cpu"
        with scratch_folder("models") as folder:
            fetch_models(Dataset.open(output_uri, "latents"), folder)
            self.autoencoder = load_autoencoder(folder / "autoencoder").to(self.device)
            self.image_encoder = load_image_encoder(folder / "image_encoder").to(self.device)
            processor = read_processor(folder / "image_encoder")
            self.image_config = ImageConfig.from_processor(processor)

    def __call__(self, task: UnitTask, scratch: Path) -> UnitOutput:
        rows: list[Row] = []
        for item in task.items:
            commit = Commit.from_json(item.payload["commit"])
            rows += self.encode_commit(commit)
        return UnitOutput(write_shard(scratch, rows, LATENT_COLUMNS), moments_of(rows))

    def close(self) -> None:
        self.decoders.shutdown(cancel_futures=True)

    def encode_commit(self, commit: Commit) -> list[Row]:
        """A row per clip of the parent, in its order: latents, or refused as damaged or buried."""
        buried = self.parent.tombstones()
        tar = memoryview(self.parent.store.read(commit.tar.name) if commit.tar else b"")
        rows, waiting = [], []
        for record in self.parent.read_index(commit).to_pylist():
            columns = {name: record[name] for name in LATENT_COLUMNS.names}
            row = Row(record["item_id"], record["key"], Status.REFUSED, DAMAGED, None, columns)
            rows.append(row)
            if record["status"] != Status.KEPT or record["key"] in buried:
                row.reason, row.detail = record["reason"] or Status.REMOVED, "refused in the parent"
            else:
                waiting.append((row, record["members"]))
        for batch in self._decoded(tar, waiting):
            if batch:
                self._encode(batch)
        return rows

    def _decoded(
        self, tar: memoryview, waiting: list[tuple[Row, list[dict[str, Any]]]]
    ) -> Iterator[list[Decoded]]:
        """Batch after batch, the next ones decoded while one is encoded; a damaged clip is told in its row
        and left out.
        """

        def decode(row: Row, members: list[dict[str, Any]]) -> Decoded | None:
            try:
                wav, pixels = read_clip(tar, members, self.image_config)
            except (OSError, soundfile.LibsndfileError) as error:
                row.detail = f"{type(error).__name__}: {error}"[:300]
                return None
            return row, _fit(wav, self.mel.num_samples), pixels

        coming: deque[list[Future[Decoded | None]]] = deque()
        for start in range(0, len(waiting), self.batch_size):
            coming.append(
                [self.decoders.submit(decode, *clip) for clip in waiting[start : start + self.batch_size]]
            )
            if len(coming) > BATCHES_AHEAD:
                yield [found for future in coming.popleft() if (found := future.result())]
        for batch in coming:
            yield [found for future in batch if (found := future.result())]

    @torch.no_grad()
    def _encode(self, batch: list[Decoded]) -> None:
        """Turns waiting rows into kept ones."""
        _, wavs, pixels = zip(*batch, strict=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            mean, std = encode_wav(self.autoencoder, torch.stack(wavs).to(self.device), self.mel)
            images, tokens = embed_image_and_patches(self.image_encoder, torch.stack(pixels).to(self.device))
        arrays = {"latent.npy": torch.stack([mean, std], 1), "image.npy": images}
        if self.patch_tokens:
            arrays["tokens.npy"] = tokens
        members = {name: array.half().cpu().numpy() for name, array in arrays.items()}
        for number, (row, _, _) in enumerate(batch):
            if not all(np.isfinite(array[number]).all() for array in members.values()):
                row.detail = "the encoders gave numbers that float16 cannot hold"
                continue
            row.status = Status.KEPT
            row.reason = None
            row.members = {name: to_npy(array[number]) for name, array in members.items()}


def read_clip(
    tar: bytes | memoryview, members: list[dict[str, Any]], image: ImageConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """A clip's waveform [n] and pixels [3, s, s]. `OSError` where a member is not the one the index recorded."""
    parts = {}
    for member in members:
        data = bytes(tar[member["offset"] : member["offset"] + member["size"]])
        if member["ext"] in ("flac", "jpg") and not verify_member(data, member["crc32"]):
            raise OSError(f"{member['ext']} has other bytes than the index recorded")
        parts[member["ext"]] = data
    if not {"flac", "jpg"} <= set(parts):
        raise OSError("flac or jpg is missing")
    try:
        return torch.from_numpy(decode_wav(parts["flac"])), decode_image(parts["jpg"], image)
    except PictureError as error:
        raise OSError(str(error)) from error


def moments_of(rows: list[Row]) -> dict[str, Any]:
    """Counts, sums and sums of squares per latent channel and embedding dimension, over the training samples."""
    train = [row for row in rows if row.status == Status.KEPT and row.columns["split"] not in HELD_OUT]
    statistics: dict[str, Any] = {"latent_count": 0, "image_count": 0}
    for row in train:
        moments, image = (
            read_npy(row.members[f"{name}.npy"]).astype(np.float64) for name in ("latent", "image")
        )
        statistics["latent_shape"] = list(moments.shape[1:])
        mean, variance = moments[0], moments[1] ** 2
        values = {
            "latent": (mean.sum((1, 2)), (mean**2 + variance).sum((1, 2)), mean[0].size),
            "image": (image, image**2, 1),
        }
        for name, (total, squares, count) in values.items():
            statistics[f"{name}_count"] += count
            statistics[f"{name}_sum"] = total + statistics.get(f"{name}_sum", 0)
            statistics[f"{name}_sumsq"] = squares + statistics.get(f"{name}_sumsq", 0)
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in statistics.items()
    }


def _fit(wav: torch.Tensor, num_samples: int) -> torch.Tensor:
    return torch.nn.functional.pad(wav[:num_samples], (0, max(0, num_samples - len(wav))))
