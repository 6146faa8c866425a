"""The towers: one vector of a picture, one of a sound."""

import doctest

import torch

from training.networks import towers
from training.networks.towers import (
    AudioTower,
    AudioTowerConfig,
    ImageTowerConfig,
    Residual,
    build_image_tower,
    size_for,
)
from training.pipeline.codec import embed_image

CLIP = ImageTowerConfig(widths=[64], depths=[1], patch=16, size_px=32)
RESNET = ImageTowerConfig(kind="resnet", widths=[8], depths=[1], stem=8, norm_groups=4, size_px=32)


def test_a_clip_tower_projects_to_the_embedding() -> None:
    assert embed_image(build_image_tower(CLIP, 24), torch.zeros(2, 3, 32, 32)).shape == (2, 24)


def test_a_side_from_the_data_is_one_that_the_tower_takes() -> None:
    assert doctest.testmod(towers).failed == 0
    assert [size_for(CLIP, frame_px) for frame_px in (8, 40, 64, 500)] == [16, 32, 64, 128]
    assert size_for(RESNET, 99) == 99


def test_a_resnet_gives_its_last_width() -> None:
    assert embed_image(build_image_tower(RESNET, 24), torch.zeros(2, 3, 32, 32)).shape == (2, 8)


def test_a_resnet_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    tower = build_image_tower(RESNET, 24)
    pictures = torch.randn(3, 3, 32, 32)
    assert torch.allclose(embed_image(tower, pictures)[:1], embed_image(tower, pictures[:1]), atol=1e-5)


def test_sounds_of_any_length_give_one_vector() -> None:
    tower = AudioTower(AudioTowerConfig(width=16, depths=[1, 1]), num_mels=64)
    assert tower(torch.randn(2, 40, 64)).shape == tower(torch.randn(2, 160, 64)).shape == (2, 32)


def test_a_block_starts_as_the_identity() -> None:
    hidden = torch.randn(2, 16, 10)
    block = Residual(16)
    block.steps[-1].bias.data.zero_()
    assert torch.equal(block(hidden), hidden)
