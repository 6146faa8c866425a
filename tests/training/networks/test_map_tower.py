"""The tower that keeps where things are and how large."""

from pathlib import Path

import pytest
import torch

from training.networks.map_tower import MapTower


def test_it_has_a_place_per_position_and_a_mean_would_not() -> None:
    tower = MapTower(widths=(8, 8), depths=(1, 2), dim=5, size_px=16, norm_groups=4).eval()
    dot = torch.zeros(1, 3, 16, 16)
    dot[:, :, 4:6, 4:6] = 1
    # by a multiple of what one position sees: its map is the same, moved
    moved = dot.roll((4, 4), (2, 3))
    with torch.no_grad():
        first, second = tower(dot), tower(moved)
    assert first.last_hidden_state.shape == (1, 8, 4, 4) and first.pooler_output.shape == (1, 5)
    averaged = (first.last_hidden_state - second.last_hidden_state).mean((2, 3)).abs().max()
    assert averaged < 0.2 * (first.pooler_output - second.pooler_output).abs().max()


def test_nothing_depends_on_the_batch() -> None:
    tower = MapTower(widths=(8, 8), depths=(1, 1), dim=5, size_px=16, norm_groups=4)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        together, alone = tower(pixels).pooler_output, tower(pixels[1:2]).pooler_output
    assert torch.allclose(together[1:2], alone, atol=1e-6)


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="size_px=60: give a multiple of 16"):
        MapTower(size_px=60)


def test_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    tower = MapTower(widths=(8,), depths=(1,), dim=5, size_px=16, norm_groups=4)
    tower.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(
            MapTower.from_pretrained(tmp_path)(pixels).pooler_output, tower(pixels).pooler_output
        )
