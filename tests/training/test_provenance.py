"""Every part of a model carries where it is from and what it learnt from, from training to export."""

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster.dataset import Dataset
from cluster.learnt import LearntFrom, Provenance
from configs.load import UserError
from ingest.gc import GcConfig, gc
from ingest.remove import RemoveConfig, remove
from tests.fakes.chain import Chain
from tests.fakes.takedown import make, nine_clips
from training.precompute import PrecomputeConfig, precompute
from training.pretrained import find_model, folder_sha256
from training.provenance import MODELS, count, of_model, of_run, of_source, read, removed_since, write
from training.recipes import vocoder
from training.recipes.diffusion import PARTS
from training.settings import TrainConfig
from training.train import train

NAMES = [PARTS.network, PARTS.codec, *PARTS.encoders]


def kept(uri: str, split: str) -> int:
    return sum(row["status"] == "kept" and row["split"] == split for row in Dataset.open(uri).iter_rows())


def run_record(path: str) -> dict[str, Any]:
    return json.loads((Path(path) / "run.json").read_text())


# --- From a run to the model that is made with it -----------------------------------------------------------


def test_a_model_names_what_each_of_its_parts_learnt_from(chain: Chain) -> None:
    provenance = read(Path(chain.diffusion) / "model")
    assert provenance["step"] == 2 and sorted(provenance["parts"]) == sorted(NAMES)
    clips, latents = Dataset.open(chain.clips).snapshot(), Dataset.open(chain.latents).snapshot()
    for name, uri, snapshot in (
        ("unet", chain.latents, latents),
        ("autoencoder", chain.clips, clips),
        ("image_encoder", chain.clips, clips),
    ):
        part = provenance["parts"][name]
        (record,) = part["learnt_from"]
        assert (part["sources"], part["license"]) == ([], "own")
        assert (record["snapshot"], record["kind"]) == (snapshot.id, Dataset.open(uri).meta["kind"])
        assert record["licenses"] == {"own": kept(uri, "train")} and record["samples"] == kept(uri, "train")
        assert [tuple(unit) for unit in record["units"]] == [
            (commit.unit, commit.generation, commit.index.size, commit.index.sha256)
            for commit in snapshot.commits
        ]


def test_where_a_model_is_from_does_not_change_what_it_is(chain: Chain, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(f"{chain.autoencoder}/model", tmp_path / "model"))
    before = folder_sha256(folder)
    (folder / "provenance.json").write_text("{}")
    assert folder_sha256(folder) == before


def test_a_published_tower_is_recorded_with_its_license_or_as_unknown(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = Path(shutil.copytree(f"{chain.contrastive}/model/image_encoder", tmp_path / "published/tower"))
    codec = Path(shutil.copytree(f"{chain.autoencoder}/model", tmp_path / "published/codec"))
    (codec / "provenance.json").unlink()
    (codec / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    models = {"autoencoder": str(codec), "image_encoder": str(tower)}
    with caplog.at_level(logging.WARNING):
        precompute(
            PrecomputeConfig(data=chain.clips, output=f"{tmp_path}/latents", workers=0, **models),
            progress=False,
        )
    parts = json.loads((tmp_path / "latents" / MODELS).read_text())["parts"]
    assert parts["autoencoder"] == {"sources": [str(codec)], "license": "CC-BY-NC-4.0", "learnt_from": []}
    assert parts["image_encoder"]["license"] == "unknown"
    assert f"image_encoder={tower}: nothing beside it states its license; export asks for it" in caplog.text


def test_weights_of_a_run_bring_what_they_had_learnt_from(chain: Chain, tmp_path: Path) -> None:
    config = run_record(chain.vocoder)["config"]["vocoder"]
    maker = vocoder.Config(
        generator=type(vocoder.Config().generator)(**config["generator"]),
        discriminators=type(vocoder.Config().discriminators)(**config["discriminators"]),
        crop_frames=16,
    )
    other = shutil.copytree(chain.clips, tmp_path / "clips")
    buried = next(row["key"] for row in Dataset.open(str(other)).iter_rows() if row["status"] == "kept")
    remove(RemoveConfig(str(other), key=buried, workers=1))
    shared = {"workers": 0, "steps": 1, "global_batch": 4, "lanes": 4, "zero_stage": 0}
    settings: dict[str, Any] = {"data": str(other), "recipe": "vocoder", "vocoder": maker, **shared}
    train(TrainConfig(output=str(tmp_path / "a"), init_from=chain.vocoder, **settings))
    part = of_source(str(tmp_path / "a"), find_model(str(tmp_path / "a"), "vocoder"), "vocoder")
    assert part["sources"] == [chain.vocoder]
    mine, before = part["learnt_from"]
    assert mine["snapshot"] == Dataset.open(str(other)).snapshot().id
    assert before["snapshot"] == Dataset.open(chain.clips).snapshot().id
    # buried before it was pinned: not removed since
    assert mine["tombstones"] == 1 and removed_since([mine]) == Counter()


# --- Models of before it was recorded -----------------------------------------------------------------------


def older(chain: Chain, folder: Path, latents: str = "") -> Path:
    """A finished run as an older version left it, with `latents` that record nothing, too."""
    run = Path(shutil.copytree(chain.diffusion, folder / "diffusion"))
    (run / "model/provenance.json").unlink()
    record = run_record(chain.diffusion)
    record.pop("tombstones")
    if latents:
        record["snapshots"][0]["uri"] = latents
    (run / "run.json").write_text(json.dumps(record))
    return run


def of_older(run: Path, latents: str) -> Provenance:
    sha256 = json.loads((run / "model/conditioning.json").read_text())["sha256"]
    return of_model(run / "model", run, latents, NAMES, sha256)


def test_an_older_model_is_known_by_its_latents(chain: Chain, tmp_path: Path) -> None:
    found = of_older(older(chain, tmp_path), chain.latents)
    parts = found["parts"]
    assert found["step"] == 2
    new = read(Path(chain.diffusion) / "model")["parts"]
    for name in NAMES:
        assert parts[name]["license"] == "own"
        assert parts[name]["learnt_from"][0]["licenses"] == new[name]["learnt_from"][0]["licenses"]


def test_an_older_model_is_known_by_the_runs_beside_it(chain: Chain, tmp_path: Path) -> None:
    run = older(chain, tmp_path)
    # neither itself nor another run that carries it has trained it
    shutil.copytree(run, tmp_path / "another")
    for name in (PARTS.codec, *PARTS.encoders):
        assert of_older(run, "nowhere")["parts"][name]["license"] == "unknown"
        assert of_source(str(run), run / "model" / name, name)["license"] == "unknown"
    shutil.copytree(chain.autoencoder, tmp_path / "codec")
    shutil.copytree(chain.contrastive, tmp_path / "tower")
    assert {part["license"] for part in of_older(run, "nowhere")["parts"].values()} == {"own"}
    # one of other weights proves nothing
    with open(tmp_path / "tower/model/image_encoder/config.json", "a") as file:
        file.write(" ")
    assert of_older(run, "nowhere")["parts"]["image_encoder"]["license"] == "unknown"


def test_precompute_again_records_it_beside_older_latents(chain: Chain, tmp_path: Path) -> None:
    latents = Path(shutil.copytree(chain.latents, tmp_path / "latents"))
    recorded = (latents / MODELS).read_text()
    (latents / MODELS).unlink()
    models = {"autoencoder": chain.autoencoder, "image_encoder": chain.contrastive}
    precompute(PrecomputeConfig(data=chain.clips, output=str(latents), workers=0, **models), progress=False)
    assert (latents / MODELS).read_text() == recorded


# --- Counting -----------------------------------------------------------------------------------------------


def record_of(dataset: Dataset, tombstones: int = 0) -> LearntFrom:
    snapshot = dataset.snapshot().to_json()
    run = {"config": {"split": "train"}, "snapshots": [snapshot], "tombstones": [tombstones]}
    (record,) = of_run(run)["learnt_from"]
    return record


def test_what_was_taken_down_since_is_counted_before_and_after_a_purge(tmp_path: Path) -> None:
    clips, latents = make(tmp_path, nine_clips())
    record = record_of(clips)
    assert (record["samples"], record["licenses"]) == (8, {"CC-BY-4.0": 8})
    assert removed_since([record]) == Counter()
    remove(RemoveConfig(clips.uri, channel="bad", rewrite=False, workers=1))
    assert removed_since([record]) == Counter({"take-down": 2})
    remove(RemoveConfig(clips.uri, channel="bad", workers=1))
    gc(GcConfig(clips.uri, purge=True))
    assert removed_since([record]) == Counter({"take-down": 2})
    found = count(record)
    assert found and found[0].samples == 8
    # a test sample was never learnt from
    remove(RemoveConfig(clips.uri, media="m8", workers=1))
    assert removed_since([record]) == Counter({"take-down": 2})
    assert removed_since([record_of(clips, tombstones=3)]) == Counter()


def test_a_take_down_of_clips_counts_for_their_latents_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, latents = make(tmp_path, nine_clips())
    # where the test's latents say that their clips are
    monkeypatch.chdir(tmp_path)
    record = record_of(latents)
    remove(RemoveConfig(clips.uri, channel="bad", workers=1))
    assert removed_since([record]) == Counter({"take-down": 2})


def test_a_dataset_that_is_gone_or_another_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips, _ = make(tmp_path / "a", nine_clips())
    record = record_of(clips)
    shutil.rmtree(tmp_path / "a")
    assert count(record) is None and removed_since([record]) is None
    assert "samples of clips could not be counted" in caplog.text
    make(tmp_path / "a", nine_clips()[:5])
    assert count(record) is None


def test_damaged_provenance_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, {"unet": {"sources": [], "license": "own", "learnt_from": []}}, 3)
    assert read(tmp_path)["step"] == 3
    (tmp_path / "provenance.json").write_text("{")
    with pytest.raises(UserError, match="provenance.json: damaged"):
        read(tmp_path)
