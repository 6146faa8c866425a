"""The sequences that precompute stores beside latents: members `<name>.npy` [t, d] of a clip, float16.

    encoders = SequenceEncoders(models, settings, duration_s=10.24, device="cpu")
    tensors = encoders(wavs, patches, texts)      # {"tokens.npy": [b, t, d], "text.npy": b times [t, d]}

Image patches come with the image's embedding, tokens of AudioMAE from the sound, `text.npy` and
`phonemes.npy` from the JSON of a clip. One that has no such text gets an empty sequence, [0, d]: absent. How
a model attends to them is training.recipes.conditions'.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import torch
from torch import Tensor

from cluster.dataset import Dataset, Snapshot
from cluster.progress import RunSummary
from cluster.shards import Member, Row, Status, check_member
from training.codecs import mel_of_audiomae
from training.data.npy import read_npy
from training.networks.audiomae import embed_tokens
from training.pipeline.mel import wav_to_log_mel
from training.pipeline.text import embed_texts
from training.pretrained import check_finite, find_model, load_audiomae
from training.recipes.captions import check_column, text_of
from training.text_encoders import (
    PHONEMES,
    TEXT,
    TextReader,
    check_reader,
    find_phoneme_encoder,
    find_text_encoder,
    load_phoneme_reader,
    load_text_reader,
)

PATCHES_MEMBER = "tokens.npy"
AUDIOMAE = "audiomae"
AUDIOMAE_MEMBER = "audiomae.npy"
LOADERS: dict[str, Callable[[Path], TextReader]] = {TEXT: load_text_reader, PHONEMES: load_phoneme_reader}
MEMBERS = {TEXT: "text.npy", PHONEMES: "phonemes.npy"}


class Wanted(Protocol):
    """What precompute is asked for (training.precompute.PrecomputeConfig)."""

    audiomae: str
    patch_tokens: bool
    text_encoder: str
    text_column: str
    text_tokens: int
    phoneme_encoder: str
    phoneme_column: str
    phoneme_tokens: int


class TextSettings(TypedDict):
    """Where a clip's JSON has the text, and how many tokens of it are read."""

    column: str
    max_tokens: int


class Present(NamedTuple):
    """Of a unit's kept samples: how many have such a text, how many have none; the width of a token."""

    present: int
    absent: int
    dim: int


@dataclass
class LatentSummary(RunSummary):
    """`without`: member -> samples of the whole dataset that have no such sequence."""

    without: dict[str, int] = field(default_factory=dict)


def text_settings(config: Wanted) -> dict[str, TextSettings]:
    """By encoder, of those that are wanted."""
    settings: dict[str, TextSettings] = {}
    if config.text_encoder:
        settings[TEXT] = {"column": config.text_column, "max_tokens": config.text_tokens}
    if config.phoneme_encoder:
        settings[PHONEMES] = {"column": config.phoneme_column, "max_tokens": config.phoneme_tokens}
    return settings


def find_sequence_models(config: Wanted) -> dict[str, Path]:
    """The folders of the encoders that are wanted. `UserError` where there is none."""
    folders: dict[str, Path] = {}
    if config.audiomae:
        folders[AUDIOMAE] = find_model(config.audiomae, AUDIOMAE)
    if config.text_encoder:
        folders[TEXT] = find_text_encoder(config.text_encoder)
    if config.phoneme_encoder:
        folders[PHONEMES] = find_phoneme_encoder(config.phoneme_encoder)
    return folders


def check_sequence_models(
    config: Wanted, models: Mapping[str, Path], clips: Snapshot, duration_s: float
) -> None:
    """Loads each once. `UserError` for one that cannot be used, and for a column that no clip has."""
    if AUDIOMAE in models:
        mel_of_audiomae(models[AUDIOMAE], duration_s)
        check_finite(load_audiomae(models[AUDIOMAE]), AUDIOMAE, config.audiomae)
    for name, settings in text_settings(config).items():
        reader = LOADERS[name](models[name])
        check_reader(reader, settings["max_tokens"], name, getattr(config, name))
        setting = f"{name.removesuffix('_encoder')}_column"
        check_column(clips, settings["column"], needed=True, setting=setting)


def read_texts(
    tar: bytes | memoryview, members: Sequence[Member], settings: Mapping[str, TextSettings]
) -> dict[str, str]:
    """A clip's texts by encoder, "" where it has none. `OSError` where its JSON is damaged."""
    texts = dict.fromkeys(settings, "")
    metadata = [member for member in members if member.ext == "json"] if settings else []
    for member in metadata:
        data = check_member(bytes(tar[member.offset : member.end]), member, "its tar")
        texts = {name: text_of(data, each["column"]) for name, each in settings.items()}
    return texts


class SequenceEncoders:
    """Those whose models lie in a folder, on a device. `has_patches`: image patches are stored, too."""

    def __init__(
        self,
        models: Path,
        has_patches: bool,
        texts: Mapping[str, TextSettings],
        duration_s: float,
        device: str,
    ):
        self.has_patches = has_patches
        self.texts = texts
        self.audiomae: torch.nn.Module | None = None
        if (models / AUDIOMAE).is_dir():
            self.audiomae = load_audiomae(models / AUDIOMAE).to(device)
            self.audiomae_mel = mel_of_audiomae(models / AUDIOMAE, duration_s)
        self.readers = {name: LOADERS[name](models / name) for name in texts}
        for reader in self.readers.values():
            reader.encoder.to(device)

    def __call__(
        self, wavs: Tensor, patches: Tensor, texts: Sequence[Mapping[str, str]]
    ) -> dict[str, Tensor | list[Tensor]]:
        """Of waveforms [b, n], patches [b, t, d] of their pictures, and texts: by member, one of each."""
        tensors: dict[str, Tensor | list[Tensor]] = {}
        if self.has_patches:
            tensors[PATCHES_MEMBER] = patches
        if self.audiomae is not None:
            tensors[AUDIOMAE_MEMBER] = embed_tokens(self.audiomae, wav_to_log_mel(wavs, self.audiomae_mel))
        for name, reader in self.readers.items():
            max_tokens = self.texts[name]["max_tokens"]
            tensors[MEMBERS[name]] = embed_texts(*reader, [each[name] for each in texts], max_tokens)
        return tensors


def presence_of(rows: Sequence[Row], texts: Mapping[str, TextSettings]) -> dict[str, Present]:
    """By member, over a unit's kept rows."""
    found: dict[str, Present] = {}
    members = [row.members for row in rows if row.status == Status.KEPT]
    for member in (MEMBERS[name] for name in texts):
        shapes = [read_npy(each[member]).shape for each in members]
        absent = sum(shape[0] == 0 for shape in shapes)
        if shapes:
            found[member] = Present(len(shapes) - absent, absent, shapes[0][1])
    return found


def summary_of(summary: RunSummary, latents: Dataset, texts: Mapping[str, TextSettings]) -> LatentSummary:
    """With how many samples have no text, over all that is committed."""
    without = {MEMBERS[name]: 0 for name in texts}
    if without:
        for commit in latents.iter_commits():
            for member, present in commit.statistics.get("sequences", {}).items():
                without[member] += Present(**present).absent
    return LatentSummary(**vars(summary), without=without)
