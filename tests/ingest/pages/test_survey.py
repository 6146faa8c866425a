"""Numbers of a dataset: into which bin a value falls, and what a row counts as. The sums are in test_report."""

import math

import numpy as np
import pytest

from cluster.shards import Status
from ingest.pages.survey import COLUMNS, Histogram, Row, verdict

BINS = 32


def row(status: str, key: str | None = None, reason: str | None = None) -> Row:
    values = dict.fromkeys(COLUMNS) | {"item_id": "a", "status": status, "key": key, "reason": reason}
    return values  # type: ignore[return-value]


def test_equal_bins_hold_their_lower_edge_and_all_that_is_outside() -> None:
    values = [1, 10, 16.9, 17, 32.5, 99, -5]
    histogram = Histogram("", 1, 33)
    histogram.add([])
    histogram.add(values)
    bins = [min(max(math.floor(value - 1), 0), BINS - 1) for value in values]
    assert histogram.counts.tolist() == np.bincount(bins, minlength=BINS).tolist()


def test_logarithmic_bins_hold_their_lower_edge_and_all_that_is_outside() -> None:
    values = [1, 2**0.99, 2.0001, 2**31.5, 2**40, 0.1, 2**5.5]
    histogram = Histogram("", 1, 2.0**32, log=True)
    histogram.add(values)
    bins = [min(max(math.floor(math.log2(value)), 0), BINS - 1) for value in values]
    assert histogram.counts.tolist() == np.bincount(bins, minlength=BINS).tolist()


@pytest.mark.parametrize(
    ("counted", "status", "reason"),
    [
        (row("kept", "k1"), Status.KEPT, None),
        (row("kept", "k2"), Status.REMOVED, "takedown"),
        (row("refused", "k2", "silent"), Status.REFUSED, "silent"),
        (row("refused", None, "timeout"), Status.REFUSED, "timeout"),
    ],
)
def test_a_tombstone_goes_before_the_status_of_a_kept_row(
    counted: Row, status: Status, reason: str | None
) -> None:
    assert verdict(counted, {"k2": "takedown"}) == (status, reason)
