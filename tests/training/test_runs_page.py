"""The page of compared runs: complete, harmless, and whole on a telephone."""

import json
import re
from pathlib import Path

import pytest
import typer

from cluster.storage import open_store
from configs.load import UserError
from tests.fakes.browser import look_at
from tests.training.test_runs import fake_run
from training.__main__ import app
from training.runs import Comparison, RunsConfig, compare
from training.runs_page import HEIGHT, WIDTH, chart, page_of, rows_of, write_page


@pytest.fixture
def compared(tmp_path: Path) -> Comparison:
    long = tmp_path / ("a_run_with_a_name_that_no_line_of_a_telephone_holds_" * 2 + "<script>alert(1)<")
    runs = [fake_run(long, [4.0, 3.0, 2.0]), fake_run(tmp_path / "b", [8.0, 0.0], lr=0.5)]
    (runs[1] / "validation.jsonl").write_text('{"step": 2, "loss": 0.25}\n')
    return compare([str(run) for run in runs], RunsConfig())


def test_the_table_has_what_any_of_them_measured(compared: Comparison) -> None:
    rows = dict(rows_of(compared))
    assert rows["loss, last 50 steps"] == ["3", "4"]
    assert rows["step"] == ["3 of 100", "2 of 100"] and rows["wall time"] == ["1.5 s", "1.0 s"]
    assert rows["best validation"] == ["-", "0.25 at 2"]
    assert "CPU time" not in rows


def test_curves_share_one_box(compared: Comparison) -> None:
    runs = compared["runs"]
    drawn = chart("loss", runs, [run["curve"] for run in runs])
    assert drawn and drawn.low == "0" and drawn.last_step == "3"
    # the end of the shorter one, at the lowest loss of all, is at its own step
    assert drawn.curves[1].points.split()[-1] == f"{WIDTH * 2 / 3:.1f},{HEIGHT:.1f}"
    single = chart("validation", runs, [run["measured"] for run in runs])
    assert single and len(single.curves[0].points.split()) == 2
    assert chart("loss", runs, [[], []]) is None


def test_a_browser_shows_it_whole_and_no_name_is_markup(compared: Comparison, tmp_path: Path) -> None:
    html = page_of(compared)
    assert "<script" not in html and "default-src 'none'" in html and "0.25 at 2" in html
    # nothing is loaded
    assert "src=" not in html and "href=" not in html and "url(" not in html
    write_page(f"{tmp_path}/new/compared.html", html)
    seen = look_at(tmp_path / "new/compared.html", width_px=390)
    assert not seen["errors"] and seen["scroll_px"] == 390


def test_the_verb_prints_the_table_or_json_and_writes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(fake_run(tmp_path / name, [loss], lr=loss)) for name, loss in (("a", 0.25), ("b", 0.5))]
    page = f"{tmp_path}/compared.html"
    verb = typer.main.get_command(app)
    verb(["runs", *runs, f"output={page}"], standalone_mode=False)
    said = capsys.readouterr().out
    assert re.search(r"loss, last 50 steps +0.25 +0.5 *\n", said) and re.search(r"lr +0.25 +0.5 *\n", said)
    assert f"page: {page}" in said and "<polyline" in Path(page).read_text()
    verb(["runs", *runs, "--json"], standalone_mode=False)
    compared = json.loads(capsys.readouterr().out)
    assert [run["loss"] for run in compared["runs"]] == [0.25, 0.5]
    assert compared["differing"] == {"lr": ["0.25", "0.5"]} and compared["page"] == ""


def test_it_is_written_to_a_bucket_and_a_place_that_is_none_is_one_line(bucket: str, tmp_path: Path) -> None:
    write_page(f"{bucket}/pages/compared.html", "<p>")
    assert open_store(f"{bucket}/pages").read("compared.html") == b"<p>"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        write_page(f"{tmp_path}/file/compared.html", "<p>")
