"""The networks of other papers against their arithmetic, written again from the state dict with plain functions.

The twins know no module of `models` or `reste`: only names of parameters, and the papers' formulas.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the names)
from models.binarization import Binarization
from models.reactnet import OWN, ReActBlock, RPReLU
from models.staged import BlockNet
from trainer.export.frozen import freeze

Parameters = dict[str, Tensor]
Product = Callable[[Tensor, Tensor, int], Tensor]


def estimated(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """`value` forward, `slope` backward."""
    line = slope.to(x.dtype).detach() * x
    return value.to(x.dtype) + (line - line.detach())


def sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0)


def approx_sign(x: Tensor) -> Tensor:
    return estimated(x, sign(x), (2 - 2 * x.abs()).clamp_min(0))


def clipped(x: Tensor) -> Tensor:
    return estimated(x, sign(x), x.abs() <= 1)


def step(x: Tensor) -> Tensor:
    return estimated(x, x >= 0.5, (x > 0) & (x < 1))


def ternary(x: Tensor) -> Tensor:
    return estimated(x, 0.5 * (x >= 0.25) + 0.5 * (x >= 0.75), (x > 0) & (x < 1))


def convolve(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, w, stride=stride, padding=w.shape[2] // 2)


def per_channel(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """Signs by ApproxSign, weights by the clipped STE, a detached mean magnitude for each output channel."""
    scale = w.detach().abs().sum((1, 2, 3)) / w[0].numel()
    return convolve(approx_sign(x), clipped(w), stride) * scale.reshape(-1, 1, 1)


def unscaled(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return convolve(clipped(x), clipped(w), stride)


def per_layer(activation: Callable[[Tensor], Tensor]) -> Product:
    """Weights by the identity, times the layer's mean magnitude, through which a gradient passes."""

    def product(x: Tensor, w: Tensor, stride: int) -> Tensor:
        return convolve(activation(x), estimated(w, sign(w), torch.ones(())), stride) * w.abs().mean()

    return product


def batch_norm(x: Tensor, p: Parameters, path: str) -> Tensor:
    return F.batch_norm(x, None, None, p[f"{path}.weight"], p[f"{path}.bias"], training=True)


def threshold(p: Parameters, path: str) -> Tensor:
    """What RSign adds to each channel before the sign; 0 where the input is in full precision."""
    found = [v for k, v in p.items() if k.startswith(f"{path}.activation_quantizer.")]
    return found[0].reshape(-1, 1, 1) if found else torch.zeros(())


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, slope.reshape(-1, 1, 1) * x)


def rprelu(x: Tensor, p: Parameters, path: str) -> Tensor:
    moved = prelu(x + p[f"{path}.before"].reshape(-1, 1, 1), p[f"{path}.slope"])
    return moved + p[f"{path}.after"].reshape(-1, 1, 1)


def mean_of_four(x: Tensor) -> Tensor:
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def project(x: Tensor, p: Parameters, path: str) -> Tensor:
    """The shortcut: 2x2 mean, 1x1 convolution, batch norm, where these have weights."""
    if f"{path}.1.weight" not in p:
        return x
    return batch_norm(F.conv2d(mean_of_four(x), p[f"{path}.1.weight"]), p, f"{path}.2")


def blocks(p: Parameters) -> list[tuple[str, int]]:
    """Path and stride of every block, in order."""
    paths = [k.removesuffix(".binary_conv.weight") for k in p if k.endswith(".binary_conv.weight")]
    return [(path, 2 if path.endswith(".0") and not path.startswith("layer1") else 1) for path in paths]


def classify(x: Tensor, p: Parameters) -> Tensor:
    return x.mean((2, 3)) @ p["fc.weight"].T + p["fc.bias"]


def bireal(x: Tensor, p: Parameters, product: Product) -> Tensor:
    x = batch_norm(convolve(x, p["conv1.weight"], 1), p, "bn1")
    for path, stride in blocks(p):
        out = batch_norm(product(x, p[f"{path}.binary_conv.weight"], stride), p, f"{path}.bn1")
        x = out + project(x, p, f"{path}.downsample")
    return classify(x, p)


def reactnet(x: Tensor, p: Parameters, product: Product) -> Tensor:
    x = batch_norm(convolve(x, p["conv1.weight"], 1), p, "bn1")
    for path, stride in blocks(p):
        moved = x + threshold(p, f"{path}.binary_conv")
        out = batch_norm(product(moved, p[f"{path}.binary_conv.weight"], stride), p, f"{path}.bn1")
        x = rprelu(out + project(x, p, f"{path}.downsample"), p, f"{path}.rprelu")
    return classify(x, p)


def real_to_binary(x: Tensor, p: Parameters, product: Product) -> Tensor:
    x = prelu(batch_norm(convolve(x, p["conv1.weight"], 1), p, "bn1"), p["act1.weight"])
    for path, stride in blocks(p):
        real = batch_norm(x, p, f"{path}.bn1")
        hidden = (real.mean((2, 3)) @ p[f"{path}.gate.reduce.weight"].T).clamp_min(0)
        gate = 1 / (1 + (-hidden @ p[f"{path}.gate.expand.weight"].T).exp())
        out = product(real, p[f"{path}.binary_conv.weight"], stride) * gate[:, :, None, None]
        x = prelu(out, p[f"{path}.act.weight"]) + project(x, p, f"{path}.downsample")
    return classify(x, p)


def binary_duo(x: Tensor, p: Parameters, product: Product) -> Tensor:
    x = batch_norm(convolve(x, p["conv1.weight"], 1), p, "bn1").relu()
    copies = len(p["bn2.weight"]) // x.shape[1]
    x = batch_norm(torch.cat([x] * copies, 1), p, "bn2")
    for path, stride in blocks(p):
        out = product(x, p[f"{path}.binary_conv.weight"], stride)
        made = len(p[f"{path}.bn1.weight"]) // out.shape[1]
        around = x
        if x.shape[1] != made * out.shape[1] or stride == 2:
            one = x.reshape(len(x), copies, -1, *x.shape[2:]).mean(1)
            around = project(one, p, f"{path}.downsample.path")
            zeros = out.shape[1] - around.shape[1]
            around = torch.cat([F.pad(around, (0, 0, 0, 0, zeros // 2, zeros - zeros // 2))] * made, 1)
        x = batch_norm(torch.cat([out] * made, 1), p, f"{path}.bn1") + around
    return classify(x.relu(), p)


TWINS = {
    "bireal20_1w1a": (bireal, per_channel),
    "reactnet20_1w1a": (reactnet, per_channel),
    "real_to_binary20_1w1a": (real_to_binary, unscaled),
    "binary_duo20_1w1a": (binary_duo, per_layer(step)),
    "binary_duo20_coupled_1w2a": (binary_duo, per_layer(ternary)),
}


def spread(model: nn.Module) -> nn.Module:
    """Norms, thresholds, slopes and shifts away from what they start at."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.double()


def assert_equal_with_gradients(model: nn.Module, twin: Callable[[Tensor, Parameters], Tensor], x: Tensor) -> None:
    p = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in model.state_dict().items()}
    ours, theirs = model(x), twin(x, p)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(ours)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for path, parameter in model.named_parameters():
        size = float(parameter.grad.abs().max())
        torch.testing.assert_close(parameter.grad, p[path].grad, rtol=1e-7, atol=1e-7 * size + 1e-12, msg=path)


@pytest.mark.parametrize("real", [False, True], ids=["binary", "full_precision"])
@pytest.mark.parametrize("name", TWINS)
def test_logits_and_gradients_are_those_of_the_papers(name, real):
    torch.manual_seed(1)
    twin, product = TWINS[name]
    options = {"weight_bits": 32, "activation_bits": 32} if real else {}
    model = spread(timm.create_model(name, num_classes=4, **options))
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    assert_equal_with_gradients(model, lambda x, p: twin(x, p, convolve if real else product), x)


def reactnet_a(x: Tensor, p: Parameters) -> Tensor:
    """As the paper draws it: where channels double, two 1x1 convolutions beside each other, each with its norm."""
    x = batch_norm(convolve(x, p["conv1.weight"], 2), p, "bn1")
    for path in [k.removesuffix(".binary_3x3.weight") for k in p if k.endswith(".binary_3x3.weight")]:
        stride = 2 if path.endswith(".0") and not path.startswith("layer1") else 1
        out = per_channel(x + threshold(p, f"{path}.binary_3x3"), p[f"{path}.binary_3x3.weight"], stride)
        around = mean_of_four(x) if stride == 2 else x
        x = rprelu(batch_norm(out, p, f"{path}.bn1") + around, p, f"{path}.rprelu1")
        moved, weight, halves = x + threshold(p, f"{path}.binary_pw"), p[f"{path}.binary_pw.weight"], []
        for rows in torch.arange(len(weight)).split(x.shape[1]):
            norm = {"n.weight": p[f"{path}.bn2.weight"][rows], "n.bias": p[f"{path}.bn2.bias"][rows]}
            halves.append(batch_norm(per_channel(moved, weight[rows], 1), norm, "n") + x)
        x = rprelu(torch.cat(halves, 1), p, f"{path}.rprelu2")
    return classify(x, p)


def test_reactnet_a_is_the_network_of_doubled_branches():
    torch.manual_seed(2)
    shape = {"depths": (1, 2, 2), "widths": (16, 32, 64), "stem": (3, 2), "stem_width": 8, "stem_pool": False}
    model = spread(BlockNet(conv=Binarization(**OWN), block=ReActBlock, num_classes=4, **shape))
    assert_equal_with_gradients(model, reactnet_a, torch.randn(3, 3, 32, 32, dtype=torch.float64))


def test_a_reactnet_a_block_refuses_what_it_has_no_shortcut_for():
    with pytest.raises(ValueError, match="keeps or doubles its channels: 16 to 24"):
        ReActBlock(16, 24, 1, conv=Binarization())


def test_rprelu_starts_as_prelu_and_moves_both_ways():
    activation = RPReLU(2)
    x = torch.tensor([-2.0, 2.0]).reshape(1, 2, 1, 1)
    assert activation(x).flatten().tolist() == [-0.5, 2.0]
    activation.before.data.copy_(torch.tensor([3.0, -4.0]))
    activation.after.data.copy_(torch.tensor([10.0, 20.0]))
    assert activation(x).flatten().tolist() == [11.0, 19.5]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("numerics", ["default", "reference"])
def test_a_frozen_network_gives_the_same_logits(name, numerics):
    torch.manual_seed(3)
    model = spread(timm.create_model(name, numerics=numerics)).eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(freeze(model)(x), expected, rtol=1e-12, atol=1e-12)
