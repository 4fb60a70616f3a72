"""`reste card`: the folder, and what it holds."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from trainer.card.folder import FILES, load_trained, write_folder
from trainer.card.text import card_text
from trainer.errors import ConfigError


def card(run: Path, *, out: Path | None, licence: str) -> None:
    """Write model card, weights and configuration; print where they are and how to load them.

    Raises:
        ConfigError: no sound checkpoint there, no folder named for that of a single one, or it cannot be written to.
    """
    trained = load_trained(run)
    if out is None and not (run / "checkpoints").is_dir():
        raise ConfigError(f"{run} is no run folder, and what is put into a checkpoint goes with it: name --out DIR")
    folder = out or run / "card"
    write_folder(trained, card_text(trained, licence=licence), folder)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{folder}: {', '.join(FILES)} of {trained.path.name} ({trained.weights})", markup=False)
    console.print(f'load: timm.create_model("local-dir:{folder}", pretrained=True), after import models', markup=False)
