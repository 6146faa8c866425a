"""Media found again, cut elsewhere: the same sound at another place of the clips, and pictures that are
alike.

    find_reuploads(tracks, marks, folder)       # of the samples in the order of their keys: marks what goes

An encoder that is run again sets keyframes elsewhere, so that windows around them hold other seconds of the
same video. Their sound still overlaps: `audio_sequence` gives frames by media time, and four of them 0.2 s
apart are a word of 32 bits. Two clips that share a word, and whose pictures are alike, are laid over each
other there; where the sounds agree for 3 s, their media may be two versions of one, so and so many frames
apart. They are if a quarter of the pictures of clips that overlap are alike. Then every clip of the later
medium (by lowest key) is laid over the earlier one's: it goes if half of it or more is heard there, and with
half of its medium's clips going, all go. One sound with other pictures (a song, a jingle over another video)
stays, and so do other sounds over one still. Pictures that lie seconds apart are alike if their hashes differ
in no more than IMAGE_BITS, or their colours in no more than COLOUR_SHARE. On disk lie 1,100 bytes per sample;
in memory 24, a 64th of the words at a time, and the clips of two media.

Not found: what two clips have in common for less than 4 s, so no clips below that (only if cut at the same
times: ingest.curate), a video played faster or slower, or a video of which hardly any two overlapping clips
have pictures that are alike. Noise and sharp rhythms that were cut off by an odd number of half frames (12.5
ms) and coded below 64 kbit/s are often too far from the original.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingest.dedup.fingerprint import image_distances, palette_distances

IMAGE_BITS = 14  # of 64
COLOUR_SHARE = 0.12
ALIKE_SHARE = 0.25  # of the pictures; the camera moves and shots change, so that most of them may be others
SOUND_SHARE = 0.48  # of the bits lit in one or both, how many may be lit in one only; other sounds: from 0.55
LEAST_FRAMES = 120  # 3 s
TAPS, TAP_FRAMES = 4, 8
WORDS_PER_CLIP = 48
PARTS = 64
CROWD = 64
BATCH = 2048
POSTING = np.dtype([("word", np.uint32), ("place", np.uint32), ("frame", np.int32)])


@dataclass(frozen=True)
class Tracks:
    """Of all samples, in the order of keys: `frames` uint8 [n, num_frames] (may lie on disk; 0 where none
    is), `first` int32 [n] the media time of frame 0, `media` int32 [n] numbers of media in the order of their
    lowest keys, `images` uint64 [n], `palettes` uint8 [n, 125] (may lie on disk).
    """

    frames: np.ndarray
    first: np.ndarray
    media: np.ndarray
    images: np.ndarray
    palettes: np.ndarray

    def alike(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """bool [n]: whether the pictures of samples [n] could be of one scene."""
        near = image_distances(self.images[one], self.images[other]) <= IMAGE_BITS
        return near | (palette_distances(self.palettes[one], self.palettes[other]) <= COLOUR_SHARE)


def find_reuploads(tracks: Tracks, marks: np.ndarray, folder: Path) -> None:
    """Sets `marks` bool [n] where a sample is found again in a medium that stays; what is marked already
    plays no part.
    """
    _write_words(tracks, marks, folder)
    found: set[tuple[int, int, int]] = set()
    for part in range(PARTS):
        for low, high, shift in _candidates(tracks, np.fromfile(_part(folder, part), POSTING)):
            found |= _same_sound(tracks, low, high, shift)
    order = np.argsort(tracks.media, kind="stable")
    bounds = np.searchsorted(tracks.media[order], np.arange(tracks.media.max(initial=-1) + 2))
    for later, earlier, apart in sorted(found):
        clips, others = (order[bounds[medium] : bounds[medium + 1]] for medium in (later, earlier))
        clips, others = clips[~marks[clips]], others[~marks[others]]
        if _is_seen(tracks, clips, others, apart):
            again = np.array([_is_heard(tracks, clip, others, apart) for clip in clips], bool)
            marks[clips if 2 * again.sum() >= len(clips) else clips[again]] = True


def _part(folder: Path, part: int) -> Path:
    return folder / f"words-{part:02d}"


def _write_words(tracks: Tracks, marks: np.ndarray, folder: Path) -> None:
    """The words of every living sample, in PARTS files by their value."""
    files = [_part(folder, part).open("wb") for part in range(PARTS)]
    for start in range(0, len(marks), BATCH):
        batch = [words_of(frames) for frames in tracks.frames[start : start + BATCH]]
        places = np.repeat(
            np.arange(start, start + len(batch), dtype=np.uint32), [len(words) for words, _ in batch]
        )
        postings = np.empty(len(places), POSTING)
        postings["word"], postings["place"] = np.concatenate([words for words, _ in batch]), places
        postings["frame"] = np.concatenate([frames for _, frames in batch]) + tracks.first[places]
        postings = postings[~marks[places]]
        parts = postings["word"] * np.uint32(2654435761) >> np.uint32(26)
        for part, file in enumerate(files):
            file.write(postings[parts == part].tobytes())
    for file in files:
        file.close()


def words_of(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(words uint32 [n], their frames int [n]): those that hold longest, which are the ones that another
    encoder leaves alone.
    """
    length = len(frames) - (TAPS - 1) * TAP_FRAMES
    if length < 1:
        return np.zeros(0, np.uint32), np.zeros(0, int)
    taps = [
        frames[tap * TAP_FRAMES : tap * TAP_FRAMES + length].astype(np.uint32) << 8 * tap
        for tap in range(TAPS)
    ]
    words = taps[0] | taps[1] | taps[2] | taps[3]
    starts = np.flatnonzero(np.concatenate([[True], words[1:] != words[:-1]]))
    lengths = np.diff(starts, append=length)
    lit = np.flatnonzero(np.bitwise_count(words[starts]) >= 3)
    longest = lit[np.argsort(-lengths[lit], kind="stable")][:WORDS_PER_CLIP]
    return words[starts[longest]], starts[longest] + lengths[longest] // 2


def _candidates(tracks: Tracks, postings: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(low, high, shift) [n] of clips of two media with a word in common and pictures alike; at `shift`,
    media times agree.
    """
    postings = postings[np.argsort(postings["word"], kind="stable")]
    word, place, frame = (postings[name] for name in ("word", "place", "frame"))
    firsts = np.flatnonzero(word[1:] == word[:-1])
    for distance in range(1, CROWD + 1):
        firsts = firsts[firsts + distance < len(word)]
        firsts = firsts[word[firsts] == word[firsts + distance]]
        for start in range(0, len(firsts), BATCH):
            part = firsts[start : start + BATCH]
            low, high = place[part].astype(int), place[part + distance].astype(int)
            near = tracks.media[low] != tracks.media[high]
            near[near] = tracks.alike(low[near], high[near])
            if near.any():
                yield low[near], high[near], frame[part + distance][near].astype(int) - frame[part][near]


def _same_sound(
    tracks: Tracks, low: np.ndarray, high: np.ndarray, shift: np.ndarray
) -> set[tuple[int, int, int]]:
    """(later medium, earlier medium, media time of the later minus that of the earlier one) where the sounds
    agree.
    """
    swap = tracks.media[low] > tracks.media[high]
    early, late, shift = np.where(swap, high, low), np.where(swap, low, high), np.where(swap, -shift, shift)
    best, apart = np.full(len(late), 2.0), shift.copy()
    for slip in (0, -1, 1):
        differ, lit, both = _laid_over(tracks, late, early, shift + slip)
        share = np.where((both >= LEAST_FRAMES) & (lit >= LEAST_FRAMES), differ / np.maximum(lit, 1), 2.0)
        apart, best = np.where(share < best, shift + slip, apart), np.minimum(share, best)
    same = best <= SOUND_SHARE
    return {
        *zip(
            tracks.media[late[same]].tolist(),
            tracks.media[early[same]].tolist(),
            apart[same].tolist(),
            strict=True,
        )
    }


def _is_seen(tracks: Tracks, clips: np.ndarray, others: np.ndarray, apart: int) -> bool:
    """Whether enough of the pictures of clips that overlap are alike."""
    gap = tracks.first[clips][:, None] - apart - tracks.first[others]
    late, early = np.nonzero(np.abs(gap) < tracks.frames.shape[1])
    return bool(len(late)) and bool(tracks.alike(clips[late], others[early]).mean() >= ALIKE_SHARE)


def _is_heard(tracks: Tracks, clip: int, others: np.ndarray, apart: int) -> bool:
    """Whether half of `clip` or more is heard in `others` (of one medium, so no two of them overlap)."""
    differ, lit, both = (
        part.sum()
        for part in _laid_over(tracks, np.full(len(others), clip), others, np.full(len(others), apart))
    )
    return bool(2 * both >= tracks.frames.shape[1] and differ <= SOUND_SHARE * lit)


def _laid_over(
    tracks: Tracks, late: np.ndarray, early: np.ndarray, apart: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bits lit in one only, bits lit in one or both, frames in common), each int [n]."""
    length = tracks.frames.shape[1]
    at = np.arange(length) + (tracks.first[late] - apart - tracks.first[early])[:, None]
    common = (at >= 0) & (at < length)
    ones = np.where(common, tracks.frames[late], 0)
    others = np.where(common, np.take_along_axis(tracks.frames[early], np.clip(at, 0, length - 1), axis=1), 0)
    return (
        np.bitwise_count(ones ^ others).sum(1, int),
        np.bitwise_count(ones | others).sum(1, int),
        common.sum(1),
    )
