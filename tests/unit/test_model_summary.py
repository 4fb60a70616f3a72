"""The summary against counts done by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from models import MODELS, summarize
from reste import BinaryConv2d, BinaryLinear, create_estimator


def binarizers() -> dict[str, nn.Module]:
    return {"weight_estimator": create_estimator("ste"), "activation_estimator": create_estimator("ste")}


def test_a_small_net_is_counted_as_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        BinaryConv2d(4, 6, 3, stride=2, padding=1, bias=False, **binarizers()),
        nn.Flatten(),
        BinaryLinear(6 * 16, 5, **binarizers(), scale="none"),
        BinaryLinear(5, 2, bias=False, weight_estimator=create_estimator("ste")),
    )
    stem, norm, conv, linear, half = (summary := summarize(model, 8)).layers
    assert (stem.parameters, stem.macs_32bit, stem.macs_1bit) == (3 * 4 * 9 + 4, 8 * 8 * 4 * 3 * 9, 0)
    assert (stem.output_shape, stem.deployed_bits) == ((4, 8, 8), 32 * (3 * 4 * 9 + 4))
    assert (norm.parameters, norm.macs, norm.kind) == (8, 0, "BatchNorm2d")
    assert (conv.binary_parameters, conv.macs_1bit, conv.macs_32bit) == (4 * 6 * 9, 4 * 4 * 6 * 4 * 9, 0)
    assert conv.deployed_bits == 4 * 6 * 9 + 32
    assert (linear.parameters, linear.binary_parameters, linear.deployed_bits) == (485, 480, 480 + 5 * 32)
    assert linear.output_shape == (5,)
    assert (half.weight_bits, half.activation_bits, half.macs_1bit, half.macs_32bit) == (1, 32, 0, 10)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.operations == (6912 + 10) + (3456 + 480) / 64


@pytest.mark.parametrize(
    ("scaling", "numbers"), [("layer", 1), ("channel", 6), ("power_of_two", 6), ("none", 0), ("learned", 6)]
)
def test_scales_are_counted_once_whether_they_are_learned_or_not(scaling: str, numbers: int):
    conv = BinaryConv2d(4, 6, 3, bias=False, scaling=scaling, **binarizers())
    rows = summarize(conv, 8, in_chans=4).layers
    assert sum(row.deployed_bits for row in rows) == 4 * 6 * 9 + 32 * numbers


def test_groups_divide_the_work():
    (row,) = summarize(nn.Conv2d(4, 8, 3, groups=2, bias=False), 5, in_chans=4).layers
    assert row.macs == 3 * 3 * 8 * 2 * 9


@pytest.mark.parametrize("name", MODELS)
def test_totals_agree_with_the_model(name):
    with torch.device("meta"):
        model = timm.create_model(name)
        twin = timm.create_model(name, weight_bits=32, activation_bits=32)
    summary = summarize(model, 32)
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert all(row.output_shape for row in summary.layers)
    assert summarize(twin, 32).macs_1bit == 0


def test_resnet18_agrees_with_the_published_figures():
    """1.68e9 binary MACs, 33.6 Mbit, 1.63e8 operations: the Bi-Real Net paper's ResNet-18."""
    summary = summarize(timm.create_model("resnet18_1w1a"), 224)
    assert (summary.parameters, summary.binary_parameters) == (11_690_536, 10_985_472)
    assert summary.macs_1bit == pytest.approx(1.68e9, rel=0.01)
    assert summary.deployed_bits == pytest.approx(33.6e6, rel=0.01)
    assert summary.operations == pytest.approx(1.63e8, rel=0.01)


def test_a_layer_that_does_not_run_is_listed_without_work():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    used, idle = summarize(Unused(), 4).layers
    assert (used.macs, idle.macs, idle.output_shape) == (96, 0, ())
    assert idle.parameters == 8


def test_the_model_is_left_as_it_was():
    model = timm.create_model("resnet20_1w1a").double()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    summarize(model, 32)
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
