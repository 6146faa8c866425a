"""Scores of real media: they reproduce, any system's sounds get them, and a judge of its own model is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from configs.load import UserError
from tests.conftest import ROOT
from tests.fakes.chain import Chain
from tests.fakes.judges import save_classifier, save_sounds, save_wav2vec
from tests.fakes.published_clap import save_published
from tests.training.judging.test_towers import save_own
from training.evaluate import evaluate, evaluate_real
from training.evaluation import EvaluateConfig
from training.real_scores import find_pairs, score_folders

NAMES = [f"s{number:02}" for number in range(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """generated, reference, pictures, pairs.json; judges own (three-way), clap and ast."""
    root = tmp_path_factory.mktemp("world")
    save_sounds(root / "generated", NAMES, seed=1)
    save_sounds(root / "reference", NAMES, seed=2)
    (root / "pictures").mkdir()
    known = {}
    for number, name in enumerate(NAMES):
        colours = np.random.default_rng(number).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(colours).save(root / "pictures" / f"{name}.png")
        known[name] = {
            "medium": f"m{number // 2}",
            "caption": ["rain on a roof", "a roof", "rain"][number % 3],
        }
    (root / "pairs.json").write_text(json.dumps(known))
    save_own(root / "own", "three_way")
    save_published(root / "clap")
    save_classifier(root / "ast")
    save_wav2vec(root / "wav2vec")
    return root


def asked(world: Path, output: Path, **changes: Any) -> EvaluateConfig:
    folders = {name: str(world / name) for name in ("generated", "reference", "pictures")}
    judges = {"judge": f"{world}/own,{world}/clap", "classifier": f"{world}/ast"}
    basic = {**folders, **judges, "pairs": f"{world}/pairs.json", "threads": 1}
    return EvaluateConfig(output=str(output), **{**basic, **changes})


def numbers(judged: Any) -> dict[str, float]:
    """Every value and every bound, by figure, judge and column."""
    found = {}
    for figure in judged["figures"]:
        for column in ("generated", "real", "chance", "codec"):
            cell = figure[column]
            if cell:
                name = f"{figure['name']} {Path(figure['judge']).name} {column}"
                found[name] = cell["value"]
                found |= {
                    f"{name} {end}": bound for end, bound in zip("lh", cell["interval"] or (), strict=False)
                }
    return found


def assert_alike(first: dict[str, float], second: dict[str, float]) -> None:
    assert first.keys() == second.keys() and len(first) > 30
    for name, value in first.items():
        assert second[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_scores_reproduce_at_any_batch_threads_and_processor(world: Path, tmp_path: Path) -> None:
    """Also as a user types it, in a process without the vector instructions of this machine."""
    more = {"embedder": f"{world}/wav2vec", "onsets": True}
    before = torch.get_num_threads()
    try:
        first = numbers(score_folders(asked(world, tmp_path / "1", batch=1, **more)))
        wide = numbers(score_folders(asked(world, tmp_path / "32", batch=32, threads=2, **more)))
    finally:
        torch.set_num_threads(before)
    assert_alike(first, wide)
    settings = [
        f"{name}={value}"
        for name, value in vars(asked(world, tmp_path / "7", batch=7, **more)).items()
        if value
    ]
    plain = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    command = [sys.executable, "-m", "training", "evaluate", *settings]
    said = subprocess.run(command, cwd=ROOT, env=plain, check=True, capture_output=True, text=True).stdout
    assert "image_to_sound_r1" in said and "inception_score" in said
    assert_alike(first, numbers(json.loads((tmp_path / "7/judged.json").read_text())))
    # and the two are told to be alike
    against = [f"output={tmp_path / '7'}", f"against={tmp_path / '1'}"]
    command = [sys.executable, "-m", "training", "evaluate", *against]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "no difference in any of" in said and (tmp_path / "7/against.md").is_file()


def test_a_folder_gets_a_table_a_page_and_what_is_said_of_each_pair(world: Path, tmp_path: Path) -> None:
    judged = score_folders(asked(world, tmp_path))
    assert judged["num_pairs"] == 12 and judged["num_media"] == 6 and judged["order"] == "correspondence"
    assert [facts["learnt_by_model"] for facts in judged["judges"]] == ["not known: no model was named"] * 3
    assert "| frechet |" in (tmp_path / "judged.md").read_text()
    said = json.loads((tmp_path / "pairs.json").read_text())
    assert set(said["s03"]) == {"medium", "caption", "correspondence", "clap_score", "kl"}
    page = (tmp_path / "index.html").read_text()
    best = max(said, key=lambda name: said[name]["correspondence"])
    assert page.index(f"<h2>{best}</h2>") == page.index("<h2>")
    assert all(page.count(f"<h2>{name}</h2>") == 1 for name in NAMES)
    # the mean over pairs is the figure
    mean = np.mean([entry["kl"] for entry in said.values()])
    assert numbers(judged)["kl ast generated"] == pytest.approx(mean, abs=1e-5)


def test_sounds_are_paired_by_name_whatever_is_beside_them(world: Path, tmp_path: Path, caplog: Any) -> None:
    save_sounds(tmp_path / "more/generated", [*NAMES[:3], "s00.take2"], seed=1)
    wav, rate_hz = soundfile.read(world / "reference/s01.wav")
    shutil.copytree(world / "reference", tmp_path / "more/reference")
    (tmp_path / "more/reference/s01.wav").unlink()
    soundfile.write(tmp_path / "more/reference/s01.flac", wav, rate_hz)
    changes = {name: str(tmp_path / "more" / name) for name in ("generated", "reference")}
    pairs, left_out = find_pairs(asked(world, tmp_path, **changes))
    assert (
        [pair.name for pair in pairs] == NAMES[:3]
        and left_out == 10
        and "10 sounds have no partner" in caplog.text
    )
    assert pairs[1].reference.suffix == ".flac" and pairs[1].picture == world / "pictures/s01.png"
    assert pairs[2].medium == "m1" and pairs[2].caption == "rain"


def test_onsets_embedders_and_the_layout_need_no_other_judge(world: Path, tmp_path: Path) -> None:
    alone = {"judge": "", "classifier": "", "pictures": ""}
    config = asked(
        world, tmp_path, **alone, onsets=True, embedder=f"{world}/ast,{world}/clap", av_benchmark=True
    )
    judged = score_folders(config)
    rows = [(figure["name"], Path(figure["judge"]).name) for figure in judged["figures"]]
    expected = [("frechet", "ast"), ("frechet", "clap")]
    expected += [(f"onset_{name}", "onsets") for name in ("number", "accuracy", "ap", "offset_s")]
    assert rows == expected and {figure["n"] for figure in judged["figures"]} == {12}
    assert [facts["name"] for facts in judged["judges"]][-1] == "onsets"
    layout = judged["av_benchmark"]
    assert layout["sounds"] == 24 and layout["audio_length_s"] == 0.6
    assert len(list((tmp_path / "av-benchmark/generated").iterdir())) == 12
    # the same features as those of a classifier
    others = score_folders(asked(world, tmp_path, pictures="", judge=""))
    mine, theirs = (
        next(figure for figure in each["figures"] if figure["name"] == "frechet") for each in (judged, others)
    )
    assert mine["generated"]["value"] == pytest.approx(theirs["generated"]["value"], rel=1e-5)
    # of other sounds no layout is left
    assert not list((tmp_path / "av-benchmark/generated").iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": "/nowhere"}, "reference=/nowhere: no such folder"),
        ({"judge": "", "classifier": ""}, "judge=: nobody judges; give judge="),
        ({"truth": "/truth"}, "truth=/truth: is of a model"),
        ({"pairs": "/nowhere.json"}, "pairs=/nowhere.json: cannot be read"),
        ({"batch": 0}, "batch=0: give 1 or more"),
        ({"embedder": "/nowhere"}, "embedder=/nowhere: does not exist"),
        ({"videos": "/nowhere"}, "videos=/nowhere: no such folder"),
    ],
)
def test_what_cannot_work_is_one_line(
    world: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        score_folders(asked(world, tmp_path, **changes))
    assert not (tmp_path / "judged.json").exists()


def test_two_folders_without_names_in_common_are_refused(world: Path, tmp_path: Path) -> None:
    save_sounds(tmp_path / "others", ["x", "y"], seed=0)
    with pytest.raises(UserError, match="0 of 2 sounds are called as one of"):
        score_folders(asked(world, tmp_path, generated=f"{tmp_path}/others"))
    # and a page of somebody's own is not written over
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(UserError, match="holds another index.html"):
        score_folders(asked(world, tmp_path))


# --- A model ------------------------------------------------------------------------------------------------


def of_model(chain: Chain, world: Path, output: Path, **changes: Any) -> EvaluateConfig:
    basic = {"model": chain.diffusion, "data": chain.clips, "split": "train", "num_clips": 6, "steps": 1}
    judges = {"judge": f"{world}/own", "classifier": f"{world}/ast", "threads": 1}
    return EvaluateConfig(output=str(output), **{**basic, **judges, **changes})


def test_a_models_sounds_are_judged_again_alike_from_their_folder(
    chain: Chain, world: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    judged = evaluate_real(of_model(chain, world, output))
    assert judged["num_pairs"] == 6 and judged["steps"] == 1
    assert all(figure["codec"] for figure in judged["figures"])
    assert {facts["learnt_by_model"] for facts in judged["judges"]} == {"no"}
    again = asked(
        world,
        tmp_path / "again",
        **{name: str(output / name) for name in ("generated", "reference", "pictures")},
        judge=f"{world}/own",
        pairs=str(output / "pairs.json"),
    )
    without_codec = {name: value for name, value in numbers(judged).items() if "codec" not in name}
    assert_alike(without_codec, numbers(score_folders(again)))
    # of a smaller evaluation, nothing of the larger one stays
    (output / "generated/mine.wav").write_bytes(b"mine")
    evaluate_real(of_model(chain, world, output, num_clips=2))
    said = json.loads((output / "pairs.json").read_text())
    assert {path.stem for path in (output / "generated").iterdir()} == {*said, "mine"}


def test_the_encoder_that_a_model_learnt_from_is_no_judge_of_it(
    chain: Chain, world: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="the model was trained with this encoder, and is no witness"):
        evaluate_real(of_model(chain, world, tmp_path, judge=chain.contrastive))
    # nor for its sounds in a folder, where the model is named
    with pytest.raises(UserError, match="the model was trained with this encoder"):
        score_folders(asked(world, tmp_path, judge=chain.contrastive, model=chain.diffusion))
    assert not (tmp_path / "judged.json").exists()
    config = of_model(chain, world, tmp_path, judge=chain.contrastive, own_judge=True, classifier="")
    judged = evaluate_real(config)
    assert judged["judges"][0]["learnt_by_model"].startswith("yes")
    assert "prove nothing" in (tmp_path / "judged.md").read_text()


def test_known_answers_and_judges_are_one_evaluation(chain: Chain, world: Path, tmp_path: Path) -> None:
    evaluation = evaluate(of_model(chain, world, tmp_path, truth=f"{chain.world}/truth", classifier=""))
    assert "timbre" in evaluation["scores"] and evaluation["judged"]["num_pairs"] == 6
    assert "judged" not in json.loads((tmp_path / "scores.json").read_text())
    assert (tmp_path / "judged.json").is_file()
    with pytest.raises(UserError, match="steps=1,2: of several there are scores with truth= only"):
        evaluate_real(of_model(chain, world, tmp_path, steps="1,2"))
