"""Whole runs of the real program for tests: in processes of their own, killed when a test says so."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "configs" / "quickstart.yaml"
SMALL = (
    "data.image_size=16",
    "train.compile=false",
    "train.batch_size=48",
    "log.every=1",
    "log.indicators_every=4",
    "tracking.enabled=false",
)
"""A fast variant of the quickstart that writes every step to its journal."""


def environment() -> dict[str, str]:
    """The environment of a user's shell: no launcher's variables."""
    prefixes = ("SLURM_", "TORCHELASTIC_", "RESTE_")
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in names}
    # Beside other tests two threads a process wait for each other more than they compute.
    threads = {"OMP_NUM_THREADS": "1"} if "PYTEST_XDIST_WORKER" in os.environ else {}
    return kept | threads | {"RESTE_SITE": "", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


def reste(
    *arguments: object, timeout_s: float = 240, cwd: Path | None = None, threads: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, on so many threads a rank; both streams are captured."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        env=environment() | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


class Life:
    """One start of `reste train` in a session of its own, with a schedule of `faults`, if it is to have some."""

    def __init__(
        self, *arguments: object, log: Path, program: tuple[str, ...] = ("-m", "launch", "train"), faults: str = ""
    ) -> None:
        self.mark = uuid.uuid4().hex
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)],
                env=environment() | {"LIFE": self.mark} | ({"RESTE_FAULTS": faults} if faults else {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for_step(self, journal: Path, step: int, timeout_s: float = 240) -> None:
        """Return once the journal tells of a step beyond `step`."""
        deadline = time.monotonic() + timeout_s
        while last_step(journal) < step:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before step {step}"
            assert time.monotonic() < deadline, f"no step {step} within {timeout_s} s"
            time.sleep(0.005)

    def wait_for(self, file: Path, timeout_s: float = 240) -> None:
        """Return once a file is there. Checkpoints are written while training goes on."""
        deadline = time.monotonic() + timeout_s
        while not file.exists():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {file.name}"
            assert time.monotonic() < deadline, f"no {file} within {timeout_s} s"
            time.sleep(0.005)

    def ranks(self) -> list[int]:
        """Process ids of the launcher's children, in the order of their ranks."""
        return sorted(pid for pid in descendants(self.process.pid) if parent(pid) == self.process.pid)

    def survivors(self, within_s: float = 5) -> list[str]:
        """Command lines of processes of this life that are there still after so long, however deep they descend."""
        deadline = time.monotonic() + within_s
        while (found := marked(f"LIFE={self.mark}")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def kill(self) -> None:
        """SIGKILL to the launcher and all its ranks."""
        # Ranks are sessions of their own: they are found by their parents.
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Life:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def parent(pid: int) -> int | None:
    """The process that started another, None if that has gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def marked(variable: str) -> list[str]:
    """Command lines of living processes with this in their environment (a zombie's is empty)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in path.read_bytes().split(b"\0"):
                found.append((path.parent / "cmdline").read_text().replace("\0", " "))
    return found


def descendants(pid: int) -> list[int]:
    """Process ids below `pid`, from /proc."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def records(journal: Path) -> list[dict[str, Any]]:
    """Whole lines of a journal, read with nothing but json."""
    if not journal.exists():
        return []
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def last_step(journal: Path) -> int:
    """The highest step that the journal has metrics of."""
    return max((r["step"] for r in records(journal) if r["type"] == "metrics"), default=-1)


def metrics(journal: Path) -> list[tuple[int, dict[str, float]]]:
    """Every metric in order, times aside, and flip rates, which start anew with every life of a run."""
    kept = []
    for record in records(journal):
        if record["type"] == "metrics":
            left_out = ("perf/", "indicator/flip_rate")
            values = {k: v for k, v in record["metrics"].items() if not k.startswith(left_out)}
            kept.append((record["step"], values))
    return kept


def losses(journal: Path) -> list[float]:
    """The training loss of every step."""
    return [values["train/loss"] for _, values in metrics(journal) if "train/loss" in values]


def train_here(config: str, *runs: list[str]) -> list[int]:
    """Train one run after the other as the rank that the environment describes. Top level, for `spawn.run_ranks`."""
    from trainer.main import run_rank

    return [run_rank(Path(config), overrides) for overrides in runs]
