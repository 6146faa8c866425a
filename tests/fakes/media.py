"""Media whose picture and sound say when they are: made here with PyAV, read back out of finished clips.

`film(path, …)` writes a file whose frames show their own time in milliseconds as 4 x 4 black and white
fields, and whose sound is a noise that is at each time unlike at any other. `shown_s(clip)` and
`heard_s(clip)` tell those times again.
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
    """float [LONGEST_S * RATE_HZ] without anything above 3 kHz: it survives every codec and rate from 8 kHz
    on.
    """
    wave = np.random.default_rng(0).standard_normal(round(LONGEST_S * RATE_HZ))
    spectrum = np.fft.rfft(wave)
    spectrum[round(3000 * LONGEST_S) :] = 0
    wave = np.fft.irfft(spectrum)
    return 0.2 * wave / wave.std()


NOISE = _noise()


def noise_at(rate_hz: int) -> np.ndarray:
    """float [LONGEST_S * rate_hz]: the same sound at another rate."""
    spectrum = np.fft.rfft(NOISE)
    return (
        np.fft.irfft(spectrum[: round(LONGEST_S * rate_hz) // 2 + 1], round(LONGEST_S * rate_hz))
        * rate_hz
        / RATE_HZ
    )


def card(time_s: float, width_px: int = 128, height_px: int = 96) -> np.ndarray:
    """uint8 [height, width, 3]: the time in ms, the highest bit first, in rows of four."""
    bits = [round(time_s * 1000) >> place & 1 for place in range(15, -1, -1)]
    rows, columns = np.arange(height_px) * 4 // height_px, np.arange(width_px) * 4 // width_px
    fields = np.array(bits, np.uint8).reshape(4, 4) * 200 + 28
    return np.repeat(fields[rows][:, columns, None], 3, axis=2)


def shown_s(clip: Clip) -> float:
    """The time that the clip's frame shows."""
    grey = Image.open(io.BytesIO(clip.image)).convert("L").resize((32, 32), Image.Resampling.BOX)
    fields = np.asarray(grey, float).reshape(4, 8, 4, 8)[:, 2:6, :, 2:6].mean((1, 3)).ravel()
    assert (np.abs(fields - 128) > 30).all(), "a blurred or mixed frame"
    return sum(1 << 15 - place for place in range(16) if fields[place] > 128) / 1000


def heard_s(clip: Clip, least: float = 0.9) -> float:
    """The time of the sound with which the clip begins, to the sample;

    `least`: the correlation it takes to be sure.
    """
    wave = clip.audio / 32768
    size = len(NOISE) + len(wave)
    match = np.fft.irfft(np.fft.rfft(NOISE, size) * np.conj(np.fft.rfft(wave, size)), size)
    place = int(np.argmax(match))
    place -= size if place >= len(NOISE) else 0
    first, last = max(0, -place), min(len(wave), len(NOISE) - place)
    alike = np.corrcoef(wave[first:last], NOISE[place + first : place + last])[0, 1]
    assert alike > least, f"not the sound that was put in: {alike:.2f}"
    return place / RATE_HZ


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
    """Writes the file; the times of its frames, without `video_start_s`.

    `video` or `audio` "" leaves that half out.
    """
    times_s = (
        [number / fps for number in range(round(duration_s * fps))] if times_s is None else list(times_s)
    )
    sound_s = duration_s if sound_s is None else sound_s
    with av.open(str(path), "w", options=container or {}) as out:
        tracks: list[tuple[float, Any, Any]] = []
        if video:
            stream = out.add_stream(
                video, rate=Fraction(fps).limit_denominator(1001), options=_coding(video, gop, options)
            )
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            fixed = video.startswith("mpeg") or path.suffix in (".avi", ".wmv")
            stream.codec_context.time_base = (
                1 / Fraction(fps).limit_denominator(1001) if fixed else Fraction(1, CLOCK_HZ)
            )
            stream.codec_context.gop_size = gop
            tracks += [
                (time_s + video_start_s, stream, _frame(time_s, video_start_s, stream, size))
                for time_s in times_s
            ]
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
    found = []
    for first in range(0, len(wave), 4096):
        block = np.repeat(wave[first : first + 4096, None], stream.codec_context.layout.nb_channels, axis=1)
        frame = av.AudioFrame.from_ndarray(
            block.reshape(1, -1), format="s16", layout=stream.codec_context.layout.name
        )
        frame.sample_rate, frame.time_base = rate_hz, Fraction(1, rate_hz)
        frame.pts = first + round(start_s * rate_hz)
        found.append((first / rate_hz + start_s, stream, frame))
    return found
