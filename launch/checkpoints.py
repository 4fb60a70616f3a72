"""The words behind `reste ckpt`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trainer.convert import convert


def convert_official(file: Path, model: str, out: Path, config: Path | None, overrides: list[str]) -> None:
    """Convert an official checkpoint and say what it is and what can be done with it.

    Raises:
        ConfigError: as `trainer.convert.convert`.
    """
    found = convert(file, model, out, config=config, overrides=overrides)
    told = {"model": "model {}", "epoch": "epoch {}", "best_prec1": "best top-1 {:.2f} %"}
    facts = ", ".join(told[key].format(value) for key, value in found.facts.items())
    net = found.config.model
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{found.folder}: {net.name}, {net.weight_bits}W{net.activation_bits}A, {net.num_classes} classes, "
        f"{net.numerics} numerics",
        markup=False,
    )
    console.print(f"the file says: {facts or 'nothing beside its weights'}", markup=False)
    console.print(f"evaluate it:   reste evaluate {out} --data ROOT", markup=False)
    console.print(f"train from it: model.init={out}", markup=False)
