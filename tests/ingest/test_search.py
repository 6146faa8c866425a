"""What a row, a tar or a file still holds, apart from datasets that were taken down (test_prove)."""

from pathlib import Path

import pytest

from cluster.dataset import Dataset
from ingest.places import look_into
from ingest.search import RECORDS, Search, holds_content, search_places
from ingest.traces import Traces

HOLE = {"ordinal": 3, "item_id": "urls:a", "key": "urls_a_0", "status": "removed", "reason": "take-down"}


@pytest.mark.parametrize(
    ("more", "holds"),
    [
        ({}, False),
        ({"license": "own", "channel": "c", "media_id": "a", "split": "train", "start_s": 1.0}, False),
        ({"title": "t"}, True),
        ({"scores": "{}"}, True),
        ({"image_hash": "ff"}, True),
        ({"status": "kept"}, True),
        ({"detail": "no answer from http://x"}, True),
    ],
)
def test_a_hole_holds_nothing_but_ids(more: dict, holds: bool) -> None:
    row = {**HOLE, "members": [], "detail": None, "title": None, **more}
    assert holds_content(row, is_clips=True) == holds  # type: ignore[arg-type]


def test_the_detail_of_latents_is_their_own() -> None:
    row = {**HOLE, "status": "refused", "detail": "refused in the parent"}
    assert not holds_content(row, is_clips=False)  # type: ignore[arg-type]


def test_records_of_removals_stay_and_no_others() -> None:
    for name in ("runs/20261126T100214-remove-29161/config.yaml", "a/removals/20261126T100214Z-proof.json"):
        assert RECORDS.fullmatch(name), name
    for name in ("runs/20261126T100214-scrape-29161/config.yaml", "runs/remove/a.txt", "removals.txt"):
        assert not RECORDS.fullmatch(name), name


def test_files_are_known_by_name_and_text(tmp_path: Path) -> None:
    dataset = Dataset.create_or_open(str(tmp_path / "clips"), "clips", {}, [])
    (tmp_path / "urls_a_0.npy").write_bytes(b"")
    (tmp_path / "notes").write_text("urls_a_0")
    (tmp_path / "source.mp4").write_bytes(b"")
    # a medium is not opened: its bytes may look like anything
    (tmp_path / "b.wav").write_text("urls_a_0")
    search = Search(
        look_into([str(tmp_path)]), lambda row: False, Traces(["urls_a_0"], [f"{tmp_path}/source.mp4"])
    )
    search_places(search, dataset)
    found = {(each["place"], each["detail"]) for each in search.found}
    assert found == {
        (f"{tmp_path}/urls_a_0.npy", "named in the file's name"),
        (f"{tmp_path}/notes", "named in its text"),
        (f"{tmp_path}/source.mp4", "named in the file's name"),
    }
    assert search.objects == {"media and arrays, by their names": 3, "files": 1}
    assert (search.models, search.places.unread) == ([], {})
