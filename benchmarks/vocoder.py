"""A trained vocoder beside Griffin-Lim: how near their sounds come to the true ones, and what they cost.

    python -m benchmarks.vocoder data=out/demo/clips vocoder=out/demo/runs/vocoder [clips=64] [threads=1]

Both get the log mels of the same held-out clips, which no training saw. Distance: multi-resolution STFT
(training.recipes.spectra), the median over clips, lower is nearer; and the mean absolute error of the log mel
of what was made. Cost: CPU-seconds for a second of sound, the median of three rounds, clip by clip.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.command_line import parse_options
from benchmarks.machine import machine
from cluster.dataset import Dataset
from training.data.catalogue import Catalogue
from training.data.choice import choose
from training.pipeline.codec import vocode
from training.pipeline.mel import MelConfig, log_mel_to_wav, wav_to_log_mel
from training.pretrained import find_model, load_vocoder
from training.recipes.clips import decode_wav, mel_of_clips
from training.recipes.spectra import stft_distance

ROUNDS = 3
ToWav = Callable[[Tensor], Tensor]


def main(data: str, vocoder: str, clips: int, threads: int) -> None:
    torch.set_num_threads(threads)
    dataset = Dataset.open(data, "clips")
    mel = mel_of_clips(dataset.meta)
    model = load_vocoder(find_model(vocoder, "vocoder", "vocoder"), mel)
    real = held_out_sounds(dataset, mel, clips)
    methods: dict[str, ToWav] = {
        "griffin_lim": lambda log_mel: log_mel_to_wav(log_mel, mel),
        "vocoder": lambda log_mel: vocode(model, log_mel, mel.num_samples),
    }
    result = {name: measure(to_wav, real, mel) for name, to_wav in methods.items()}
    ratios = {name: result["vocoder"][name] / result["griffin_lim"][name] for name in result["vocoder"]}
    record = {
        "what": "Griffin-Lim and a vocoder on true log mels of held-out clips; below 1 the vocoder is better",
        **result,
        "ratio": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "vocoder_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "clips": len(real),
        "clip_s": mel.num_samples / mel.sample_rate_hz,
        "threads": threads,
        "machine": machine("torch", "transformers"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(record, indent=1))


def held_out_sounds(dataset: Dataset, mel: MelConfig, count: int) -> Tensor:
    """[clips, n] of the validation split."""
    catalogue = Catalogue.of(dataset, dataset.snapshot(), "validation", ("flac",))
    chosen = choose(catalogue.keys, catalogue.holes, count)
    sounds = []
    for sample in catalogue.read(chosen).values():
        if sample is not None:
            wav = torch.from_numpy(decode_wav(sample["flac"]))[: mel.num_samples]
            sounds.append(torch.nn.functional.pad(wav, (0, mel.num_samples - len(wav))))
    return torch.stack(sounds)


@torch.no_grad()
def measure(to_wav: ToWav, real: Tensor, mel: MelConfig) -> dict[str, float]:
    """Distances and cost of one way to make sound of log mels."""
    log_mels = wav_to_log_mel(real, mel)
    costs = []
    for _ in range(ROUNDS):
        started = time.process_time()
        made = torch.cat([to_wav(log_mel[None]) for log_mel in log_mels])
        costs.append(time.process_time() - started)
    sound_s = real.numel() / mel.sample_rate_hz
    return {
        "stft_distance": round(float(stft_distance(made, real).median()), 4),
        "log_mel_error": round(float((wav_to_log_mel(made, mel) - log_mels).abs().mean()), 4),
        "cpu_s_per_sound_s": round(statistics.median(costs) / sound_s, 4),
    }


if __name__ == "__main__":
    options = parse_options()
    clips = int(options.get("clips", 64))
    threads = int(options.get("threads", 1))
    main(options["data"], options["vocoder"], clips, threads)
