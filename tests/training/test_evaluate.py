"""Evaluate: what is refused, what is chosen, what stays in its folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from cluster.dataset import Dataset
from cluster.jsonl import read_lines
from configs.load import UserError, load_config
from ingest.report import ReportConfig, write_report
from tests.fakes.chain import Chain
from training.__main__ import _show_scores
from training.evaluate import clear_examples, evaluate, synthesize
from training.evaluation import EvaluateConfig, find_clips
from training.export import open_pipeline
from training.generate import GenerateConfig, generate
from training.heard import HEARD
from training.roundtrip import roundtrip
from training.sounds import lanes_of, pixel_sha256, sample_lanes, sound_seed


def asked(chain: Chain, output: Path, **other: Any) -> EvaluateConfig:
    basic = {"truth": f"{chain.world}/truth", "steps": 1, "threads": 1, "split": "train", "num_clips": 5}
    return EvaluateConfig(model=chain.diffusion, data=chain.clips, output=str(output), **{**basic, **other})


def sounds(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: soundfile.read(path)[0] for path in sorted((folder / "wavs").glob("*.wav"))}


@pytest.fixture(scope="module")
def evaluated(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate(asked(chain, folder, batch=3))
    return folder


def test_sounds_and_scores_depend_neither_on_the_batch_nor_on_the_other_clips(
    chain: Chain,
    evaluated: Path,
    tmp_path: Path,
) -> None:
    alone = evaluate(asked(chain, tmp_path / "1", batch=1))
    fewer = evaluate(asked(chain, tmp_path / "fewer", num_clips=3))
    one, three, some = (sounds(folder) for folder in (tmp_path / "1", evaluated, tmp_path / "fewer"))
    assert (
        alone["scores"] == json.loads((evaluated / "scores.json").read_text())["scores"]
        and fewer["num_clips"] == 3
    )
    assert set(one) == set(three) > set(some)
    # of a model without a vocoder
    assert alone["vocoder"] == "Griffin-Lim"
    assert all(np.abs(one[name] - three[name]).max() < 1e-3 for name in one)
    assert all(np.abs(one[name] - some[name]).max() < 1e-3 for name in some)


def test_examples_are_what_generate_makes_of_their_pictures(
    chain: Chain, evaluated: Path, tmp_path: Path
) -> None:
    pictures = str(evaluated / "images")
    generate(GenerateConfig(model=chain.diffusion, images=pictures, output=str(tmp_path), steps=1, threads=1))
    made = {path.name: path.read_bytes() for path in tmp_path.glob("*.wav")}
    examples = {
        path.name.replace(".generated", ""): path.read_bytes()
        for path in (evaluated / "wavs").glob("*.generated.wav")
    }
    assert made == examples and len(made) == 5


def test_clips_of_one_picture_are_its_takes(chain: Chain, tmp_path: Path) -> None:
    pipeline = open_pipeline(chain.diffusion)
    dataset = Dataset.open(chain.clips, "clips")
    first, second, *_ = find_clips(dataset, asked(chain, tmp_path), pipeline.mel.num_samples)
    twice = [first, replace(second, picture=first.picture)]
    torch.set_num_threads(1)
    one, other = synthesize(pipeline, twice, asked(chain, tmp_path))
    seed = sound_seed(0, pixel_sha256(first.picture), take=2)
    lanes = lanes_of(pipeline, 1)
    (second_take,) = sample_lanes(pipeline, [first.picture], [seed], lanes, 1, None)
    assert np.array_equal(other, second_take) and not np.array_equal(one, other)


def test_every_clip_has_a_row_and_the_scores_are_their_means(evaluated: Path) -> None:
    rows = read_lines(evaluated / HEARD)
    scores = json.loads((evaluated / "scores.json").read_text())
    assert len(rows) == scores["num_clips"] and {row["key"] for row in rows} == set(scores["examples"])
    for name, shares in scores["scores"].items():
        assert shares["generated"] == pytest.approx(np.mean([row["right"][name] for row in rows]), abs=1e-4)
        assert shares["real"] == pytest.approx(np.mean([row["right_real"][name] for row in rows]), abs=1e-4)


def test_what_is_refused_leaves_no_folder(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 clips of split=nothing"):
        evaluate(asked(chain, tmp_path / "a", split="nothing"))
    with pytest.raises(UserError, match="has no clips of split=nothing"):
        settings = {"model": chain.autoencoder, "data": chain.clips, "split": "nothing"}
        roundtrip(EvaluateConfig(output=str(tmp_path / "b"), **settings))
    assert not list(tmp_path.iterdir())


def test_several_numbers_of_steps_are_scored_in_one_run(
    chain: Chain, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(
        EvaluateConfig,
        [
            "steps=2,1",
            *(
                f"{name}={value}"
                for name, value in vars(asked(chain, tmp_path)).items()
                if value not in ("", None) and name != "steps"
            ),
        ],
    )
    several = evaluate(config)
    by_steps = several["by_steps"]
    assert list(by_steps) == ["1", "2"] and several["steps"] == 2
    # each is what an evaluation of it alone gives
    alone = json.loads((evaluated / "scores.json").read_text())
    assert by_steps["1"]["scores"] == alone["scores"] and "by_steps" not in alone
    assert several["scores"] == by_steps["2"]["scores"]
    assert all(found["seconds_per_clip"] > 0 for found in by_steps.values())
    _show_scores(json.loads(json.dumps(several)))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert any(row[:1] == ["steps"] for row in rows) and [row[0] for row in rows if row[:1] in (["1"], ["2"])]


@pytest.mark.parametrize("steps", ["1,two", "0,4", "", "1,,2"])
def test_steps_that_are_no_numbers_are_refused(chain: Chain, tmp_path: Path, steps: str) -> None:
    with pytest.raises(UserError, match="steps=.*: give 1 or more, or several as 1,2,4,8,25"):
        evaluate(asked(chain, tmp_path, steps=steps))


def test_examples_of_older_scores_are_cleared_and_nothing_else(chain: Chain, tmp_path: Path) -> None:
    evaluate(asked(chain, tmp_path))
    mine = [tmp_path / "images/mine.jpg", tmp_path / "wavs/mine.generated.wav", tmp_path / "notes.txt"]
    for path in mine:
        path.write_bytes(b"mine")
    evaluate(asked(chain, tmp_path, num_clips=2))
    examples = json.loads((tmp_path / "scores.json").read_text())["examples"]
    assert len(examples) == 2 and all(path.read_bytes() == b"mine" for path in mine)
    expected = {f"{key}.{kind}.wav" for key in examples for kind in ("generated", "real")} | {
        "mine.generated.wav"
    }
    assert {path.name for path in (tmp_path / "wavs").iterdir()} == expected
    assert {path.name for path in (tmp_path / "images").iterdir()} == {f"{key}.jpg" for key in examples} | {
        "mine.jpg"
    }


def test_the_report_shows_scores_with_and_without_intervals(
    chain: Chain,
    evaluated: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(evaluated, tmp_path / "older")
    older = json.loads((evaluated / "scores.json").read_text())
    low, high = older.pop("intervals")["timbre"]["closed"]
    (tmp_path / "older/scores.json").write_text(json.dumps(older))
    pages = [
        Path(
            write_report(
                ReportConfig(dataset=chain.clips, scores=str(folder), output=f"{tmp_path}/{number}.html")
            )
        ).read_text()
        for number, folder in enumerate((evaluated, tmp_path / "older"))
    ]
    told = f"({100 * low:.0f} to {100 * high:.0f})"
    assert told in pages[0] and told not in pages[1]


def test_scores_that_do_not_name_their_examples_are_cleared_by_pairs(tmp_path: Path) -> None:
    names = (
        "images/a.jpg",
        "images/mine.jpg",
        "wavs/a.generated.wav",
        "wavs/a.real.wav",
        "wavs/mine.real.wav",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "scores.json").write_text('{"scores": {}}')
    clear_examples(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "mine.jpg",
        "mine.real.wav",
    ]


def test_a_list_of_examples_cannot_reach_outside(tmp_path: Path) -> None:
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "keep.jpg").write_bytes(b"")
    (tmp_path / "out/scores.json").write_text(json.dumps({"examples": ["../../keep"]}))
    clear_examples(tmp_path / "out")
    assert (tmp_path / "keep.jpg").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_clips": 1}, "num_clips=1: give 2 or more"),
        ({"batch": 0}, "batch=0: give 1 or more"),
        ({"seed": -1}, "seed=-1: give 0 or more"),
        ({"truth": ""}, "truth=: no such folder"),
        ({"split": "nowhere"}, "0 clips of split=nowhere have a truth"),
    ],
)
def test_settings_that_cannot_work_are_one_line(
    chain: Chain,
    tmp_path: Path,
    change: dict[str, Any],
    says: str,
) -> None:
    with pytest.raises(UserError, match=says):
        evaluate(asked(chain, tmp_path, **change))
