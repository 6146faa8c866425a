"""The dataset card: numbers in plain Markdown, and texts of the web inert. Whole datasets: test_report."""

import unicodedata
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.dataset import Dataset
from ingest.licenses import url_of
from ingest.pages.card import card_text, credits_of, plain
from ingest.pages.survey import Survey
from tests.fakes.takedown import make, nine_clips


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    uri = str(tmp_path_factory.mktemp("card") / "my_clips")
    return Dataset.create_or_open(uri, "clips", {"title": "```"}, [])


def front_matter(text: str) -> dict:
    return dict(yaml.safe_load(text.split("---")[1]))


@given(st.text(max_size=50))
def test_plain_text_has_no_control_characters(text: str) -> None:
    assert not {unicodedata.category(letter) for letter in plain(text)} & {"Cc", "Cs"}


@given(st.sampled_from("=+-@"), st.text(max_size=20))
def test_plain_text_is_never_a_formula(sign: str, text: str) -> None:
    assert plain(sign + text)[0] == "'"


def test_plain_text_is_one_line_of_limited_length() -> None:
    assert plain("a\n b\t c", 3) == "a b"
    assert plain(None) == ""


@pytest.mark.parametrize(
    ("licenses", "label"),
    [
        ({"CC-BY-4.0": 2}, "cc-by-4.0"),
        ({"CC-BY-4.0": 2, "CC0-1.0": 1}, "other"),
        ({"own": 1}, "other"),
        ({}, "other"),
    ],
)
def test_hubs_read_a_license_only_where_there_is_one(
    dataset: Dataset, licenses: dict[str, int], label: str
) -> None:
    survey = Survey()
    survey.licenses.update(licenses)
    assert front_matter(card_text(dataset, survey, 0, "a.csv"))["license"] == label


@pytest.mark.parametrize(
    ("kept", "label"), [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (20_000_000, "n>10M")]
)
def test_the_size_category_is_that_of_the_kept(dataset: Dataset, kept: int, label: str) -> None:
    text = card_text(dataset, Survey(kept=kept), 0, "a.csv")
    assert front_matter(text)["size_categories"] == [label]


def test_each_license_has_its_text(dataset: Dataset) -> None:
    survey = Survey()
    survey.licenses.update({"CC-BY-4.0": 2000, "own": 1})
    lines = card_text(dataset, survey, 0, "a.csv").splitlines()
    assert f"| CC-BY-4.0 | 2,000 | <{url_of('CC-BY-4.0')}> |" in lines
    assert "| own | 1 | as stated by the operator |" in lines


def test_settings_cannot_end_their_block(dataset: Dataset) -> None:
    assert card_text(dataset, Survey(), 0, "a.csv").count("```") == 2


def test_the_name_is_no_markup(dataset: Dataset) -> None:
    assert f"# {Path(dataset.uri).name}".replace("_", r"\_") in card_text(dataset, Survey(), 0, "a.csv")


def test_only_the_sources_of_the_given_units_and_splits_are_credited(tmp_path: Path) -> None:
    clips, _ = make(tmp_path, nine_clips())
    commits = list(clips.iter_commits())

    def titles(*splits: str, units: int = 3) -> list[str]:
        return [line[0] for line in credits_of(clips, commits[:units], splits)]

    assert titles() == [f"SECRET{index}" for index in range(9)]
    assert titles("test") == ["SECRET8"]
    assert titles("train", units=1) == ["SECRET0", "SECRET1", "SECRET2", "SECRET3"]
    clips.bury({"urls_m0_0": "take-down"})
    assert "SECRET0" not in titles("train")
