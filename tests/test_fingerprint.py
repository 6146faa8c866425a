"""Fingerprints: near for the same picture or sound encoded again, far for others; how far is what ingest.curate relies on."""

import io
import subprocess
import tempfile

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from PIL import Image

from ingest.curate import CurateConfig
from ingest.ffmpeg import ffmpeg_exe
from ingest.fingerprint import audio_distances, audio_fingerprint, image_distances, image_hash
from ingest.scenes import render_audio, render_image, sample_scene

RATE = 16000
AUDIO_NEAR, IMAGE_NEAR = CurateConfig("").audio_distance, CurateConfig("").image_distance


def noise(seed: int, seconds: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 4000).clip(-32768, 32767).astype(np.int16)


def tone(hz: float, seconds: float = 5.0) -> np.ndarray:
    return (8000 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def scene_sound(seed: int, seconds: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (render_audio(sample_scene(rng, 2), seconds, RATE, rng) * 20000).astype(np.int16)


def encoded(audio: np.ndarray, container: str, *options: str, level: float = 1.0) -> np.ndarray:
    """The sound after a real encoder and decoder, of the same length."""
    wav = io.BytesIO()
    soundfile.write(wav, (audio * level).astype(np.int16), RATE, format="WAV", subtype="PCM_16")
    with tempfile.NamedTemporaryFile(suffix=f".{container}") as file:  # a file: its header says how much the encoder delayed
        command = [ffmpeg_exe(), "-v", "error", "-y", "-i", "-", *options, file.name]
        subprocess.run(command, input=wav.getvalue(), check=True)
        command = [ffmpeg_exe(), "-v", "error", "-i", file.name, "-f", "s16le", "-ar", str(RATE), "-ac", "1", "-"]
        pcm = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.int16)
    return np.pad(pcm, (0, max(0, len(audio) - len(pcm))))[: len(audio)]


def jpeg(pixels: np.ndarray, size_px: int, quality: int = 90) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.LANCZOS).save(data, "JPEG", quality=quality)
    return data.getvalue()


def audio_apart(one: np.ndarray, other: np.ndarray) -> float:
    words = [np.frombuffer(bytes.fromhex(audio_fingerprint(audio, RATE)), np.uint64) for audio in (one, other)]
    return float(audio_distances(words[0], words[1]))


def image_apart(one: bytes, other: bytes) -> int:
    hashes = [np.frombuffer(bytes.fromhex(image_hash(data)), np.uint64) for data in (one, other)]
    return int(image_distances(hashes[0], hashes[1])[0])


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
@pytest.mark.parametrize("sound", [noise(1), tone(440), scene_sound(2), scene_sound(3, 1.6)], ids=["noise", "tone", "scene", "short"])
def test_a_sound_encoded_again_is_near(sound: np.ndarray, again) -> None:
    assert audio_apart(sound, again(sound)) <= AUDIO_NEAR


def test_other_sounds_are_far() -> None:
    sounds = [*(noise(seed) for seed in range(6)), *(tone(hz) for hz in (220, 330, 880)), *(scene_sound(seed) for seed in range(10, 16))]
    apart = [audio_apart(one, other) for place, one in enumerate(sounds) for other in sounds[:place]]
    assert min(apart) > AUDIO_NEAR


@given(rate=st.sampled_from([8000, 16000, 48000]), audio=st.lists(st.integers(-32768, 32767), max_size=300))
@effort(deadline=None, max_examples=60)
def test_any_sound_has_a_fingerprint_of_one_length(rate: int, audio: list[int]) -> None:
    assert len(bytes.fromhex(audio_fingerprint(np.array(audio, np.int16), rate))) == 32


def test_a_picture_resized_and_compressed_again_is_near_and_another_is_far() -> None:
    pictures = [render_image(sample_scene(np.random.default_rng(seed), 3), 512) for seed in range(8)]
    for pixels in pictures:
        for size_px, quality in ((128, 80), (256, 40), (480, 95)):
            assert image_apart(jpeg(pixels, 512), jpeg(pixels, size_px, quality)) <= IMAGE_NEAR
    hashes = [jpeg(pixels, 256) for pixels in pictures]
    assert min(image_apart(one, other) for place, one in enumerate(hashes) for other in hashes[:place]) > IMAGE_NEAR
