"""What comes next follows from what is there: the chain from clips to a sound, and each command's end."""

import doctest
import json
import shlex
from pathlib import Path

import pytest

from cluster import chain
from cluster.chain import Step, chain_of, next_command, recipe_for
from cluster.dataset import Dataset
from cluster.learnt import INDEX, PROVENANCE
from cluster.record import run_verb, say_next
from cluster.shards import Shard
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dataset(name: str, kind: str, parent: str = "", kept: int = 1) -> None:
    parents = [{"uri": str(Path(parent).absolute()), "snapshot": "s"}] if parent else []
    made = Dataset.create_or_open(name, kind, {}, parents)  # type: ignore[arg-type]
    Path("rows").write_bytes(b"rows")
    made.commit("u0000000", 0, Shard(None, Path("rows"), {"kept": kept, "refused:silent": 1}), {})


def run(name: str, recipe: str, data: str, finished: bool = True) -> None:
    folder = Path(name)
    folder.mkdir(parents=True)
    snapshot = {"id": f"snapshot of {data}", "uri": str(Path(data).absolute())}
    (folder / "run.json").write_text(json.dumps({"config": {"recipe": recipe}, "snapshots": [snapshot]}))
    if finished:
        (folder / "FINISHED.json").write_text("{}")


def settings(command: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)


def test_each_output_leads_to_the_next_command_with_real_paths() -> None:
    presets = "configs/training/small_"
    dataset("out/clips", "clips")
    assert next_command("out/clips") == (
        f"python -m training train {presets}contrastive.yaml data=out/clips output=out/runs/contrastive"
    )
    # by another name than the usual one
    run("out/runs/eyes", "contrastive", "out/clips")
    assert next_command("out/runs/eyes") == (
        f"python -m training train {presets}autoencoder.yaml data=out/clips output=out/runs/autoencoder"
    )
    run("out/codec", "autoencoder", "out/clips")
    command = next_command("out/codec")
    assert command.startswith(f"python -m training precompute {presets}latents.yaml ")
    made = {"data": "out/clips", "autoencoder": "out/codec", "image_encoder": "out/runs/eyes"}
    assert settings(command) == {**made, "output": "out/latents"}
    dataset("out/latents", "latents", "out/clips")
    assert settings(next_command("out/latents")) == {"data": "out/latents", "output": "out/runs/diffusion"}
    run("out/runs/diffusion", "diffusion", "out/latents")
    command = next_command("out/runs/diffusion")
    assert command.startswith("python -m training generate model=out/runs/diffusion images=my-pictures ")
    # sounds elsewhere, found because they were just made
    Path("away/runs/1-generate-7").mkdir(parents=True)
    Path("away/sounds.jsonl").write_text("")
    Path("away/runs/1-generate-7/config.yaml").write_text("model: out/runs/diffusion\n")
    assert next_command("out/runs/diffusion", "away").startswith("python -m training export ")
    export = Path("out/export")
    export.mkdir()
    (export / INDEX).write_text("{}")
    part = {"learnt_from": [{"snapshot": f"snapshot of {'out/latents'}"}]}
    (export / PROVENANCE).write_text(json.dumps({"parts": {"unet": part}}))
    assert [step.done for step in chain_of("out/clips")] == [True] * 5 + [False, True]
    assert next_command("out/runs/diffusion", "away", "out/export") == ""


def test_what_was_made_of_other_data_or_is_not_finished_is_not_done() -> None:
    dataset("out/clips", "clips")
    dataset("out/others", "clips")
    run("out/runs/a", "contrastive", "out/others")
    run("out/runs/b", "contrastive", "out/clips", finished=False)
    assert "small_contrastive.yaml" in next_command("out/clips")
    assert "small_autoencoder.yaml" in next_command("out/runs/a")


def test_latents_of_published_models_need_no_encoder_of_ones_own() -> None:
    dataset("out/clips", "clips")
    dataset("out/latents", "latents", "out/clips")
    assert "small_diffusion.yaml" in next_command("out/clips")


def test_where_nothing_is_known_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    dataset("out/empty", "clips", kept=0)
    run("out/runs/broken", "contrastive", "out/gone")
    Path("out/runs/half").mkdir()
    Path("out/runs/half/run.json").write_text("{")
    dataset("out/clips", "clips")
    # a damaged neighbour is left out, and hides nothing
    assert "small_contrastive.yaml" in next_command("out/clips")
    for place in ("out/empty", "nowhere", "hub:owner/name", "out/runs/broken", "out/runs/half"):
        say_next(place)
    assert capfd.readouterr() == ("", "")


def test_a_chain_that_has_not_begun_is_whole_and_names_presets_that_exist() -> None:
    steps = chain_of("data/mine")
    assert not any(step.done for step in steps) and isinstance(steps[0], Step)
    assert "source.path=my-videos" in steps[0].command and "output=data/mine" in steps[0].command
    assert settings(steps[-1].command) == {"model": "data/runs/diffusion", "output": "data/export"}
    presets = [word for step in steps for word in step.command.split() if word.endswith(".yaml")]
    assert len(presets) == 5 and all((ROOT / preset).is_file() for preset in presets)


def test_a_folder_of_media_has_the_chain_of_its_clips() -> None:
    Path("holiday").mkdir()
    Path("holiday/sea.mp4").write_bytes(b"video")
    steps = recipe_for("holiday")
    assert settings(steps[0].command) == {"source.path": "holiday", "output": "out/clips"}
    # what belongs to other clips is not ticked off
    dataset("out/others", "clips")
    dataset("out/latents", "latents", "out/others")
    run("out/runs/diffusion", "diffusion", "out/latents")
    assert not any(step.done for step in recipe_for("holiday"))
    dataset("out/clips", "clips")
    assert [step.done for step in recipe_for("holiday")] == [True] + [False] * 6
    assert recipe_for("out/clips")[1:] == recipe_for("holiday")[1:]


def test_the_next_command_is_on_stderr_and_only_after_all_work(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset("out/clips", "clips")

    def end_of(summary: dict[str, object], as_json: bool = True) -> tuple[str, str]:
        flags = {"as_json": as_json, "dry_run": False}
        run_verb(
            "sing",
            [],
            Step("", "", True),
            lambda: summary,
            output="",
            show=print,
            places=["out/clips"],
            **flags,
        )
        return capfd.readouterr()

    out, err = end_of({"notes": 3})
    assert json.loads(out)["notes"] == 3 and err.startswith("next: python -m training train ")
    assert "next" not in end_of({"notes": 3}, as_json=False)[0]
    assert end_of({"failed": {"u": "broken"}})[1] == ""
    assert end_of({"deferred": ["u"]})[1] == ""
    monkeypatch.setenv("STILLSOUND_NEXT", "no")
    assert end_of({"notes": 3})[1] == ""


def test_a_record_of_millions_of_shards_is_not_read_for_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset("out/clips", "clips")
    run("out/runs/contrastive", "contrastive", "out/clips")
    assert "autoencoder" in next_command("out/clips")
    monkeypatch.setattr(chain, "MAX_RECORD_BYTES", 10)
    assert "contrastive" in next_command("out/clips")


def test_the_examples_hold() -> None:
    assert doctest.testmod(chain).failed == 0
