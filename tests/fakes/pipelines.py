"""Pipelines of diffusers as publishers save them, of random weights, with the shapes of published ones made small."""

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

LEVELS = {
    "sample_size": 128,
    "in_channels": 8,
    "out_channels": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
}
VECTOR = {
    "class_embed_type": "simple_projection",
    "projection_class_embeddings_input_dim": 512,
    "class_embeddings_concat": True,
}
SCALING_FACTOR = 0.7


def audioldm_unet() -> Any:
    """Eight heads on every level, as the published ones have that name no number."""
    torch.manual_seed(5)
    return UNet2DConditionModel(cross_attention_dim=(32, 64), **LEVELS, **VECTOR)


def audioldm2_unet(widths: tuple[int, ...] = (24, 40)) -> Any:
    torch.manual_seed(6)
    return AudioLDM2UNet2DConditionModel(cross_attention_dim=[[None, *widths]] * 2, **LEVELS)


def audioldm_scheduler() -> Any:
    """As the conversion of AudioLDM's checkpoints writes it."""
    return DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )


def codec() -> Any:
    torch.manual_seed(7)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        latent_channels=8,
        norm_num_groups=4,
        scaling_factor=SCALING_FACTOR,
    )


def vocoder() -> Any:
    torch.manual_seed(8)
    config = SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=32,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        normalize_before=False,
    )
    vocoder = SpeechT5HifiGan(config).eval()
    for parameter in vocoder.parameters():
        # new ones are silent
        parameter.data *= 8
    return vocoder


def save_audioldm2(folder: Path) -> Any:
    """The parts of an AudioLDM2 pipeline that are of use here, saved into `folder`; its UNet."""
    unet = audioldm2_unet().eval()
    unet.save_pretrained(folder / "unet")
    codec().save_pretrained(folder / "vae")
    vocoder().save_pretrained(folder / "vocoder")
    audioldm_scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "AudioLDM2Pipeline"}')
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n")
    return unet


def save_pipeline(folder: Path, unet: Any, scheduler: Any = None) -> DiffusionPipeline:
    """The pipeline, saved into `folder` with a model card."""
    text = ClapTextConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        projection_dim=512,
    )
    pipeline = AudioLDMPipeline(
        vae=codec().eval(),
        text_encoder=ClapTextModelWithProjection(text).eval(),
        tokenizer=None,
        unet=unet.eval(),
        scheduler=scheduler or audioldm_scheduler(),
        vocoder=vocoder(),
    )
    pipeline.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
