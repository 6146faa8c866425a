"""Two evaluations: what differs by more than its intervals, and judges that disagree."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import UserError
from training.evaluation import EvaluateConfig
from training.judging.compare import compare, compare_finished, compared

JUDGES = {"kl": "ast", "correspondence": "own", "clap_score": "clap"}


def write(folder: Path, sha256: str = "f00", n: int = 40, **values: tuple[float, float]) -> str:
    """judged.json with a value and the half width of its interval for each figure."""
    figures = []
    for name, (value, half) in values.items():
        cell = {"value": value, "interval": [value - half, value + half] if half else None}
        better = "lower" if name == "kl" else "higher"
        figures.append({"name": name, "judge": JUDGES[name], "better": better, "n": n, "generated": cell})
    judges = [{"name": name, "sha256": f"{sha256}-{name}"} for name in JUDGES.values()]
    folder.mkdir()
    (folder / "judged.json").write_text(json.dumps({"figures": figures, "judges": judges}))
    return str(folder)


def changes(now: str, before: str) -> dict[str, str]:
    return {line["name"]: line["change"] for line in compare(now, before)["lines"]}


def test_what_differs_by_more_than_its_intervals_by_hand(tmp_path: Path) -> None:
    old = write(tmp_path / "old", kl=(2.0, 0.3), correspondence=(0.5, 0.03), clap_score=(0.2, 0.0))
    # half widths .3 and .4 allow .5; less KL is better
    new = write(tmp_path / "new", kl=(1.49, 0.4), correspondence=(0.46, 0.04), clap_score=(0.9, 0.1))
    assert changes(new, old) == {"kl": "better", "correspondence": "no difference", "clap_score": "not known"}
    assert changes(old, new)["kl"] == "worse"
    near = write(tmp_path / "near", kl=(1.51, 0.4))
    assert changes(near, old) == {"kl": "no difference"}
    assert compare(near, old)["verdict"] == "no difference in any of 1 figures"
    assert "2 figures are in one of the two only" in compare(near, old)["notes"][0]


def test_where_one_judge_rises_and_another_falls_the_verdict_says_so(tmp_path: Path) -> None:
    old = write(tmp_path / "old", kl=(2.0, 0.1), correspondence=(0.5, 0.03))
    new = write(tmp_path / "new", n=20, kl=(1.5, 0.1), correspondence=(0.3, 0.03))
    result = compare(new, old)
    expected = "judges disagree: better by kl (ast); worse by correspondence (own). None decides alone."
    assert result["verdict"] == expected
    assert "Not of equally many pairs" in result["notes"][0]
    alike = compare(write(tmp_path / "both", kl=(1.5, 0.1), correspondence=(0.51, 0.03)), old)
    assert alike["verdict"] == "better by kl (ast); 1 without a difference"


@pytest.mark.parametrize("file", ["scores.json", "roundtrip.json"])
def test_known_answers_are_compared_too(tmp_path: Path, file: str) -> None:
    for name, closed in (("old", 0.5), ("new", 0.7)):
        (tmp_path / name).mkdir()
        interval = {"closed": [closed - 0.05, closed + 0.05]}
        scores = {"scores": {"f0": {"closed": closed}}, "intervals": {"f0": interval}, "num_clips": 9}
        (tmp_path / name / file).write_text(json.dumps(scores))
    assert changes(str(tmp_path / "new"), str(tmp_path / "old")) == {"closed_f0": "better"}


def test_another_judge_of_the_same_name_is_not_compared(tmp_path: Path) -> None:
    old = write(tmp_path / "old", kl=(2.0, 0.1))
    new = write(tmp_path / "new", sha256="ba5", kl=(1.0, 0.1))
    with pytest.raises(UserError, match="has no figure by a judge that judged"):
        compare(new, old)


def test_an_evaluation_is_compared_at_its_end(tmp_path: Path) -> None:
    old = write(tmp_path / "old", kl=(2.0, 0.1))

    def run(config: EvaluateConfig) -> dict[str, Any]:
        write(Path(config.output), kl=(1.0, 0.1))
        return {"page": "p"}

    config = EvaluateConfig(output=f"{tmp_path}/new", against=old)
    summary = compared(run, config)
    assert summary["page"] == "p" and summary["against"]["lines"][0]["change"] == "better"
    assert json.loads((tmp_path / "new/against.json").read_text()) == summary["against"]
    table = (tmp_path / "new/against.md").read_text()
    assert "| kl | ast | lower | 2.000 [1.900, 2.100] | 1.000 [0.900, 1.100] | better |" in table
    assert compare_finished(config) == summary["against"]
    # of newer scores that are compared with nothing, an older comparison says nothing
    compared(lambda _: {}, EvaluateConfig(output=f"{tmp_path}/new"))
    assert not (tmp_path / "new/against.json").exists()


def test_what_there_is_nothing_to_compare_with_is_refused_before_any_work(tmp_path: Path) -> None:
    def never(config: EvaluateConfig) -> dict[str, Any]:
        raise AssertionError("work")

    for against, says in (
        ("nowhere", "has neither judged.json nor scores.json nor roundtrip.json"),
        ("new", "the output itself"),
    ):
        config = EvaluateConfig(output=f"{tmp_path}/new", against=f"{tmp_path}/{against}")
        with pytest.raises(UserError, match=says):
            compared(never, config)
