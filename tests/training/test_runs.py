"""Runs side by side: what they wrote down is read, wherever they are, and only what differs is said to."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.storage import open_store
from configs.load import UserError
from tests.fakes.chain import Chain
from training.runs import RunFacts, RunsConfig, compare, differing, settings_of


def fake_run(folder: Path, losses: list[float | None], **config: Any) -> Path:
    """A run's files as training writes them, of a recipe with its defaults but for `config`."""
    folder.mkdir(parents=True)
    record = {"config": {"recipe": "diffusion", "steps": 100} | config}
    record["snapshots"] = [{"uri": "out/latents", "id": "0123456789"}]  # type: ignore[assignment]
    (folder / "run.json").write_text(json.dumps(record))
    lines = [
        {"step": step, "loss": loss, "samples": 8 * step, "step_s": 0.5}
        for step, loss in enumerate(losses, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def one(run: Path | str, **settings: Any) -> RunFacts:
    (facts,) = compare([str(run)], RunsConfig(**settings))["runs"]
    return facts


def test_losses_are_means_of_the_last_steps_and_holes_count_for_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", [9.0] * 10 + [1.0] * 25 + [None] * 5 + [3.0] * 25)
    facts = one(run)
    assert facts["loss"] == 2.0 and facts["step"] == 65 and facts["samples"] == 520
    assert facts["state"] == "under way" and facts["validation"] is None
    # of a run where no command ended: its steps
    assert facts["wall_s"] == 32.5 and facts["cpu_s"] is None and facts["seconds_per_step"] == 0.5
    assert facts["curve"][0] == (1, 9.0) and facts["curve"][-1] == (65, 3.0)


def test_validation_is_by_the_weights_that_ship_and_the_best_one_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", [1.0])
    lines = [{"step": 10, "loss": 5.0, "ema_loss": 0.5}, {"step": 20, "loss": 0.1, "ema_loss": 0.7}]
    (run / "validation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3')
    facts = one(run)
    assert (facts["validation"], facts["best_validation"], facts["best_step"]) == (0.7, 0.5, 10)
    assert facts["measured"] == [(10, 0.5), (20, 0.7)]


def test_time_is_of_all_commands_that_ended_and_the_state_of_the_newest_event(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "a", [1.0])
    for number, seconds in enumerate((10.0, 2.5)):
        record = run / f"runs/20260101T00000{number}-train-{number}/summary.json"
        record.parent.mkdir(parents=True)
        record.write_text(json.dumps({"seconds": seconds, "cpu_s": 2 * seconds}))
    (run / "events.jsonl").write_text('{"event": "started", "step": 0}\n{"event": "stopped", "step": 1}\n')
    assert (one(run)["wall_s"], one(run)["cpu_s"], one(run)["state"]) == (12.5, 25.0, "stopped")
    (run / "FINISHED.json").write_text("{}")
    assert one(run)["state"] == "finished"


def test_settings_that_differ_and_no_default_that_one_run_is_too_old_to_have(tmp_path: Path) -> None:
    old = fake_run(tmp_path / "old/run", [1.0], lr=0.1, diffusion={"channels": [8, 16]})
    new = fake_run(tmp_path / "new/run", [1.0], lr=0.2, ema_profiles=[], diffusion={"channels": [8, 32]})
    compared = compare([str(old), f"{new}/"], RunsConfig())
    assert compared["differing"] == {"lr": ["0.1", "0.2"], "diffusion.channels": ["[8, 16]", "[8, 32]"]}
    assert [run["name"] for run in compared["runs"]] == ["old/run", "new/run"]
    # sections that only one of two recipes has are not compared
    other = json.loads((new / "run.json").read_text())
    other["config"] |= {"recipe": "contrastive", "lr": 0.1}
    settings = [settings_of(json.loads((old / "run.json").read_text())), settings_of(other)]
    assert differing(settings)["recipe"] == ["diffusion", "contrastive"]
    assert not [name for name in differing(settings) if name.startswith(("diffusion.", "contrastive."))]


def test_scores_beside_a_run_are_its_own(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "runs/a", [1.0])
    fake_run(tmp_path / "runs/b", [1.0])
    evaluation = tmp_path / "evaluation"
    record = evaluation / "runs/20260101T000000-evaluate-1/config.yaml"
    record.parent.mkdir(parents=True)
    record.write_text("model: runs/a\n")
    (evaluation / "scores.json").write_text('{"scores": {"timbre": {"closed": 0.9}}}')
    figures = [
        {"name": "kl", "generated": {"value": 1.5, "interval": None}},
        {"name": "fd", "generated": None},
    ]
    (evaluation / "judged.json").write_text(json.dumps({"figures": figures}))
    assert one(run)["scores"] == {"timbre: gap closed": 0.9, "kl": 1.5}
    assert one(tmp_path / "runs/b")["scores"] == {}


def test_runs_that_were_trained_are_compared_from_a_bucket(chain: Chain, bucket: str) -> None:
    store = open_store(f"{bucket}/runs/diffusion", writable=True)
    source = Path(chain.diffusion)
    for path in (*source.glob("*.json*"), *source.glob("runs/*/*.json")):
        store.replace(str(path.relative_to(source)), path.read_bytes())
    compared = compare([store.uri, chain.diffusion, chain.contrastive], RunsConfig())
    remote, local, other = compared["runs"]
    assert {**remote, "run": "", "name": ""} == {**local, "run": "", "name": ""}
    assert local["state"] == "finished" and (local["step"], local["steps"]) == (2, None)
    assert other["recipe"] == "contrastive" and compared["differing"]["recipe"][2] == "contrastive"
    # of the same settings, nothing differs
    assert compare([store.uri, chain.diffusion], RunsConfig())["differing"] == {}


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none: no run here \(run.json is missing\); give the output of"):
        compare([str(tmp_path / "none")], RunsConfig())
    with pytest.raises(UserError, match="give the outputs of one or more runs"):
        compare([], RunsConfig())
    with pytest.raises(UserError, match=r"output=x.png: give the page a name that ends in .html"):
        RunsConfig(output="x.png")
