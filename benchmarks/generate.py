"""How long a picture takes to become a sound of 8 s on this machine's cores, part by part, beside its floor.

    python -m benchmarks.generate [rounds=3] [threads=2] [steps=25]

Models of AudioLDM-S' shapes with random weights: CLIP's ViT-B/32, the UNet, the VAE's decoder, and each of
the vocoders. Measured, of each part: GFLOP (counted), CPU-seconds (medians of `rounds`) and, `over_floor`,
how many times those of as many floating point operations in a large matrix product, which takes its turn
before each: no version runs much faster. `unet_step` is of one step with guidance, a batch of two.
`whole_cpu_s`: of a sound in `steps` steps, with each vocoder.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from training.networks.vocoders import VocoderConfig, build_vocoder
from training.pipeline.codec import embed_image, vocode
from training.pipeline.mel import MelConfig, log_mel_to_wav
from training.recipes import autoencoder, diffusion

SOUND_S = 8.0
IMAGE_DIM = 512
LATENT_CHANNELS = 8
MATRIX = 2048
VOCODERS = {
    "hifigan": VocoderConfig(),
    "bigvgan": VocoderConfig(kind="bigvgan", channels=512),
    "istft": VocoderConfig(kind="istft", channels=512),
}
Part = Callable[[], object]


def make_parts(mel: MelConfig) -> dict[str, Part]:
    """What a sound goes through, by name; each is called with inputs of its own, in memory."""
    torch.manual_seed(0)
    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=IMAGE_DIM, patch_size=32)).eval()
    pixels = torch.randn(1, 3, 224, 224)
    latent_shape = [LATENT_CHANNELS, mel.num_frames // 4, mel.num_mels // 4]
    geometry = {
        "latent_shape": latent_shape,
        "image_mean": [0.0] * IMAGE_DIM,
        "image_std": [1.0] * IMAGE_DIM,
        "latent_mean": [0.0] * LATENT_CHANNELS,
        "latent_std": [1.0] * LATENT_CHANNELS,
    }
    unet = diffusion.build_model(diffusion.Config(), geometry).unet.eval()
    latent = torch.randn(1, *latent_shape)
    # with the condition and without it, as the pipeline does it
    pair = latent.expand(2, *latent_shape).contiguous()
    label = torch.randn(2, IMAGE_DIM)
    codec = autoencoder.build_model(autoencoder.Config(), {"mel": mel.settings()}).codec.eval()
    log_mel = 2 * torch.randn(1, mel.num_frames, mel.num_mels) - 5
    parts: dict[str, Part] = {
        "image_tower": lambda: embed_image(tower, pixels),
        "unet_step": lambda: unet(pair, 500, encoder_hidden_states=None, class_labels=label),
        "vae_decoder": lambda: codec.decode(latent),
        "griffin_lim": lambda: log_mel_to_wav(log_mel, mel),
    }
    for kind, config in VOCODERS.items():
        parts[kind] = vocoder_part(build_vocoder(config, mel.num_mels, mel.sample_rate_hz), log_mel, mel)
    return parts


def vocoder_part(vocoder: nn.Module, log_mel: torch.Tensor, mel: MelConfig) -> Part:
    vocoder.eval()
    return lambda: vocode(vocoder, log_mel, mel.num_samples)


def matrix_product(size: int = MATRIX) -> tuple[Part, float]:
    """The floor, and its GFLOP."""
    left = torch.randn(size, size)
    right = torch.randn(size, size)
    return lambda: left @ right, 2 * size**3 / 1e9


@torch.no_grad()
def cpu_s(part: Part, repeats: int = 1) -> float:
    """CPU-seconds of a call, by all threads: a busy machine makes a call later, not longer."""
    started_s = time.process_time()
    for _ in range(repeats):
        part()
    return (time.process_time() - started_s) / repeats


@torch.no_grad()
def count_gflop(part: Part) -> float:
    with FlopCounterMode(display=False) as counter:
        part()
    return counter.get_total_flops() / 1e9


def measure(rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """The figures of each part, and of whole sounds."""
    floor, floor_gflop = matrix_product()
    cpu_s(floor, 4)
    figures: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for name, part in make_parts(MelConfig(duration_s=SOUND_S)).items():
        gflop = count_gflop(part)
        taken: list[float] = []
        floors: list[float] = []
        for _ in range(rounds):
            floors.append(cpu_s(floor, 4) * gflop / floor_gflop)
            taken.append(cpu_s(part))
        seconds[name] = statistics.median(taken)
        figures[name] = {"gflop": round(gflop, 1), "cpu_s": round(seconds[name], 3)}
        # Fourier transforms are not counted: Griffin-Lim has no floor, nor what is mostly one
        if gflop > 0:
            figures[name]["over_floor"] = round(seconds[name] / statistics.median(floors), 2)
    before = seconds["image_tower"] + steps * seconds["unet_step"] + seconds["vae_decoder"]
    vocoders = (*VOCODERS, "griffin_lim")
    figures["whole_cpu_s"] = {name: round(before + seconds[name], 2) for name in vocoders}
    return figures


def main() -> None:
    options = parse_options()
    threads = int(options.get("threads", 2))
    steps = int(options.get("steps", 25))
    torch.set_num_threads(threads)
    figures = measure(int(options.get("rounds", 3)), steps)
    header = {
        "benchmark": "generate",
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine("torch", "diffusers", "transformers"),
        "threads": threads,
        "steps": steps,
        "sound_s": SOUND_S,
    }
    print(json.dumps({**header, **figures}, indent=1))


if __name__ == "__main__":
    main()
