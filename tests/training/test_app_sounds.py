"""Sounds in memory: the bytes that generate writes, whatever was asked for in between."""

import io
from pathlib import Path

import pytest
from PIL import Image

from configs.load import UserError
from ingest.pixels import PictureError
from tests.fakes.chain import Chain
from training.app_limits import Wish
from training.app_sounds import SoundMaker, samplers_of
from training.export import open_pipeline
from training.generate import GenerateConfig, generate


@pytest.fixture(scope="module")
def maker(chain: Chain, voice: str) -> SoundMaker:
    return SoundMaker(open_pipeline(chain.diffusion, vocoder=voice), max_pixels=10_000)


def png_of(colour: str, size_px: int = 40) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size_px, size_px), colour).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("sampler", ["", "dpmsolver"])
def test_a_take_is_the_file_that_generate_writes(
    maker: SoundMaker, chain: Chain, voice: str, tmp_path: Path, sampler: str
) -> None:
    (tmp_path / "red.png").write_bytes(png_of("red"))
    settings = {"steps": 2, "seed": 5, "takes": 6, "guidance": 1.5, "sampler": sampler}
    generate(
        GenerateConfig(
            model=chain.diffusion,
            vocoder=voice,
            images=f"{tmp_path}/red.png",
            output=f"{tmp_path}/out",
            threads=1,
            **settings,
        ),
        progress=False,
    )
    sounds = maker.sounds_of(png_of("red"), Wish(**settings))
    first = next(sounds)
    # another request between two batches, with another sampler
    list(maker.sounds_of(png_of("blue"), Wish(steps=1, sampler="unipc")))
    takes = [*first, *next(sounds)]
    assert [each.take for each in takes] == [1, 2, 3, 4, 5, 6] and next(sounds, None) is None
    assert len({each.wav for each in takes}) == 6
    for each in takes:
        stem = f"{tmp_path}/out/red" + (f".take{each.take}" if each.take > 1 else "")
        assert each.wav == Path(f"{stem}.wav").read_bytes()
        assert each.spectrogram == Path(f"{stem}.spectrogram.png").read_bytes()


def test_a_picture_is_decoded_within_limits_and_a_setting_checked(maker: SoundMaker) -> None:
    with pytest.raises(PictureError, match="10404 pixels|102 x 102 pixels, 10000 allowed"):
        next(maker.sounds_of(png_of("red", 102), Wish(steps=1)))
    with pytest.raises(PictureError, match="not a picture"):
        next(maker.sounds_of(b"no picture", Wish(steps=1)))
    assert maker.check(Wish(steps=1)).guidance == maker.pipeline.guidance_for(None)
    assert samplers_of(maker.pipeline) == ("euler", "dpmsolver", "unipc")


def test_a_model_without_a_null_is_not_guided(maker: SoundMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(maker.pipeline), "has_null", False)
    assert not maker.can_guide
    with pytest.raises(UserError, match="guidance=3.0: this model was trained with condition_dropout=0"):
        maker.check(Wish(steps=1, guidance=3.0))
