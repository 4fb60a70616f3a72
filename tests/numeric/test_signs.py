"""Indicators of signs against loops over numbers."""

from __future__ import annotations

import math

import pytest
import torch

from reste import (
    BinaryConv2d,
    BinaryLinear,
    SignMemory,
    activation_errors,
    activation_sums,
    collect_indicators,
    create_estimator,
    create_quantizer,
    dead_share,
    estimating_error,
    set_progress,
    sign_entropy,
)


def weight(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1.2


def entropy(values):
    p = sum(value >= 0 for value in values) / len(values)
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize("positive", [0, 1, 3, 5, 9, 10])
def test_entropy_is_that_of_the_share_of_ones(positive):
    values = [0.5] * positive + [-0.1] * (10 - positive)
    assert sign_entropy(torch.tensor(values)).item() == pytest.approx(entropy(values), abs=1e-6)


def test_a_zero_counts_as_plus_one():
    assert sign_entropy(torch.tensor([0.0, -0.0, -1.0, -1.0])).item() == 1


@pytest.mark.parametrize(
    ("name", "options", "limit"),
    [("ste", {"threshold": 1.25}, 1.25), ("reste", {}, 1.5), ("approx_sign", {}, 1.0), ("identity", {}, math.inf)],
)
def test_dead_weights_are_those_beyond_the_threshold(name, options, limit):
    values = weight(7, 50)
    values[0, 0] = 0.0
    expected = sum(abs(value) > limit for value in values.flatten().tolist()) / values.numel()
    assert dead_share(values, create_estimator(name, **options)).item() == pytest.approx(expected)
    assert (expected > 0.05) is (name != "identity")


def net(**quantizers):
    torch.manual_seed(0)
    ste = [create_estimator("ste") for _ in range(3)]
    return torch.nn.ModuleDict(
        {
            "conv": BinaryConv2d(3, 4, 3, weight_estimator=ste[0], activation_estimator=ste[1], **quantizers),
            "head": BinaryLinear(5, 2, weight_estimator=ste[2]),
            "full": torch.nn.Linear(2, 2),
        }
    )


def test_flips_are_counted_from_look_to_look():
    model, memory = net(), SignMemory()
    first = memory.look(model)
    assert set(first) == {
        f"{kind}{layer}" for kind in ("sign_entropy", "dead_share") for layer in ("", "/conv", "/head")
    }
    with torch.no_grad():
        model["conv"].weight.view(-1)[:27] *= -1
    second = memory.look(model)
    assert second["flip_rate/conv"].item() == pytest.approx(27 / 108)
    assert second["flip_rate/head"].item() == 0
    assert second["flip_rate"].item() == pytest.approx(27 / 118)
    assert memory.look(model)["flip_rate"].item() == 0
    assert "flip_rate" not in SignMemory().look(model)


def test_signs_that_were_saved_go_on_as_if_nothing_had_been_between():
    model, memory = net(), SignMemory()
    model["conv"].to(memory_format=torch.channels_last)
    memory.look(model)
    saved, later = memory.state(), SignMemory()
    assert {name: tuple(bits.shape) for name, bits in saved.items()} == {"conv": (14,), "head": (2,)}
    assert all(bits.dtype == torch.uint8 for bits in saved.values())
    later.load_state(saved, model)
    with torch.no_grad():
        model["conv"].weight[0, 0] *= -1
        model["head"].weight[1, 2:] *= -1
    one, other = memory.look(model), later.look(model)
    assert one == other
    assert one["flip_rate"].item() == pytest.approx((9 + 3) / 118)
    later.load_state({}, model)
    assert "flip_rate" not in later.look(model)


def test_the_number_of_all_layers_is_that_of_all_weights():
    model = net()
    found = SignMemory().look(model)
    for kind in ("sign_entropy", "dead_share"):
        mean = (108 * found[f"{kind}/conv"] + 10 * found[f"{kind}/head"]) / 118
        assert found[kind].item() == pytest.approx(mean.item(), rel=1e-6)
    assert found["sign_entropy/conv"].item() == pytest.approx(entropy(model["conv"].weight.flatten().tolist()))


def test_a_model_without_binary_weights_has_none():
    assert SignMemory().look(torch.nn.Linear(2, 2)) == {}


def test_nothing_is_read_to_the_host_and_nothing_is_left():
    """On the meta device a host read is an error."""
    model, memory = net().to("meta"), SignMemory()
    memory.look(model)
    found = memory.look(model)
    assert len(found) == 9
    assert all(value.is_meta and value.shape == () for value in found.values())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_every_indicator_looks_behind_the_quantizer():
    conv = {
        "weight_quantizer": create_quantizer("standardize", 4),
        "activation_quantizer": create_quantizer("shift", 3),
    }
    model = net(**conv)
    layer = model["conv"]
    with torch.no_grad():
        layer.weight.add_(0.3)
        layer.activation_quantizer.shift.fill_(0.4)
    behind = torch.stack([(row - row.mean()) / row.std() for row in layer.weight])
    found = collect_indicators(model, 3.0) | SignMemory().look(model)
    assert found["estimating_error/conv"].item() == pytest.approx(
        estimating_error(behind, layer.weight_estimator).item(), rel=1e-5
    )
    assert found["sign_entropy/conv"].item() == pytest.approx(entropy(behind.flatten().tolist()), abs=1e-6)
    assert found["dead_share/conv"].item() == pytest.approx((behind.abs() > 1).float().mean().item())
    images = torch.randn(2, 3, 5, 5)
    error = activation_errors(activation_sums(layer, lambda: layer(images), 3.0))["activation_error"]
    shifted = images + 0.4
    distance = shifted.clamp(-1, 1) - torch.where(shifted < 0, -1.0, 1.0)
    assert error.item() == pytest.approx(distance.square().mean().sqrt().item(), rel=1e-5)


def test_noise_is_left_out_and_modes_stay():
    model = net(weight_quantizer=create_quantizer("stochastic", 4))
    memory = SignMemory()
    memory.look(model)
    set_progress(model, 0.5)
    assert memory.look(model)["flip_rate"].item() == 0
    assert all(module.training for module in model.modules())
