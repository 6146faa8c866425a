"""Planning on times alone: windows within what both streams have, runs from keyframes on, hard cuts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.clip.windows import (
    EDGE_S,
    Packets,
    Span,
    find_cuts,
    grid_starts,
    plan_keyframes,
    plan_runs,
    regions,
)
from tests.fakes.cutting import SETTINGS
from tests.fakes.media import RATE_HZ


def test_keyframe_windows_do_not_overlap_and_runs_start_at_keyframes() -> None:
    times_s = np.arange(0, 20, 0.25)
    stamps = np.arange(80)
    packets = Packets(
        times_s,
        stamps % 3 == 0,
        np.full(80, True),
        20.0,
        np.zeros(80, int),
        stamps,
        {0: Span(0, 20)},
        {0: 0.0},
    )
    windows = plan_keyframes(packets, 0.0, 20.0, SETTINGS)
    starts = [window.start for window in windows]
    assert (
        all(
            later - earlier >= SETTINGS.num_samples
            for earlier, later in zip(starts, starts[1:], strict=False)
        )
        and starts[-1] <= 19 * RATE_HZ
    )
    assert [times_s[window.packet] - window.start / RATE_HZ for window in windows] == pytest.approx(
        [0.5] * len(windows)
    )
    assert [(run.first, run.last, run.needed) for run in plan_runs(packets, {4, 5, 9})] == [
        (3, 5, [4, 5]),
        (9, 9, [9]),
    ]


def test_runs_begin_farther_back_but_in_their_own_stretch() -> None:
    number = np.arange(40)
    packets = Packets(
        number * 1.0,
        number % 5 == 0,
        number >= 0,
        40.0,
        number // 20,
        number,
        {0: Span(0, 20), 1: Span(20, 40)},
        {0: 0.0, 1: 20.0},
    )
    first = [[run.first for run in plan_runs(packets, {17, 38}, back)] for back in (0, 1, 2, 16)]
    assert first == [[15, 35], [10, 30], [5, 25], [0, 20]]
    assert [run.second_key for run in plan_runs(packets, {17, 38}, 16)] == [5, 25]


@given(st.floats(0, 50), st.floats(0, 20))
def test_grid_windows_lie_back_to_back_within_their_span(start_s: float, length_s: float) -> None:
    starts = grid_starts(start_s, start_s + length_s, SETTINGS)
    assert np.diff(starts).tolist() == [SETTINGS.num_samples] * (len(starts) - 1)
    for start in starts:
        assert start / RATE_HZ >= start_s - 1 / RATE_HZ
        assert start / RATE_HZ + SETTINGS.duration_s <= start_s + length_s + EDGE_S + 1 / RATE_HZ


def test_a_region_has_both_streams_and_ends_before_a_seam() -> None:
    pictures = {0: Span(0.0, 10.0), 1: Span(10.0, 20.0)}
    sounds = {0: Span(2.0, 10.0), 1: Span(10.0, 15.0)}
    first, second = regions(pictures, sounds, {0: 0.0, 1: 10.0}, None)
    assert first == Span(2.0, 10.0 - EDGE_S)
    assert second == Span(10.0, 15.0)


def test_a_region_lies_within_the_range() -> None:
    spans = {0: Span(0.0, 10.0)}
    assert regions(spans, spans, {0: 0.0}, Span(3.0, 6.0)) == [Span(3.0, 6.0 - EDGE_S)]


def pictures_of(levels: list[int]) -> list[tuple[float, np.ndarray]]:
    return [(float(index), np.full((4, 4, 3), level, np.uint8)) for index, level in enumerate(levels)]


def test_a_cut_is_one_large_change() -> None:
    assert find_cuts(pictures_of([10, 12, 14, 200, 202, 204]), 0.3) == [(2.0, 3.0)]


def test_steady_change_is_no_cut() -> None:
    assert find_cuts(pictures_of([0, 80, 160, 240]), 0.1) == []
