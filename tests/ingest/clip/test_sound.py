"""Decoded sound on one track: each piece at its own time, gaps as silence, channels mixed."""

from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from ingest.clip.clipper import Clipper
from ingest.clip.sound import SoundPlacer
from ingest.sample import Media
from tests.fakes.cutting import SETTINGS
from tests.fakes.media import NOISE, RATE_HZ, card, heard_s, noise_at


def test_gaps_are_silence_and_negative_time_is_cut_off() -> None:
    placer = SoundPlacer(SETTINGS)
    for time_s in (-0.05, 0.05, 0.5):
        frame = av.AudioFrame.from_ndarray(np.full((1, 1600), 1000, np.int16), format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        placer.add(frame, time_s)
    sound = placer.finish()
    assert (sound.start_s, sound.end_s) == (0.0, 0.6)
    assert (
        (sound.samples[:2400] == 1000).all()
        and not sound.samples[2400:8000].any()
        and (sound.samples[8000:] == 1000).all()
    )


def put(placer: SoundPlacer, time_s: float, value: int) -> None:
    frame = av.AudioFrame.from_ndarray(np.full((1, 320), value, np.int16), format="s16", layout="mono")
    frame.sample_rate = RATE_HZ
    placer.add(frame, time_s)


def test_a_lost_packet_is_a_gap_and_jitter_is_none() -> None:
    placer = SoundPlacer(SETTINGS)
    for number in range(100):  # 20 ms each; the 50th is lost
        put(placer, 0.02 * (number + (number >= 50)), 100 * number)
    samples = placer.finish().samples
    assert len(samples) == 101 * 320 and (samples[100 * 320 + 10 :] == 9900).all()
    placer, jitter = SoundPlacer(SETTINGS), np.random.default_rng(0).uniform(-0.01, 0.01, 100)
    for number in range(100):
        put(placer, 0.02 * number + float(jitter[number]) * (number > 0), 1000)
    assert (placer.finish().samples == 1000).all()


def test_every_channel_is_heard_but_the_low_effects(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    pitches_hz = np.array([300, 500, 700, 900, 1100, 1300])  # FL FR FC LFE BL BR
    time_s = np.arange(2 * 48000)[:, None] / 48000
    soundfile.write(
        tmp_path / "six.wav", 0.1 * np.sin(2 * np.pi * pitches_hz * time_s), 48000, format="WAVEX"
    )
    Image.fromarray(card(1.0)).save(tmp_path / "still.jpg")
    audio = (
        clippers["grid"].cut(Media(tmp_path / "still.jpg", tmp_path / "six.wav", True, "own"))[0].audio
        / 32768
    )
    levels = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))[pitches_hz]
    assert levels[[0, 1]] == pytest.approx(levels[0], rel=0.02) and levels[[4, 5]] == pytest.approx(
        levels[4], rel=0.02
    )
    assert levels[2] / levels[0] == pytest.approx(2**0.5, rel=0.02) and levels[4] / levels[
        0
    ] == pytest.approx(0.5**0.5, rel=0.02)
    assert levels[3] < 0.01 * levels[0]


def test_channels_nobody_named_are_mixed(tmp_path: Path, clippers: dict[str, Clipper]) -> None:
    wave = np.repeat(noise_at(48000)[: 2 * 48000, None], 7, axis=1)
    soundfile.write(tmp_path / "seven.flac", wave, 48000)
    Image.fromarray(card(1.0)).save(tmp_path / "still.jpg")
    clip = clippers["grid"].cut(Media(tmp_path / "still.jpg", tmp_path / "seven.flac", True, "own"))[0]
    assert heard_s(clip) == 0 and np.std(clip.audio / 32768) > 0.1 * NOISE.std()
