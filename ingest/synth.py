"""`ingest synth OUT`: renders procedural scenes to real media files, the ground truth apart from the media.

    OUT/media/<id>.mp4|.webm|.jpg + .wav …  several scenes per video; HLS and DASH in OUT/media/<id>/
    OUT/truth/<id>.json                     a list of {start_s, duration_s, attributes, scene}
    OUT/catalogue.json                      a list of {id, kind, files, license, title}

Deterministic from the seed. A keyframe is forced at the middle of every scene. It serves nothing
(ingest.serve does).
"""

import json
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypedDict

import ffmpeg
import numpy as np
import soundfile
from PIL import Image

from configs.load import UserError, operational
from ingest.ffmpeg import ffmpeg_exe
from ingest.scenes import (
    Scene,
    attributes,
    is_unseen,
    render_audio,
    render_image,
    sample_scene,
    scene_to_dict,
)

SAMPLE_RATE_HZ = 16000
LICENSE_URLS = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
}
COMBINATIONS = ("all", "seen", "unseen")
KINDS = ("mp4", "webm", "hls", "dash", "still", "silent")


class CatalogueEntry(TypedDict):
    """A medium in catalogue.json. `files`: names below media/, the one to link first."""

    id: str
    kind: str
    license: str
    title: str
    files: list[str]


# settings of ffmpeg's command line, by their names without the dash
EncoderOptions = dict[str, str | int]


@dataclass
class SynthConfig:
    """How many media of each kind, and what is in them."""

    path: str  # the folder to write to
    videos: int = 200  # how many MP4 files
    webm: int = 6  # how many WebM files
    hls: int = 3  # how many videos as HLS
    dash: int = 3  # how many videos as DASH
    stills: int = 20  # how many pairs of a photo and a sound
    silent: int = 1  # how many videos without sound
    scenes_per_video: int = 20  # how many, one after another
    scene_s: float = 2.0  # how long each is
    size_px: int = 96  # side of the pictures
    fps: int = 10  # frames per second
    num_objects: int = 1  # in each scene
    combinations: str = "all"  # all, seen or unseen: the last are a quarter, which seen leaves out
    seed: int = 0  # of all that is random
    workers: int = operational(2)  # processes that render


def synth(config: SynthConfig) -> dict[str, int]:
    """Renders all media of `config` into `config.path`; files that are there are kept. Returns `{"media"}`.

    `UserError` for impossible settings or a place that cannot be written.
    """
    if config.scenes_per_video < 1 or config.scene_s <= 0 or config.size_px < 16 or config.size_px % 2:
        raise UserError("scenes_per_video >= 1, scene_s > 0 and an even size_px >= 16 are needed")
    if (config.scene_s * config.fps) % 2:
        fix = "give an even number of frames, so that a scene has a middle frame"
        raise UserError(f"scene_s={config.scene_s} x fps={config.fps}: {fix}")
    if config.combinations not in COMBINATIONS:
        raise UserError(f"combinations={config.combinations}: give one of {', '.join(COMBINATIONS)}")
    root = Path(config.path).resolve()
    try:
        for name in ("media", "truth"):
            (root / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{config.path}: not writable ({error.strerror}); choose another folder") from error
    counts = (config.videos, config.webm, config.hls, config.dash, config.stills, config.silent)
    media: list[tuple[str, int]] = []
    for kind, count in zip(KINDS, counts, strict=True):
        media += ((kind, index) for index in range(count))
    with ProcessPoolExecutor(max(1, config.workers)) as pool:
        entries = list(pool.map(partial(_render, config), media, chunksize=4))
    (root / "catalogue.json").write_text(json.dumps(entries, indent=1))
    return {"media": len(entries)}


def _render(config: SynthConfig, medium: tuple[str, int]) -> CatalogueEntry:
    """One medium and its truth; returns its entry in the catalogue."""
    kind, index = medium
    root = Path(config.path).resolve()
    media_id = f"{kind}{index:04d}"
    rng = np.random.default_rng([config.seed, KINDS.index(kind), index])
    count = 1 if kind == "still" else config.scenes_per_video
    scenes = [_sample(rng, config) for _ in range(count)]
    sound = np.concatenate([render_audio(scene, config.scene_s, SAMPLE_RATE_HZ, rng) for scene in scenes])
    if kind == "silent":
        sound = np.zeros_like(sound)
    licenses = list(LICENSE_URLS)
    license = licenses[index % len(licenses)]
    truth = [
        {
            "start_s": i * config.scene_s,
            "duration_s": config.scene_s,
            "attributes": attributes(scene),
            "scene": scene_to_dict(scene),
        }
        for i, scene in enumerate(scenes)
    ]
    files = _write_media(root / "media", media_id, kind, scenes, sound, config)
    (root / "truth" / f"{media_id}.json").write_text(json.dumps(truth))
    return {
        "id": media_id,
        "kind": kind,
        "license": license,
        "title": f"Scenes {media_id}",
        "files": files,
    }


def _sample(rng: np.random.Generator, config: SynthConfig) -> Scene:
    """A random scene of the combinations that are asked for."""
    while True:
        scene = sample_scene(rng, config.num_objects)
        if config.combinations == "all" or is_unseen(scene) == (config.combinations == "unseen"):
            return scene


def _write_media(
    folder: Path, media_id: str, kind: str, scenes: list[Scene], sound: np.ndarray, config: SynthConfig
) -> list[str]:
    """Writes the files of a medium if they are not there; returns their names below `folder`, the one to link
    first.
    """
    if kind == "still":
        names = [f"{media_id}.jpg", f"{media_id}.wav"]
        Image.fromarray(render_image(scenes[0], config.size_px * 2)).save(folder / names[0], quality=92)
        soundfile.write(folder / names[1], sound, SAMPLE_RATE_HZ, subtype="PCM_16")
        return names
    name = {
        "webm": f"{media_id}.webm",
        "hls": f"{media_id}/index.m3u8",
        "dash": f"{media_id}/manifest.mpd",
    }.get(kind, f"{media_id}.mp4")
    if not (folder / name).exists():
        (folder / name).parent.mkdir(exist_ok=True)
        _encode(folder / name, kind, scenes, sound, config)
    return [name]


def _encode(path: Path, kind: str, scenes: list[Scene], sound: np.ndarray, config: SynthConfig) -> None:
    """One ffmpeg: raw frames on stdin, the sound from a wav beside it; published by renaming where it is one
    file.
    """
    wav = path.with_suffix(".source.wav")
    soundfile.write(wav, sound, SAMPLE_RATE_HZ, subtype="PCM_16")
    single = kind not in ("hls", "dash")
    target = path.with_name(f"partial-{path.name}") if single else path
    size = f"{config.size_px}x{config.size_px}"
    picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=size, r=config.fps)
    out = ffmpeg.output(picture, ffmpeg.input(str(wav)), str(target), **_codec_options(kind, config))
    frames_per_scene = round(config.scene_s * config.fps)
    frames = b"".join(render_image(scene, config.size_px).tobytes() * frames_per_scene for scene in scenes)
    command = ffmpeg.compile(out, cmd=ffmpeg_exe(), overwrite_output=True)
    result = subprocess.run(command, input=frames, capture_output=True, cwd=path.parent)
    wav.unlink()
    if result.returncode:
        raise RuntimeError(f"ffmpeg failed on {path}: {result.stderr.decode(errors='replace')[-500:]}")
    if single:
        target.rename(path)


def _codec_options(kind: str, config: SynthConfig) -> EncoderOptions:
    """Encoder settings of a kind; keyframes are at the start and at the middle of every scene only."""
    middle_s = config.scene_s / 2
    keys = ",".join(f"{middle_s + i * config.scene_s:.3f}" for i in range(config.scenes_per_video))
    shared: EncoderOptions = {
        "force_key_frames": keys,
        "threads": 1,
        "pix_fmt": "yuv420p",
        "loglevel": "error",
        "map_metadata": -1,
        "fflags": "+bitexact",
    }
    h264: EncoderOptions = {
        "vcodec": "libx264",
        "preset": "ultrafast",
        "crf": 20,
        "g": 100000,
        "sc_threshold": 0,
        "acodec": "aac",
        "audio_bitrate": "96k",
    }
    if kind == "webm":
        vp9: EncoderOptions = {
            "vcodec": "libvpx-vp9",
            "crf": 30,
            "video_bitrate": 0,
            "cpu-used": 8,
            "deadline": "realtime",
            "g": 100000,
        }
        return {**shared, **vp9, "acodec": "libopus", "audio_bitrate": "64k"}
    if kind == "hls":
        return {
            **shared,
            **h264,
            "format": "hls",
            "hls_time": 10,
            "hls_playlist_type": "vod",
            "hls_segment_filename": "part%03d.ts",
        }
    if kind == "dash":
        return {
            **shared,
            **h264,
            "format": "dash",
            "seg_duration": 10,
            "adaptation_sets": "id=0,streams=v id=1,streams=a",
        }
    return {**shared, **h264, "movflags": "+faststart"}
