"""Binary backbones. Importing this package registers all of them with timm:

    timm.create_model("resnet18_1w1a", estimator="reste", weight_bits=1, activation_bits=1, num_classes=1000)

`weight_bits=32` or `activation_bits=32` keeps that side in full precision; both together give a
full-precision network of the same structure. `numerics="reference"` gives the official code's arithmetic. The official
full-precision networks for CIFAR-10, `FULL_PRECISION`, are others and take none of these arguments.

Networks of other papers (`bireal`, `reactnet`, `real_to_binary`, `binary_duo`) make choices of their own among the
arguments of `Binarization`, which any argument overrules: their blocks go with every estimator, quantiser and scaling.
"""

from __future__ import annotations

from models import binary_duo, bireal, full_precision, reactnet, real_to_binary, resnet, vgg
from models.backbone import Backbone
from models.resnet import (
    BinaryResNet,
    resnet18_1w1a,
    resnet18_cifar_1w1a,
    resnet20_1w1a,
    resnet20_bireal_1w1a,
    resnet34_1w1a,
)
from models.summary import LayerSummary, ModelSummary, summarize
from models.vgg import BinaryVGG, vgg_small_1w1a

_FAMILIES = (resnet, vgg, bireal, reactnet, real_to_binary, binary_duo)
MODELS = tuple(sorted({name for family in _FAMILIES for name in family.default_cfgs}))
"""Every binary network registered here."""

FULL_PRECISION = tuple(sorted(full_precision.default_cfgs))
"""The full-precision networks registered here."""

__all__ = [
    "FULL_PRECISION",
    "MODELS",
    "Backbone",
    "BinaryResNet",
    "BinaryVGG",
    "LayerSummary",
    "ModelSummary",
    "resnet18_1w1a",
    "resnet18_cifar_1w1a",
    "resnet20_1w1a",
    "resnet20_bireal_1w1a",
    "resnet34_1w1a",
    "summarize",
    "vgg_small_1w1a",
]
