"""A model of ours as a folder that stock `AudioLDMPipeline` loads, where its geometry is AudioLDM's.

    check_audioldm(pipeline)                      # `UserError` where it is not
    write_audioldm(pipeline, folder)              # written, loaded by stock diffusers, and compared
    AudioLDMPipeline.from_pretrained(folder)(prompt_embeds=…, negative_prompt_embeds=…)

AudioLDM scales latents by one number, ours have a mean and a deviation per channel: these go into the first
layer of the decoder. The text encoder and tokenizer are there because the pipeline does not load without: no
text can pass them, what conditions is a picture's embedding (`pipe.prompt_embeds` of ours).
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AudioLDMPipeline,
    AutoencoderKL,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import ClapTextConfig, ClapTextModelWithProjection, RobertaTokenizer, SpeechT5HifiGan

from configs.load import StoppedError, UserError
from training.pipeline.pipeline import StillsoundPipeline
from training.pipeline.sampling import build_scheduler, objective_of

AUDIOLDM = "audioldm"
CHECK_STEPS = 3
# of a sound's peak: rounding of a layer that was multiplied out
MOST_DIFFERENCE = 1e-3
MOST_WORDS = 77
SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def check_audioldm(pipeline: StillsoundPipeline) -> None:
    """`UserError` where a part is not what `AudioLDMPipeline` has in its place."""
    needed = {"unet": UNet2DConditionModel, "autoencoder": AutoencoderKL, "vocoder": SpeechT5HifiGan}
    for name, kind in needed.items():
        part = getattr(pipeline, name)
        if not isinstance(part, kind):
            has = "none" if part is None else type(part).__name__
            fix = "give one by vocoder=…" if name == "vocoder" else "leave audioldm out"
            raise UserError(f"audioldm=true: needs a {kind.__name__} as {name}, this model has {has}; {fix}")
    is_film = pipeline.unet.config.class_embed_type == "simple_projection"
    # channels beside the latent would be a third
    is_widened = pipeline.unet.config.in_channels != pipeline.unet.config.out_channels
    if not is_film or is_widened or pipeline.config.conditioning.get("sequences"):
        raise UserError("audioldm=true: this model is not conditioned as AudioLDM is; leave audioldm out")
    if pipeline.shortcut:
        reason = "AudioLDMPipeline tells a network no step size, which a shortcut model needs"
        raise UserError(f"audioldm=true: {reason}; leave audioldm out")


def write_audioldm(pipeline: StillsoundPipeline, folder: Path) -> None:
    """`StoppedError` unless stock diffusers makes the same sound of it, of the same noise and embeddings."""
    # the pipeline goes on with its own codec: the folder gets a copy with the latents' moments in it
    vae = AutoencoderKL.from_config(pipeline.autoencoder.config)
    vae.load_state_dict(pipeline.autoencoder.state_dict())
    _fold_moments(vae, pipeline)
    # no factor on top of them
    vae.register_to_config(scaling_factor=1.0)
    width = pipeline.unet.config.projection_class_embeddings_input_dim
    stock = AudioLDMPipeline(
        vae=vae,
        text_encoder=_no_text(width),
        tokenizer=_no_words(),
        unet=pipeline.unet,
        scheduler=_stock_scheduler(pipeline),
        vocoder=pipeline.vocoder,
    )
    stock.save_pretrained(folder)
    difference = compare(pipeline, folder)
    # also where it is NaN
    if not difference <= MOST_DIFFERENCE:
        raise StoppedError(f"{folder}: stock AudioLDMPipeline gives another sound (by {difference:.3g})")


def _fold_moments(vae: Any, pipeline: StillsoundPipeline) -> None:
    """In place: `post_quant_conv` takes whitened latents. W (std z + mean) + b = (W std) z + (W mean + b)."""
    mean = torch.tensor(pipeline.config.conditioning["latent_mean"])
    std = torch.tensor(pipeline.config.conditioning["latent_std"])
    layer = vae.post_quant_conv
    with torch.no_grad():
        weight = layer.weight[:, :, 0, 0].double()
        layer.bias.add_((weight @ mean.double()).float())
        layer.weight.copy_((weight * std.double())[:, :, None, None].float())


def _stock_scheduler(pipeline: StillsoundPipeline) -> Any:
    """Its own, but of flows another: Euler of flows fails in AudioLDM's pipeline."""
    is_flow = objective_of(pipeline.scheduler) == "flow"
    return build_scheduler("dpmsolver", "flow") if is_flow else pipeline.scheduler


def _no_text(width: int) -> ClapTextModelWithProjection:
    """An encoder of one word: any other is out of its range. Its precision is all that is asked of it."""
    return ClapTextModelWithProjection(
        ClapTextConfig(
            vocab_size=1,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=4,
            projection_dim=width,
            max_position_embeddings=MOST_WORDS + 2,
            pad_token_id=0,
        )
    )


def _no_words() -> RobertaTokenizer:
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    return RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=MOST_WORDS)


def compare(pipeline: StillsoundPipeline, folder: Path) -> float:
    """By what part of its peak a sound of the folder in stock diffusers differs from ours by that solver."""
    stock: Any = AudioLDMPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    stock.to(pipeline.device)
    shape = tuple(pipeline.config.conditioning["latent_shape"])
    guidance = pipeline.guidance_for(None)
    grey = Image.new("RGB", (64, 64), "grey")
    embedding, null = pipeline.prompt_embeds(grey)
    theirs = stock(
        prompt_embeds=embedding,
        negative_prompt_embeds=null,
        latents=torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)),
        audio_length_in_s=pipeline.mel.num_samples / pipeline.sample_rate_hz,
        num_inference_steps=CHECK_STEPS,
        guidance_scale=guidance,
    ).audios
    parts = {**pipeline.components, "scheduler": stock.scheduler}
    same = StillsoundPipeline(**parts, conditioning=pipeline.config.conditioning)
    same.set_progress_bar_config(disable=True)
    ours: Any = same(image=grey, seed=0, num_inference_steps=CHECK_STEPS, guidance_scale=guidance)
    # AudioLDM's pipeline neither limits a sound nor trims what the vocoder adds at its end
    difference = np.abs(theirs.clip(-1, 1)[:, : ours.audios.shape[1]] - ours.audios).max()
    return float(difference / max(np.abs(ours.audios).max(), 1e-12))
