"""Who made what: the report's own lines, in the form that was asked for."""

import csv
import io
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.__main__ import app
from ingest.attribution import AttributionConfig, attribute
from ingest.pages.card import write_attribution
from ingest.remove import RemoveConfig, remove
from tests.fakes.takedown import nine_clips
from tests.ingest.test_curate import write


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Nine sources of one license; one of them is of another, and has a title that would be markup."""
    rows = nine_clips()
    rows[2].columns |= {"license": "CC0-1.0", "title": "# [a](http://b) =1"}
    dataset = write(tmp_path_factory.mktemp("clips") / "clips", [rows])
    remove(RemoveConfig(dataset.uri, channel="bad", rewrite=False))
    return dataset


def lines(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))


def test_the_csv_has_the_lines_of_the_report(clips: Dataset, tmp_path: Path) -> None:
    write_attribution(clips, tmp_path / "report.csv")
    summary = attribute(AttributionConfig(clips.uri, str(tmp_path / "a.csv")))
    assert sorted(lines(tmp_path / "a.csv")) == sorted(lines(tmp_path / "report.csv"))
    assert (summary["sources"], summary["licenses"]) == (7, {"CC-BY-4.0": 6, "CC0-1.0": 1})
    assert "SECRET1" not in (tmp_path / "a.csv").read_text(), "what was taken down is credited no more"


def test_markdown_has_a_section_per_license_and_inert_texts(clips: Dataset, tmp_path: Path) -> None:
    attribute(AttributionConfig(clips.uri, str(tmp_path / "new/a.md")))
    text = (tmp_path / "new/a.md").read_text()
    assert [line for line in text.split("\n") if line.startswith("#")] == [
        "# Sources of clips",
        "## CC-BY-4.0",
        "## CC0-1.0",
    ]
    assert "6 sources, under <https://creativecommons.org/licenses/by/4.0" in text
    assert "- SECRET3 by good: http://example.org/m3" in text
    assert "[a]" not in text and r"\[a\]" in text


def test_a_folder_has_both_and_a_list_per_license(clips: Dataset, tmp_path: Path) -> None:
    summary = attribute(AttributionConfig(clips.uri, str(tmp_path / "credits")))
    names = [Path(name).name for name in summary["files"]]
    assert names == ["ATTRIBUTION.md", "ATTRIBUTION.csv", "CC-BY-4-0.csv", "CC0-1-0.csv"]
    rows = {name: lines(tmp_path / "credits" / name)[1:] for name in names[1:]}
    assert rows["ATTRIBUTION.csv"] == rows["CC-BY-4-0.csv"] + rows["CC0-1-0.csv"]


def test_what_is_selected_is_listed_and_nothing_else(clips: Dataset, tmp_path: Path) -> None:
    one = attribute(AttributionConfig(clips.uri, str(tmp_path / "a.csv"), license="CC0-1.0"))
    assert one["licenses"] == {"CC0-1.0": 1}
    assert attribute(AttributionConfig(clips.uri, str(tmp_path / "a.csv"), split="test"))["sources"] == 1


def test_mistakes_are_refused_and_a_dry_run_writes_nothing(clips: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="license=mine"):
        AttributionConfig(clips.uri, "a.md", license="mine")
    with pytest.raises(UserError, match="no kept clip has license=CC-BY-SA-4.0"):
        attribute(AttributionConfig(clips.uri, str(tmp_path / "a.md"), license="CC-BY-SA-4.0"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        attribute(AttributionConfig(clips.uri, str(tmp_path / "file/a.md")))
    done = CliRunner().invoke(app, ["attribution", clips.uri, f"output={tmp_path}/b.md", "--dry-run"])
    assert done.exit_code == 0 and "7 sources" in done.output
    assert not (tmp_path / "b.md").exists()
