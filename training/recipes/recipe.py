"""What a recipe is: a module of plain functions that the trainer calls, and the types that pass between them.

    recipe = RECIPES["diffusion"]                                    # training.settings has the table
    geometry = recipe.geometry(snapshot, dataset_meta, config)      # once, kept in run.json
    batch = recipe.make_batch(samples, keys, config, geometry)      # all randomness from the keys
    losses = recipe.build_model(config, geometry)(batch)["loss"]    # [b], 0 for a hole

A recipe is a module and no class: it has no state of its own. mypy checks each module against `Recipe` where
the table is filled. A new one is one module with a `Config`, its line and section in training/settings.py, a
YAML file per size, a test and a phrase in docs/map.md (docs/recipes.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from torch import Tensor, nn

from cluster.dataset import Dataset, DatasetMeta, Snapshot
from training.data.randomness import SampleKey

Batch = dict[str, Tensor]
"""Named arrays whose first axis is the sample. `weight` [b] is 1, or 0 for a hole. A condition is a vector
[b, d] or a sequence [b, t, d]; where it may be absent, `<name>_present` [b] or [b, t] is 1 where it is."""

DrawnKind = Literal["", "latents", "log_mels", "waves"]
"""What a preview gets of a recipe: latents [b, c, t, f], log mels [b, t, m], waveforms [b, n], or nothing."""

Sample = Mapping[str, Any]
"""A sample's members by extension, bytes or a view of them. None in its stead is a hole: removed, damaged or
refused."""


class TokenizerFacts(TypedDict):
    """What a model must know of its tokenizer. `pad`: the id of padding, after which the places begin."""

    sha256: str
    vocab_size: int
    pad: int


class SoundScale(TypedDict):
    """Mean and spread of each statistic of a sound, over those of a dataset."""

    mean: list[float]
    spread: list[float]


class Geometry(TypedDict, total=False):
    """What a model must know of its data: shapes and statistics, plain JSON in run.json and beside a model.

    `mel`: settings of the spectrogram. The others are of latents: shape [c, t, f], where they are,
    moments per channel and per dimension of the image embedding, how their pictures were made, sha256 of
    the models that made them, and the pinned snapshots. `tokenizer`: of a model that reads captions.
    `network`, `unit_vectors`: settings of a published network, and whether its vectors have length 1.
    `audiomae_shape`: of a sound's tokens. `sounds`: what a picture is to tell of them
    (training.recipes.sound_statistics). `picture_px`: side of what an image tower sees, where it follows from
    the data. A new recipe adds its keys here: one list, so that no name
    means two things.
    """

    mel: dict[str, Any]
    latent_shape: list[int]
    latents: str
    latent_mean: list[float]
    latent_std: list[float]
    image_mean: list[float]
    image_std: list[float]
    pictures: int
    sha256: dict[str, str]
    snapshots: list[str]
    audiomae_shape: list[int]
    tokenizer: TokenizerFacts
    network: dict[str, Any]
    unit_vectors: bool
    sounds: SoundScale
    picture_px: int


@dataclass(frozen=True)
class Optimiser:
    """One of a recipe's optimisers, and the children of the model whose parameters it steps.

    A recipe with an adversary has two, which step in turn; each child belongs to exactly one. `children` ():
    the model whole, of a recipe with one. `gives`: what of its losses the next one finds in its batch.
    """

    name: str
    children: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()


@dataclass(frozen=True)
class PipelineParts:
    """The folders of a finished model, by what they are in a pipeline; "" or () for what it does not have.

    generate, evaluate and export load a part by its use, so that another network or decoder is another name.
    """

    network: str = ""
    conditioner: str = ""
    codec: str = ""
    vocoder: str = ""
    encoders: tuple[str, ...] = ()
    prior: str = ""
    scheduler: str = ""

    @property
    def weights(self) -> tuple[str, ...]:
        """The folders that hold weights, in the order of the pipeline."""
        names = (self.codec, self.vocoder, *self.encoders, self.prior, self.conditioner, self.network)
        return tuple(name for name in names if name)


ONE_OPTIMISER: tuple[Optimiser, ...] = (Optimiser("model"),)


class Recipe(Protocol):
    """The contract. `config` is the recipe's own `Config`, a section of the training settings.

    `MEMBERS`: extensions that a sample must have. `LEARNS_FROM`: the kind of dataset. `DRAWS`: what `draw`
    gives, "" where there is nothing to look at. `PARTS`: what `save` leaves for a pipeline.
    """

    MEMBERS: tuple[str, ...]
    LEARNS_FROM: Literal["clips", "latents"]
    DRAWS: DrawnKind
    PARTS: PipelineParts

    def geometry(self, snapshot: Snapshot, dataset_meta: DatasetMeta, config: Any) -> Geometry:
        """Shapes and statistics of the data. `UserError` for a dataset or settings that do not fit."""

    def optimisers(self, config: Any) -> tuple[Optimiser, ...]:
        """In the order in which they step; the loss of the first is the one that counts."""

    def couples_samples(self, config: Any) -> bool:
        """Whether a sample's loss depends on the others of its micro batch: then `accumulate` changes it."""

    def build_model(self, config: Any, geometry: Geometry) -> nn.Module:
        """The module to train; `forward(batch)` gives `{"loss": [b], …}`, 0 for holes.

        With several optimisers `forward(batch, name)` gives the losses of one of them.
        """

    def make_batch(
        self, samples: Sequence[Sample | None], keys: Sequence[SampleKey], config: Any, geometry: Geometry
    ) -> Batch:
        """The arrays of a batch; all that is random is drawn from the keys, never from a rank."""

    def initial(self, source: str, config: Any, geometry: Geometry) -> dict[str, Tensor]:
        """The weights behind `init_from`, published or of another run, under the names of this model.

        `UserError` where they are missing, or are of another kind of model.
        """

    def loss_groups(self, batch: Batch) -> list[str] | None:
        """A name per sample under which validation also reports its loss apart; None for none."""

    def draw(self, model: nn.Module, batch: Batch, geometry: Geometry) -> dict[str, Tensor]:
        """What the live weights make of a batch, by name, beside the truth; `DRAWS` says of what kind."""

    def save(self, state: dict[str, Tensor], config: Any, geometry: Geometry, folder: Path) -> None:
        """Writes the finished model as its library saves it, so that `from_pretrained` loads it."""


@runtime_checkable
class Measures(Protocol):
    """A recipe that must look into samples before the first step, once."""

    def measured(
        self, datasets: Sequence[Dataset], snapshots: Sequence[Snapshot], config: Any, geometry: Geometry
    ) -> Geometry:
        """`geometry` with what was found. `UserError` where there is too little."""


@runtime_checkable
class Adopts(Protocol):
    """A recipe that takes more than weights from what it starts from, such as the shapes of its network."""

    def adopted(self, source: str, config: Any, geometry: Geometry) -> Geometry:
        """`geometry` with what the weights behind `init_from` fix of it.

        `UserError` where they do not fit.
        """
