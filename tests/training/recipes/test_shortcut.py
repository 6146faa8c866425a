"""Shortcut models: what one step should be, who learns it, and that nothing but the keys decides it."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.load import UserError
from tests.training.recipes.test_diffusion import FACTS, TINY, sample
from training.data.npy import to_npy
from training.data.randomness import VALIDATION, SampleKey
from training.networks.unet import build_unet
from training.pipeline.codec import predict
from training.pipeline.step_sizes import told
from training.pretrained import load_network
from training.recipes import diffusion
from training.recipes.shortcut import ShortcutConfig, draw_step, two_halves

CONFIG = replace(TINY, objective="shortcut", shortcut=ShortcutConfig(share=0.5, sizes=3, guidance=3.0))
KEYS = [SampleKey(0, 0, position) for position in range(24)]
SAMPLES: list[Any] = [sample(seed) for seed in range(24)]
WITH_TOKENS = replace(
    CONFIG,
    attention=True,
    projection="linear",
    widths=[8],
    sequences=[diffusion.SequenceConfig("text.npy", dim=4, length=2, dropout=0.2)],
)


def model_of(config: diffusion.Config = CONFIG, seed: int = 0) -> Any:
    """Of random weights, also where steps are told and in the null embedding."""
    torch.manual_seed(seed)
    model: Any = diffusion.build_model(config, FACTS)
    torch.nn.init.normal_(model.unet.time_embedding.cond_proj.weight)
    torch.nn.init.normal_(model.null_embedding)
    return model


def batch_of(samples: list[Any] = SAMPLES, config: diffusion.Config = CONFIG) -> dict[str, Tensor]:
    return diffusion.make_batch(samples, KEYS[: len(samples)], config, FACTS)


def velocity(model: Any, latent: Tensor, time: float, size: float, label: Tensor) -> Tensor:
    """Of one sample [c, t, f], by the network itself."""
    given = {"class_labels": label[None], **told(torch.tensor([size]))}
    times = torch.tensor([1000 * time])
    return predict(model.unet, latent[None], times, given, torch.float32)[0]


def loss_alone(model: Any, one: dict[str, Tensor]) -> float:
    """Of one sample of a batch, step by step as the paper has it."""
    clean, noise = one["latent"], one["noise"]
    time, size = float(one["time"]), float(one["size"])
    image = model.null_embedding if one["drop"] else one["image"]
    mixed = (1 - time) * clean + time * noise
    wanted = noise - clean
    if size:
        half = size / 2
        halves = []
        latent, now = mixed, time
        for _ in range(2):
            if half < 0.25:  # of three sizes 1, 1/2 and 1/4: half of the last is the flow, guided
                conditional = velocity(model, latent, now, 0.0, image)
                free = velocity(model, latent, now, 0.0, model.null_embedding)
                halves.append(free + 3.0 * (conditional - free))
            else:
                halves.append(velocity(model, latent, now, half, image))
            latent = latent - half * halves[-1]
            now -= half
        wanted = sum(halves) / 2
    return float((velocity(model, mixed, time, size, image) - wanted).square().mean())


def test_the_loss_is_that_of_a_small_computation_sample_by_sample() -> None:
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        expected = [loss_alone(model, {name: batch[name][index] for name in batch}) for index in range(24)]
    assert model(batch)["loss"].tolist() == pytest.approx(expected, rel=1e-3)
    # every kind is among them
    assert set(batch["size"].tolist()) == {0, 0.25, 0.5, 1} and 0 < batch["drop"].sum() < 24


def test_two_halves_of_a_velocity_that_grows_are_known() -> None:
    """dx = -x dt by Euler: each half multiplies by 1 - size / 2."""
    mixed = torch.ones(2, 1, 1, 1)
    told_sizes: list[list[float]] = []
    times: list[list[float]] = []

    def growing(latent: Tensor, time: Tensor, size: Tensor) -> Tensor:
        told_sizes.append(size.tolist())
        times.append(time.tolist())
        return latent

    size = torch.tensor([1.0, 0.25])
    found = two_halves(growing, mixed, torch.tensor([1.0, 0.5]), size, smallest=0.25)
    ends = mixed.flatten() - size * found.flatten()
    assert ends.tolist() == pytest.approx([0.5**2, 0.875**2])
    assert told_sizes == [[0.5, 0], [0.5, 0]] and times == [[1.0, 0.5], [0.5, 0.375]]


def test_steps_are_learnt_without_gradients_through_their_targets() -> None:
    model, batch = model_of(), batch_of()
    batch["weight"] = (batch["size"] > 0).float()
    model(batch)["loss"].sum().backward()
    # only targets are guided, and no kept sample of these sees the null embedding
    batch["weight"] *= 1 - batch["drop"]
    model.zero_grad()
    model(batch)["loss"].sum().backward()
    assert not model.null_embedding.grad.any() and model.unet.conv_in.weight.grad.any()


# --- What is drawn ------------------------------------------------------------------------------------------


def test_a_share_of_the_keys_learns_steps_of_every_size_at_multiples_of_it() -> None:
    drawn = [draw_step(SampleKey(0, 0, position), ShortcutConfig()) for position in range(8000)]
    steps = [step for step in drawn if step is not None]
    assert len(steps) / 8000 == pytest.approx(0.25, abs=0.02)
    counts = Counter(size for _, size in steps)
    assert sorted(counts) == [2.0**-power for power in range(6, -1, -1)]
    assert min(counts.values()) > 200 and max(counts.values()) < 375
    assert all(time % size == 0 and size <= time <= 1 for time, size in steps)
    assert {time for time, size in steps if size == 0.25} == {0.25, 0.5, 0.75, 1}


def test_batches_of_a_flow_are_as_they_were() -> None:
    flow = diffusion.make_batch(SAMPLES, KEYS, TINY, FACTS)
    batch = batch_of()
    learns_flow = batch["size"] == 0
    assert "size" not in flow
    assert torch.equal(flow["time"][learns_flow], batch["time"][learns_flow])
    assert torch.equal(flow["noise"], batch["noise"])


def test_a_hole_weighs_nothing_and_changes_no_other_loss() -> None:
    model = model_of()
    whole = model(batch_of())["loss"]
    is_hole = torch.arange(24) % 3 == 0
    holed = batch_of([None if hole else one for one, hole in zip(SAMPLES, is_hole, strict=True)])
    loss = model(holed)["loss"]
    assert not loss[is_hole].any() and not holed["size"][is_hole].any()
    assert torch.allclose(loss[~is_hole], whole[~is_hole], rtol=1e-4, atol=1e-6)
    assert not model(batch_of([None] * 4))["loss"].any()


def test_a_loss_does_not_depend_on_what_else_its_rank_has() -> None:
    model, batch = model_of(WITH_TOKENS), batch_of(with_tokens(), WITH_TOKENS)
    together = model(batch)["loss"]
    parts = [model({name: values[start::4] for name, values in batch.items()})["loss"] for start in range(4)]
    for start, part in enumerate(parts):
        assert torch.allclose(part, together[start::4], rtol=1e-4, atol=1e-6)


def test_each_rank_passes_the_network_as_often_whatever_its_samples_learn() -> None:
    model, batch = model_of(), batch_of()
    passes: list[int] = []
    model.unet.register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    for chosen in (batch["size"] == 0, batch["size"] == 1, batch["size"] == 0.25):
        passes.clear()
        model({name: values[chosen] for name, values in batch.items()})
        assert len(passes) == 3


def test_validation_measures_the_flow() -> None:
    keys = [SampleKey(0, VALIDATION, position) for position in range(24)]
    batch = diffusion.make_batch(SAMPLES, keys, CONFIG, FACTS)
    model = model_of().eval()
    passes: list[int] = []
    model.unet.register_forward_pre_hook(lambda module, given: passes.append(len(given[0])))
    assert not batch["size"].any() and model(batch)["loss"].all() and passes == [24]


# --- Where it starts and what it leaves ---------------------------------------------------------------------


def with_tokens() -> list[Any]:
    dice = np.random.default_rng(0)
    tokens = [dice.standard_normal((2, 4)).astype(np.float16) for _ in SAMPLES]
    return [{**one, "text.npy": to_npy(values)} for one, values in zip(SAMPLES, tokens, strict=True)]


@pytest.mark.parametrize("config", [CONFIG, WITH_TOKENS])
def test_from_a_flow_it_starts_as_the_flow_to_the_bit(config: diffusion.Config, tmp_path: Path) -> None:
    torch.manual_seed(1)
    flow_config = replace(config, objective="flow")
    flow: Any = diffusion.build_model(flow_config, FACTS)
    diffusion.save(flow.state_dict(), flow_config, FACTS, tmp_path)
    state = diffusion.initial(str(tmp_path), config, FACTS)
    model: Any = diffusion.build_model(config, FACTS)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["unet.time_embedding.cond_proj.weight"] and not unexpected
    samples = with_tokens()
    batch = diffusion.make_batch(samples, KEYS, config, FACTS)
    conditions = flow.conditions(batch)
    for size in (0.0, 0.25, 1.0):
        given = (batch["noise"], torch.full((24,), 500.0))
        told_size = told(torch.full((24,), size))
        before = predict(flow.unet, *given, conditions, torch.float32)
        after = predict(model.unet, *given, model.conditions(batch) | told_size, torch.float32)
        assert torch.equal(before, after)


def test_a_saved_model_says_its_sizes_and_guidance_and_hears_of_them(tmp_path: Path) -> None:
    model = model_of()
    diffusion.save(model.state_dict(), CONFIG, FACTS, tmp_path)
    assert '"shortcut": {\n  "sizes": 3,\n  "guidance": 3.0' in (tmp_path / "conditioning.json").read_text()
    network = load_network(tmp_path / "unet")
    latent = torch.randn(1, *FACTS["latent_shape"])  # type: ignore[misc]
    given = {"class_labels": torch.ones(1, len(FACTS["image_mean"]))}
    sizes = [torch.tensor([size]) for size in (0.0, 1.0)]
    made = [predict(network, latent, sizes[1], given | told(size), torch.float32) for size in sizes]
    own = predict(model.unet, latent, sizes[1], given | told(sizes[1]), torch.float32)
    assert not torch.allclose(made[0], made[1], atol=1e-4) and torch.equal(made[1], own)
    usual = build_unet(TINY, 8, len(FACTS["image_mean"]))
    assert usual.config.time_cond_proj_dim is None


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"shortcut": ShortcutConfig(share=0)}, "share=0: give more than 0"),
        ({"shortcut": ShortcutConfig(share=1)}, "share=1: give more than 0, less than 1"),
        ({"shortcut": ShortcutConfig(sizes=1)}, "sizes=1: give 2 to 10"),
        ({"shortcut": ShortcutConfig(guidance=-1)}, "guidance=-1: give 0 or more"),
        ({"condition_dropout": 0.0}, "guidance=3.0: with condition_dropout=0 there is no null"),
        ({"min_snr": 5.0}, "min_snr=5.0: has no meaning"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        diffusion.check_config(replace(CONFIG, **changes))
    diffusion.check_config(replace(CONFIG, condition_dropout=0.0, shortcut=ShortcutConfig(guidance=1)))
