"""Writers killed at two hundred points of a save: there is always a newest state, and no torn one bears its name."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_writer import BEST_EVERY, KEEP
from trainings import ROOT, environment

pytestmark = pytest.mark.timeout(300)
Kill = Callable[[str, int], int]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder in memory if there is one: what SIGKILL leaves behind does not depend on a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture
def kill(place: Path) -> Iterator[Kill]:
    """Let a writer live in `place` and die as ordered; returns the signal that ended it."""
    nursery = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "checkpoint_writer.py")],
        env=environment() | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    with nursery:

        def order(kind: str, number: int) -> int:
            print(place / "checkpoints", place / "acknowledged", kind, number, file=nursery.stdin, flush=True)
            return int(nursery.stdout.readline())

        yield order
        nursery.stdin.close()


def is_whole(path: Path) -> bool:
    """Judged from what the format says, not by the program."""
    manifest = json.loads((path / "manifest.json").read_text())
    step = manifest["progress"]["step"]
    digests = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in manifest["files"]}
    return (
        path.name == f"step_{step:08d}"
        and digests == {name: fact["sha256"] for name, fact in manifest["files"].items()}
        and set(digests) == {"model.pt", "engine.pt", "config.yaml"}
        and all(torch.load(path / f"{stem}.pt", weights_only=True).eq(step).all() for stem in ("model", "engine"))
    )


def check(place: Path) -> tuple[int, int]:
    """What must hold whenever a writer was killed; returns the newest step there is and the last that was told of."""
    folder = place / "checkpoints"
    told = [int(line) for line in (place / "acknowledged").read_text().split()]
    last = max(told, default=0)
    there = sorted(folder.glob("step_*"))
    torn = [path.name for path in there if not is_whole(path)]
    assert torn == []
    steps = [int(path.name.removeprefix("step_")) for path in there]
    assert last <= max(steps, default=0), "a saved state has vanished"
    assert len(steps) >= min(KEEP, last), "one to fall back to"
    assert len(steps) <= KEEP + 3, "old ones pile up"
    if last >= BEST_EVERY:
        best = (folder / "best").resolve()
        assert is_whole(best)
        assert int(best.name.removeprefix("step_")) >= last - last % BEST_EVERY
    return max(steps, default=0), last


def test_killed_between_any_two_things_done_to_files(place: Path, kill: Kill) -> None:
    """Every phase of twelve saves in a row: making the folder, each file, manifest, rename, best, pruning, renewing."""
    newest, told = [0], [0]
    for number in range(80):
        assert kill("operation", number) == signal.SIGKILL
        for states, state in zip((newest, told), check(place), strict=True):
            states.append(state)
    assert newest == sorted(newest), "no life ends before where the one before it ended"
    assert any(n > t for n, t in zip(newest, told, strict=True)), "some die between the rename and telling of it"
    assert len(set(newest)) < len(newest), "some die before they have saved anything"
    assert newest[-1] > 80


def test_killed_within_any_file(place: Path, kill: Kill) -> None:
    """The kernel ends a writer at the byte where its file may not grow further."""
    assert kill("operation", 200) == signal.SIGKILL
    before, _ = check(place)
    sizes = {file.name: file.stat().st_size for file in (place / "checkpoints" / f"step_{before:08d}").iterdir()}
    order = ["model.pt", "engine.pt", "config.yaml", "manifest.json"]
    assert sorted(sizes, key=sizes.__getitem__) == order, "each may be the first that is too large"
    draw = random.Random(7)
    for number in range(40):
        name = order[number % 4]
        smallest = max((size for size in sizes.values() if size < sizes[name]), default=0)
        assert kill("byte", draw.randrange(smallest, sizes[name])) == signal.SIGXFSZ, name
        assert check(place)[0] == before, name
        left = next((place / "checkpoints").glob(".step_*.tmp"), None)
        assert left is not None, name
        assert (left / name).exists(), name
        assert (left / name).stat().st_size < sizes[name], name


def test_killed_at_any_moment(place: Path, kill: Kill) -> None:
    draw = random.Random(3)
    newest = [0]
    # On a busy machine a life is killed before it has come far: there are as many lives as it takes.
    while len(newest) <= 80 or newest[-1] <= 20:
        assert kill("time", draw.randrange(60_000)) == signal.SIGKILL
        newest.append(check(place)[0])
    assert newest == sorted(newest), "no life ends before where the one before it ended"
