"""What a stranger finds in an exported folder: a card, a license as strict as its sources, lines that run."""

import json
import re
import shutil
import subprocess
import sys
import wave
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cluster.dataset import Dataset
from configs.load import UserError
from ingest.remove import RemoveConfig, remove
from tests.fakes.chain import Chain, frames_of
from tests.training.test_model_card import SCORES
from training.export import ExportConfig, PartLicenses, export, open_pipeline
from training.run.initial import license_of


def only_what_is_named(folder: Path, requirements: str) -> Path:
    """A folder of packages with those of requirements.txt and what they require, and no others."""
    folder.mkdir()
    names = [line.split("==")[0] for line in requirements.splitlines()]
    seen: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for entry in {path.parts[0] for path in package.files or ()} - {"..", "__pycache__"}:
            if not (folder / entry).exists():
                (folder / entry).symlink_to(Path(str(package.locate_file(entry))))
        lines = [line for line in package.requires or () if "extra ==" not in line]
        names += [str(re.split(r"[^\w.-]", line)[0]) for line in lines]
    return folder


@pytest.fixture
def voice(chain: Chain, tmp_path: Path) -> Path:
    """A published vocoder, whose card gives it for non-commercial use only."""
    folder = Path(shutil.copytree(f"{chain.vocoder}/model", tmp_path / "published/voice"))
    (folder / "provenance.json").unlink()
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A voice\n")
    return folder


def test_an_export_has_all_that_a_stranger_needs(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "my_model"
    (tmp_path / "scores.json").write_text(json.dumps({**SCORES, "vocoder": "Griffin-Lim"}))
    done = export(ExportConfig(chain.diffusion, str(folder), scores=str(tmp_path)))
    assert done == {"output": str(folder), "license": "own"}
    assert {path.name for path in folder.iterdir()} == {
        *("autoencoder", "image_encoder", "unet", "scheduler", "model_index.json", "pipeline.py"),
        *("README.md", "LICENSE", "ATTRIBUTION.csv", "requirements.txt", "provenance.json"),
    }
    weights = {path.suffix for path in folder.rglob("*") if path.stat().st_size > 20_000 and path.is_file()}
    assert weights <= {".safetensors", ".py"}
    card = ModelCard.load(folder / "README.md")
    assert card.data.license_name == "own" and card.data.eval_results[0].metric_value == 0.7438
    for name, sha256 in json.loads((folder / "model_index.json").read_text())["conditioning"][
        "exported_sha256"
    ].items():
        assert re.search(rf"\| {name} \|.*`{sha256}`", card.text)
    rows = [row for row in Dataset.open(chain.clips).iter_rows() if row["status"] == "kept"]
    sources = {row["media_id"] for row in rows if row["split"] == "train"}
    assert f"names the {len(sources)} sources" in card.text
    assert "made by Griffin-Lim, as this folder makes them" in card.text
    for path in folder.iterdir():
        if path.is_file():
            assert str(chain.root) not in path.read_text(), path


def test_the_lines_of_the_card_run_with_the_packages_that_it_names(chain: Chain, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(ExportConfig(chain.diffusion, str(folder), vocoder=chain.vocoder))
    lines = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(lines.strip().splitlines()) == 10
    shutil.copy(frames_of(chain, tmp_path / "frames")[0], folder / "picture.jpg")
    packages = only_what_is_named(tmp_path / "packages", (folder / "requirements.txt").read_text())
    assert (packages / "torch").exists() and not (packages / "deepspeed").exists()
    subprocess.run(
        # neither this environment nor this checkout: -S leaves out its packages
        [sys.executable, "-S", "-c", f"import sys; sys.path.append({str(packages)!r})\n{lines}"],
        check=True,
        cwd=folder,
        env={"HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"},
    )
    with wave.open(str(folder / "sound.wav")) as sound:
        assert (sound.getframerate(), sound.getnframes()) == (16000, 25600)


def test_an_export_is_as_strict_as_the_strictest_of_its_weights(
    chain: Chain, voice: Path, tmp_path: Path
) -> None:
    config = ExportConfig(chain.diffusion, str(tmp_path / "export"), vocoder=str(voice))
    assert export(config)["license"] == "CC-BY-NC-4.0"
    assert (tmp_path / "export/LICENSE").read_text().startswith("CC-BY-NC-4.0\n")
    text = (tmp_path / "export/README.md").read_text()
    assert "license: cc-by-nc-4.0" in text and "| vocoder | SpeechT5HifiGan |" in text
    # and whatever begins with it
    assert license_of(str(tmp_path / "export"), "") == "CC-BY-NC-4.0"
    config.license = "cc-by-nc-sa-4.0"
    assert export(config)["license"] == "CC-BY-NC-SA-4.0"


@pytest.mark.parametrize(
    ("license", "stated", "message"),
    [
        ("mit", "", "license=mit: is weaker than CC-BY-NC-4.0 of the weights of vocoder .*non-commercial"),
        ("free", "", "license=free: is no license"),
        ("", "mit", "init_license.vocoder=mit: its license is recorded as CC-BY-NC-4.0"),
    ],
)
def test_a_weaker_license_is_refused_before_anything_is_written(
    chain: Chain, voice: Path, tmp_path: Path, license: str, stated: str, message: str
) -> None:
    part = PartLicenses(vocoder=stated)
    config = ExportConfig(
        chain.diffusion, str(tmp_path / "export"), vocoder=str(voice), license=license, init_license=part
    )
    with pytest.raises(UserError, match=message):
        export(config)
    assert not (tmp_path / "export").exists()


def test_an_unknown_license_is_refused_unless_it_is_stated(chain: Chain, voice: Path, tmp_path: Path) -> None:
    (voice / "README.md").unlink()
    config = ExportConfig(chain.diffusion, str(tmp_path / "export"), vocoder=str(voice))
    with pytest.raises(UserError, match="license of its vocoder .*voice.*init_license.vocoder=apache-2.0"):
        export(config)
    config.init_license = PartLicenses(vocoder="CC BY-SA 4.0")
    assert export(config)["license"] == "CC-BY-SA-4.0"


def test_an_older_export_opens_and_its_parts_are_asked_for(chain: Chain, tmp_path: Path) -> None:
    old = tmp_path / "old/export"
    export(ExportConfig(chain.diffusion, str(old)))
    for name in ("README.md", "LICENSE", "ATTRIBUTION.csv", "requirements.txt", "provenance.json"):
        (old / name).unlink()
    assert open_pipeline(str(old)).config.conditioning["sha256"]
    with pytest.raises(UserError, match="nothing states the license of its unet .*not recorded"):
        export(ExportConfig(str(old), str(tmp_path / "new")))
    own = PartLicenses(unet="own", autoencoder="own", image_encoder="own")
    assert export(ExportConfig(str(old), str(tmp_path / "new"), init_license=own))["license"] == "own"
    text = (tmp_path / "new/README.md").read_text()
    assert "Who made them is not listed" in text


def test_an_export_of_an_export_keeps_where_it_is_from(chain: Chain, voice: Path, tmp_path: Path) -> None:
    export(ExportConfig(chain.diffusion, str(tmp_path / "a"), vocoder=str(voice)))
    assert export(ExportConfig(str(tmp_path / "a"), str(tmp_path / "b")))["license"] == "CC-BY-NC-4.0"
    a, b = (json.loads((tmp_path / name / "provenance.json").read_text()) for name in ("a", "b"))
    assert a == b


def test_an_export_has_a_folder_for_audioldm_where_it_is_asked_for(chain: Chain, tmp_path: Path) -> None:
    config = ExportConfig(chain.diffusion, str(tmp_path / "export"), vocoder=chain.vocoder, audioldm=True)
    export(config)
    text = (tmp_path / "export/README.md").read_text()
    assert (tmp_path / "export/audioldm/model_index.json").is_file() and "AudioLDMPipeline" in text
    config.audioldm = False
    export(config)
    assert not (tmp_path / "export/audioldm").exists()
    with pytest.raises(UserError, match="audioldm=true: needs a SpeechT5HifiGan as vocoder"):
        export(ExportConfig(chain.diffusion, str(tmp_path / "other"), audioldm=True))


def test_a_removal_names_the_exports_that_learnt_from_a_sample(chain: Chain, tmp_path: Path) -> None:
    clips = shutil.copytree(chain.clips, tmp_path / "clips")
    export(ExportConfig(chain.diffusion, str(tmp_path / "models/first")))
    rows = [row for row in Dataset.open(str(clips)).iter_rows() if row["status"] == "kept"]
    key = next(row["key"] for row in rows if row["split"] == "train")
    held_out = next(row["key"] for row in rows if row["split"] == "validation")
    runs = [str(tmp_path / "models")]
    assert remove(RemoveConfig(str(clips), key=held_out, runs=runs, workers=1))["checkpoints"] == []
    found = remove(RemoveConfig(str(clips), key=key, runs=runs, workers=1))["checkpoints"]
    assert found == [{"run": f"{tmp_path}/models/first", "step": 2, "checkpoint": "export", "samples": 1}]


def test_the_next_export_says_what_was_removed_since(chain: Chain, tmp_path: Path) -> None:
    # a copy of the clips loses a sample that the codec had learnt from
    clips = str(shutil.copytree(chain.clips, tmp_path / "clips"))
    run = Path(shutil.copytree(chain.diffusion, tmp_path / "run"))
    moved = (run / "model/provenance.json").read_text().replace(chain.clips, clips)
    (run / "model/provenance.json").write_text(moved)
    rows = [row for row in Dataset.open(clips).iter_rows() if row["status"] == "kept"]
    key = next(row["key"] for row in rows if row["split"] == "train")
    remove(RemoveConfig(clips, key=key, reason="withdrawn", workers=1))
    export(ExportConfig(str(run), str(tmp_path / "export")))
    text = (tmp_path / "export/README.md").read_text()
    assert "1 samples were taken down" in text and "| withdrawn | 1 |" in text


def test_data_of_licenses_that_nobody_knows_is_refused_unless_one_is_stated(
    chain: Chain, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(chain.diffusion, tmp_path / "run"))
    path = run / "model/provenance.json"
    provenance = json.loads(path.read_text())
    record = provenance["parts"]["unet"]["learnt_from"][0]
    del record["licenses"], record["samples"]
    path.write_text(json.dumps(provenance))
    config = ExportConfig(str(run), str(tmp_path / "export"))
    with pytest.raises(UserError, match="license: that of the samples of latents is not known.*license=…"):
        export(config)
    config.license = "cc-by-nc-4.0"
    assert export(config)["license"] == "CC-BY-NC-4.0"
    assert "| samples of latents | unknown |" in (tmp_path / "export/README.md").read_text()
