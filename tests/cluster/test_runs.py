"""Which steps a run has committed, as its markers say."""

from pathlib import Path

from cluster.runs import checkpoint_folder, checkpoint_marker, committed_steps, marked_steps
from cluster.storage import open_store


def test_steps_are_those_with_a_marker_oldest_first(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    assert committed_steps(store) == []
    for step in (400, 200):
        store.put(checkpoint_marker(step), b"{}")
    store.put(f"{checkpoint_folder(600)}/a/rank-0000/part.json", b"{}")  # uploaded, never committed
    assert committed_steps(store) == [200, 400]


def test_copies_and_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    for name in ("checkpoints/step-00000010 (copy)/COMMITTED.json", "checkpoints/mine/step-1/COMMITTED.json"):
        store.put(name, b"{}")
    assert committed_steps(store) == []


def test_other_markers_count_where_they_are_named(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), writable=True)
    store.put(checkpoint_marker(10), b"{}")
    store.put(f"{checkpoint_folder(20)}/QUARANTINED.json", b"{}")
    assert marked_steps(store, "COMMITTED.json", "QUARANTINED.json") == [10, 20]
    assert committed_steps(store) == [10]
