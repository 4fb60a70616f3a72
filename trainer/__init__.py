"""The program: configuration, data, distribution, the loop, checkpoints and tracking.

`load_config`, `build`, `train` and `evaluate` are the whole public surface; they are imported on first use, so that
importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.assembly import build
    from trainer.config import load_config
    from trainer.evaluation import evaluate
    from trainer.loop import train

__all__ = ["build", "evaluate", "load_config", "train"]

_HOME = {
    "load_config": "trainer.config",
    "build": "trainer.assembly",
    "train": "trainer.loop",
    "evaluate": "trainer.evaluation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
