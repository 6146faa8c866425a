"""Media whose picture and sound encode their own time: made here with PyAV, read back out of finished clips.

`film(path, …)` writes a file whose frames show their own time in milliseconds as 4 x 4 black and white
fields, and whose sound is a noise that differs at every time. `shown_s(clip)` and `heard_s(clip)` decode
those times.
"""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ingest.sample import Clip

RATE_HZ = 16000
LONGEST_S = 16.0
CLOCK_HZ = 90000


def _noise() -> np.ndarray:
    """float [LONGEST_S * RATE_HZ]. Nothing above 3 kHz, so that it survives every codec and 8 kHz."""
    wave = np.random.default_rng(0).standard_normal(round(LONGEST_S * RATE_HZ))
    spectrum = np.fft.rfft(wave)
    spectrum[round(3000 * LONGEST_S) :] = 0
    wave = np.fft.irfft(spectrum)
    return 0.2 * wave / wave.std()


NOISE = _noise()


def noise_at(rate_hz: int) -> np.ndarray:
    """float [LONGEST_S * rate_hz]: the same sound at another rate."""
    num_samples = round(LONGEST_S * rate_hz)
    spectrum = np.fft.rfft(NOISE)[: num_samples // 2 + 1]
    return np.fft.irfft(spectrum, num_samples) * rate_hz / RATE_HZ


def card(time_s: float, width_px: int = 128, height_px: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]: the time in ms, the highest bit first, in rows of four."""
    bits = [round(time_s * 1000) >> bit & 1 for bit in range(15, -1, -1)]
    rows = np.arange(height_px) * 4 // height_px
    columns = np.arange(width_px) * 4 // width_px
    fields = np.array(bits, np.uint8).reshape(4, 4) * 200 + 28
    return np.repeat(fields[rows][:, columns, None], 3, axis=2)


def shown_s(clip: Clip) -> float:
    """The time that is encoded in the clip's frame."""
    grey = Image.open(io.BytesIO(clip.image)).convert("L").resize((32, 32), Image.Resampling.BOX)
    fields = np.asarray(grey, float).reshape(4, 8, 4, 8)[:, 2:6, :, 2:6].mean((1, 3)).ravel()
    assert (np.abs(fields - 128) > 30).all(), "a blurred or mixed frame"
    return sum(1 << 15 - bit for bit in range(16) if fields[bit] > 128) / 1000


def heard_s(clip: Clip, least: float = 0.9) -> float:
    """The time of the clip's first sample; `least`: the correlation below which it is another sound."""
    wave = clip.audio / 32768
    size = len(NOISE) + len(wave)
    match = np.fft.irfft(np.fft.rfft(NOISE, size) * np.conj(np.fft.rfft(wave, size)), size)
    lag = int(np.argmax(match))
    if lag >= len(NOISE):
        lag -= size  # circular: the clip begins before the noise
    first = max(0, -lag)
    last = min(len(wave), len(NOISE) - lag)
    correlation = np.corrcoef(wave[first:last], NOISE[lag + first : lag + last])[0, 1]
    assert correlation > least, f"not the sound that was put in: {correlation:.2f}"
    return lag / RATE_HZ


def film(
    path: Path,
    video: str = "libx264",
    audio: str = "aac",
    *,
    times_s: Sequence[float] | None = None,
    fps: float = 25,
    duration_s: float = 4.0,
    sound_s: float | None = None,
    video_start_s: float = 0.0,
    audio_start_s: float = 0.0,
    rate_hz: int = 48000,
    layout: str = "stereo",
    size: tuple[int, int] = (128, 96),
    gop: int = 20,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> list[float]:
    """Writes the file and returns the times of its frames, without `video_start_s`.

    `video` and `audio` name encoders; "" leaves that stream out.
    """
    if times_s is None:
        times_s = [index / fps for index in range(round(duration_s * fps))]
    sound_s = duration_s if sound_s is None else sound_s
    with av.open(str(path), "w", options=container or {}) as out:
        tracks: list[tuple[float, Any, Any]] = []
        if video:
            rate = Fraction(fps).limit_denominator(1001)
            stream = out.add_stream(video, rate=rate, options=_coding(video, gop, options))
            stream.width, stream.height = size
            stream.pix_fmt = pix_fmt
            # these encoders and containers have no clock finer than their frames
            has_fixed_rate = video.startswith("mpeg") or path.suffix in (".avi", ".wmv")
            stream.codec_context.time_base = 1 / rate if has_fixed_rate else Fraction(1, CLOCK_HZ)
            stream.codec_context.gop_size = gop
            for time_s in times_s:
                frame = _frame(time_s, video_start_s, stream, size)
                tracks.append((time_s + video_start_s, stream, frame))
        if audio:
            sound = out.add_stream(audio, rate=rate_hz, layout=layout)
            tracks += _sound_frames(sound, rate_hz, sound_s, audio_start_s)
        for _, stream, frame in sorted(tracks, key=lambda track: track[0]):
            out.mux(stream.encode(frame))
        for stream in out.streams:
            out.mux(stream.encode(None))
    return list(times_s)


def _coding(video: str, gop: int, options: dict[str, str] | None) -> dict[str, str]:
    quick = {
        "libx264": {"preset": "veryfast", "bf": "3", "b_strategy": "0", "sc_threshold": "0", "crf": "20"},
        "libx265": {"preset": "ultrafast", "x265-params": f"log-level=none:keyint={gop}:bframes=3:pools=1"},
        "libsvtav1": {"preset": "9", "crf": "12", "svtav1-params": f"keyint={gop}:lp=1"},
        "libvpx-vp9": {
            "deadline": "realtime",
            "cpu-used": "8",
            "b": "600k",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
        },
        "mpeg4": {"b": "2M"},
    }
    return {**quick.get(video, {"b": "2M"}), **(options or {})}


def _frame(time_s: float, start_s: float, stream: Any, size: tuple[int, int]) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(card(time_s, *size), format="rgb24").reformat(format=stream.pix_fmt)
    frame.time_base = stream.codec_context.time_base
    frame.pts = round(Fraction(time_s + start_s).limit_denominator(CLOCK_HZ) / frame.time_base)
    return frame


def _sound_frames(stream: Any, rate_hz: int, sound_s: float, start_s: float) -> list[tuple[float, Any, Any]]:
    wave = np.round(noise_at(rate_hz)[: round(sound_s * rate_hz)] * 32767).astype(np.int16)
    frames = []
    for first in range(0, len(wave), 4096):
        block = np.repeat(wave[first : first + 4096, None], stream.codec_context.layout.nb_channels, axis=1)
        frame = av.AudioFrame.from_ndarray(
            block.reshape(1, -1), format="s16", layout=stream.codec_context.layout.name
        )
        frame.sample_rate = rate_hz
        frame.time_base = Fraction(1, rate_hz)
        frame.pts = first + round(start_s * rate_hz)
        frames.append((first / rate_hz + start_s, stream, frame))
    return frames
