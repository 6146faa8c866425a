"""Re-uploads: a medium whose sound and pictures are in another one, at another time, is marked."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.dedup.reuploads import (
    LEAST_LIT_BITS,
    TAP_FRAMES,
    TAPS,
    TOKENS_PER_CLIP,
    Tracks,
    find_reuploads,
    tokens_of,
)

CLIP_FRAMES = 320  # 8 s
LENGTH = 2000
JINGLE = slice(150, 190)


def sound(seed: int) -> np.ndarray:
    """Frames that hold for some time, as those of a real sound do, with a jingle of a second in all."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 256, LENGTH, np.uint8), rng.integers(2, 9, LENGTH))[:LENGTH]
    frames[JINGLE] = 0x55
    return frames


def clips(sound: np.ndarray, starts: list[int]) -> list[np.ndarray]:
    return [sound[start : start + CLIP_FRAMES] for start in starts]


def tracks(media: list[tuple[int, int, list[int]]]) -> Tracks:
    """Of (seed of the sound, image hash, first frames of the clips) of each medium."""
    frames: list[np.ndarray] = []
    first: list[int] = []
    ranks: list[int] = []
    images: list[int] = []
    for rank, (seed, image, starts) in enumerate(media):
        frames += clips(sound(seed), starts)
        first += starts
        ranks += [rank] * len(starts)
        images += [image] * len(starts)
    # the palettes of samples with other images have nothing in common
    palettes = np.zeros((len(ranks), 125), np.uint8)
    palettes[np.arange(len(ranks)), np.array(images) % 125] = 255
    return Tracks(
        np.array(frames),
        np.array(first, np.int32),
        np.array(ranks, np.int32),
        np.array(images, np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        palettes,
    )


def marked(
    folder: Path, media: list[tuple[int, int, list[int]]], marks: list[int] | None = None
) -> list[int]:
    """The indices of the samples that are marked."""
    samples = tracks(media)
    flags = np.zeros(len(samples.media), bool)
    flags[marks or []] = True
    find_reuploads(samples, flags, folder)
    return np.flatnonzero(flags).tolist()


def test_clips_cut_elsewhere_are_marked_in_the_later_medium(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0, 320, 640]), (1, 3, [101, 421, 741])]) == [3, 4, 5]


def test_the_same_sound_with_other_pictures_stays(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0, 320, 640]), (1, 4, [101, 421, 741])]) == []


def test_other_sounds_with_the_same_picture_stay(tmp_path: Path) -> None:
    """Though they have a jingle in common, and so a token."""
    assert marked(tmp_path, [(1, 3, [0, 320, 640]), (2, 3, [101, 421, 741])]) == []


def test_a_sound_that_comes_again_within_its_medium_stays(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0, 101, 640])]) == []


def test_with_half_of_its_clips_a_medium_is_a_copy(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0, 320]), (1, 3, [101, 1500])]) == [2, 3]


def test_below_half_only_the_clips_that_are_heard_are_marked(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0, 320]), (1, 3, [101, 1200, 1600])]) == [2]


def test_a_marked_original_marks_nothing(tmp_path: Path) -> None:
    assert marked(tmp_path, [(1, 3, [0]), (1, 3, [101])], marks=[0]) == [0]


@given(st.lists(st.integers(0, 255), max_size=200))
def test_tokens_are_four_frames_of_the_sound(values: list[int]) -> None:
    frames = np.array(values, np.uint8)
    tokens, positions = tokens_of(frames)
    assert len(tokens) == len(positions) <= TOKENS_PER_CLIP
    for token, position in zip(tokens.tolist(), positions.tolist(), strict=True):
        taps = [int(frames[position + tap * TAP_FRAMES]) << 8 * tap for tap in range(TAPS)]
        assert token == sum(taps)
        assert token.bit_count() >= LEAST_LIT_BITS


def test_a_rich_sound_has_no_more_tokens_than_the_limit() -> None:
    assert len(tokens_of(sound(1))[0]) == TOKENS_PER_CLIP


@pytest.mark.parametrize("value", [0, 1])
def test_a_steady_sound_of_few_bits_has_no_tokens(value: int) -> None:
    frames = np.zeros(CLIP_FRAMES, np.uint8)
    frames[100] = value
    assert len(tokens_of(frames)[0]) == 0
