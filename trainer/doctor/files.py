"""Checks of the run's folder: can every rank write there, do all see the same one, is there room."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import torch
from torch import nn

from trainer import checkpoints
from trainer.config import Config
from trainer.config_schema import OptimConfig
from trainer.doctor.check import ByRank, Check, Context, Facts, Problem, unlike_the_first
from trainer.errors import ConfigError
from trainer.optim import create_optimizer

MIB = 2**20
_SEEN_S = 5.0
"""A file written on another machine may show up late on a network file system."""


def nearest(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def look_at_place(context: Context) -> Facts:
    """Whether a file can be made where the run's folder is or will be; leaves nothing there."""
    place = nearest(context.config.run_dir)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"reste")
            file.flush()
    except OSError as error:
        reason = "is a file, not a folder" if place.is_file() else str(error.strerror or error)
        raise ConfigError(
            f"{place} cannot be written ({reason}): make it writable, or choose another run.dir"
        ) from None
    return {"place": str(place), "inode": place.stat().st_ino}


def judge_place(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """One folder for all ranks, as far as its number on the file system tells."""
    first = facts[min(facts)]
    problems = []
    if unlike := unlike_the_first(facts, "inode"):
        what = f"{facts[unlike[0]]['place']} looks like another folder than rank {min(facts)}'s {first['place']}"
        fix = "set run.dir to a folder that all machines share, by its absolute path"
        problems.append(Problem(unlike, what, fix, sure=False))
    return f"{first['place']} can be written", problems


def look_at_shared_folder(context: Context) -> Facts:
    """Every rank writes a file to `run.dir`, and reads those of all others."""
    board, parent = context.board, Path(context.config.run.dir).absolute()
    made = [place for place in (parent, *parent.parents) if not place.exists()]
    token = board.exchange("folder/token", uuid.uuid4().hex, 10.0)[0]
    folder = parent / f".doctor-{token}"
    fault = ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / str(context.rank)).write_text(token, encoding="utf-8")
    except OSError as error:
        fault = error.strerror or str(error)
    wrote = [not other for other in board.exchange("folder/written", fault, 10.0)]
    unseen = (
        [] if fault else [rank for rank, did in enumerate(wrote) if did and not _appears(folder / str(rank), token)]
    )
    board.exchange("folder/read", True, 10.0 + _SEEN_S)
    _remove(folder, made)
    if fault:
        raise ConfigError(f"{parent} cannot be written ({fault}): make it writable, or choose another run.dir")
    return {"folder": str(parent), "unseen": unseen}


def _appears(path: Path, content: str) -> bool:
    deadline = time.monotonic() + _SEEN_S
    while True:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _remove(folder: Path, made: list[Path]) -> None:
    """All ranks do this: where folders are not shared, each has its own to remove."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


def judge_shared_folder(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Each rank sees what the others wrote; checkpoints are written by rank 0 and read by all."""
    blind = [rank for rank, fact in sorted(facts.items()) if fact["unseen"]]
    folder = facts[min(facts)]["folder"]
    if not blind:
        return f"{folder} written and read by {len(facts)} rank{'s' if len(facts) > 1 else ''}", []
    unseen = ", ".join(map(str, facts[blind[0]]["unseen"]))
    fix = "set run.dir to a folder that all machines share, by its absolute path"
    what = f"does not see in {facts[blind[0]]['folder']} what rank {unseen} wrote there"
    return f"{folder} is not shared", [Problem(blind, what, fix)]


def checkpoint_bytes(model: nn.Module, config: Config) -> int:
    """About how large a checkpoint of this model is: weights, optimizer state, moving average."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    copies = 1 if config.train.ema is None else 2
    return round(copies * weights + state_per_parameter(config.optim) * trained)


def state_per_parameter(config: OptimConfig) -> float:
    """How many numbers the optimizer keeps for each parameter, found by one step of it on a small matrix.

    Raises:
        ConfigError: timm's factory does not know the optimizer.
    """
    probe = nn.Linear(64, 64, bias=False)
    optimizer, _ = create_optimizer(probe, config, fused=False)
    probe.weight.grad = torch.ones_like(probe.weight)
    optimizer.step()
    kept = sum(v.numel() for v in optimizer.state[probe.weight].values() if isinstance(v, torch.Tensor))
    return kept / probe.weight.numel()


def look_at_disk(context: Context) -> Facts:
    """Room for the run's checkpoints, in bytes: free, needed for one and for all."""
    config = context.config
    size = checkpoint_bytes(context.model, config)
    # The newest ones, the best, and the one that is being written.
    return room(config.run_dir, size, config.checkpoint.keep + 2)


def room(run_dir: Path, size: int, count: int) -> Facts:
    """Bytes free where the run's folder is, and bytes that checkpoints will still take; those there already count."""
    folder = run_dir / "checkpoints"
    there = [*checkpoints.steps(folder), *checkpoints.stumps(folder)]
    present = sum(file.stat().st_size for path in there for file in path.iterdir())
    free = shutil.disk_usage(nearest(run_dir)).free
    return {"place": str(nearest(run_dir)), "free": free, "size": size, "needed": max(count * size - present, size)}


def judge_disk(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Rank 0 writes the checkpoints."""
    fact = facts[min(facts)]
    free, size, needed = (fact[name] / MIB for name in ("free", "size", "needed"))
    result = f"{free:,.0f} MiB free, {needed:,.0f} needed ({size:,.1f} a checkpoint)"
    if free >= needed:
        return result, []
    what = f"{fact['place']} has {free:,.0f} MiB free; checkpoints of {size:,.1f} MiB need {needed:,.0f}"
    fix = "free some, lower checkpoint.keep, or choose a run.dir on another disk"
    return result, [Problem([min(facts)], what, fix, sure=free < size)]


_MOUNTED = "does ls of run.dir answer on this machine? If not, its file system hangs"
PLACE = Check("run folder", look_at_place, judge_place, _MOUNTED)
SHARED_FOLDER = Check("shared folder", look_at_shared_folder, judge_shared_folder, _MOUNTED, 45.0, together=True)
DISK = Check("disk", look_at_disk, judge_disk, _MOUNTED, 60.0, needs=("data set",))
