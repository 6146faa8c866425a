"""`import stillsound` and `stillsound …`, from any folder: what the commands do, as functions that return."""

import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import stillsound
from configs.load import to_dict
from tests.conftest import ROOT
from tests.fakes.chain import Chain, frames_of
from tests.fakes.media import film
from tests.test_architecture import house
from training.recipes import diffusion

MODULE = ROOT / "src/stillsound.py"
TINY = {"workers": 0, "unit_size": 2, "clip": {"duration_s": 1.6}, "frame": {"short_side_px": 64}}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name in ("a", "b"):
        film(folder / f"{name}.mp4", duration_s=4.0)
    return folder


def typed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in a folder of no importance, with nothing of the test's environment that helps it."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**kept, **environment}, capture_output=True, text=True
    )


def test_a_dataset_is_made_and_read(media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    source = {"path": media, "license": "own"}
    summary = stillsound.scrape("configs/ingest/folder.yaml", source=source, output="clips", **TINY)
    assert summary["verb"] == "scrape" and summary["counts"]["kept"] == 4 and not summary["kept_nothing"]
    clips = stillsound.open_dataset("clips")
    assert len(clips) == 4 and {sample.metadata["license"] for sample in clips} == {"own"}
    # as its command does: a record, and the same again
    assert list((tmp_path / "clips/runs").glob("*-scrape-*/config.yaml"))
    again = stillsound.scrape("configs/ingest/folder.yaml", source=source, output="clips", **TINY)
    assert again["units_done"] == 0 and dict(os.environ) == before


def test_advice_is_logged(media: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = {"path": media, "license": "own"}
    output = tmp_path / "clips"
    summary = stillsound.scrape(output=output, source=source, **{**TINY, "clip": {"duration_s": 60.0}})
    assert summary["kept_nothing"] and "too_short" in caplog.text


def test_mistakes_are_exceptions(tmp_path: Path) -> None:
    with pytest.raises(stillsound.UserError, match='unknown setting "ouput"; did you mean "output"'):
        stillsound.scrape(ouput="x")
    with pytest.raises(stillsound.UserError, match="clip.duration_s"):
        stillsound.scrape(output="x", source={"path": "y"}, clip={"duration_s": "long"})
    with pytest.raises(stillsound.UserError, match='did you mean "configs/ingest/folder.yaml"'):
        stillsound.scrape("foldr", output="x")
    with pytest.raises(stillsound.UserError, match="model=.*does not exist"):
        stillsound.load_model(tmp_path / "nothing")


def test_models_are_trained_and_heard_in_any_thread(chain: Chain, tmp_path: Path) -> None:
    """Notebooks and servers call from threads, where no signal can be set."""
    unet = diffusion.Config(
        channels=[8, 16], head_counts=[2, 2], layers_per_block=1, attention=False, norm_groups=4
    )
    settings = {"workers": 0, "steps": 2, "global_batch": 4, "lanes": 4, "zero_stage": 0}
    done: dict[str, Any] = {}

    def work() -> None:
        done["run"] = stillsound.train(
            data=chain.latents, output=tmp_path / "run", diffusion=to_dict(unet), **settings
        )
        frames_of(chain, tmp_path / "frames", 1)
        done["sounds"] = stillsound.generate(
            "steps=2",
            model=tmp_path / "run",
            images=tmp_path / "frames",
            output=tmp_path / "sounds",
            page=False,
        )

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done["run"]["steps"] == 2
    (wav,) = done["sounds"]["wavs"]
    pipe = stillsound.load_model(done["run"]["model"])
    picture = stillsound.open_dataset(chain.clips)[0].picture
    (sound,) = pipe(image=picture, num_inference_steps=2).audios
    assert pipe.sample_rate_hz == soundfile.info(wav).samplerate == 16000
    assert sound.dtype == np.float32 and len(sound) == soundfile.info(wav).frames


RAY = """
import os, stillsound
before = os.environ["PYTHONPATH"]
stillsound.scrape({settings}, workers=1)
assert os.environ["PYTHONPATH"] == before and "RAY_AUTH_MODE" not in os.environ
import ray
print(ray.is_initialized(), len(stillsound.open_dataset("clips", "train")))
"""


def test_rays_workers_find_the_rooms_from_any_folder_and_end_with_the_call(
    media: Path, tmp_path: Path
) -> None:
    """They and their children import the checkout, by nothing but what the call sets."""
    settings = [
        "configs/ingest/folder.yaml",
        f"source.path={os.path.relpath(media, tmp_path)}",
        "output=clips",
    ]
    settings += ["clip.duration_s=1.6", "frame.short_side_px=64", "split.validation=0"]
    program = RAY.replace("{settings}", f"*{settings}")
    done = typed(tmp_path, "-c", program, PYTHONPATH=str(MODULE.parent))
    assert done.stdout.endswith("False 4\n"), done.stderr


def test_the_command_works_in_any_folder(media: Path, tmp_path: Path) -> None:
    settings = ["source.path=media", "output=c", "workers=0", "clip.duration_s=1.6", "frame.short_side_px=64"]
    (tmp_path / "media").symlink_to(media)
    done = typed(tmp_path, str(MODULE), "ingest", "scrape", "configs/ingest/folder.yaml", *settings)
    assert done.returncode == 0 and "kept" in done.stdout and (tmp_path / "c/dataset.json").is_file()
    # what it says comes next can be typed here, too
    assert "next: stillsound training train configs/training/small_" in done.stderr


def test_a_module_that_would_hide_ours_from_the_workers_is_named(media: Path, tmp_path: Path) -> None:
    (tmp_path / "ingest.py").touch()
    done = typed(
        tmp_path, str(MODULE), "ingest", "scrape", f"source.path={media}", "source.license=own", "output=c"
    )
    assert done.returncode == 2 and f"{tmp_path}/ingest.py would hide ours" in done.stderr, done.stderr


def test_usage_names_the_rooms(tmp_path: Path) -> None:
    wrong = typed(tmp_path, str(MODULE), "ingst")
    assert wrong.returncode == 2 and "cluster, ingest, training" in wrong.stderr
    of_room = typed(tmp_path, str(MODULE), "ingest", "scrape", "--help")
    assert "Usage: stillsound ingest scrape" in of_room.stdout and of_room.returncode == 0
    offered = typed(tmp_path, str(MODULE), "--complete", "stillsound training prec")
    assert offered.stdout == "precompute\n"


def test_anothers_module_of_the_same_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "training.py").touch()
    path = {"PYTHONPATH": str(MODULE.parent)}
    done = typed(tmp_path, "-c", "import training, stillsound", **path)
    assert (
        done.returncode == 1
        and f"another module called training is loaded ({tmp_path}/training.py)" in done.stderr
    )
    # imported first, ours are found, and this one is the user's loss
    ours = typed(tmp_path, "-c", "import stillsound, training; print(training.__file__)", **path)
    assert ours.stdout == f"{ROOT}/training/__init__.py\n"


def test_importing_it_loads_nothing_heavy_and_sets_nothing(tmp_path: Path) -> None:
    program = (
        "import os, sys; before = dict(os.environ); import stillsound; assert dict(os.environ) == before\n"
    )
    program += "print([name for name in ('numpy', 'torch', 'ray', 'pyarrow') if name in sys.modules])"
    done = typed(tmp_path, "-c", program, PYTHONPATH=str(MODULE.parent))
    assert done.stdout == "[]\n", done.stderr


def test_no_generic_package_name_goes_into_site_packages() -> None:
    """An editable install puts the folder of package-dir on every path: it holds one module."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    installed = {"packages": [], "py-modules": ["stillsound"], "package-dir": {"": "src"}}
    assert project["tool"]["setuptools"] == installed
    assert project["project"]["scripts"] == {"stillsound": "stillsound:main"}
    assert [path for path in house() if path.startswith("src/")] == ["src/stillsound.py"]
