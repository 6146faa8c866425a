"""The one pipeline behind generate, evaluate and export: a picture goes in, waveforms come out.

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)   # stock diffusers, an export
    audios = pipe(image="a.jpg", num_inference_steps=25, guidance_scale=2.0).audios    # float32 [b, n]

`training.export` ships this text as pipeline.py beside model_index.json, after the files of ours that it
imports: so it imports only files of this folder, of training/networks and ingest.pixels. It trains nothing
and reads no datasets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AudioPipelineOutput, DiffusionPipeline
from PIL import Image
from torch import Tensor

from ingest.pixels import open_picture
from training.pipeline.codec import (
    Conditions,
    ImageConfig,
    conditions_of,
    decode_latent,
    embed_image_and_patches,
    encode_wav,
    image_to_tensor,
    predict,
)
from training.pipeline.mel import MelConfig
from training.pipeline.sampling import integrate
from training.pipeline.step_sizes import step_sizes, take_steps, told

USUAL_GUIDANCE = 2.0
USUAL_STEPS = 25
USUAL_SHORTCUT_STEPS = 4
PATCHES = "tokens"  # the sequence that comes from the picture itself
SOUND_TOKENS = "audiomae"  # the one that a prior predicts from the picture
Conditioning = dict[str, Any]
"""Whatever a model states of its data and training beside its weights: conditioning.json of a run."""


Picture = str | Path | Image.Image | np.ndarray | Tensor
Pictures = Picture | Sequence[Picture]
Generators = torch.Generator | Sequence[torch.Generator]
Given = tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]
"""Whitened embeddings [b, d]; by name, values [b, t, d] of sequences and their presence [b, t]."""


def as_list(images: Pictures) -> list[Picture]:
    """One picture, a list, or an array or tensor of several, as a list."""
    if isinstance(images, np.ndarray | Tensor):
        return [images] if images.ndim == 3 else list(images)
    return [images] if isinstance(images, str | Path | Image.Image) else list(images)


def as_picture(picture: Picture) -> Image.Image:
    """A file, an array [h, w, 3] or a tensor [3, h, w], of bytes or of 0..1. `ValueError` for others."""
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | Path):
        return open_picture(picture)
    values = picture.detach().cpu().permute(1, 2, 0).numpy() if isinstance(picture, Tensor) else picture
    if values.ndim != 3 or values.shape[2] != 3:
        given = tuple(picture.shape)
        raise ValueError(f"a picture of shape {given}: give an array [h, w, 3] or a tensor [3, h, w]")
    if values.dtype != np.uint8:
        if not (0 <= values.min() and values.max() <= 1):
            raise ValueError(f"a picture of {values.min():g} to {values.max():g}: give bytes, or 0 to 1")
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values)


class StillsoundPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers hides its types from mypy
    """A network, a codec, an image encoder and a scheduler, under the names of their folders.

    A vocoder if there is one; Griffin-Lim otherwise.

    A conditioner where vectors are projected or sequences enter, and a prior of a sound's tokens if these do.

    `conditioning`: latent_mean/std, image_mean/std, null_embedding, condition_dropout, latent_shape, mel, and
    the image tower's `processor`; `sequences`, and whether vectors have length 1, where that is so.
    """

    _optional_components = ["vocoder", "conditioner", "prior"]

    def __init__(
        self,
        unet: Any,
        autoencoder: Any,
        image_encoder: Any,
        scheduler: Any,
        conditioning: Conditioning | None = None,
        vocoder: Any = None,
        conditioner: Any = None,
        prior: Any = None,
    ):
        super().__init__()
        assert conditioning is not None, "a default only keeps diffusers from taking it for a model"
        self.register_modules(
            unet=unet,
            autoencoder=autoencoder,
            image_encoder=image_encoder,
            scheduler=scheduler,
            vocoder=vocoder,
            conditioner=conditioner,
            prior=prior,
        )
        self.register_to_config(conditioning=conditioning)
        self.mel = MelConfig(**conditioning["mel"])
        self.image_config = ImageConfig.from_processor(conditioning["processor"])

    @property
    def sample_rate_hz(self) -> int:
        return self.mel.sample_rate_hz

    @torch.no_grad()
    def __call__(
        self,
        images: Pictures | None = None,
        generator: Generators | None = None,
        seed: int = 0,
        guidance: float | None = None,
        steps: int | None = None,
        *,
        image: Pictures | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_waveforms_per_image: int = 1,
        image_embeds: np.ndarray | Tensor | None = None,
        conditions: Mapping[str, np.ndarray | Tensor] | None = None,
        return_dict: bool = True,
    ) -> AudioPipelineOutput | tuple[np.ndarray] | np.ndarray:
        """Sounds of pictures, float32 [b, n] in -1..1, those of one picture after another.

        `image`: a path, a PIL picture, an array [h, w, 3], a tensor [3, h, w], or a list of them; arrays and
        tensors of bytes, or of 0..1. With it comes an `AudioPipelineOutput`; `images`, `guidance` and `steps`
        are older names, with which the bare array comes. `generator` (CPU; or one for each sound) is used
        before `seed`.

        `image_embeds`: [b, d] in place of pictures, as the image encoder gives and precompute stores them.

        `conditions`: sequences by name, [t, d], or [b, t, d] of as many pictures; a model that was trained
        with them has a learnt null for those that are missing. Image patches (tokens) come from the picture,
        a sound's tokens (audiomae) from the prior, unless they are given.

        Classifier-free guidance (Ho and Salimans 2022, eq. 6) with the learnt null embedding. 1 = none; None:
        2, or 1 where no null embedding was trained, which any other value needs (`ValueError`). `BadMelError`
        where no sound comes out. A shortcut model takes 1, 2, 4, … steps best, by default 4, and
        has its guidance in them.
        """
        if sum(each is not None for each in (images, image, image_embeds)) != 1:
            raise ValueError("image: give a picture, or a list of them, or image_embeds and no picture")
        if num_waveforms_per_image < 1:
            raise ValueError(f"num_waveforms_per_image={num_waveforms_per_image}: give 1 or more")
        asked = steps if num_inference_steps is None else num_inference_steps
        pictures = images if image is None else image
        if pictures is not None:
            embedding, patches = self._embed(pictures)
        else:
            embedding, patches = self._as_embeddings(image_embeds), None
        sequences = {**self._sequences_of(embedding, patches, conditions or {}), **(conditions or {})}
        given = self._given(self._whitened(embedding), sequences, num_waveforms_per_image)
        wavs = self._sample(
            given,
            torch.Generator().manual_seed(seed) if generator is None else generator,
            self.guidance_for(guidance if guidance_scale is None else guidance_scale),
            self.usual_steps if asked is None else asked,
        )
        if images is not None:
            return wavs
        return AudioPipelineOutput(audios=wavs) if return_dict else (wavs,)

    def _sequences_of(
        self, embedding: Tensor, patches: Tensor | None, given: Mapping[str, np.ndarray | Tensor]
    ) -> dict[str, Tensor]:
        """Of the sequences that the model takes, those that the picture alone decides: its patches, and the
        tokens that the prior predicts, if they are not given.
        """
        known = {each["name"] for each in self.config.conditioning.get("sequences", ())}
        made = {PATCHES: patches.cpu()} if PATCHES in known and patches is not None else {}
        if self.prior is not None and SOUND_TOKENS in known - given.keys():
            # as the encoder gives it: the prior has moments of its own
            made[SOUND_TOKENS] = self.prior.predict(embedding).cpu()
        return made

    def _given(self, vectors: Tensor, given: Mapping[str, np.ndarray | Tensor], repeats: int) -> Given:
        """Vectors [b, d] and sequences by name, for each picture `repeats` times.

        `ValueError` for a sequence that the model does not take, or of another shape.
        """
        known = {each["name"]: each for each in self.config.conditioning.get("sequences", ())}
        for name in given.keys() - known.keys():
            raise ValueError(f"conditions: {name}: this model takes {', '.join(known) or 'none'}")
        count = len(vectors)
        sequences: dict[str, tuple[Tensor, Tensor]] = {}
        for name, each in known.items():
            values = torch.zeros(count, each["length"], each["dim"])
            present = torch.zeros(count, each["length"])
            if name in given:
                tokens = torch.as_tensor(given[name]).float()
                tokens = tokens.expand(count, -1, -1) if tokens.ndim == 2 else tokens
                if tokens.ndim != 3 or (len(tokens), tokens.shape[2]) != (count, each["dim"]):
                    need = f"[t, {each['dim']}] or [{count}, t, {each['dim']}]"
                    raise ValueError(f"conditions: {name} of shape {list(tokens.shape)}: give {need}")
                tokens = tokens[:, : each["length"]]
                values[:, : tokens.shape[1]] = tokens
                present[:, : tokens.shape[1]] = 1
            repeated = (one.repeat_interleave(repeats, dim=0).to(vectors) for one in (values, present))
            sequences[name] = next(repeated), next(repeated)
        return vectors.repeat_interleave(repeats, dim=0), sequences

    def _free(self, given: Given) -> Given:
        """The conditions without those that were dropped in training."""
        vectors, sequences = given
        dropped = {each["name"] for each in self.config.conditioning.get("sequences", ()) if each["dropout"]}
        absent = {
            name: (values, torch.zeros_like(present) if name in dropped else present)
            for name, (values, present) in sequences.items()
        }
        return (self._null(vectors) if self.has_null_vector else vectors), absent

    def _null(self, vectors: Tensor) -> Tensor:
        """The null embedding [b, d] for as many vectors."""
        return self._moment("null_embedding").to(vectors).expand_as(vectors)

    def _sample(self, given: Given, generator: Generators, guidance: float, steps: int) -> np.ndarray:
        """Waveforms [b, n] under whitened embeddings [b, d] and sequences."""
        vectors, sequences = given
        if self.config.conditioning.get("condition") == "none" and self.config.conditioning["null_embedding"]:
            given = (self._null(vectors), sequences)
        conditions = self._conditions(given)
        free = self._conditions(self._free(given)) if guidance != 1 else None
        # drawn on the CPU: a seed gives the same noise on every device
        noise = self._noise(len(vectors), generator).to(vectors)

        def predicted(latent: Tensor, timestep: Tensor) -> Tensor:
            return self._predict(latent, timestep, conditions, free, guidance)

        def velocity(latent: Tensor, timestep: Tensor, size: Tensor) -> Tensor:
            return predict(self.unet, latent, timestep, conditions | told(size), self.unet.dtype)

        sizes = self.sizes_for(steps)
        if sizes:
            latent = take_steps(noise, sizes, velocity, self.progress_bar)
        else:
            latent = integrate(self.scheduler, noise, steps, predicted, self.progress_bar)
        mean = self._moment("latent_mean")[:, None, None].to(latent)
        std = self._moment("latent_std")[:, None, None].to(latent)
        return self._waves(latent * std + mean)

    def _predict(
        self,
        latent: Tensor,
        timestep: Tensor,
        conditions: Conditions,
        free: Conditions | None,
        guidance: float,
    ) -> Tensor:
        """[b, c, t, f]: from the prediction of `free` through the conditions', `guidance` times as far."""
        dtype = self.unet.dtype
        if free is None:
            return predict(self.unet, latent, timestep, conditions, dtype)
        # one pass of twice as many: on a CPU a single sound then takes 16 % less
        both = {name: torch.cat([free[name], values]) for name, values in conditions.items()}
        unguided, guided = predict(self.unet, torch.cat([latent, latent]), timestep, both, dtype).chunk(2)
        return torch.lerp(unguided, guided, guidance)

    def _conditions(self, given: Given) -> Conditions:
        """Named arguments of the network."""
        unit_vectors = self.config.conditioning.get("unit_vectors", False)
        return conditions_of(*given, self.conditioner, unit_vectors)

    def _noise(self, count: int, generator: Generators) -> Tensor:
        """[count, c, t, f]; a generator for each sound makes its noise independent of the others."""
        shape = tuple(self.config.conditioning["latent_shape"])
        if isinstance(generator, torch.Generator):
            return torch.randn((count, *shape), generator=generator)
        if len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} sounds: give one, or one for each")
        return torch.stack([torch.randn(shape, generator=each) for each in generator])

    @property
    def has_null(self) -> bool:
        """Whether a null of any condition was trained."""
        sequences = self.config.conditioning.get("sequences", ())
        return self.has_null_vector or any(each["dropout"] for each in sequences)

    @property
    def has_null_vector(self) -> bool:
        """Whether a null embedding was trained.

        Older models do not record the dropout: one that was never trained is still all zeros.
        """
        conditioning = self.config.conditioning
        dropout: float = conditioning.get("condition_dropout", any(conditioning["null_embedding"]))
        return dropout > 0

    @property
    def shortcut(self) -> dict[str, Any]:
        """Of a shortcut model: how many step `sizes` it knows, and the `guidance` in its steps; else {}."""
        return dict(self.config.conditioning.get("shortcut", {}))

    @property
    def usual_steps(self) -> int:
        """In which a sound is made where nothing else is asked for."""
        if not self.shortcut:
            return USUAL_STEPS
        return min(USUAL_SHORTCUT_STEPS, int(2 ** (self.shortcut["sizes"] - 1)))

    def sizes_for(self, steps: int) -> list[float]:
        """The step sizes of a shortcut model; none of another.

        `ValueError` for more steps than it can take, or a scheduler that knows of no step sizes.
        """
        if not self.shortcut:
            return []
        kind = type(self.scheduler).__name__
        if kind != "FlowMatchEulerDiscreteScheduler":
            raise ValueError(f"a {kind} cannot sample a shortcut model; give sampler=euler, or none")
        return step_sizes(steps, self.shortcut["sizes"])

    def guidance_for(self, guidance: float | None) -> float:
        """The guidance to use: of a shortcut model 1, as its own is in its steps.

        `ValueError` where it needs a null embedding that was never trained.
        """
        if self.shortcut:
            if guidance not in (None, 1):
                own = f"a shortcut model has its guidance ({self.shortcut['guidance']:g}) in its steps"
                raise ValueError(f"guidance={guidance}: {own}; leave it out, or give 1")
            return 1.0
        if guidance is None:
            return USUAL_GUIDANCE if self.has_null else 1.0
        if guidance != 1 and not self.has_null:
            reason = "this model was trained with condition_dropout=0, without a null embedding"
            raise ValueError(f"guidance={guidance}: {reason}; give 1")
        return guidance

    def embed(self, images: Pictures) -> Tensor:
        """Whitened embeddings [b, d] of pictures."""
        return self._whitened(self._embed(images)[0])

    @torch.no_grad()
    def prompt_embeds(self, images: Pictures) -> tuple[Tensor, Tensor]:
        """What conditions the network, [b, d]: of pictures and of their absence, as `AudioLDMPipeline` takes
        both.
        """
        given = self._given(self.embed(images), {}, 1)
        return self._conditions(given)["class_labels"], self._conditions(self._free(given))["class_labels"]

    @torch.no_grad()
    def _embed(self, images: Pictures) -> tuple[Tensor, Tensor]:
        """Embeddings [b, d] and patches [b, t, width] of pictures, as the tower gives them."""
        pictures = [as_picture(one) for one in as_list(images)]
        pixels = torch.stack([image_to_tensor(picture, self.image_config) for picture in pictures])
        embedding, patches = embed_image_and_patches(self.image_encoder, pixels.to(self.device))
        # rounded as they were when they were stored for training
        return embedding.float().half().float(), patches.float().half().float()

    def _as_embeddings(self, given: np.ndarray | Tensor | None) -> Tensor:
        """`ValueError` where they are not [b, d] of this model."""
        embedding = torch.as_tensor(given).float().to(self.device)
        dim = len(self.config.conditioning["image_mean"])
        if embedding.ndim != 2 or embedding.shape[1] != dim:
            raise ValueError(f"image_embeds of shape {list(embedding.shape)}: give [b, {dim}]")
        return embedding

    def _whitened(self, embedding: Tensor) -> Tensor:
        """As the network was trained with them."""
        return (embedding - self._moment("image_mean")) / self._moment("image_std")

    @torch.no_grad()
    def reconstruct(self, wav: np.ndarray) -> np.ndarray:
        """Waveforms [b, n] through the codec and back, [b, n]: the ceiling of what the pipeline can give."""
        mean, _ = encode_wav(self.autoencoder, torch.from_numpy(wav).to(self.device), self.mel)
        return self._waves(mean)

    def _waves(self, latent: Tensor) -> np.ndarray:
        wav = decode_latent(self.autoencoder, latent, self.mel, self.vocoder)
        return wav.clamp(-1, 1).float().cpu().numpy()

    def _moment(self, name: str) -> Tensor:
        return torch.tensor(self.config.conditioning[name], device=self.device)
