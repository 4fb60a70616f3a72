"""Trainings with progressive resizing: resumed over a change of size, and on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spawn import run_ranks
from trainings import QUICK, SMALL, losses, metrics, records, train_here

from trainer import checkpoint

pytestmark = pytest.mark.slow
STEPS = 9  # 64 images in batches of 25: epochs of 3 steps, the last of 14 images
RESIZING = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 64, classes: 10}",
    "data.image_size_schedule=[[0ep, 8], [30%, 16], [2ep, 12]]",
    "train.batch_size=25",
    "train.epochs=3",
    "train.precision=fp64",
    "eval.every=0",
    "log.indicators_every=0",
)


def runs(folder: Path, world: int) -> list[list[str]]:
    def run(name: str, *more: str) -> list[str]:
        return [*RESIZING, *more, f"run.dir={folder}", f"run.name={name}"]

    if world > 1:
        return [run(f"whole{world}")]
    # The second life begins one step before the size changes.
    return [run("whole1"), run("halves1", "train.max_steps=2"), run("halves1")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for world in (1, 2):
        commands = runs(folder, world)
        codes = run_ranks(train_here, world, str(QUICK), *commands, timeout_s=280, join=False)
        assert codes == [[0] * len(commands)] * world
    return folder


def test_the_journal_tells_the_size_of_every_step(folder: Path) -> None:
    told = [
        values["data/image_size"]
        for _, values in metrics(folder / "whole1" / "journal.jsonl")
        if "train/loss" in values
    ]
    assert told == [8] * 3 + [16] * 3 + [12] * 3


def test_a_run_resumed_before_a_change_of_size_equals_the_whole_one(folder: Path) -> None:
    whole, halves = folder / "whole1", folder / "halves1"
    assert [r["step"] for r in records(halves / "journal.jsonl") if r.get("event") == "resumed"] == [2]
    assert losses(whole / "journal.jsonl") == losses(halves / "journal.jsonl")
    last = f"checkpoints/step_{STEPS:08d}"
    one, other = (checkpoint.load_payload(run / last, "model") for run in (whole, halves))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_ranks_have_the_losses_of_one(folder: Path) -> None:
    one, two = (losses(folder / f"whole{world}" / "journal.jsonl") for world in (1, 2))
    assert len(one) == STEPS
    assert two == pytest.approx(one, abs=1e-9, rel=0)
