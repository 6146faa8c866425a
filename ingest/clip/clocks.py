"""Clocks of media: stretches of a file whose clock restarts, and two files that are joined to one.

A joined transport stream, a chained Ogg or a DVB discontinuity makes a file's clock jump. What is between
two jumps is a *stretch*; `StretchFinder` numbers them packet by packet. `Timeline` lays the stretches one
after the other on *playing time*, which starts at 0 and never goes back; of jumps ahead, it keeps short gaps
only. Picture and sound of one moment are in one stretch (docs/clipping.md draws it). Pure arithmetic in
seconds; opens no file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# a decoding time this far behind the one before is a restart; less is rounding, or a container's guess
BACK_S = 0.3
BACK_FRAMES = 6  # the same in frames of the picture, for slow ones: as many may be out of order
AHEAD_S = 3.0  # a jump ahead by more ends a stretch, unless the other stream keeps pace with it
# a jump ahead by more, up to the hours of a DVB discontinuity, is no gap in the recording: playing time
# does not contain it
GAP_S = 60.0
NEAR_S = 10.0  # and the other stream, when it jumps, joins a stretch that is as near
ONE_CLOCK_S = 10.0  # the clocks of two files that start this near each other are one
WRAP_S = 2**33 / 90000  # where the clocks of MPEG start again: 33 bits at 90 kHz, 26.5 hours


@dataclass
class Reach:
    """First and last moment of one stream within one stretch, in seconds of its file's clock."""

    first_s: float
    last_s: float

    def add(self, first_s: float, last_s: float) -> None:
        """Widens it to take in [first_s, last_s]."""
        self.first_s = min(self.first_s, first_s)
        self.last_s = max(self.last_s, last_s)


Reaches = dict[int, Reach]
"""Of one stream, by the number of the stretch; a stretch without that stream is missing."""


class StretchFinder:
    """Numbers the stretches of a file from the decoding times of its streams, which must come in file order.

    `back_s`: by how much the time of each stream may go back. `alone_jumps`: a single stream that jumps ahead
    by more than `GAP_S` has restarted; false where a lone picture may stand for long.
    """

    def __init__(self, back_s: Sequence[float], alone_jumps: bool):
        self.back_s = list(back_s)
        self.alone_jumps = alone_jumps
        self.last_s: list[float | None] = [None] * len(self.back_s)  # of each stream
        self.current = [0] * len(self.back_s)  # stretch of each stream
        self.newest_s = [0.0]  # the last time of any stream in each stretch
        # where a jump ahead began the stretch, perhaps for one stream only; infinite after a jump back
        self.after_gap_s = [0.0]

    def stretch_of(self, stream: int, time_s: float) -> int:
        """The stretch of the packet of `stream` that is decoded at `time_s`."""
        last_s = self.last_s[stream]
        current = self.current[stream]
        if last_s is None:
            current = self._joined(stream, time_s, 0)
        elif time_s < last_s - self.back_s[stream]:
            current = self._joined(stream, time_s, current + 1, math.inf)
        elif time_s > last_s + AHEAD_S and self._restarted(stream, time_s):
            current = self._joined(stream, time_s, current + 1, time_s)
        elif current + 1 < len(self.after_gap_s) and time_s >= self.after_gap_s[current + 1]:
            current += 1  # the clock had not jumped: this stream has come there, too
        self.current[stream] = current
        self.last_s[stream] = time_s
        self.newest_s[current] = time_s
        return current

    def _restarted(self, stream: int, time_s: float) -> bool:
        """Whether a jump ahead is no mere gap: no other stream of this stretch has come as far."""
        peers = [peer for peer, last_s in enumerate(self.last_s) if peer != stream and last_s is not None]
        if not peers:
            return self.alone_jumps and time_s > (self.last_s[stream] or 0.0) + GAP_S
        here = [peer for peer in peers if self.current[peer] == self.current[stream]]
        return all((self.last_s[peer] or 0.0) < time_s - AHEAD_S for peer in here)

    def _joined(self, stream: int, time_s: float, least: int, after_gap_s: float = math.inf) -> int:
        """The newest stretch from `least` on whose clock is near; a new one where none is."""
        for candidate in range(len(self.newest_s) - 1, least - 1, -1):
            if abs(self.newest_s[candidate] - time_s) < NEAR_S:
                return candidate
        if self.last_s[stream] is None:
            return 0
        self.newest_s.append(time_s)
        self.after_gap_s.append(after_gap_s)
        return len(self.newest_s) - 1


class Timeline:
    """Where each stretch lies in playing time, from what both streams reach in it.

    `start_s` is what the clock says at time 0 of the first stretch. The sound may have a clock of its own:
    `ahead_s[k]` is how far it is ahead of the picture's in stretch k. In the end, stretch k begins at playing
    time `begin_s[k]`, and its clock says `epoch_s[k]` at playing time 0.
    """

    def __init__(
        self, picture: Reaches, sound: Reaches, start_s: float = 0.0, ahead_s: dict[int, float] | None = None
    ):
        self.ahead_s = ahead_s or {}
        self.epoch_s: dict[int, float] = {}
        self.begin_s: dict[int, float] = {}
        epoch_s = start_s
        end_s = 0.0
        for stretch in sorted({*picture, *sound, 0}):
            reaches = [picture[stretch]] if stretch in picture else []
            if stretch in sound:
                ahead = self.ahead_s.get(stretch, 0.0)
                reaches.append(Reach(sound[stretch].first_s - ahead, sound[stretch].last_s - ahead))
            first_s = min((reach.first_s for reach in reaches), default=start_s)
            gap_s = first_s - epoch_s - end_s
            if stretch == 0:
                begin_s = 0.0
            elif 0 <= gap_s <= GAP_S:
                begin_s = first_s - epoch_s  # the clock has not restarted: the gap is kept
            else:
                begin_s = end_s
                epoch_s = first_s - end_s
            self.begin_s[stretch] = begin_s
            self.epoch_s[stretch] = epoch_s
            end_s = max([end_s, *(reach.last_s - epoch_s for reach in reaches)])
        self.end_s = end_s

    def sound_epoch_s(self, stretch: int) -> float:
        """What the sound's clock says at playing time 0, for a stretch."""
        return self.epoch_s[stretch] + self.ahead_s.get(stretch, 0.0)


def ahead_s(picture: Reach, sound: Reach, wraps: bool) -> float:
    """How far the clock of a sound's file is ahead of that of its picture's file; 0 where it is one clock.

    The difference of the two starts decides. Less than `ONE_CLOCK_S`: one clock, and the sound starts that
    much later. More: either the sound starts that late, or each file counts from a time of its own; whichever
    makes their ends meet more nearly.
    """
    apart_s = sound.first_s - picture.first_s
    turns_s = round(apart_s / WRAP_S) * WRAP_S if wraps else 0.0
    if abs(apart_s - turns_s) < ONE_CLOCK_S:
        return turns_s
    ends_apart_s = abs(sound.last_s - turns_s - picture.last_s)
    lengths_apart_s = abs((sound.last_s - sound.first_s) - (picture.last_s - picture.first_s))
    return turns_s if ends_apart_s <= lengths_apart_s else apart_s
