"""Scales of a weight against plain loops, and their gradients against autograd of the formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import torch._functorch.config as functorch
import torch.nn.functional as F

from reste import (
    BinaryConv2d,
    BinaryLinear,
    binary_weight,
    create_estimator,
    create_quantizer,
    create_scaling,
    list_scalings,
)
from trainer.bench.memory import saved_bytes
from trainer.config_schema import TrainConfig
from trainer.distributed.environment import Environment
from trainer.hardware import apply_switches

STATELESS = ("layer", "channel", "channel_detached", "power_of_two", "none")


def by_hand(name, weight):
    """One number for each output channel."""
    rows = [[abs(value) for value in row.flatten().tolist()] for row in weight]
    means = [sum(row) / len(row) for row in rows]
    if name == "layer":
        return [sum(map(sum, rows)) / sum(map(len, rows))] * len(rows)
    if name == "power_of_two":
        return [2.0 ** round(math.log2(mean)) for mean in means]
    return [1.0] * len(rows) if name == "none" else means


def weight(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 0.2


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 7)])
def test_a_scale_is_its_formula(name, shape):
    scaling = create_scaling(name, shape[0])
    found = scaling(weight(*shape))
    assert found.shape == ((shape[0],) if scaling.per_channel else ())
    assert found.expand(shape[0]).tolist() == pytest.approx(by_hand(name, weight(*shape)), rel=1e-12)
    assert not list(scaling.state_dict())


def test_a_learned_scale_is_a_parameter_that_is_never_zero():
    torch.manual_seed(0)
    scaling = create_scaling("learned", 4000)
    assert list(scaling.state_dict()) == ["alpha"]
    assert 0 < scaling.alpha.min() < 0.01
    assert 0.99 < scaling.alpha.max() <= 1
    assert scaling.alpha.mean().item() == pytest.approx(0.5, abs=5 / math.sqrt(12 * 4000))
    assert create_scaling("learned", 3, init="ones").alpha.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="init must be one of uniform, ones; got 'zeros'"):
        create_scaling("learned", 3, init="zeros")


def test_an_unknown_scaling_or_option_is_answered_with_what_there_is():
    with pytest.raises(ValueError, match="unknown scaling 'chanel'; did you mean 'channel'"):
        create_scaling("chanel", 3)
    with pytest.raises(ValueError, match="scaling 'channel' has no option 'init'; its options: none"):
        create_scaling("channel", 3, init="ones")


@pytest.mark.parametrize("name", [name for name in list_scalings() if name != "learned"])
def test_other_scalings_draw_nothing(name):
    before = torch.get_rng_state()
    create_scaling(name, 8)
    assert torch.equal(torch.get_rng_state(), before)


def written_out(layer, x):
    """The layer as one expression of its latent weight, whose derivative is autograd's; the sign is an identity STE."""
    latent = layer.weight
    sign = latent + (torch.where(latent < 0, -1.0, 1.0) - latent).detach()
    means = latent.abs().flatten(1).mean(1)
    scale = {
        "layer": lambda: latent.abs().mean().expand(len(latent)),
        "channel": lambda: means,
        "channel_detached": lambda: means.detach(),
        "power_of_two": lambda: 2 ** torch.round(torch.log2(means.detach())),
        "learned": lambda: layer.scaling.alpha,
        "none": lambda: torch.ones(len(latent), dtype=latent.dtype),
    }[layer.scaling.name]()
    scaled = sign * scale.view(-1, *[1] * (latent.dim() - 1))
    if latent.dim() == 2:
        return F.linear(x, scaled, layer.bias)
    return F.conv2d(x, scaled, layer.bias, padding=1)


@pytest.mark.parametrize("scale", ["after", "before"])
@pytest.mark.parametrize("name", list_scalings())
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_outputs_and_gradients_are_those_of_the_formula_written_out(name, scale, kind):
    torch.manual_seed(1)
    given = {"weight_estimator": create_estimator("identity"), "scale": scale, "scaling": name, "dtype": torch.float64}
    if kind == "conv":
        layer, x = BinaryConv2d(3, 4, 3, padding=1, **given), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    else:
        layer, x = BinaryLinear(6, 4, **given), torch.randn(2, 3, 6, dtype=torch.float64)
    if name == "learned":
        with torch.no_grad():
            layer.scaling.alpha[0] = -0.3
    leaves = [x.requires_grad_(), *layer.parameters()]
    grad = torch.randn(layer(x).shape, dtype=torch.float64)
    found, expected = layer(x), written_out(layer, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert len(leaves) == (4 if name == "learned" else 3)
    for a, b in zip(torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", list_scalings())
def test_a_channel_of_zeros_has_a_finite_gradient(name):
    layer = BinaryLinear(4, 3, False, weight_estimator=create_estimator("identity"), scaling=name)
    with torch.no_grad():
        layer.weight[0] = 0
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", list_scalings())
def test_low_precision_stays_low(name):
    layer = BinaryConv2d(3, 4, 3, weight_estimator=create_estimator("identity"), scaling=name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 3, 5, 5)).dtype == torch.bfloat16


def test_a_full_precision_weight_has_no_scale_to_learn():
    layer = BinaryConv2d(3, 4, 3, activation_estimator=create_estimator("ste"), scaling="learned")
    assert list(layer.state_dict()) == ["weight", "bias"]


def test_the_scale_is_taken_of_what_the_sign_is_taken_of():
    torch.manual_seed(0)
    quantizer = create_quantizer("standardize", 4)
    given = {"weight_estimator": create_estimator("identity"), "weight_quantizer": quantizer, "scaling": "channel"}
    layer = BinaryConv2d(3, 4, 3, **given)
    _, scale = binary_weight(layer)
    assert torch.equal(scale, quantizer(layer.weight).abs().flatten(1).mean(1))


@pytest.mark.parametrize("name", ["channel", *(pytest.param(n, marks=pytest.mark.slow) for n in ("layer", "learned"))])
def test_a_compiled_convolution_keeps_its_input_and_its_signs_whatever_its_scaling(name):
    """Two tensors of an input's size, and not the output, which is what a scale after it would ask for."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    signs = {f"{side}_estimator": create_estimator("ste") for side in ("weight", "activation")}
    conv = BinaryConv2d(16, 16, 3, padding=1, bias=False, scaling=name, **signs)
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(16), conv)
    x = torch.randn(4, 16, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    with functorch.patch(), torch.random.fork_rng():
        threads = torch.get_num_threads()
        apply_switches(TrainConfig(), Environment(), torch.device("cpu"))
        torch.set_num_threads(threads)
        compiled = torch.compile(layer, backend="aot_eager_decomp_partition", dynamic=False, fullgraph=True)
        compiled(x).square().sum().backward()
        kept = saved_bytes(lambda: compiled(x), layer) / (x.numel() * x.element_size())
    torch._dynamo.reset()
    assert 2 <= kept < 2.2
