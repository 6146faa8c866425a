"""Pictures and sounds of a run as it goes: what the live weights make of a few held-out samples, beside the
truth, for TensorBoard.

    preview = Preview.of(dataset, snapshot, config, geometry)      # None if preview_every=0
    drawn = preview.draw(engine)                                   # all ranks
    preview.sounds(drawn)                         # by rank 0: [Drawn("clip_3/drawn", log_mel, wav, 16000), …]

A recipe that can be looked at has `draw(module, batch, geometry)`, which gives `drawn` and `truth` as latents
[b, c, t, f], log mels [b, t, m] or waveforms [b, n]. Latents are decoded by the autoencoder
stored beside them. It draws from fixed noise, so that pictures of two steps can be compared, and shows no
hole. It measures nothing (training.run.validate does).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cluster.dataset import Dataset, Snapshot
from cluster.scratch import scratch_folder
from configs.load import UserError
from training.data.catalogue import Catalogue
from training.data.choice import choose
from training.data.randomness import VALIDATION, SampleKey
from training.pipeline.codec import decode_log_mel
from training.pipeline.mel import MelConfig, log_mel_to_wav, wav_to_log_mel
from training.pretrained import fetch_models, load_autoencoder
from training.recipes.recipe import Batch, Geometry, Recipe
from training.settings import TrainConfig


@dataclass(frozen=True)
class Drawn:
    """`log_mel` float32 [t, m], `wav` float32 [n] in -1..1 at `sample_rate_hz`."""

    name: str
    log_mel: np.ndarray
    wav: np.ndarray
    sample_rate_hz: int


@dataclass
class Preview:
    """`names`: keys of the samples in `batch`, which is made once. `codec` decodes what is drawn, if that is
    latents.
    """

    recipe: Recipe
    geometry: Geometry
    names: list[str]
    batch: Batch
    codec: nn.Module | None
    mel: MelConfig

    @staticmethod
    def of(dataset: Dataset, snapshot: Snapshot, config: TrainConfig, geometry: Geometry) -> "Preview | None":
        """`UserError` if the recipe draws nothing, or the snapshot holds nothing of `validation_split`."""
        if not config.preview_every:
            return None
        recipe = config.module
        if not recipe.DRAWS:
            raise UserError(
                f"preview_every={config.preview_every}: "
                f"recipe {config.recipe} makes nothing to look at; give 0"
            )
        catalogue = Catalogue.of(dataset, snapshot, config.validation_split, config.members)
        chosen = choose(catalogue.keys, catalogue.holes, config.preview_items)
        positions = {item: position for position, item in enumerate(chosen)}
        samples = {item: sample for item, sample in catalogue.read(chosen).items() if sample is not None}
        if not samples:
            raise UserError(
                f"preview_every={config.preview_every}: every sample to be shown is damaged; "
                f"run python -m ingest verify {dataset.uri}"
            )
        # by position among all chosen ones: a hole changes nothing of what is drawn for the others
        keys = [SampleKey(config.seed, VALIDATION, positions[item]) for item in samples]
        return Preview(
            recipe=recipe,
            geometry=geometry,
            names=[str(catalogue.keys[item]) for item in samples],
            batch=recipe.make_batch(list(samples.values()), keys, config.section, geometry),
            codec=_codec_of(dataset) if recipe.DRAWS == "latents" else None,
            mel=MelConfig(**geometry["mel"]),
        )

    @torch.no_grad()
    def draw(self, engine: Any) -> dict[str, Tensor]:
        """What the recipe draws, on the CPU.

        By every rank alike, because at ZeRO 3 the weights are gathered in every forward pass.
        """
        engine.eval()
        batch = {name: values.to(engine.device) for name, values in self.batch.items()}
        drawn = self.recipe.draw(engine.module, batch, self.geometry)
        engine.train()
        return {kind: values.float().cpu() for kind, values in drawn.items()}

    @torch.no_grad()
    def sounds(self, drawn: dict[str, Tensor]) -> list[Drawn]:
        """Decoded, on this process's CPU."""
        previews = []
        for kind, values in drawn.items():
            log_mels, wavs = self._decoded(values)
            for name, log_mel, wav in zip(self.names, log_mels, wavs, strict=True):
                preview = Drawn(f"{name}/{kind}", log_mel.numpy(), wav.numpy(), self.mel.sample_rate_hz)
                previews.append(preview)
        return previews

    def _decoded(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Log mels [b, t, m] and waveforms [b, n] of what the recipe drew."""
        if self.recipe.DRAWS == "waves":
            # of a crop: its own length, at the level that it has
            duration_s = values.shape[1] / self.mel.sample_rate_hz
            mel = replace(self.mel, duration_s=duration_s, downsampling=1, level="recorded")
            return wav_to_log_mel(values, mel), values.clamp(-1, 1)
        log_mels = decode_log_mel(self.codec, values, self.mel) if self.codec else values
        return log_mels, log_mel_to_wav(log_mels, self.mel).clamp(-1, 1)


def _codec_of(latents: Dataset) -> nn.Module:
    with scratch_folder("preview") as folder:
        fetch_models(latents, folder)
        return load_autoencoder(folder / "autoencoder")
