"""Draws README's first picture from a finished demo: pictures, their real sounds, and those made from them.

    python docs/first_screen.py out/demo docs/first-screen.png

The examples are the first ones that `training evaluate` kept, not chosen by eye.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import soundfile
from matplotlib.axes import Axes
from PIL import Image

NUM_EXAMPLES = 4
WINDOW = 512  # samples: short enough for onsets, long enough for harmonics


def draw_spectrogram(axes: Axes, path: Path) -> None:
    """dB over time and frequency; below -130 dB only quantisation is left."""
    wav, rate_hz = soundfile.read(path)
    levels = {"cmap": "magma", "vmin": -130, "vmax": -40}
    axes.specgram(wav, NFFT=WINDOW, Fs=rate_hz, noverlap=WINDOW * 3 // 4, **levels)
    axes.set_ylim(0, 6000)
    axes.set_xticks([])
    axes.set_yticks([])


def main(demo: Path, target: Path) -> None:
    images = sorted((demo / "evaluation/images").glob("*.jpg"))
    rows = [images[index] for index in np.linspace(0, len(images) - 1, NUM_EXAMPLES).round().astype(int)]
    figure, grid = plt.subplots(3, NUM_EXAMPLES, figsize=(9, 5), gridspec_kw={"height_ratios": [1.1, 1, 1]})
    for column, image in enumerate(rows):
        grid[0, column].imshow(Image.open(image))
        grid[0, column].axis("off")
        for row, name in enumerate(("real", "generated"), 1):
            draw_spectrogram(grid[row, column], demo / f"evaluation/wavs/{image.stem}.{name}.wav")
    grid[1, 0].set_ylabel("its real sound")
    grid[2, 0].set_ylabel("made from it")
    figure.tight_layout(pad=0.4)
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
