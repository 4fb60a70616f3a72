"""Whole networks against the official arithmetic, written again from the state dict with plain functions.

The twin knows no module of `models` or `reste`: only names of parameters, and the published formulas.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models  # noqa: F401  (registers the names)
from reste import set_power

POWER = 2.0
Parameters = dict[str, Tensor]
Convolution = Callable[[Tensor, Tensor, int], Tensor]


class Sign(torch.autograd.Function):
    """Forward: sign, with `zero` at 0. Backward: ReSTE's slope with threshold 1.5 and knee 0.1, at POWER."""

    @staticmethod
    def forward(ctx, x, zero):
        ctx.save_for_backward(x)
        return torch.where(x == 0, zero, torch.sign(x))

    @staticmethod
    def backward(ctx, gradient):
        a = ctx.saved_tensors[0].abs()
        slope = a.clamp_min(0.1) ** (1 / POWER - 1) / POWER
        slope[a <= 0.1] = 0.1 ** (1 / POWER) / 0.1
        slope[a > 1.5] = 0
        return gradient * slope, None


def reference_1w1a(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(Sign.apply(x, 0.0), Sign.apply(w, 0.0) * w.abs().mean(), stride=stride, padding=1)


def default_1w1a(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(Sign.apply(x, 1.0), Sign.apply(w, 1.0), stride=stride, padding=1) * w.abs().mean()


def reference_1w32a(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, Sign.apply(w, 0.0) * w.abs().mean(), stride=stride, padding=1)


def default_32w1a(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(Sign.apply(x, 1.0), w, stride=stride, padding=1)


def full_precision(x: Tensor, w: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, w, stride=stride, padding=1)


MODES = {
    reference_1w1a: {"numerics": "reference"},
    default_1w1a: {"numerics": "default"},
    reference_1w32a: {"numerics": "reference", "activation_bits": 32},
    default_32w1a: {"weight_bits": 32},
    full_precision: {"weight_bits": 32, "activation_bits": 32},
}


def batch_norm(x: Tensor, p: Parameters, path: str) -> Tensor:
    # torch's own, not written out: another rounding would decide ties in ReLU and max pooling differently.
    return F.batch_norm(x, None, None, p[f"{path}.weight"], p[f"{path}.bias"], training=True)


def shortcut(x: Tensor, p: Parameters, path: str, stride: int, channels: int) -> Tensor:
    for name in (f"{path}.downsample", f"{path}.shortcut"):
        if f"{name}.0.weight" in p:
            return batch_norm(F.conv2d(x, p[f"{name}.0.weight"], stride=stride), p, f"{name}.1")
    if x.shape[1] == channels:
        return x
    padded = x.new_zeros(len(x), channels, (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2)
    padded[:, channels // 4 : channels // 4 + x.shape[1]] = x[:, :, ::2, ::2]
    return padded


def resnet(x: Tensor, p: Parameters, conv: Convolution, *, imagenet: bool, bireal: bool) -> Tensor:
    stem = {"stride": 2, "padding": 3} if imagenet else {"stride": 1, "padding": 1}
    x = batch_norm(F.conv2d(x, p["conv1.weight"], **stem).relu(), p, "bn1")
    x = F.max_pool2d(x, 3, 2, 1) if imagenet else x
    paths = sorted({k.rsplit(".", 2)[0] for k in p if k.startswith("layer") and k.endswith("conv1.weight")})
    for path in paths:
        stride = 2 if path.endswith(".0") and not path.startswith("layer1") else 1
        w1, w2 = p[f"{path}.conv1.weight"], p[f"{path}.conv2.weight"]
        around = shortcut(x, p, path, stride, len(w1))
        x = batch_norm(conv(x, w1, stride).relu(), p, f"{path}.bn1")
        if bireal:
            x = around = x + around
        x = batch_norm(conv(x, w2, 1).relu(), p, f"{path}.bn2") + around
    head = "fc" if imagenet else "linear"
    x = batch_norm(x.mean((2, 3)), p, "bn2")
    return x @ p[f"{head}.weight"].T + p[f"{head}.bias"]


def vgg(x: Tensor, p: Parameters, conv: Convolution) -> Tensor:
    for i in range(6):
        w = p[f"conv{i}.weight"]
        x = F.conv2d(x, w, padding=1) if i == 0 else conv(x, w, 1)
        x = batch_norm(x.relu(), p, f"bn{i}")
        x = F.max_pool2d(x, 2) if i in (1, 3, 5) else x
    return x.reshape(len(x), -1) @ p["fc.weight"].T + p["fc.bias"]


def official(name: str, x: Tensor, p: Parameters, conv: Convolution) -> Tensor:
    if name.startswith("vgg"):
        return vgg(x, p, conv)
    imagenet = name in ("resnet18_1w1a", "resnet34_1w1a")
    return resnet(x, p, conv, imagenet=imagenet, bireal=imagenet or "bireal" in name)


# Modes differ inside a layer, names in how layers are joined: so only small nets take all modes.
SMALL = [(name, conv) for name in ("resnet20_1w1a", "resnet20_bireal_1w1a") for conv in MODES]
WIDE = [
    ("resnet18_1w1a", reference_1w1a),
    ("resnet18_1w1a", full_precision),
    pytest.param("resnet34_1w1a", default_1w1a, marks=pytest.mark.slow),
    ("resnet18_cifar_1w1a", reference_1w1a),
    ("vgg_small_1w1a", reference_1w1a),
    ("vgg_small_1w1a", default_1w1a),
]


@pytest.mark.parametrize(("name", "conv"), SMALL + WIDE, ids=lambda v: getattr(v, "__name__", v))
def test_logits_and_gradients_are_those_of_the_official_arithmetic(name, conv):
    torch.manual_seed(1)
    size = 16 if "cifar" in name else 32
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    model = timm.create_model(name, num_classes=4, **MODES[conv]).double()
    set_power(model, POWER)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.3)
    p = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in model.state_dict().items()}
    ours, theirs = model(x), official(name, x, p, conv)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    direction = torch.randn_like(ours)
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    for path, parameter in model.named_parameters():
        size = parameter.grad.abs().max()
        torch.testing.assert_close(parameter.grad, p[path].grad, rtol=1e-7, atol=1e-7 * float(size) + 1e-12, msg=path)
