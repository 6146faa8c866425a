"""What lists and sidecars state, as text, numbers and JSON that every index can hold."""

import datetime
import decimal
import json
from typing import Any

import numpy as np
import pytest

from ingest.sources.metadata import MAX_FIELDS, MAX_TEXT, Metadata, merged, plain_json, read_metadata, text_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (float("inf"), None),
        ({"a": [1, NAN, {"b": -float("inf")}]}, {"a": [1, None, {"b": None}]}),
        (decimal.Decimal("1.50"), "1.50"),
        (decimal.Decimal("NaN"), None),
        (datetime.datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
        (np.float32("inf"), None),
        (np.arange(2), [0, 1]),
        (b"\xffa", "\\xffa"),
        ("\ud800", "\\ud800"),
        ({1: {2, }}, {"1": [2]}),
    ],
)  # fmt: skip
def test_anything_becomes_json(value: Any, plain: Any) -> None:
    assert plain_json(value) == plain and json.dumps(plain_json(value), allow_nan=False)


def test_whole_numbers_of_a_column_with_a_gap_keep_their_form() -> None:
    assert [text_of(value) for value in (3.0, 3, "3", 3.5, None, NAN, " ", 0, -0.0)] == [
        "3",
        "3",
        "3",
        "3.5",
        "",
        "",
        "",
        "0",
        "0",
    ]


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_sidecar_states_nothing(data: bytes) -> None:
    assert read_metadata(data) == Metadata()


def test_a_sidecar_is_cut_to_size() -> None:
    stated = {"title": "t" * 5000, **{f"field{index}": index for index in range(200)}}
    metadata = read_metadata(json.dumps(stated).encode())
    assert len(metadata.title) == MAX_TEXT and len(metadata.extra) == MAX_FIELDS


def test_a_channel_of_an_info_json_is_its_id() -> None:
    info = {"channel": "Rivers", "channel_id": "UC1", "uploader": "@rivers", "formats": [1]}
    assert read_metadata(json.dumps(info).encode(), is_info=True) == Metadata(channel="UC1")


def test_of_two_statements_the_first_counts() -> None:
    first = Metadata(license="own", extra={"a": 1})
    second = Metadata(license="CC0-1.0", title="rain", extra={"a": 2, "b": 2})
    assert merged(first, second) == Metadata("own", "", "rain", {"a": 1, "b": 2})
