"""What only the checkpoints tell: how a run's latent weights lie about zero, and how many signs turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from reste import binary_layers
from reste.layers import BinaryLayer
from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.network import instantiate

Floats = NDArray[np.float64]

BINS = 80
LOWEST, HIGHEST = -5.0, 1.0
"""Decades of |w| that are counted; what lies beyond counts in the first or last bin."""


@dataclass(frozen=True)
class Weights:
    """The latent weights of a checkpoint's layers with binary weights.

    Attributes:
        step: of the checkpoint.
        edges: (BINS + 1,) of the bins, in units of the weight.
        shares: layer -> (BINS,) shares of its weights, summing to 1, by |w|.
        counts: layer -> how many weights it has.
        knee, threshold: of the estimator, None where it has none.
    """

    step: int
    edges: Floats
    shares: dict[str, Floats]
    counts: dict[str, int]
    knee: float | None
    threshold: float | None

    @property
    def total(self) -> Floats:
        """(BINS,) shares over all layers together."""
        whole = sum(self.counts.values())
        return np.sum([self.shares[name] * (count / whole) for name, count in self.counts.items()], axis=0)


@dataclass(frozen=True)
class Flips:
    """Signs that differ between two checkpoints: `shares` is layer -> percent of its weights."""

    before: int
    after: int
    shares: dict[str, float]


@dataclass(frozen=True)
class LayerFacts:
    """What the checkpoints of a run tell, and why where it is less than everything."""

    weights: Weights | None
    flips: list[Flips]
    missing: str | None


def look_into(run: Path) -> LayerFacts:
    """Read the kept checkpoints of a run folder, oldest first; damaged ones are passed over and named."""
    found = checkpoints.steps(run / "checkpoints")
    try:
        good = [path for path in found if not checkpoint.problems(path)]
        damaged = [path.name for path in found if path not in good]
        told = f"{', '.join(damaged)} cannot be used; see reste ckpt verify" if damaged else None
        if not good:
            return LayerFacts(None, [], told or "the run folder keeps no checkpoint")
        layers = layers_of(good[-1])
        if not layers:
            return LayerFacts(None, [], "the network has no binary weights")
        weights, flips = _weights(good[-1], layers), turned(good, layers)
    except ConfigError as error:
        return LayerFacts(None, [], str(error))
    if not flips and told is None:
        told = "one checkpoint is kept, and it takes two to see signs turn: checkpoint.keep is how many are kept"
    return LayerFacts(weights, flips, told)


def turned(paths: Sequence[Path], layers: dict[str, BinaryLayer]) -> list[Flips]:
    """Signs that turned from each checkpoint to the next of those that are still there.

    Raises:
        ConfigError: one that is there cannot be read.
    """
    flips = []
    older: tuple[int, dict[str, torch.Tensor]] | None = None
    for path in paths:
        try:
            signs = _signs(path, layers)
        except ConfigError:
            if path.exists():
                raise
            continue  # a run that goes on has removed it since
        step = checkpoint.step_of(path)
        if older is not None:
            shares = {name: 100 * (signs[name] != older[1][name]).double().mean().item() for name in layers}
            flips.append(Flips(older[0], step, shares))
        older = step, signs
    return flips


def layers_of(path: Path) -> dict[str, BinaryLayer]:
    """Layers with binary weights; their estimators tell knee and threshold, their weights hold no values."""
    config = load_config(path / "config.yaml")
    classes = checkpoint.read_manifest(path)["classes"] or []
    with torch.device("meta"):
        model = instantiate(config, config.model.num_classes or len(classes) or 1)
    return {name: layer for name, layer in binary_layers(model) if layer.weight_estimator is not None}


def _tensors(path: Path, layers: dict[str, BinaryLayer]) -> Iterator[tuple[str, torch.Tensor]]:
    stored = checkpoint.load_payload(path, "model")
    for name in layers:
        yield name, stored[f"{name}.weight"]


def _signs(path: Path, layers: dict[str, BinaryLayer]) -> dict[str, torch.Tensor]:
    return {name: weight >= 0 for name, weight in _tensors(path, layers)}


def _weights(path: Path, layers: dict[str, BinaryLayer]) -> Weights:
    edges = np.logspace(LOWEST, HIGHEST, BINS + 1)
    shares, counts = {}, {}
    for name, weight in _tensors(path, layers):
        size = np.clip(np.abs(weight.double().numpy().ravel()), edges[0], edges[-1])
        counts[name] = size.size
        shares[name] = np.histogram(size, bins=edges)[0] / size.size
    estimator = next(iter(layers.values())).weight_estimator
    return Weights(
        step=checkpoint.step_of(path),
        edges=edges,
        shares=shares,
        counts=counts,
        knee=getattr(estimator, "knee", None),
        threshold=getattr(estimator, "threshold", None),
    )
