"""What a sound is like, in a few numbers that a picture may tell: its spectrum and its rhythm.

    scale = scale_of(datasets, snapshots, mel)       # once, kept in run.json
    target = statistics_in(flac, mel, scale)         # [n], each of mean 0 and spread 1

The level of each band and the modulation spectrum of the loudness, both logarithmic. No labels, and no other
sounds to be unlike: a contrastive loss keeps only what tells the sounds of a batch apart.
"""

import logging
from collections.abc import Container, Iterator, Sequence

import torch
from torch import Tensor

from cluster.dataset import Dataset, Snapshot
from cluster.jsonl import JsonObject
from cluster.shards import Status, members_of, read_member
from configs.load import UserError
from training.data.heldout import HELD_OUT
from training.pipeline.mel import MelConfig
from training.recipes.clips import decode_log_mel
from training.recipes.recipe import SoundScale

log = logging.getLogger(__name__)
LOOKED_AT = 512  # sounds, of as many commits as there are, evenly
LEAST_SOUNDS = 2
SLOWEST_HZ, FASTEST_HZ = 1.0, 16.0  # onsets that are heard apart
PADDING = 2  # the modulation spectrum is read at twice as many rates as the clip has periods
LEVEL_FLOOR = 1e-5  # of bands and of modulations: below is rounding or hiss
MODULATION_FLOOR = 1e-2
LEAST_SPREAD = 0.05  # of a statistic, in ln units; less is the hiss of codecs
DECIMALS = 5


def scale_of(datasets: Sequence[Dataset], snapshots: Sequence[Snapshot], mel: MelConfig) -> SoundScale:
    """Mean and spread of the statistics of training sounds, an equal part of `LOOKED_AT` of each dataset.

    `UserError` where there are no sounds to compare.
    """
    share = -(-LOOKED_AT // len(datasets))
    sounds: list[Tensor] = []
    for dataset, snapshot in zip(datasets, snapshots, strict=True):
        sounds += [decode_log_mel(flac, mel) for flac in _some_sounds(dataset, snapshot, share)]
    if len(sounds) < LEAST_SOUNDS:
        uris = ", ".join(snapshot.uri for snapshot in snapshots)
        raise UserError(
            f"contrastive.sound_weight: {uris} has {len(sounds)} training sounds to take statistics of; "
            "need 2, or give 0"
        )
    statistics = statistics_of(torch.stack(sounds), frame_rate_of(mel))
    spread = statistics.std(0)
    # what never varies is divided by 1
    spread[spread < LEAST_SPREAD] = 1.0
    return {"mean": _rounded(statistics.mean(0)), "spread": _rounded(spread)}


def frame_rate_of(mel: MelConfig) -> float:
    """Frames per second."""
    return mel.sample_rate_hz / mel.hop_size


def _some_sounds(dataset: Dataset, snapshot: Snapshot, count: int) -> Iterator[bytes]:
    """FLAC of about `count` samples that are trained on, of as many commits as there are."""
    commits = [commit for commit in snapshot.commits if commit.tar is not None]
    taken = commits[:: max(1, len(commits) // count)]
    per_commit = -(-count // max(1, len(taken)))
    tombstones = dataset.tombstones()
    for commit in taken:
        assert commit.tar is not None
        rows = [row for row in dataset.read_index(commit).to_pylist() if _is_learnt(row, tombstones)]
        for row in rows[:: max(1, len(rows) // per_commit)][:per_commit]:
            (flac,) = (member for member in members_of(row) if member.ext == "flac")
            try:
                yield read_member(dataset.store, commit.tar.name, flac)
            except OSError as error:
                log.warning("%s of %s is left out of the statistics: %s", row["key"], dataset.uri, error)


def _is_learnt(row: JsonObject, tombstones: Container[str]) -> bool:
    return row["status"] == Status.KEPT and row["split"] not in HELD_OUT and row["key"] not in tombstones


def statistics_of(log_mel: Tensor, frame_rate_hz: float) -> Tensor:
    """Log mels [b, t, m] (natural logarithm of magnitudes) -> [b, m + rates].

    ln of the mean magnitude per band, and ln of the loudness's modulation per rate, relative to its mean.
    """
    magnitudes = log_mel.exp()
    levels = (magnitudes.mean(1) + LEVEL_FLOOR).log()
    loudness = magnitudes.sum(2).sqrt()  # so that one loud onset does not decide alone
    relative = loudness / loudness.mean(1, keepdim=True).clamp(min=LEVEL_FLOOR) - 1
    frames = log_mel.shape[1]
    window = torch.hann_window(frames, periodic=False, dtype=log_mel.dtype, device=log_mel.device)
    modulation = torch.fft.rfft(relative * window, n=PADDING * frames).abs() * 2 / window.sum()
    rates_hz = torch.arange(modulation.shape[1], device=log_mel.device) * frame_rate_hz / (PADDING * frames)
    heard = modulation[:, (rates_hz >= SLOWEST_HZ) & (rates_hz <= FASTEST_HZ)]
    return torch.cat([levels, (heard + MODULATION_FLOOR).log()], 1)


def statistics_in(flac: bytes, mel: MelConfig, scale: SoundScale) -> Tensor:
    """Of one clip, float32 [n], each of mean 0 and spread 1 over the sounds of `scale`."""
    statistics = statistics_of(decode_log_mel(flac, mel)[None], frame_rate_of(mel))[0]
    return (statistics - torch.tensor(scale["mean"])) / torch.tensor(scale["spread"])


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DECIMALS) for value in values.tolist()]
