"""The table behind `reste summary`."""

from __future__ import annotations

import difflib

import timm
import torch
from rich.console import Console
from rich.table import Table

import models
from models import ModelSummary, summarize
from reste import list_estimators, list_quantizers, list_scalings
from trainer.errors import ConfigError

MIB = 8 * 1024 * 1024


def print_names() -> None:
    """List what a configuration can name: binary models, estimators, quantisers and scalings."""
    print_models()
    parts = Table("part", "configuration", "names")
    parts.add_row("estimators", "estimator.name, estimator.weights", ", ".join(list_estimators()))
    for side in ("weight", "activation"):
        names = ", ".join(["none", *list_quantizers(side)])
        parts.add_row(f"{side} quantisers", f"quantizer.{side}", names)
    parts.add_row("scalings", "quantizer.scaling", ", ".join(list_scalings()))
    Console().print(parts)


def print_models() -> None:
    """List the binary models with their input size and number of classes."""
    table = Table("model", "input", "classes", "binary weights", "parameters")
    for name in models.MODELS:
        with torch.device("meta"):  # sizes need no values
            model = timm.create_model(name)
        found = summarize(model, model.default_cfg["input_size"][-1])
        table.add_row(
            name,
            str(model.default_cfg["input_size"][-1]),
            str(model.default_cfg["num_classes"]),
            f"{found.binary_parameters:,}",
            f"{found.parameters:,}",
        )
    Console().print(table)


def print_summary(
    name: str, *, weight_bits: int, activation_bits: int, num_classes: int | None, image_size: int | None
) -> None:
    """Print one model layer by layer, and its totals.

    Raises:
        ConfigError: no such binary model, or bits other than 1 and 32.
    """
    if name not in models.MODELS:
        near = difflib.get_close_matches(name, models.MODELS, n=3, cutoff=0.3)
        raise ConfigError(f"there is no binary model {name!r}; did you mean {' or '.join(near or models.MODELS)}?")
    if {weight_bits, activation_bits} - {1, 32}:
        raise ConfigError("bits are 1 or 32")
    model = timm.create_model(name, weight_bits=weight_bits, activation_bits=activation_bits, num_classes=num_classes)
    size = image_size or model.default_cfg["input_size"][-1]
    found = summarize(model, size)
    console = Console()
    table = Table(
        "layer", "kind", "bits W/A", "output", "parameters", "MACs", title=f"{name} at {size} x {size} pixels"
    )
    for row in found.layers:
        table.add_row(
            row.name,
            row.kind,
            f"{row.weight_bits}/{row.activation_bits}",
            " x ".join(map(str, row.output_shape)),
            f"{row.parameters:,}",
            f"{row.macs:,}",
        )
    console.print(table)
    console.print(totals(found), highlight=False)


def totals(found: ModelSummary) -> str:
    """Parameters, memory and operations in three lines."""
    full = found.parameters * 32 / MIB
    packed = found.deployed_bits / MIB
    return (
        f"parameters   {found.parameters:,}, of which {found.binary_parameters:,} of one bit\n"
        f"memory       {packed:.2f} MiB deployed, {full:.2f} MiB in float32 ({full / packed:.1f} times)\n"
        f"MACs         {found.macs_1bit:,} of one bit, {found.macs_32bit:,} of 32 bits "
        f"(operations: 32-bit + 1-bit / 64 = {found.operations:,.0f})"
    )
