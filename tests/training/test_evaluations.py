"""Which evaluations are of a model."""

from pathlib import Path

import pytest

from training.evaluations import evaluations_of, places_of


def evaluated(folder: Path, number: int, model: str) -> Path:
    record = folder / f"runs/2026010{number}T000000-evaluate-7/config.yaml"
    record.parent.mkdir(parents=True)
    record.write_text(f"model: {model}\nsteps: {number}\n")
    return folder


@pytest.mark.parametrize("typed", ["out/runs/a", "./out/runs/a/", "runs/a"])
def test_a_record_names_the_model_as_it_was_typed_anywhere(tmp_path: Path, typed: str) -> None:
    run = tmp_path / "out/runs/a"
    newer = evaluated(tmp_path / "out/evaluation", 2, typed)
    older = evaluated(tmp_path / "out/runs/first", 1, typed)
    evaluated(tmp_path / "out/other", 3, "out/runs/b")
    found = evaluations_of(str(run), places_of(run))
    assert [one.folder for one in found] == [older, newer]
    assert [one.settings["steps"] for one in found] == [1, 2]


def test_of_a_model_elsewhere_a_folder_is_named(tmp_path: Path) -> None:
    evaluated(tmp_path / "e", 1, "s3://bucket/runs/a")
    assert len(evaluations_of("s3://bucket/runs/a/", [tmp_path])) == 1
    # the folder itself, too
    assert len(evaluations_of("s3://bucket/runs/a", [tmp_path / "e"])) == 1
    assert evaluations_of("s3://bucket/runs/b", [tmp_path]) == []
