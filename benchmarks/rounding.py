"""Where rounding decides a sign: sums that are zero on paper, and values that are their channel's mean.

python benchmarks/rounding.py --record benchmarks/records/rounding.json
"""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from torch import Tensor, nn

import models  # noqa: F401  (registers the names)
from models.resnet import Block
from reste import BinaryConv2d, binary_sign, create_estimator
from trainer.tracking.manifest import build_manifest

CHANNELS = (16, 64, 512)
BATCHES = ((48, 32), (48, 16), (7, 32), (7, 16))
SEEDS = 6


def zero_sums(channels: int) -> dict[str, float]:
    """Share of a float32 3x3 convolution's outputs that are zero, and what becomes of them with the scale in front."""
    torch.manual_seed(0)
    signs = {kind: create_estimator("ste") for kind in ("weight_estimator", "activation_estimator")}
    layer = BinaryConv2d(channels, 32, 3, bias=False, scale="before", **signs)
    x = torch.randn(8, channels, 12, 12)
    zero = nn.functional.conv2d(binary_sign(x), binary_sign(layer.weight)) == 0
    noise = layer(x)[zero]
    return {
        "terms": 9 * channels,
        "zero": zero.double().mean().item(),
        "nonzero_with_scale_before": (noise != 0).double().mean().item(),
        "positive_with_scale_before": (noise > 0).double().mean().item(),
    }


def channels_on_their_mean(batch: int, size: int, seed: int) -> int:
    """Channels of a fresh ResNet-20's first batch norms with a value that is exactly the mean, counted in integers."""
    torch.manual_seed(seed)
    model = timm.create_model("resnet20_1w1a", num_classes=10).double()
    found = []

    def look(block: Block, outputs: Tensor) -> None:
        sums = (outputs.detach() / block.conv1.weight.abs().mean()).round().long()
        total = sums.sum((0, 2, 3), keepdim=True)
        # A channel of zeros alone is no tie: its mean is exact.
        on_mean = (sums * (sums.numel() // sums.shape[1]) == total) & (total != 0)
        found.append(int(on_mean.any(0).flatten(1).any(1).sum()))

    for block in model.modules():
        if isinstance(block, Block):
            block.act1.register_forward_hook(lambda _, __, outputs, block=block: look(block, outputs))
    model(torch.randn(batch, 3, size, size, dtype=torch.float64))
    return sum(found)


def main(
    record: Annotated[Path | None, typer.Option(help="Write what was measured to this JSON file.")] = None,
) -> None:
    """Measure both and print them."""
    torch.set_num_threads(1)
    rows = [zero_sums(channels) for channels in CHANNELS]
    ties: list[dict[str, Any]] = [
        {"batch": batch, "size": size, "channels": [channels_on_their_mean(batch, size, s) for s in range(SEEDS)]}
        for batch, size in BATCHES
    ]
    for row in [*rows, *ties]:
        print(row)
    if record is None:
        return
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)
    about = {
        "machine": {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")},
        "code": manifest["code"],
        "versions": manifest["versions"],
    }
    written = {
        "what": "zero sums of binary convolutions; channels with values on their mean, for each of six seeds",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).date().isoformat(),
        **about,
        "zero_sums": rows,
        "on_mean": ties,
    }
    record.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
