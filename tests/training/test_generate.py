"""Generate: pictures of a folder -> a wav each, the same for the same seed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from configs.load import UserError
from tests.fakes.chain import Chain, frames_of
from training.export import open_pipeline
from training.generate import GenerateConfig, generate


def test_generate_gives_the_same_wav_for_the_same_seed_whatever_its_neighbours(
    chain: Chain, tmp_path: Path
) -> None:
    pictures = sorted(frames_of(chain, tmp_path / "frames"))[:3]
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(tmp_path / "frames"), output=str(tmp_path / "all"), steps=3
        )
    )
    generate(
        GenerateConfig(model=chain.diffusion, images=str(pictures[1]), output=str(tmp_path / "one"), steps=3)
    )
    wav, rate_hz = soundfile.read(tmp_path / "all" / f"{pictures[1].stem}.wav")
    assert rate_hz == 16000 and len(wav) == 25600 and np.abs(wav).max() > 0
    assert np.array_equal(wav, soundfile.read(tmp_path / "one" / f"{pictures[1].stem}.wav")[0])
    generate(
        GenerateConfig(
            model=chain.diffusion, images=str(pictures[1]), output=str(tmp_path / "other"), steps=3, seed=1
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
    with pytest.raises(
        UserError, match=r"1 of 4 cannot be used: .*bad.JPG \(not a picture of .*skip_unreadable=true"
    ):
        generate(settings)
    assert not (tmp_path / "out").exists()
    found = generate(replace(settings, skip_unreadable=True))
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
        assert torch.allclose(
            pipe._flow(condition, torch.tensor(1.0), condition, 2.0), 2 * condition - null, atol=1e-5
        )
        assert torch.equal(pipe._flow(condition, torch.tensor(1.0), condition, 1), condition)


@pytest.mark.parametrize(
    "change,says",
    [
        ({"model": "nowhere"}, "model=nowhere: does not exist"),
        ({"images": "nowhere"}, "images=nowhere: does not exist"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": -1.0}, "guidance=-1.0"),
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
