"""A run under many faults, started again after each, ends as if nothing had happened.

`make soak` meets forty faults of every kind in two thousand steps (about half an hour); the slow tests meet six.
"""

from __future__ import annotations

import json
import math
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import QUICK, environment, marked, records

RANKS = 2
BATCH = 24
EPOCH = 1440
"""Training images of the digits, a few less than there are."""
SETTINGS = (
    "data.image_size=16",
    "data.loader=torchvision",
    "train.compile=false",
    f"train.batch_size={BATCH}",
    "log.every=1",
    "checkpoint.keep=3",
    "run.step_timeout_s=10",
)
ENDINGS = {0, 1, 3, 4, 5, 85}
"""Exit codes of `reste train`; those above 0 ask for another start, once what they name has been mended."""
KINDS = ("kill9", "nan", "flip", "corrupt", "sigterm", "tracker_down", "stop", "enospc", "exit0", "slow", "raise")


@dataclass(frozen=True)
class Size:
    """How long a soak is: optimizer steps, faults, steps between two checkpoints, and the kinds of faults."""

    steps: int
    faults: int
    save_every: int
    kinds: tuple[str, ...]


SMALL = Size(steps=90, faults=6, save_every=6, kinds=("kill9", "nan", "flip", "corrupt", "sigterm", "tracker_down"))
LARGE = Size(steps=2000, faults=40, save_every=20, kinds=KINDS)


def schedule(size: Size, seed: int) -> list[str]:
    """Faults of every kind in turn, each at a place of its own that chance decides."""
    draw = random.Random(seed)
    gap = (size.steps - 2 * size.save_every) // size.faults
    found = []
    for number, kind in enumerate(islice(cycle(size.kinds), size.faults)):
        # Not before there is a checkpoint, and far enough from each other that every start gets somewhere.
        step = 2 * size.save_every + number * gap + draw.randrange(max(gap // 2, 1))
        rank = draw.randrange(RANKS)
        saved = step // size.save_every * size.save_every
        found += {
            "slow": [f"slow@{rank}:{step}-{step + 3}=0.1"],
            "enospc": [f"enospc@save:{1 + number // len(size.kinds)}"],
            # A flip is worth something if the next start comes upon it.
            "flip": [f"flip@ckpt:{saved}", f"kill9@{rank}:{saved + 2}"],
            "corrupt": [f"corrupt@sample:{draw.randrange(1000)}"],
            "tracker_down": [f"tracker_down@{step}-{step + gap // 2 + 1}"],
        }.get(kind, [f"{kind}@{rank}:{step}"])
    return found


def train(folder: Path, digits: Path, size: Size, faults: str) -> int:
    """One start; its exit code, with whatever it printed added to a log."""
    overrides = [
        f"data.root={digits}",
        f"run.dir={folder}",
        "run.name=run",
        f"train.epochs={-(-size.steps * BATCH // EPOCH)}",
        f"train.max_steps={size.steps}",
        f"checkpoint.every={size.save_every}",
        f"eval.every={5 * size.save_every}",
        f"log.indicators_every={size.save_every}",
    ]
    command = [sys.executable, "-m", "launch", "train", str(QUICK), *SETTINGS, *overrides, "--nproc", str(RANKS)]
    folder.mkdir(exist_ok=True)
    with (folder / "output.txt").open("ab") as output:
        mark = {"SOAK": str(folder)}
        done = subprocess.run(
            command,
            env=environment() | {"RESTE_FAULTS": faults, "OMP_NUM_THREADS": "1"} | mark,
            stdout=output,
            stderr=output,
            timeout=1800,
        )
    assert not marked(f"SOAK={folder}"), "something of a start outlived it"
    return done.returncode


def tensors(run: Path) -> dict[str, Any]:
    """Everything the last checkpoint holds, loaded with torch alone."""
    last = max((run / "checkpoints").glob("step_*"))
    return {path.stem: torch.load(path, weights_only=True) for path in sorted(last.glob("*.pt"))}


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def points(run: Path) -> Counter[tuple[str, int, str]]:
    """Every metric of the journal but those of speed."""
    found: Counter[tuple[str, int, str]] = Counter()
    for record in records(run / "journal.jsonl"):
        for name, value in record.get("metrics", {}).items():
            if not name.startswith("perf/"):
                found[name, record["step"], repr(float(value))] += 1
    return found


def sent(folder: Path) -> Counter[tuple[str, int, str]]:
    """What MLflow's database holds, read without MLflow."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        assert database.execute("select count(*), max(status) from runs").fetchall() == [(1, "FINISHED")]
        rows = database.execute("select key, step, value, is_nan from metrics where key not like 'perf/%'")
        return Counter((key, step, repr(math.nan if bad else value)) for key, step, value, bad in rows)


def met(run: Path) -> list[str]:
    """The faults in a run's ledger."""
    ledger = run / "faults.jsonl"
    return [json.loads(line)["fault"] for line in ledger.read_text().splitlines()] if ledger.exists() else []


def redone(run: Path, began: float) -> dict[str, Any]:
    """Seconds from a start to its first step, and how many steps that start had to make again."""
    lost = [record for path in run.glob("journal.lost-*.jsonl") for record in records(path)]
    losses = [r for r in lost + records(run / "journal.jsonl") if "train/loss" in r.get("metrics", {})]
    own = {r["step"]: r["time"] for r in losses if r["time"] >= began}
    earlier = {r["step"] for r in losses if r["time"] < began}
    return {
        "first_step_s": round(min(own.values()) - began, 1) if own else None,
        "steps_again": len(own.keys() & earlier),
    }


def tell(size: Size, seed: int, starts: list[dict[str, Any]]) -> None:
    """Write what was seen to the file that SOAK_RECORD names."""
    if path := os.environ.get("SOAK_RECORD"):
        record = {"command": "make soak", "date": time.strftime("%Y-%m-%d"), "size": asdict(size), "seed": seed}
        Path(path).write_text(json.dumps({**record, "cpus": os.cpu_count(), "starts": starts}, indent=1) + "\n")


def soak(folder: Path, digits: Path, size: Size, seed: int) -> None:
    """Train in quiet and under faults, and compare all that both leave behind."""
    assert train(folder / "quiet", digits, size, "") == 0
    faults = schedule(size, seed)
    quiet, soaked = folder / "quiet" / "run", folder / "soaked" / "run"
    starts: list[dict[str, Any]] = []
    while not starts or starts[-1]["exit_code"] != 0:
        began, before = time.time(), met(soaked)
        code = train(folder / "soaked", digits, size, " ".join(faults))
        starts.append({"exit_code": code, "faults": [f for f in met(soaked) if f not in before]})
        starts[-1] |= {"seconds": round(time.time() - began, 1), **redone(soaked, began)}
        print(starts[-1])
        assert code in ENDINGS
        assert len(starts) <= len(faults) + 2
    tell(size, seed, starts)
    assert set(met(soaked)) == set(faults)
    assert equal(tensors(quiet), tensors(soaked))
    assert points(quiet) == points(soaked)
    assert max(points(soaked).values()) == 1
    assert [step for name, step, _ in sorted(points(soaked), key=lambda p: p[1]) if name == "train/loss"] == list(
        range(1, size.steps + 1)
    )
    synced = subprocess.run(
        [sys.executable, "-m", "launch", "track", "sync", str(soaked)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert synced.returncode == 0, synced.stderr
    assert sent(folder / "soaked") == points(soaked)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(900)
def test_six_faults_leave_no_trace(tmp_path: Path, digits: Path) -> None:
    soak(tmp_path, digits, SMALL, seed=0)


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_forty_faults_leave_no_trace(tmp_path: Path, digits: Path) -> None:
    soak(tmp_path, digits, LARGE, seed=1)
