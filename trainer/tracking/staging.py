"""What the folder of a training of several stages says about itself, for those who write below it."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "stages.json"


def stage_names(folder: Path) -> list[str]:
    """The stages of a training in their order; none for an ordinary run."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def is_stage(run_dir: Path) -> bool:
    """Whether a run is a stage of a training, whose folder is the one above."""
    return run_dir.name in stage_names(run_dir.parent)


def run_label(run_dir: Path) -> str:
    """A run's name for people: that of its folder, of a stage with the training's in front."""
    return f"{run_dir.parent.name}/{run_dir.name}" if is_stage(run_dir) else run_dir.name
