"""How many re-uploaded clips `ingest curate` finds, and how many others it buries by mistake.

    python -m benchmarks.curate [videos=12] [seconds=60]

Measured: the share of clips that end up buried, by kind of re-upload:

- `small`: scaled down, keyframes at other times. `vp9`: VP9 and Opus. `trimmed`: the first 1.37 s cut off.
- `mistaken`: all clips that are no re-upload. Among them are the same sounds under other pictures, and other
  sounds over one still picture, which a careless comparison would bury.

How: every video is made once and re-encoded in the three ways, all are cut by the real clipper in keyframe
and in grid mode, and `curate` runs over a dataset of the clips. The baseline is the same pass without audio
sequences: it can compare only clips that were cut at the same times.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.command_line import parse_options
from cluster.dataset import Dataset
from cluster.shards import Row, write_shard
from ingest.clip.clipper import AudioConfig, ClipConfig, Clipper, FrameConfig, MediaLimits
from ingest.curate import CurateConfig, curate
from ingest.ffmpeg import ffmpeg_exe
from ingest.rows import CLIP_COLUMNS
from ingest.sample import Item, Media
from ingest.scenes import render_audio, render_image, sample_scene
from ingest.shard import clip_row

RATE_HZ = 16000
WIDTH_PX = 192
HEIGHT_PX = 144
FPS = 10
SCENE_PX = 320  # larger than a frame, so that a camera can pan over it

# kind of re-upload -> container, ffmpeg's options; keyframes never at the times of the original's (-g 47)
RE_ENCODINGS = {
    "small": ("mp4", "-vf scale=128:96 -c:v libx264 -g 53 -crf 33 -c:a aac -b:a 48k"),
    "vp9": ("webm", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 71 -c:a libopus -b:a 48k"),
    "trimmed": ("mp4", "-ss 1.37 -c:v libx264 -g 61 -crf 28 -c:a aac -b:a 96k"),
}
ORIGINAL = "-c:v libx264 -preset veryfast -g 47 -pix_fmt yuv420p -c:a aac -b:a 128k"


# --- Sounds: each hard to tell apart in its own way ---------------------------------------------------------


def music(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Notes that die away, float [num_samples]."""
    wave = 0.01 * rng.standard_normal(round(seconds * RATE_HZ))
    at_s = 0.0
    while at_s < seconds:
        start = round(at_s * RATE_HZ)
        length_s = rng.uniform(0.3, 1.2)
        time_s = np.arange(min(round(length_s * RATE_HZ), len(wave) - start)) / RATE_HZ
        pitch_hz = 220 * 2 ** (rng.integers(0, 24) / 12)
        note = sum(np.sin(2 * np.pi * pitch_hz * k * time_s) / k for k in range(1, 6))
        wave[start : start + len(time_s)] += note * np.exp(-5 * time_s)
        at_s += length_s / 2
    return wave / 4


def rain(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Noise whose level wavers, float [num_samples]."""
    wave = rng.standard_normal(round(seconds * RATE_HZ))
    levels = np.exp(0.5 * rng.standard_normal(len(wave) // 2000 + 1))
    wave *= np.repeat(levels, 2000)[: len(wave)]
    return wave / 12


def scenes(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """The sounds of procedural scenes one after the other, float [num_samples]."""
    num_scenes = int(seconds / 4) + 1
    waves = [render_audio(sample_scene(rng, 2), 4.0, RATE_HZ, rng) for _ in range(num_scenes)]
    return np.concatenate(waves)[: round(seconds * RATE_HZ)] / 2


SOUNDS = (music, rain, scenes)


# --- Videos and their re-uploads ----------------------------------------------------------------------------


def raw_frames(rng: np.random.Generator, seconds: float, still: bool) -> Iterator[bytes]:
    """RGB frames of shots of 3 to 9 s over which a camera pans, or of one picture throughout."""
    limit = (SCENE_PX - HEIGHT_PX, SCENE_PX - WIDTH_PX)
    frames_to_cut = 0
    for _ in range(round(seconds * FPS)):
        if not frames_to_cut:
            frames_to_cut = round(rng.uniform(3, 9) * FPS)
            scene = render_image(sample_scene(rng, 3), SCENE_PX)
            corner = rng.uniform(0, 100, 2)
            speed = rng.uniform(-2, 2, 2)
        if not still:
            frames_to_cut -= 1
            corner = corner + speed
        corner = np.clip(corner, 0, limit)
        y, x = corner.astype(int)
        yield scene[y : y + HEIGHT_PX, x : x + WIDTH_PX].tobytes()


def make_film(path: Path, picture_seed: int, sound: np.ndarray, seconds: float, still: bool = False) -> Path:
    """A video of this sound, a keyframe every 4.7 s."""
    wav = path.with_suffix(".wav")
    soundfile.write(wav, np.clip(sound, -1, 1), RATE_HZ, subtype="PCM_16")
    raw_video = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH_PX}x{HEIGHT_PX} -r {FPS} -i -"
    args = [ffmpeg_exe(), "-v", "error", "-y", *raw_video.split(), "-i", str(wav)]
    args += [*ORIGINAL.split(), str(path)]
    frames = raw_frames(np.random.default_rng(picture_seed), seconds, still)
    subprocess.run(args, input=b"".join(frames), check=True)
    return path


def re_encode(path: Path, kind: str) -> Path:
    """The video as somebody else would upload it."""
    container, options = RE_ENCODINGS[kind]
    # b… sorts after the original's a…: of two alike, curate keeps the one with the lowest key
    copy = path.with_name(f"b{path.stem}-{kind}.{container}")
    args = [ffmpeg_exe(), "-v", "error", "-y", "-i", str(path), "-pix_fmt", "yuv420p"]
    subprocess.run([*args, *options.split(), str(copy)], check=True)
    return copy


def make_films(folder: Path, videos: int, seconds: float) -> list[Path]:
    """Originals and their re-encodings; the sounds of some under other pictures; other sounds over one
    still.
    """
    paths = []
    for index in range(videos):
        rng = np.random.default_rng(index)
        make_sound = SOUNDS[index % len(SOUNDS)]
        sound = make_sound(rng, seconds)
        original = make_film(folder / f"a{index:02d}.mp4", 1000 + index, sound, seconds)
        paths.append(original)
        paths += [re_encode(original, kind) for kind in RE_ENCODINGS]
        if index % 2 == 0:
            path = folder / f"c-other-pictures{index:02d}.mp4"
            paths.append(make_film(path, 2000 + index, sound, seconds))
        else:
            path = folder / f"c-one-still{index:02d}.mp4"
            paths.append(make_film(path, 3000, make_sound(rng, seconds), seconds, still=True))
    return paths


# --- Cut, curate, count -------------------------------------------------------------------------------------


def cut(paths: list[Path], mode: str, clip_s: float) -> list[Row]:
    """The rows that a scrape of these files makes."""
    rows = []
    with Clipper(ClipConfig(clip_s, mode), AudioConfig(RATE_HZ), FrameConfig(64), MediaLimits()) as clipper:
        for path in paths:
            item = Item("folder", path.stem, str(path))
            media = Media(path, path, False, "own")
            for clip in clipper.cut(media):
                rows.append(clip_row(item, path.stem, media, clip, "train", None, {}))
    return rows


def run_curate(rows: list[Row], folder: Path) -> tuple[dict[str, str], float]:
    """What is buried of a dataset of these rows, key -> reason, and the seconds that took."""
    dataset = Dataset.create_or_open(str(folder / "clips"), "clips", {}, [])
    dataset.worklist.append([("all", {})], 1)
    dataset.commit("u0000000", 0, write_shard(folder, rows, CLIP_COLUMNS), {})
    started_s = time.monotonic()
    curate(CurateConfig(dataset.uri))
    return dataset.buried(), time.monotonic() - started_s


def buried_shares(rows: list[Row], buried: dict[str, str]) -> dict[str, float]:
    """Share of the clips that were buried, by kind of re-upload, and of all other clips."""
    is_buried: dict[str, list[bool]] = {kind: [] for kind in (*RE_ENCODINGS, "mistaken")}
    for row in rows:
        kind = row.item_id.rpartition("-")[2]
        is_buried[kind if kind in RE_ENCODINGS else "mistaken"].append(row.key in buried)
    shares = {kind: round(float(np.mean(flags)), 3) for kind, flags in is_buried.items()}
    return {**shares, "clips": len(rows)}


def measure(videos: int, seconds: float, clip_s: float = 10.24) -> dict[str, object]:
    result: dict[str, object] = {
        "benchmark": "curate",
        "date": time.strftime("%Y-%m-%d"),
        "videos": videos,
        "seconds": seconds,
    }
    with tempfile.TemporaryDirectory(prefix="stillsound-bench-") as name:
        paths = make_films(Path(name), videos, seconds)
        for mode in ("keyframe", "grid"):
            rows = cut(paths, mode, clip_s)
            for variant in ("with sequences", "baseline"):
                folder = Path(name) / f"{mode}-{variant}"
                folder.mkdir()
                buried, curate_s = run_curate(rows, folder)
                result[f"{mode}, {variant}"] = {
                    **buried_shares(rows, buried),
                    "curate_s": round(curate_s, 2),
                }
                # the second variant, the baseline, gets the same rows without their sequences
                for row in rows:
                    row.columns["audio_sequence"] = b""
    return result


def main() -> None:
    options = parse_options()
    videos = int(options.get("videos", 12))
    seconds = float(options.get("seconds", 60))
    print(json.dumps(measure(videos, seconds), indent=1))


if __name__ == "__main__":
    main()
