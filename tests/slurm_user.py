"""A user of a real SLURM: submits trainings of the digits, waits, looks, and knows what they should end with."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from slurm_daemons import Cluster
from trainings import QUICK, SMALL, environment, last_step

STEPS = 30
SETTINGS = (
    *SMALL,
    "data.loader=torchvision",
    "log.indicators_every=100",
    f"train.max_steps={STEPS}",
    "checkpoint.every=4",
    "eval.every=15",
)


@dataclass
class User:
    """Somebody with a folder, on a cluster; every process of theirs is marked.

    Attributes:
        folder: where they stand; runs go to `runs/` in it.
    """

    cluster: Cluster
    folder: Path
    digits: Path

    def __post_init__(self) -> None:
        """Write the site file."""
        (self.folder / "site.yaml").write_text("{nodes: 2, gpus_per_node: 0, ranks_per_node: 1, cpus_per_node: 1}\n")

    def environment(self) -> dict[str, str]:
        """What their shell has set."""
        site = {"RESTE_SLURM_SITE": str(self.folder / "site.yaml"), "OMP_NUM_THREADS": "1"}
        return environment() | self.cluster.environment | site

    def submit(self, run: str, *words: object, settings: tuple[str, ...] = SETTINGS, data: Path | None = None) -> str:
        """`reste slurm submit`; the job's number."""
        settings = (*settings, f"data.root={data or self.digits}", f"run.name={run}")
        done = self.reste("slurm", "submit", QUICK, *settings, *words)
        assert done.stdout.startswith("job "), done.stderr
        return done.stdout.split()[1].rstrip(":")

    def reste(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run the command line in their folder."""
        return subprocess.run(
            [sys.executable, "-m", "launch", *map(str, words)],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def sbatch(self, *words: str) -> str:
        """SLURM's own command, with this Python's programs found first; its output."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sbatch", *words],
            cwd=self.folder,
            env=self.environment() | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def wait_for_step(self, run: str, step: int, timeout_s: float = 300) -> None:
        """Return once the journal tells of a step beyond `step`."""
        deadline = time.monotonic() + timeout_s
        while last_step(self.run(run) / "journal.jsonl") < step:
            assert time.monotonic() < deadline, f"no step {step} within {timeout_s} s{self.cluster.logs()}"
            time.sleep(0.02)

    def wait_for_checkpoint(self, run: str, timeout_s: float = 300) -> None:
        """Return once a checkpoint is complete."""
        deadline = time.monotonic() + timeout_s
        while not list((self.run(run) / "checkpoints").glob("step_*/manifest.json")):
            assert time.monotonic() < deadline, f"no checkpoint within {timeout_s} s{self.cluster.logs()}"
            time.sleep(0.02)

    def output(self, run: str, job: str) -> str:
        """What all starts of a job have printed."""
        return (self.run(run) / "slurm" / f"{job}.log").read_text(errors="replace")

    def nobody_is_left(self) -> None:
        """Fail if a process of a job lives on; SLURM may take a moment to clear up."""
        deadline = time.monotonic() + 10
        while left := self.cluster.survivors():
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def train_on_one_machine(folder: Path, digits: Path, settings: tuple[str, ...], name: str = "whole") -> None:
    """`reste train --nproc 2`, from where the run stands."""
    command = [sys.executable, "-m", "launch", "train", str(QUICK), *settings, f"data.root={digits}"]
    done = subprocess.run(
        [*command, f"run.name={name}", "--nproc=2"],
        cwd=folder,
        env=environment() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def digest(run: Path, steps: int = STEPS) -> str:
    """SHA-256 over every tensor of a run's last checkpoint, the optimizer's included, and its journal's losses."""
    found = hashlib.sha256()
    for payload in ("model", "engine"):
        content = torch.load(run / "checkpoints" / f"step_{steps:08d}" / f"{payload}.pt", weights_only=True)
        add(found, content)
    return found.hexdigest()


def add(found: hashlib._Hash, value: object) -> None:
    """Digest nested containers in a fixed order."""
    if isinstance(value, torch.Tensor):
        found.update(str((value.dtype, tuple(value.shape))).encode())
        found.update(value.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            found.update(str(key).encode())
            add(found, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            add(found, item)
    else:
        found.update(repr(value).encode())
