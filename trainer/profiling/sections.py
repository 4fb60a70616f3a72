"""The sections of a step, and how a run's parts are made to mark them in a trace.

The loop knows nothing of it: the parts that it calls are wrapped while a few steps are recorded, and are themselves
again afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch.profiler import record_function

from trainer.data.batch import Batch
from trainer.pixels import Pixels
from trainer.profiling.account import PREFIX
from trainer.run import Run


def mark_sections(run: Run, step_done: Callable[[int], None]) -> Callable[[], None]:
    """Wrap what the loop calls so that a trace shows its sections; returns what takes the wrapping off again.

    Args:
        run: assembled.
        step_done: called in the place of `run.pulse.step_done`.
    """
    pixels = run.pixels
    marked = [
        (run.feed, "take", _within("data", run.feed.take)),
        (run.feed, "paused", _around("pause", run.feed.paused)),
        (run.engine, "forward", _within("forward", run.engine.forward)),
        (run.engine, "backward", _within("backward", run.engine.backward)),
        (run.engine, "finish_gradients", _within("optimizer", run.engine.finish_gradients)),
        (run.engine, "step", _within("optimizer", run.engine.step)),
        (run.pulse, "step_done", step_done),
    ]
    for part, method, wrapped in marked:
        setattr(part, method, wrapped)
    run.pixels = cast(Pixels, _MarkedPixels(pixels))

    def restore() -> None:
        for part, method, _ in marked:
            delattr(part, method)
        run.pixels = pixels

    return restore


def _within(section: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(PREFIX + section):
            return method(*args, **kwargs)

    return marked


def _around(section: str, method: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    @contextmanager
    def marked() -> Iterator[None]:
        with record_function(PREFIX + section), method():
            yield

    return marked


class _MarkedPixels:
    """`Pixels` whose calls are sections; a call cannot be wrapped on the object itself."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def __call__(self, batch: Batch, *, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        with record_function(PREFIX + "to_device"):
            return self._pixels(batch, whole=whole)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pixels, name)
