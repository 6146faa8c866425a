"""Pictures and sounds of a run as it goes: what the live weights make of a few held-out samples, beside the
truth, for TensorBoard.

    preview = Preview.of(dataset, snapshot, config, geometry)      # None where preview_every=0
    found = preview.draw(engine)                                # all ranks
    preview.sounds(found)                                       # where it is shown: [Drawn("clip_3/drawn", log_mel, wav), …]

A recipe that can be looked at has `draw(module, batch, geometry)`, which gives `drawn` and `truth` as latents
[b, c, t, f] or log mels [b, t, m]. Latents are decoded by the autoencoder that lies beside them. Draws from
fixed noise, so that pictures of two steps can be compared, and shows no hole. It measures nothing
(training.run.validate does).
"""

from dataclasses import dataclass
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
from training.pipeline.mel import MelConfig, log_mel_to_wav
from training.pretrained import fetch_models, load_autoencoder
from training.recipes.recipe import Geometry
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
    """`tensors`: a batch of the recipe, made once. `codec` decodes its latents, where it has latents."""

    config: TrainConfig
    geometry: Geometry
    names: list[str]
    tensors: dict[str, Tensor]
    codec: nn.Module | None
    mel: MelConfig

    @staticmethod
    def of(dataset: Dataset, snapshot: Snapshot, config: TrainConfig, geometry: Geometry) -> "Preview | None":
        """`UserError` where the recipe cannot be looked at, or the snapshot holds nothing of
        `validation_split`.
        """
        if not config.preview_every:
            return None
        recipe = config.module
        if not recipe.DRAWS:
            raise UserError(
                f"preview_every={config.preview_every}: recipe {config.recipe} makes nothing to look at; give 0"
            )
        catalogue = Catalogue.of(dataset, snapshot, config.validation_split, recipe.MEMBERS)
        places = {
            item: place
            for place, item in enumerate(choose(catalogue.keys, catalogue.holes, config.preview_items))
        }
        read = {item: sample for item, sample in catalogue.read(list(places)).items() if sample is not None}
        if not read:
            raise UserError(
                f"preview_every={config.preview_every}: every sample to be shown is damaged; run python -m ingest verify {dataset.uri}"
            )
        keys = [SampleKey(config.seed, VALIDATION, places[item]) for item in read]
        tensors = recipe.make_batch(list(read.values()), keys, config.section, geometry)
        codec = None
        if recipe.DRAWS == "latents":
            with scratch_folder("preview") as folder:
                fetch_models(dataset, folder)
                codec = load_autoencoder(folder / "autoencoder")
        return Preview(
            config,
            geometry,
            [str(catalogue.keys[item]) for item in read],
            tensors,
            codec,
            MelConfig(**geometry["mel"]),
        )

    @torch.no_grad()
    def draw(self, engine: Any) -> dict[str, Tensor]:
        """What the recipe draws, by every rank alike, because at ZeRO 3 the weights are gathered in every
        forward pass.
        """
        engine.eval()
        tensors = {name: tensor.to(engine.device) for name, tensor in self.tensors.items()}
        found = self.config.module.draw(engine.module, tensors, self.geometry)
        engine.train()
        return {kind: values.float().cpu() for kind, values in found.items()}

    @torch.no_grad()
    def sounds(self, found: dict[str, Tensor]) -> list[Drawn]:
        """Decoded, on this process's CPU."""
        drawn = []
        for kind, values in found.items():
            log_mels = self.codec.decode(values).sample[:, 0] if self.codec else values  # type: ignore[operator]
            wavs = log_mel_to_wav(log_mels, self.mel).clamp(-1, 1)
            for name, log_mel, wav in zip(self.names, log_mels, wavs, strict=True):
                drawn.append(Drawn(f"{name}/{kind}", log_mel.numpy(), wav.numpy(), self.mel.sample_rate_hz))
        return drawn
