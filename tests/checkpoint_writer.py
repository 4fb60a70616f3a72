"""A process that saves small states until it is killed, for `tests/integration/test_checkpoint_killed.py`.

It reads one order a line, `FOLDER ACKNOWLEDGED KIND NUMBER`, forks a writer for it, and says with what signal that
ended. A writer takes up the newest checkpoint, as a run does, and writes the number of each step that is saved to the
file ACKNOWLEDGED. It kills itself before the NUMBERth thing it does to files (`operation`), or dies in the middle of
the file whose byte NUMBER it writes (`byte`), or is killed after NUMBER microseconds (`time`).
"""

from __future__ import annotations

import itertools
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, checkpoints
from trainer.saver import Saver

KEEP = 2
BEST_EVERY = 3
DUE_EVERY = 4
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink"}


def state(step: int) -> dict[str, Any]:
    """What a step saves. Its files grow in the order in which they are written, so that each can be the torn one."""
    return {"model": torch.full((4,), float(step)), "engine": torch.full((500,), float(step))}


def progress(step: int, *, due: bool) -> checkpoint.Progress:
    best_step = step - step % BEST_EVERY or None
    return checkpoint.Progress(step, 0, 0.0, {}, {}, best_step, 0, [], evaluation_due=due)


def save(saver: Saver, step: int, *, due: bool) -> None:
    saver.save(
        state(step),
        progress=progress(step, due=due),
        config_yaml="#" * 6000,
        about={"classes": ["class"] * 900},
        best=step % BEST_EVERY == 0,
    )


def die_before(number: int) -> None:
    """SIGKILL before the numberth operation on files from now on."""
    left = itertools.count(number, -1)

    def hook(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def write(folder: Path, acknowledged: Path, kind: str, number: int) -> None:
    path = checkpoints.take_up(folder)
    step = 0
    if path is not None:
        taken = checkpoint.Progress(**checkpoint.read_manifest(path)["progress"])
        step = taken.step
        checkpoints.set_aside(folder, taken)
    told = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    saver = Saver(folder, keep=KEEP)
    if kind == "operation":
        die_before(number)
    elif kind == "byte":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    while True:
        step += 1
        if step % DUE_EVERY == 0:
            save(saver, step, due=True)
        save(saver, step, due=False)
        saver.finish()
        os.write(told, f"{step}\n".encode())


def live(folder: Path, acknowledged: Path, kind: str, number: int) -> int:
    """One writer's life; returns the signal that ended it."""
    child = os.fork()
    if child == 0:
        try:
            write(folder, acknowledged, kind, number)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    if kind == "time":
        time.sleep(number / 1e6)
        os.kill(child, signal.SIGKILL)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for order in sys.stdin:
        folder, acknowledged, kind, number = order.split()
        print(live(Path(folder), Path(acknowledged), kind, int(number)), flush=True)


if __name__ == "__main__":
    main()
