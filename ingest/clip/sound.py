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

# sound whose presentation time jumps by more starts anew there
RUN_GAP_S = 0.03
# and so does sound that is this far off for so many frames; less is rounding and jitter
DRIFT_S = 0.004
DRIFT_FRAMES = 8
# frames whose two channels are compared: the first ones, for short media, then one of so many, for the price
COMPARED_FIRST = 16
COMPARED_EVERY = 16
# share of the louder channel's power that remains in the sum where both cancel; ordinary stereo keeps 0.25 or
# more
CANCELLED = 0.05


class SoundPlacer:
    """Resamples decoded frames to mono int16 and puts each piece where its presentation time says.

    `channel`: that one alone, instead of the sum of all. `limit_s`: the longest duration; 0: the settings'.
    """

    def __init__(self, settings: Settings, channel: int | None = None, limit_s: float = 0.0):
        self.settings = settings
        self.limit_s = limit_s or settings.max_duration_s
        self.channel = channel
        self.pieces: list[tuple[int, float, np.ndarray]] = []  # stretch, time, samples
        self.format: tuple[Any, ...] = ()
        self.resampler: av.audio.resampler.AudioResampler | None = None
        self.stretch = 0
        self.begin_s = 0.0
        self.next_s = 0.0  # when the next frame is due
        self.total_s = 0.0
        self.blocks: list[np.ndarray] = []  # of the piece that is being added to
        self.drifting = 0  # frames in a row that are off to the same side
        self.off_s = 0.0  # of the last one: its time, less that at which it would be due
        self.num_frames = 0
        self.powers = np.zeros(3)  # of the left channel, of the right one, and of both in common

    def add(self, frame: av.AudioFrame, time_s: float | None, stretch: int = 0) -> None:
        """The next frame; one without a time follows the one before.

        Raises `Refused` past the longest duration.
        """
        if self.total_s > self.limit_s:
            raise self._too_long()
        if time_s is None:
            time_s = self.next_s
        if frame.layout.nb_channels == 2 and self.channel is None:
            self._compare(frame)
        format = (frame.format.name, frame.layout.name, frame.sample_rate)
        # `_breaks` first: it counts every frame
        if self._breaks(time_s, stretch) or not self.resampler or format != self.format:
            self._start_piece(time_s, stretch, format)
        frame.pts = None  # pieces are placed here; a resampler that saw gaps would fill them
        self._take(frame)
        self.next_s += frame.samples / frame.sample_rate
        self.total_s += frame.samples / frame.sample_rate

    def _breaks(self, time_s: float, stretch: int) -> bool:
        """Whether the frame at `time_s` begins a piece: after a gap, a drift or a restart of the clock."""
        off_s = time_s - self.next_s
        drifts_on = abs(off_s) > DRIFT_S and off_s * self.off_s > 0
        self.drifting = self.drifting + 1 if drifts_on else 0
        self.off_s = off_s
        return abs(off_s) > RUN_GAP_S or self.drifting > DRIFT_FRAMES or stretch != self.stretch

    def _start_piece(self, time_s: float, stretch: int, format: tuple[Any, ...]) -> None:
        self._end_piece()
        self.format = format
        self.stretch = stretch
        self.begin_s = time_s
        self.next_s = time_s
        self.resampler = self._new_resampler()

    def reaches(self) -> Reaches:
        """What the sound covers in each stretch, by the clock of its file.

        `Refused` (no_audio) where that is nothing.
        """
        self._end_piece()
        reaches: Reaches = {}
        for stretch, begin_s, samples in self.pieces:
            end_s = begin_s + len(samples) / self.settings.sample_rate_hz
            reaches.setdefault(stretch, Reach(begin_s, end_s)).add(begin_s, end_s)
        if not reaches:
            raise Refused(Reason.NO_AUDIO, "the sound holds no samples")
        return reaches

    def finish(self, timeline: Timeline | None = None) -> Sound:
        """All that was added. Raises `Refused`: no_audio where that is nothing, too_long."""
        reaches = self.reaches()
        timeline = timeline or Timeline({}, reaches)
        rate = self.settings.sample_rate_hz
        placed = []
        for stretch, begin_s, samples in self.pieces:
            start = round((begin_s - timeline.sound_epoch_s(stretch)) * rate)
            placed.append((stretch, start, samples))
        end = max(start + len(samples) for _, start, samples in placed)
        if end <= 0:
            raise Refused(Reason.NO_AUDIO, "the sound holds no samples")
        if max(start for _, start, _ in placed) > self.limit_s * rate:
            raise self._too_long()
        track = np.zeros(end, np.int16)
        spans: dict[int, Span] = {}
        for stretch, start, samples in placed:
            # what lies before time 0, such as an encoder's priming, is cut off
            first = max(start, 0)
            last = max(start + len(samples), 0)
            track[first:last] = samples[len(samples) - (last - first) :]
            span = spans.get(stretch, Span(first / rate, last / rate))
            spans[stretch] = Span(min(span.start_s, first / rate), max(span.end_s, last / rate))
        start_s = min(span.start_s for span in spans.values())
        return Sound(track, start_s, len(track) / rate, spans=spans)

    def loud_channel(self) -> int | None:
        """The louder of two channels that cancel each other in their sum; None where they do not."""
        left, right, common = self.powers
        louder = max(left, right)
        summed = (left + right + 2 * common) / 4  # of (left + right) / 2, as the resampler mixes
        if louder == 0 or summed >= CANCELLED * louder:
            return None
        return int(right > left)

    def _too_long(self) -> Refused:
        return Refused(Reason.TOO_LONG, f"the sound is longer than {self.limit_s:g} s")

    def _compare(self, frame: av.AudioFrame) -> None:
        """Adds the powers of a frame of two channels, of some frames only."""
        self.num_frames += 1
        if self.num_frames > COMPARED_FIRST and self.num_frames % COMPARED_EVERY:
            return
        wave = frame.to_ndarray().astype(np.float64)
        left, right = wave if len(wave) == 2 else wave.reshape(-1, 2).T
        # without their means: a constant offset would hide that they cancel
        left = left - left.mean()
        right = right - right.mean()
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
        self.resampler = None
        self.blocks = []
        self.drifting = 0
