"""From decoded sound to one mono track on playing time.

    placer = SoundPlacer(settings)
    placer.add(frame, time_s, stretch)      # in order; raises Refused: too_long
    sound = placer.finish(timeline)

Each piece is put where its presentation time says; small jitter is left alone. Two channels that cancel each
other are not summed: `loud_channel` names the one to read instead, and the file is read again. Opens no file;
`ingest.clip.tracks` does.
"""

from typing import Any

import av
import av.audio.resampler
import numpy as np

from ingest.clip.clocks import Reach, Reaches, Timeline
from ingest.clip.windows import Settings, Sound, Span
from ingest.sample import Reason, Refused

RUN_GAP_S = 0.03  # sound whose presentation time jumps by more starts anew there
DRIFT_S, DRIFT_FRAMES = (
    0.004,
    8,
)  # and so does sound that is this far off for this long; less is rounding and jitter
HEARD_FIRST, HEARD_EVERY = (
    16,
    16,
)  # frames whose two channels are compared: the first ones, then one of as many
# share of the louder channel's power that is left in the sum where both cancel; ordinary stereo keeps 0.25 or
# more
CANCELLED = 0.05


class SoundPlacer:
    """Resamples decoded frames to mono int16 and puts each piece where its presentation time says.

    `channel`: that one alone, instead of the sum of all. `limit_s`: the longest duration, else that of the
    settings.
    """

    def __init__(self, settings: Settings, channel: int | None = None, limit_s: float = 0.0):
        self.settings = settings
        self.limit_s = limit_s or settings.max_duration_s
        self.channel = channel
        self.pieces: list[tuple[int, float, np.ndarray]] = []  # stretch, time, samples
        self.format: tuple[Any, ...] = ()
        self.resampler: av.audio.resampler.AudioResampler | None = None
        self.stretch = 0
        self.begin_s = self.next_s = self.total_s = 0.0
        self.blocks: list[np.ndarray] = []
        self.drifting, self.off_s = (
            0,
            0.0,
        )  # frames in a row that are off to the same side, and the last one's distance
        self.num_frames = 0
        self.powers = np.zeros(3)  # of the left channel, of the right one, and of both in common

    def add(self, frame: av.AudioFrame, time_s: float | None, stretch: int = 0) -> None:
        """The next frame; one without a time follows the one before.

        Raises `Refused` past the longest duration.
        """
        time_s = self.next_s if time_s is None else time_s
        if self.total_s > self.limit_s:
            raise self._too_long()
        if frame.layout.nb_channels == 2 and self.channel is None:
            self._compare(frame)
        format, off_s = (frame.format.name, frame.layout.name, frame.sample_rate), time_s - self.next_s
        self.drifting = self.drifting + 1 if abs(off_s) > DRIFT_S and off_s * self.off_s > 0 else 0
        self.off_s = off_s
        moved = abs(off_s) > RUN_GAP_S or self.drifting > DRIFT_FRAMES or stretch != self.stretch
        if not self.resampler or format != self.format or moved:
            self._end_piece()
            self.format, self.begin_s, self.next_s, self.stretch = format, time_s, time_s, stretch
            self.resampler = self._new_resampler()
        frame.pts = None
        self._take(frame)
        self.next_s += frame.samples / frame.sample_rate
        self.total_s += frame.samples / frame.sample_rate

    def reaches(self) -> Reaches:
        """What the sound covers in each stretch, by the clock of its file.

        `Refused` (no_audio) where that is nothing.
        """
        self._end_piece()
        found: Reaches = {}
        for stretch, begin_s, samples in self.pieces:
            end_s = begin_s + len(samples) / self.settings.sample_rate_hz
            found.setdefault(stretch, Reach(begin_s, end_s)).add(begin_s, end_s)
        if not found:
            raise Refused(Reason.NO_AUDIO, "the sound holds no samples")
        return found

    def finish(self, timeline: Timeline | None = None) -> Sound:
        """All that was added. Raises `Refused`: no_audio where that is nothing, too_long."""
        reaches = self.reaches()
        timeline = timeline or Timeline({}, reaches)
        rate = self.settings.sample_rate_hz
        placed = [
            (stretch, round((begin_s - timeline.sound_epoch_s(stretch)) * rate), samples)
            for stretch, begin_s, samples in self.pieces
        ]
        end = max(start + len(samples) for _, start, samples in placed)
        if end <= 0:
            raise Refused(Reason.NO_AUDIO, "the sound holds no samples")
        if max(start for _, start, _ in placed) > self.limit_s * rate:
            raise self._too_long()
        whole = np.zeros(end, np.int16)
        spans: dict[int, Span] = {}
        for stretch, start, samples in placed:
            first, last = max(start, 0), max(start + len(samples), 0)
            whole[first:last] = samples[len(samples) - (last - first) :]
            span = spans.get(stretch, Span(first / rate, last / rate))
            spans[stretch] = Span(min(span.start_s, first / rate), max(span.end_s, last / rate))
        return Sound(whole, min(span.start_s for span in spans.values()), len(whole) / rate, spans=spans)

    def loud_channel(self) -> int | None:
        """The louder of two channels that cancel each other in their sum; None where they do not."""
        left, right, common = self.powers
        louder = max(left, right)
        summed = (left + right + 2 * common) / 4
        return None if louder == 0 or summed >= CANCELLED * louder else int(right > left)

    def _too_long(self) -> Refused:
        return Refused(Reason.TOO_LONG, f"the sound is longer than {self.limit_s:g} s")

    def _compare(self, frame: av.AudioFrame) -> None:
        """Adds the powers of a frame of two channels, of some frames only."""
        self.num_frames += 1
        if self.num_frames > HEARD_FIRST and self.num_frames % HEARD_EVERY:
            return
        wave = frame.to_ndarray().astype(np.float64)
        left, right = wave if len(wave) == 2 else wave.reshape(-1, 2).T
        left, right = left - left.mean(), right - right.mean()
        self.powers += left @ left, right @ right, left @ right

    def _new_resampler(self) -> av.audio.resampler.AudioResampler:
        rate = self.settings.sample_rate_hz
        if self.channel is None:
            return av.audio.resampler.AudioResampler("s16", "mono", rate)
        return av.audio.resampler.AudioResampler("s16p", "stereo", rate)

    def _take(self, frame: av.AudioFrame | None) -> None:
        if self.resampler:
            self.blocks += [block.to_ndarray()[self.channel or 0] for block in self.resampler.resample(frame)]

    def _end_piece(self) -> None:
        self._take(None)
        if self.blocks:
            self.pieces.append((self.stretch, self.begin_s, np.concatenate(self.blocks)))
        self.resampler, self.blocks, self.drifting = None, [], 0
