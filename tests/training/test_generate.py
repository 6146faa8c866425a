"""Generate: pictures of a folder -> wavs, the same for the same seed, resumed where it was interrupted."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cluster.jsonl import read_lines
from configs.load import StoppedError, UserError
from tests.conftest import ROOT
from tests.fakes.chain import Chain, frames_of
from training.export import ExportConfig, export, open_pipeline
from training.generate import GenerateConfig, generate
from training.sounds import CPU_LANES


def test_generate_gives_the_same_wav_for_the_same_seed_whatever_its_neighbours(
    chain: Chain, tmp_path: Path
) -> None:
    pictures = sorted(frames_of(chain, tmp_path / "frames"))[:3]
    generate(
        GenerateConfig(
            model=chain.diffusion,
            images=str(tmp_path / "frames"),
            output=str(tmp_path / "all"),
            steps=3,
            threads=1,
        )
    )
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(pictures[1]), output=str(tmp_path / "one"), steps=3, threads=1
        )
    )
    wav, rate_hz = soundfile.read(tmp_path / "all" / f"{pictures[1].stem}.wav")
    assert rate_hz == 16000 and len(wav) == 25600 and np.abs(wav).max() > 0
    assert np.array_equal(wav, soundfile.read(tmp_path / "one" / f"{pictures[1].stem}.wav")[0])
    generate(
        GenerateConfig(
            model=chain.diffusion,
            images=str(pictures[1]),
            output=str(tmp_path / "other"),
            steps=3,
            seed=1,
            threads=1,
        )
    )
    assert not np.array_equal(wav, soundfile.read(tmp_path / "other" / f"{pictures[1].stem}.wav")[0])


def test_a_picture_sounds_as_it_is_shown_and_each_of_a_tree_has_its_own_wav(
    chain: Chain, tmp_path: Path
) -> None:
    scene = Image.fromarray(
        np.kron(np.arange(0, 240, 5).reshape(6, 8), np.ones((8, 8))).astype(np.uint8)
    ).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
    scene.save(tmp_path / "photos/a/x.png")
    scene.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photos/b/x.png", exif=exif)
    scene.convert("RGBA").save(tmp_path / "photos/b/x.tif")
    (tmp_path / "photos/bad.JPG").write_bytes(b"no picture")
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/photos", output=f"{tmp_path}/out", steps=2, threads=1
    )
    for strict in ({"strict": True}, {"skip_unreadable": False}):
        with pytest.raises(
            UserError, match=r"1 of 4 cannot be used: .*bad.JPG \(not a picture of .*strict=true"
        ):
            generate(replace(settings, **strict))
        assert not (tmp_path / "out").exists()
    found = generate(settings, progress=False)
    names = [str(Path(path).relative_to(tmp_path / "out")) for path in found["wavs"]]
    assert names == ["a/x.wav", "b/x.png.wav", "b/x.tif.wav"] and list(found["skipped"]) == [
        f"{tmp_path}/photos/bad.JPG"
    ]
    sounds = [soundfile.read(path)[0] for path in found["wavs"]]
    assert np.array_equal(sounds[0], sounds[1]) and np.array_equal(sounds[0], sounds[2])


def test_guidance_leads_away_from_the_null_embedding(chain: Chain) -> None:
    pipe = open_pipeline(chain.diffusion)
    condition = torch.randn(2, len(pipe.config.conditioning["null_embedding"]))
    null = torch.tensor(pipe.config.conditioning["null_embedding"])
    with mock.patch.object(
        pipe.unet,
        "forward",
        lambda mixed, timestep, class_labels, **other: SimpleNamespace(sample=class_labels),
    ):
        given = pipe._conditions((condition, {}))
        free = pipe._conditions(pipe._free((condition, {})))
        time = torch.tensor(1.0)
        guided = pipe._predict(condition, time, given, free, 2.0)
        assert torch.allclose(guided, 2 * condition - null, atol=1e-5)
        assert torch.equal(pipe._predict(condition, time, given, None, 1), condition)


def wavs_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.wav"))}


def changed_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}


def test_a_sound_does_not_depend_on_its_batch_its_neighbours_or_their_order(
    chain: Chain, tmp_path: Path
) -> None:
    frames = frames_of(chain, tmp_path / "frames", 5)
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output="", steps=2, takes=2, threads=1
    )
    for batch in (1, 3, 8):
        generate(replace(settings, output=f"{tmp_path}/{batch}", batch=batch), progress=False)
    expected = wavs_in(tmp_path / "1")
    assert len(expected) == len(set(expected.values())) == 10
    assert wavs_in(tmp_path / "3") == expected == wavs_in(tmp_path / "8")
    # other neighbours, in another order, and elsewhere
    (tmp_path / "some").mkdir()
    for name, frame in (("a", frames[4]), ("b", frames[0]), ("c", frames[2])):
        shutil.copy(frame, tmp_path / f"some/{name}.jpg")
    generate(replace(settings, images=f"{tmp_path}/some", output=f"{tmp_path}/fewer"), progress=False)
    fewer = wavs_in(tmp_path / "fewer")
    for name, frame in (("a", frames[4]), ("b", frames[0]), ("c", frames[2])):
        for take in ("", ".take2"):
            assert fewer[f"{name}{take}.wav"] == expected[f"{frame.stem}{take}.wav"]
    # and the seed that the table names is the one that makes it
    table = {row["path"]: row for row in read_lines(tmp_path / "1/sounds.jsonl")}
    row = table[f"{frames[1].stem}.wav"]
    noise = [torch.Generator().manual_seed(row["seed"]) for _ in range(CPU_LANES)]
    wav = open_pipeline(chain.diffusion)([frames[1]] * CPU_LANES, generator=noise, steps=2)[0]
    written, _ = soundfile.read(tmp_path / "1" / row["path"], dtype="int16")
    assert np.abs(written - wav * 32768).max() < 1


def test_two_workers_on_ray_make_the_same_sounds(chain: Chain, tmp_path: Path, ray_local: None) -> None:
    frames_of(chain, tmp_path / "frames", 5)
    (tmp_path / "frames/bad.jpg").write_bytes(b"no picture")
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output="", steps=2, batch=2, threads=1
    )
    generate(replace(settings, output=f"{tmp_path}/here"), progress=False)
    found = generate(replace(settings, output=f"{tmp_path}/there", workers=2), progress=False)
    assert wavs_in(tmp_path / "there") == wavs_in(tmp_path / "here") and found["made"] == 5
    here, there = (read_lines(tmp_path / name / "sounds.jsonl") for name in ("here", "there"))
    assert [{**row, "seconds": 0} for row in here] == [{**row, "seconds": 0} for row in there]


def test_a_killed_run_is_finished_and_nothing_is_made_twice(chain: Chain, tmp_path: Path) -> None:
    frames_of(chain, tmp_path / "frames", 6)
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output="", steps=2, takes=3, threads=1, batch=1
    )
    generate(replace(settings, output=f"{tmp_path}/whole"), progress=False)
    args = [f"{name}={getattr(settings, name)}" for name in ("model", "images", "steps", "takes", "batch")]
    command = [sys.executable, "-m", "training", "generate", *args, "threads=1", f"output={tmp_path}/out"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    units = tmp_path / "out/.units/commits"
    while len(list(units.glob("*.json"))) < 3:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(list(units.glob("*.json")))
    before = changed_at(tmp_path / "out")
    assert 3 <= done < 18 and done <= len(before) <= done + 1
    found = generate(replace(settings, output=f"{tmp_path}/out"), progress=False)
    after = changed_at(tmp_path / "out")
    assert found["made"] == 18 - done
    assert sum(after[name] == changed for name, changed in before.items()) == done
    assert wavs_in(tmp_path / "out") == wavs_in(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("partial-*"))
    assert len(read_lines(tmp_path / "out/sounds.jsonl")) == 18


def test_running_again_makes_what_is_missing_and_what_changed(chain: Chain, tmp_path: Path) -> None:
    frames = frames_of(chain, tmp_path / "frames", 4)
    output = tmp_path / "out"
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output=str(output), steps=2, threads=1
    )
    first, second, third, fourth = (f"{frame.stem}.wav" for frame in frames)
    assert generate(settings, progress=False)["made"] == 4
    before = changed_at(output)
    originals = wavs_in(output)
    assert generate(settings, progress=False)["made"] == 0
    (output / first).unlink()
    original = frames[1].read_bytes(), frames[1].stat()
    shutil.copy(frames[2], frames[1])
    frames[3].write_bytes(b"no picture any more")
    found = generate(settings, progress=False)
    assert found["made"] == 2 and list(found["skipped"]) == [str(frames[3])]
    after = changed_at(output)
    assert [name for name in before if after[name] == before[name]] == [third, fourth]
    assert (output / second).read_bytes() == originals[third]
    # as it was, to the time of its change: the sound that lies there is not its own
    frames[1].write_bytes(original[0])
    os.utime(frames[1], ns=(original[1].st_atime_ns, original[1].st_mtime_ns))
    shutil.copy(frames[0], frames[3])
    assert generate(replace(settings, takes=2), progress=False)["made"] == 2 + 4
    assert wavs_in(output)[second] == originals[second]
    assert wavs_in(output)[fourth] == originals[first]
    assert [row["take"] for row in read_lines(output / "sounds.jsonl")] == [1, 2] * 4


def test_another_model_or_other_settings_are_refused_with_the_difference(
    chain: Chain, tmp_path: Path
) -> None:
    frames_of(chain, tmp_path / "frames", 1)
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output=f"{tmp_path}/out", steps=2, threads=1
    )
    generate(settings, progress=False)
    # the same model in another form is the same
    export(ExportConfig(model=chain.diffusion, output=f"{tmp_path}/export"))
    assert generate(replace(settings, model=f"{tmp_path}/export"), progress=False)["made"] == 0
    for change, says in (
        ({"steps": 3}, r"config.steps: 2 \(existing\) -> 3 \(yours\); use these, or another output"),
        ({"guidance": 1.5}, r"config.guidance: 2.0 \(existing\) -> 1.5"),
        ({"seed": 1}, "config.seed: 0"),
        ({"vocoder": chain.vocoder}, r'config.model.vocoder: "none" \(existing\) -> "'),
    ):
        with pytest.raises(UserError, match=says):
            generate(replace(settings, **change), progress=False)  # type: ignore[arg-type]
    other = shutil.copytree(f"{tmp_path}/export", tmp_path / "other")
    index = json.loads((other / "model_index.json").read_text())
    index["conditioning"]["latent_mean"][0] += 1
    (other / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="config.model.conditioning"):
        generate(replace(settings, model=str(other)), progress=False)


def test_what_cannot_be_a_sound_is_a_row_and_strange_names_are_none(chain: Chain, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (frame,) = frames_of(chain, tmp_path / "frames", 1)
    names = [b"caf\xe9.jpg", "<b>&\u202e.jpg".encode(), b"a\nb.jpg", b"x" * 250 + b".jpg", b"ok.jpg"]
    for name in names:
        shutil.copy(frame, os.fsencode(photos) + b"/" + name)
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    output = photos / "out"  # below the pictures: its spectrograms are none
    settings = GenerateConfig(
        model=chain.diffusion, images=str(photos), output=str(output), steps=1, threads=1
    )
    for made in (4, 0):
        found = generate(settings, progress=False)
        assert len(found["wavs"]) == 4 and found["made"] == made
        rows = read_lines(output / "sounds.jsonl")
        reasons = {os.fsencode(row["picture"]).split(b"/")[-1]: row["reason"] for row in rows}
        assert reasons == {
            **dict.fromkeys(names, None),
            names[3]: "name_too_long",
            b"gone.jpg": "corrupt",
        }
    page = (output / "index.html").read_text()
    assert "<b>&\u202e" not in page and "\u202e" not in page and "&lt;b&gt;&amp;" in page
    assert "./caf%E9.wav" in page and "./a%0Ab.wav" in page


def test_no_picture_that_can_be_used_is_an_error(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/bad.jpg", output=f"{tmp_path}/out", steps=1
    )
    with pytest.raises(StoppedError, match="none of 1 pictures gave a sound; .*bad.jpg: not a picture of"):
        generate(settings, progress=False)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"model": "nowhere"}, "model=nowhere: does not exist"),
        ({"images": "nowhere"}, "images=nowhere: does not exist"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": -1.0}, "guidance=-1.0"),
        ({"takes": 0}, "takes=0"),
        ({"batch": 0}, "batch=0"),
        ({"workers": -1}, "workers=-1"),
        ({"strict": True, "skip_unreadable": True}, "opposites"),
    ],
)
def test_generate_refuses_what_cannot_work(
    chain: Chain, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    settings = {
        "model": chain.diffusion,
        "images": str(frames_of(chain, tmp_path / "frames")[0]),
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(UserError) as error:
        generate(GenerateConfig(**{**settings, **change}))  # type: ignore[arg-type]
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_picture_called_as_a_take_of_another_is_refused(chain: Chain, tmp_path: Path) -> None:
    (frame,) = frames_of(chain, tmp_path / "frames", 1)
    shutil.copy(frame, tmp_path / "frames" / f"{frame.stem}.take2.jpg")
    settings = GenerateConfig(
        model=chain.diffusion, images=f"{tmp_path}/frames", output=f"{tmp_path}/out", steps=1, takes=2
    )
    with pytest.raises(UserError, match=r"take2.wav with take 2 of .*; rename one"):
        generate(settings)
    assert len(generate(replace(settings, takes=1), progress=False)["wavs"]) == 2
