"""Numbers of a dataset: into which bin a value falls. The counts themselves are in test_report."""

import math

import numpy as np

from ingest.pages.survey import Histogram


def test_bins_hold_their_lower_edge_and_all_that_is_outside() -> None:
    for log, values in (
        (False, [1, 10, 16.9, 17, 32.5, 99, -5]),
        (True, [1, 2**0.99, 2.0001, 2**31.5, 2**40, 0.1, 2**5.5]),
    ):
        counts = (
            Histogram("", 1, 33, counts=np.zeros(32, int)) if not log else Histogram("", 1, 2.0**32, True)
        )
        counts.add([])
        counts.add(values)
        places = [min(max(math.floor(math.log2(v) if log else v - 1), 0), 31) for v in values]
        assert counts.counts.tolist() == np.bincount(places, minlength=32).tolist()
