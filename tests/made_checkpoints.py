"""Checkpoints of untrained networks whose batch norms have statistics, written in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint
from trainer.config import Config, load_config
from trainer.network import instantiate

LABELS = ["naught", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def configuration(*overrides: str) -> Config:
    """A small network on small images, with these overrides."""
    given = ["model.name=resnet20_1w1a", "data.image_size=16", "augment.crop=pad", "data.loader=torchvision"]
    return load_config(None, [*given, *overrides])


def weights_of(config: Config, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of the configured network, its batch norms far from the identity."""
    torch.manual_seed(seed)
    model = instantiate(config, config.model.num_classes or len(LABELS))
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.dim() == 1 and name.endswith(("weight", "bias")):
            tensor.add_(torch.randn_like(tensor) * 0.2)
    return {
        name: tensor.double() if config.train.precision == "fp64" and tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }


def write_checkpoint(
    run: Path, *overrides: str, step: int = 34, about: dict[str, Any] | None = None, weights_seed: int = 0
) -> Path:
    """A checkpoint of a run folder, evaluated at its step; returns its folder."""
    config = configuration(*overrides)
    scores = {"val/loss": 0.5, "val/top1": 90.0, "val/top5": 99.0}
    payloads = {"model": weights_of(config, weights_seed), "engine": {}}
    if config.train.ema is not None:
        payloads["ema"] = weights_of(config, weights_seed + 1)
    return checkpoint.save(
        run / "checkpoints",
        payloads,
        progress=checkpoint.Progress(step, 1000, 1.0, scores, scores, step, 0, []),
        config_yaml=config.to_yaml(),
        about={
            "classes": LABELS,
            "config_digest": "c0ffee",
            "data_digest": "da7a",
            "world_size": 2,
            "steps_per_epoch": 17,
        }
        | (about or {}),
    )
