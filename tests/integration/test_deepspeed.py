"""DeepSpeed computes what DDP computes, bit for bit on two ranks, and their checkpoints are one format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import reserved_ports, run_ranks
from trainings import QUICK, ROOT, SMALL, environment, losses, metrics, records

pytestmark = pytest.mark.timeout(600)
ZERO0 = ("engine=deepspeed", "deepspeed.zero=0")
ZERO1 = ("engine=deepspeed", "deepspeed.zero=1")
TWIN = ("model.weight_bits=32", "model.activation_bits=32")
STEPS = 20
CHAIN = ((ZERO1, 4), ((), 8), (ZERO1, 12), (ZERO1, 16), ((), STEPS))
"""The engine of every start of a run, and where it ends."""
# 49 images: an epoch has two batches of 18 and one of 13, whose micro-batches the ranks share unevenly.
COMMON = (
    *SMALL,
    "train.batch_size=18",
    "data.image_size=8",
    "data.loader=synthetic",
    "data.synthetic={samples: 49, classes: 10}",
    "batchnorm.sync=off",
    "eval.every=0",
    "checkpoint.every=0",
)


def train_in_turn(config: str, *runs: tuple[int, list[str]]) -> None:
    """Train one run after the other, each on a port of its own: DeepSpeed keeps the store of the last one alive."""
    from trainer.main import run_rank

    for port, overrides in runs:
        os.environ["MASTER_PORT"] = str(port)
        assert run_rank(Path(config), overrides) == 0, overrides


def train(folder: Path, runs: list[tuple[str, tuple[str, ...]]], world: int = 2, steps: int = STEPS) -> None:
    """Train (name, overrides) one after the other; a name that comes again goes on."""
    common = [*COMMON, f"run.dir={folder}", f"train.max_steps={steps}"]
    with reserved_ports(len(runs)) as ports:
        commands = [
            (port, [*common, *overrides, f"run.name={name}"])
            for port, (name, overrides) in zip(ports, runs, strict=True)
        ]
        run_ranks(train_in_turn, world, str(QUICK), *commands, timeout_s=500, join=False)


def checkpoint(folder: Path, name: str, stem: str, step: int = STEPS) -> Any:
    return torch.load(folder / name / f"checkpoints/step_{step:08d}/{stem}.pt", weights_only=True)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.stride() == right.stride() and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def assert_same_weights(folder: Path, name: str, other: str) -> None:
    left, right = checkpoint(folder, name, "model"), checkpoint(folder, other, "model")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert equal(checkpoint(folder, name, "engine"), checkpoint(folder, other, "engine"))


def same_indicators(left: Path, right: Path) -> bool:
    """Whether every metric is there, and is equal but for the order in which a weight is summed up."""
    here, there = metrics(left), metrics(right)
    assert [(step, set(values)) for step, values in here] == [(step, set(values)) for step, values in there]
    assert any(name.startswith("indicator/gradient_instability") for _, values in here for name in values)
    return all(a == pytest.approx(b, rel=1e-5) for (_, a), (_, b) in zip(here, there, strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two ranks that accumulate; `chain` starts five times, with an engine other than before or the same."""
    folder = tmp_path_factory.mktemp("runs")
    engines: dict[str, tuple[str, ...]] = {"ddp": (), "zero0": ZERO0, "zero1": ZERO1}
    starts: list[tuple[str, tuple[str, ...]]] = list(engines.items())
    starts += [("chain", (*extra, f"train.max_steps={end}")) for extra, end in CHAIN]
    # Every save averages the running statistics of ranks that do not share them: all runs save at the same steps.
    common = ("train.accumulation=3", "checkpoint.every=4")
    train(folder, [(name, (*common, *extra)) for name, extra in starts])
    return folder


@pytest.mark.parametrize("name", ["zero0", "zero1"])
def test_losses_and_weights_are_those_of_ddp_bit_for_bit(runs: Path, name: str) -> None:
    expected = losses(runs / "ddp" / "journal.jsonl")
    assert len(expected) == STEPS
    assert losses(runs / name / "journal.jsonl") == expected
    assert_same_weights(runs, name, "ddp")
    assert same_indicators(runs / name / "journal.jsonl", runs / "ddp" / "journal.jsonl")


def test_a_run_resumes_in_either_engine_as_if_uninterrupted(runs: Path) -> None:
    journal = runs / "chain" / "journal.jsonl"
    assert [r["step"] for r in records(journal) if r.get("event") == "resumed"] == [end for _, end in CHAIN[:-1]]
    assert losses(journal) == losses(runs / "ddp" / "journal.jsonl")
    assert_same_weights(runs, "chain", "ddp")


def test_the_run_folder_says_what_deepspeed_was_told(runs: Path) -> None:
    told = json.loads((runs / "zero1" / "deepspeed.json").read_text())
    assert told["zero_optimization"]["stage"] == 1
    assert told["gradient_accumulation_steps"] == 3
    assert told["train_micro_batch_size_per_gpu"] == 3
    # Its last start was DDP's, the one before ZeRO 1's.
    assert not (runs / "chain" / "deepspeed.json").exists()


VARIANTS = {
    "binary": (),
    "twin": TWIN,
    "twin_3": (*TWIN, "train.accumulation=3"),
    "synchronised": ("batchnorm.sync=world", "train.ema=0.9", "train.clip_norm=1000"),
    "bf16": ("train.precision=bf16",),
    "fp16": ("train.precision=fp16", "train.accumulation=3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_training_is_that_of_ddp(tmp_path: Path, name: str) -> None:
    engines = {"ddp": (), "zero0": ZERO0, "zero1": ZERO1}
    train(tmp_path, [(engine, (*VARIANTS[name], *extra)) for engine, extra in engines.items()])
    expected = losses(tmp_path / "ddp" / "journal.jsonl")
    assert len(expected) == STEPS
    for engine in ("zero0", "zero1"):
        assert losses(tmp_path / engine / "journal.jsonl") == expected, engine
        assert_same_weights(tmp_path, engine, "ddp")


@pytest.mark.slow
def test_every_launcher_trains_to_the_same_weights(tmp_path: Path) -> None:
    bin_dir = Path(sys.executable).parent
    with reserved_ports(1) as [port]:
        launchers = {
            "reste": [sys.executable, "-m", "launch", "train", QUICK, "--engine", "deepspeed", "--nproc", "2"],
            "torchrun": [
                bin_dir / "torchrun",
                "--nproc-per-node",
                "2",
                f"--master-port={port}",
                "-m",
                "trainer",
                QUICK,
            ],
            "deepspeed": [bin_dir / "deepspeed", "--hostfile", "none", "--num_gpus", "2", f"--master_port={port}"],
        }
        launchers["deepspeed"] += ["--module", "trainer", QUICK]
        overrides = [*COMMON, "engine=deepspeed", "deepspeed.zero=1", f"run.dir={tmp_path}", "train.max_steps=6"]
        found = {}
        for name, command in launchers.items():
            done = subprocess.run(
                [*map(str, command), *overrides, f"run.name={name}"],
                env=environment() | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert done.returncode == 0, done.stderr
            manifest = json.loads((tmp_path / name / "checkpoints/step_00000006/manifest.json").read_text())
            assert manifest["world_size"] == 2
            found[name] = {file: told["sha256"] for file, told in manifest["files"].items() if file.endswith(".pt")}
    assert found["torchrun"] == found["deepspeed"] == found["reste"]
    assert set(found["reste"]) == {"model.pt", "engine.pt", "signs.pt"}
