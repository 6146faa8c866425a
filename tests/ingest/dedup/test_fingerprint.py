"""Fingerprints: near for the same picture or sound encoded again, far for others; how far is what
ingest.curate relies on.
"""

import io
import itertools
import subprocess
import tempfile
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from ingest.curate import CurateConfig
from ingest.dedup.fingerprint import (
    FRAME_S,
    audio_distances,
    audio_fingerprint,
    audio_sequence,
    image_distances,
    image_hash,
    image_palette,
    palette_distances,
)
from ingest.dedup.reuploads import COLOUR_SHARE, SOUND_SHARE
from ingest.ffmpeg import ffmpeg_exe
from ingest.scenes import render_audio, render_image, sample_scene

RATE = 16000
AUDIO_NEAR = CurateConfig("").audio_distance
IMAGE_NEAR = CurateConfig("").image_distance


def noise(seed: int, seconds: float = 5.0) -> np.ndarray:
    return (
        (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 4000)
        .clip(-32768, 32767)
        .astype(np.int16)
    )


def tone(hz: float, seconds: float = 5.0) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def scene_sound(seed: int, seconds: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (render_audio(sample_scene(rng, 2), seconds, RATE, rng) * 20000).astype(np.int16)


def encoded(audio: np.ndarray, container: str, *options: str, level: float = 1.0) -> np.ndarray:
    """The sound after a real encoder and decoder, of the same length."""
    wav = io.BytesIO()
    soundfile.write(wav, (audio * level).astype(np.int16), RATE, format="WAV", subtype="PCM_16")
    # a file, since its header says how much the encoder delayed
    with tempfile.NamedTemporaryFile(suffix=f".{container}") as file:
        command = [ffmpeg_exe(), "-v", "error", "-y", "-i", "-", *options, file.name]
        subprocess.run(command, input=wav.getvalue(), check=True)
        raw = ["-f", "s16le", "-ar", str(RATE), "-ac", "1", "-"]
        command = [ffmpeg_exe(), "-v", "error", "-i", file.name, *raw]
        pcm = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
    return np.pad(pcm, (0, max(0, len(audio) - len(pcm))))[: len(audio)]


def jpeg(pixels: np.ndarray, size_px: int, quality: int = 90) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.LANCZOS).save(
        data, "JPEG", quality=quality
    )
    return data.getvalue()


def bits(digits: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(digits), np.uint64)


def audio_distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(audio_distances(bits(audio_fingerprint(a, RATE)), bits(audio_fingerprint(b, RATE))))


def image_distance(a: bytes, b: bytes) -> int:
    return int(image_distances(bits(image_hash(a)), bits(image_hash(b)))[0])


@pytest.mark.parametrize(
    "again",
    [
        lambda audio: encoded(audio, "mp4", "-c:a", "aac", "-b:a", "128k"),
        lambda audio: encoded(audio, "mp4", "-c:a", "aac", "-b:a", "48k", "-ar", "44100", level=0.3),
        lambda audio: encoded(audio, "webm", "-c:a", "libopus", "-b:a", "48k", level=0.7),
        lambda audio: encoded(audio, "mp3", "-c:a", "libmp3lame", "-b:a", "64k"),
        lambda audio: (audio * 0.1).astype(np.int16),
    ],
    ids=["aac128k", "aac48k-44100Hz-quiet", "opus48k", "mp3-64k", "level"],
)
@pytest.mark.parametrize(
    "sound",
    [noise(1), tone(440), scene_sound(2), scene_sound(3, 1.6)],
    ids=["noise", "tone", "scene", "short"],
)
def test_a_sound_encoded_again_is_near(sound: np.ndarray, again: Callable) -> None:
    assert audio_distance(sound, again(sound)) <= AUDIO_NEAR


def test_other_sounds_are_far() -> None:
    sounds = [
        *(noise(seed) for seed in range(6)),
        *(tone(hz) for hz in (220, 330, 880)),
        *(scene_sound(seed) for seed in range(10, 16)),
    ]
    assert min(audio_distance(a, b) for a, b in itertools.combinations(sounds, 2)) > AUDIO_NEAR


@given(rate=st.sampled_from([8000, 16000, 48000]), audio=st.lists(st.integers(-32768, 32767), max_size=300))
@effort(deadline=None, max_examples=60)
def test_any_sound_has_a_fingerprint_of_one_length(rate: int, audio: list[int]) -> None:
    assert len(bytes.fromhex(audio_fingerprint(np.array(audio, np.int16), rate))) == 32


def test_a_picture_resized_and_compressed_again_is_near_and_another_is_far() -> None:
    pictures = [render_image(sample_scene(np.random.default_rng(seed), 3), 512) for seed in range(8)]
    for pixels in pictures:
        for size_px, quality in ((128, 80), (256, 40), (480, 95)):
            assert image_distance(jpeg(pixels, 512), jpeg(pixels, size_px, quality)) <= IMAGE_NEAR
    jpegs = [jpeg(pixels, 256) for pixels in pictures]
    assert min(image_distance(a, b) for a, b in itertools.combinations(jpegs, 2)) > IMAGE_NEAR


@pytest.mark.parametrize("trimmed_s", [0.0, 1.37])
def test_a_sound_cut_elsewhere_has_the_same_frames_by_media_time(trimmed_s: float) -> None:
    """From 3 s on of one that was encoded again; of other sounds, at no shift are so many bits the same."""
    original = scene_sound(7, 12.0)
    reencoded = encoded(original, "mp4", "-c:a", "aac", "-b:a", "48k", level=0.5)[round(trimmed_s * RATE) :]
    clip = sequence(original, 0.0)
    copy = sequence(reencoded, 3.0125 - trimmed_s)
    assert sequence_distance(clip, copy, round(trimmed_s / FRAME_S)) < SOUND_SHARE
    unrelated = sequence(scene_sound(57, 12.0), 0.0)
    assert min(sequence_distance(clip, unrelated, shift) for shift in range(-40, 40)) > SOUND_SHARE


def sequence(wave: np.ndarray, start_s: float, seconds: float = 8.0) -> tuple[int, np.ndarray]:
    start = round(start_s * RATE)
    data = audio_sequence(wave[start : start + round(seconds * RATE)], RATE, start)
    return int.from_bytes(data[:4], "little"), np.frombuffer(data, np.uint8, offset=4)


def sequence_distance(a: tuple[int, np.ndarray], b: tuple[int, np.ndarray], shift: int) -> float:
    """Share of the lit bits that differ, where `b` is `shift` frames ahead, give or take one."""
    a_first, a_frames = a
    shares = []
    for slip in (-1, 0, 1):
        b_first = b[0] + shift + slip
        start = max(a_first, b_first)
        end = min(a_first + len(a_frames), b_first + len(b[1]))
        left = a_frames[start - a_first : end - a_first]
        right = b[1][start - b_first : end - b_first]
        shares.append(np.bitwise_count(left ^ right).sum() / np.bitwise_count(left | right).sum())
    return float(min(shares))


def test_a_sound_too_short_for_frames_has_none() -> None:
    assert (
        len(audio_sequence(noise(1, 0.8), RATE, 0)) == 4 and len(audio_sequence(noise(1, 1.0), RATE, 0)) > 4
    )


def test_colours_are_near_seconds_later_and_far_in_another_scene() -> None:
    views = [render_image(sample_scene(np.random.default_rng(seed), 3), 256) for seed in (1, 2)]
    shots = [
        jpeg(np.ascontiguousarray(views[0][:200, :200]), 96),
        jpeg(np.ascontiguousarray(views[0][40:240, 30:230]), 64, 50),
        jpeg(views[1], 96),
    ]
    first, panned, other = (np.frombuffer(image_palette(shot), np.uint8) for shot in shots)
    assert palette_distances(first, panned) <= COLOUR_SHARE < palette_distances(first, other)
