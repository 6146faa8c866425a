"""JSON lines as crashes leave them."""

from pathlib import Path

import pytest

from cluster.jsonl import last_line, parse_lines, read_lines


def test_a_last_line_that_was_cut_off_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_lines(b'{"step": 1}\n{"st') == [{"step": 1}]
    assert not caplog.messages


def test_a_damaged_line_before_others_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_lines(b'{"step": 1}\n\x00\x00\n{"step": 3}\n', "metrics") == [{"step": 1}, {"step": 3}]
    assert caplog.messages == ["metrics: 1 damaged lines are left out"]


def test_the_newest_whole_line_is_found_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_line(path) is None and read_lines(path) == []
    path.write_bytes(b'{"step": 1}\n' * 1000 + b'{"step": 2}\n{"st')
    assert last_line(path) == {"step": 2}
