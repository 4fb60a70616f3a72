"""Pairwise covering arrays of the field's methods: every two choices of different kinds meet in some row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allpairspy import AllPairs

import models
from reste import list_estimators, list_quantizers, list_scalings

SMALL_NETWORKS = (
    "binary_duo20_1w1a",
    "bireal20_1w1a",
    "reactnet20_1w1a",
    "real_to_binary20_1w1a",
    "resnet20_1w1a",
    "vgg_small_1w1a",
)
"""One of each family, for 32 pixels."""

METHODS: dict[str, Sequence[Any]] = {
    "model.name": [name for name in models.MODELS if name in SMALL_NETWORKS],
    "estimator.name": list_estimators(),
    "estimator.weights": [None, "ste"],
    "quantizer.weight": ["none", *list_quantizers("weight")],
    "quantizer.activation": ["none", *list_quantizers("activation")],
    "quantizer.scaling": list_scalings(),
}
"""Key of the configuration -> everything that it can be set to, for the networks above."""


def pairs(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows such that any two values of any two keys stand in one of them together."""
    return [dict(zip(choices, row, strict=True)) for row in AllPairs(list(choices.values()))]
