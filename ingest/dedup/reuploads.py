"""Media that were uploaded again and cut elsewhere: the same sound at another time of the clips, and alike
pictures.

    find_reuploads(tracks, marks, folder)       # of the samples in the order of their keys: marks what goes

An encoder that is run again sets keyframes elsewhere, so that windows around them have other seconds of the
same video. Their sound still overlaps: `audio_sequence` gives frames by media time, and four of them 0.2 s
apart are a token of 32 bits. Two clips that share a token, and whose pictures are alike, are compared at that
shift; where the sounds agree for 3 s, their media may be two versions of one, that many frames apart. They
are if a quarter of the pictures of clips that overlap are alike. Then every clip of the later medium (by
lowest key) is compared with the earlier one's: it goes if half of it or more is heard there, and with half of
its medium's clips going, all go. One sound with other pictures (a song, a jingle over another video) stays,
and so do other sounds over one still. Pictures that are seconds apart are alike if their hashes differ in no
more than IMAGE_BITS, or their colours in no more than COLOUR_SHARE. On disk are 1,100 bytes per sample; in
memory 24, a 64th of the tokens at a time, and the clips of two media.

Not found: what two clips have in common for less than 4 s, so no clips below that (only if cut at the same
times: ingest.curate), a video played faster or slower, or a video of which hardly any two overlapping clips
have pictures that are alike. Noise and sharp rhythms that were cut off by an odd number of half frames (12.5
ms) and coded below 64 kbit/s are often too far from the original.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ingest.dedup.fingerprint import image_distances, palette_distances

IMAGE_BITS = 14  # of 64
COLOUR_SHARE = 0.12
ALIKE_SHARE = 0.25  # of the pictures; the camera moves and shots change, so that most of them may be others
SOUND_SHARE = 0.48  # of the bits lit in one or both, how many may be lit in one only; other sounds: from 0.55
LEAST_FRAMES = 120  # 3 s
TAPS = 4  # frames of a token, a byte each
TAP_FRAMES = 8  # from one to the next: 0.2 s
TOKENS_PER_CLIP = 48
LEAST_LIT_BITS = 3  # of a token; steady sounds light hardly any, so that all of them would share it
PARTITIONS = 64  # of the tokens by value: one at a time is in memory
CROWD = 64  # samples of one token that are compared each with each; more would be quadratic
BATCH = 2048
POSTING = np.dtype([("token", np.uint32), ("sample", np.uint32), ("frame", np.int32)])


@dataclass(frozen=True)
class Tracks:
    """Of all samples, in the order of keys: `frames` uint8 [n, num_frames] (may be on disk; 0 where there is
    none), `first` int32 [n] the media time of frame 0, `media` int32 [n] the rank of its medium in the order
    of their lowest keys, `images` uint64 [n], `palettes` uint8 [n, 125] (may be on disk).
    """

    frames: np.ndarray
    first: np.ndarray
    media: np.ndarray
    images: np.ndarray
    palettes: np.ndarray

    def alike(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """bool [n]: whether the pictures of samples [n] could be of one scene."""
        near = image_distances(self.images[a], self.images[b]) <= IMAGE_BITS
        return near | (palette_distances(self.palettes[a], self.palettes[b]) <= COLOUR_SHARE)


class Version(NamedTuple):
    """Two media, by rank, that may be versions of one; `apart`: the media time of the later one minus that of
    the earlier one, in frames.
    """

    later: int
    earlier: int
    apart: int


@dataclass(frozen=True)
class Overlap:
    """Pairs of clips at a shift, int [n] each: bits lit in one clip only, in any; frames in common."""

    differ: np.ndarray
    lit: np.ndarray
    common: np.ndarray

    def share(self) -> np.ndarray:
        """float [n]: the share of lit bits that differ; 2, more than any, where too little is in common."""
        enough = (self.common >= LEAST_FRAMES) & (self.lit >= LEAST_FRAMES)
        return np.where(enough, self.differ / np.maximum(self.lit, 1), 2.0)


def find_reuploads(tracks: Tracks, marks: np.ndarray, folder: Path) -> None:
    """Sets `marks` bool [n] where a sample is in another medium too, which stays. Samples that are marked
    already do not count.
    """
    _write_tokens(tracks, marks, folder)
    versions: set[Version] = set()
    for partition in range(PARTITIONS):
        postings = np.fromfile(_partition_path(folder, partition), POSTING)
        for low, high, shift in _candidates(tracks, postings):
            versions |= _same_sound(tracks, low, high, shift)
    # clips of one medium, by its rank
    order = np.argsort(tracks.media, kind="stable")
    bounds = np.searchsorted(tracks.media[order], np.arange(tracks.media.max(initial=-1) + 2))

    def unmarked_clips(medium: int) -> np.ndarray:
        clips = order[bounds[medium] : bounds[medium + 1]]
        return np.asarray(clips[~marks[clips]])

    # sorted, since a set has no order, and each pair that is judged leaves fewer clips to the next
    for later, earlier, apart in sorted(versions):
        clips = unmarked_clips(later)
        originals = unmarked_clips(earlier)
        if _is_seen(tracks, clips, originals, apart):
            heard = np.array([_is_heard(tracks, clip, originals, apart) for clip in clips], bool)
            # with half of its clips the medium is a copy: the others were too short or too noisy to decide
            marks[clips if 2 * heard.sum() >= len(clips) else clips[heard]] = True


def _partition_path(folder: Path, partition: int) -> Path:
    return folder / f"tokens-{partition:02d}"


def _write_tokens(tracks: Tracks, marks: np.ndarray, folder: Path) -> None:
    """The tokens of every sample that stays so far, in PARTITIONS files by their value."""
    files = [_partition_path(folder, partition).open("wb") for partition in range(PARTITIONS)]
    for start in range(0, len(marks), BATCH):
        batch = [tokens_of(frames) for frames in tracks.frames[start : start + BATCH]]
        samples = np.arange(start, start + len(batch), dtype=np.uint32)
        samples = np.repeat(samples, [len(tokens) for tokens, _ in batch])
        postings = np.empty(len(samples), POSTING)
        postings["token"] = np.concatenate([tokens for tokens, _ in batch])
        postings["sample"] = samples
        postings["frame"] = np.concatenate([frames for _, frames in batch]) + tracks.first[samples]
        postings = postings[~marks[samples]]
        # Knuth's multiplicative hash, of which the upper 6 bits choose one of 64 partitions
        hashes = postings["token"] * np.uint32(2654435761) >> np.uint32(26)
        for partition, file in enumerate(files):
            file.write(postings[hashes == partition].tobytes())
    for file in files:
        file.close()


def tokens_of(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tokens uint32 [n], their frames int [n]): those that last longest, which are the ones that another
    encoder leaves alone.
    """
    length = len(frames) - (TAPS - 1) * TAP_FRAMES
    if length < 1:
        return np.zeros(0, np.uint32), np.zeros(0, int)
    taps = [
        frames[tap * TAP_FRAMES : tap * TAP_FRAMES + length].astype(np.uint32) << 8 * tap
        for tap in range(TAPS)
    ]
    tokens = np.bitwise_or.reduce(taps)
    starts = np.flatnonzero(np.concatenate([[True], tokens[1:] != tokens[:-1]]))
    lengths = np.diff(starts, append=length)
    lit = np.flatnonzero(np.bitwise_count(tokens[starts]) >= LEAST_LIT_BITS)
    longest = lit[np.argsort(-lengths[lit], kind="stable")][:TOKENS_PER_CLIP]
    # the middle of a run: its ends move with the encoder
    return tokens[starts[longest]], starts[longest] + lengths[longest] // 2


def _candidates(tracks: Tracks, postings: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(low, high, shift) [n] of clips of two media with a token in common and pictures alike; at `shift`, the
    token is at one media time.
    """
    postings = postings[np.argsort(postings["token"], kind="stable")]
    tokens = postings["token"]
    lower = np.flatnonzero(tokens[1:] == tokens[:-1])
    for distance in range(1, CROWD + 1):
        lower = lower[lower + distance < len(tokens)]
        lower = lower[tokens[lower] == tokens[lower + distance]]
        for start in range(0, len(lower), BATCH):
            batch = lower[start : start + BATCH]
            low = postings[batch]
            high = postings[batch + distance]
            near = tracks.media[low["sample"]] != tracks.media[high["sample"]]
            near[near] = tracks.alike(low["sample"][near], high["sample"][near])
            if near.any():
                shift = high["frame"][near].astype(int) - low["frame"][near]
                yield low["sample"][near].astype(int), high["sample"][near].astype(int), shift


def _same_sound(tracks: Tracks, low: np.ndarray, high: np.ndarray, shift: np.ndarray) -> set[Version]:
    """The media of the pairs whose sounds agree."""
    swap = tracks.media[low] > tracks.media[high]
    early = np.where(swap, high, low)
    late = np.where(swap, low, high)
    shift = np.where(swap, -shift, shift)
    best = np.full(len(late), 2.0)
    apart = shift.copy()
    for slip in (0, -1, 1):  # a cut between two frames of 25 ms rounds either way
        share = _overlap(tracks, late, early, shift + slip).share()
        apart = np.where(share < best, shift + slip, apart)
        best = np.minimum(share, best)
    same = best <= SOUND_SHARE
    later = tracks.media[late[same]].tolist()
    earlier = tracks.media[early[same]].tolist()
    return set(map(Version, later, earlier, apart[same].tolist()))


def _is_seen(tracks: Tracks, clips: np.ndarray, originals: np.ndarray, apart: int) -> bool:
    """Whether enough of the pictures of clips that overlap are alike."""
    gap = tracks.first[clips][:, None] - apart - tracks.first[originals]
    late, early = np.nonzero(np.abs(gap) < tracks.frames.shape[1])
    return bool(len(late)) and bool(tracks.alike(clips[late], originals[early]).mean() >= ALIKE_SHARE)


def _is_heard(tracks: Tracks, clip: int, originals: np.ndarray, apart: int) -> bool:
    """Whether half of `clip` or more is heard in `originals` (of one medium, so no two of them overlap)."""
    count = len(originals)
    overlap = _overlap(tracks, np.full(count, clip), originals, np.full(count, apart))
    if 2 * overlap.common.sum() < tracks.frames.shape[1]:
        return False
    return bool(overlap.differ.sum() <= SOUND_SHARE * overlap.lit.sum())


def _overlap(tracks: Tracks, late: np.ndarray, early: np.ndarray, apart: np.ndarray) -> Overlap:
    """The sounds of clips `late` [n] against those of `early` [n], `apart` [n] frames of media time apart."""
    length = tracks.frames.shape[1]
    # the frame of `early` beside each frame of `late`, [n, length]; outside of the clip there is none
    beside = np.arange(length) + (tracks.first[late] - apart - tracks.first[early])[:, None]
    common = (beside >= 0) & (beside < length)
    shifted = np.take_along_axis(tracks.frames[early], np.clip(beside, 0, length - 1), axis=1)
    a = np.where(common, tracks.frames[late], 0)
    b = np.where(common, shifted, 0)
    differ = np.bitwise_count(a ^ b).sum(1, int)
    lit = np.bitwise_count(a | b).sum(1, int)
    return Overlap(differ, lit, common.sum(1))
