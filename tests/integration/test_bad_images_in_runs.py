"""Whole runs that meet images they cannot read: replaced alike on every number of ranks, or stopped and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_ranks
from trainings import QUICK, SMALL, metrics, records, reste, train_here

from trainer.data.index import load_index
from trainer.data.order import permutation

STEPS, SEED = 10, 1234  # the quickstart's seed
BASE = [*SMALL, "train.batch_size=64", "checkpoint.every=100", "log.indicators_every=0", f"seed={SEED}"]
REPLACING = ["data.on_error=quarantine", "train.precision=fp64", "data.loader=torchvision"]


@pytest.fixture
def root(digits: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "digits"))


def command(root: Path, runs: Path, name: str, *extra: str, steps: int = STEPS) -> list[str]:
    places = [f"data.root={root}", f"run.dir={runs}", f"run.name={name}", f"train.max_steps={steps}"]
    return [*BASE, *places, *extra]


def victims(root: Path, *steps: int) -> dict[int, Path]:
    """One sample of the batch of each step, and its file."""
    index = load_index(root, "train")
    ids = [int(permutation(SEED, 0, len(index))[step * 64 + 7 * step]) for step in steps]
    return {sample: root / index.paths[sample] for sample in ids}


def values(run: Path) -> list[tuple[int, float, float]]:
    """Step, loss and number of images left out, of every training entry of the journal."""
    found = metrics(run / "journal.jsonl")
    return [(step, m["train/loss"], m["data/quarantined"]) for step, m in found if "train/loss" in m]


def listed(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def weights(run: Path, steps: int = STEPS) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"step_{steps:08d}" / "model.pt", weights_only=True)


def whole_and_in_two_lives(root: Path, runs: Path, kept: Path) -> list[int]:
    """A whole run, and one that ends, finds its files repaired, and goes on. Top level, for `run_ranks`."""
    from trainer.distributed import collectives

    codes = train_here(str(QUICK), command(root, runs, "whole", *REPLACING))
    codes += train_here(str(QUICK), command(root, runs, "lives", *REPLACING, steps=6))
    if collectives.rank() == 0:
        shutil.copytree(kept, root, dirs_exist_ok=True)
    return codes


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_number_of_ranks_and_of_lives_leaves_the_same_images_out(
    root: Path, digits: Path, tmp_path: Path
) -> None:
    bad = victims(root, 2, 4, 8)
    for file in bad.values():
        file.write_bytes(b"not an image")
    assert run_ranks(train_here, 1, str(QUICK), command(root, tmp_path, "alone", *REPLACING), join=False) == [[0]]
    both = run_ranks(whole_and_in_two_lives, 2, root, tmp_path, digits, join=False)
    assert both == [[0, 0]] * 2
    again = command(root, tmp_path, "lives", *REPLACING)
    for file in list(bad.values())[2:]:
        file.write_bytes(b"not an image")
    assert run_ranks(train_here, 2, str(QUICK), again, join=False) == [[0]] * 2

    alone, whole, lives = (values(tmp_path / name) for name in ("alone", "whole", "lives"))
    assert [count for _, _, count in alone] == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    for (step, loss, count), (other_step, other_loss, other_count) in zip(alone, whole, strict=True):
        assert (step, count) == (other_step, other_count)
        assert loss == pytest.approx(other_loss, rel=1e-9)
    assert lives == whole
    ours, theirs = weights(tmp_path / "lives"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("alone", "whole", "lives"):
        found = listed(tmp_path / name)
        assert [(f["sample"], f["step"]) for f in found] == list(zip(bad, (2, 4, 8), strict=True))
        assert [root / f["path"] for f in found] == list(bad.values())
        assert all("no image" in f["reason"] for f in found)
        told = [r for r in records(tmp_path / name / "journal.jsonl") if r.get("event") == "quarantined"]
        assert [(r["sample"], r["since"]) for r in told] == [(f["sample"], f["step"]) for f in found]


@pytest.mark.timeout(300)
def test_an_injected_fault_ends_the_run_once_and_the_next_start_finds_the_file_repaired(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, file = victims(root, 3).popitem()
    assert run_ranks(train_here, 1, str(QUICK), command(root, tmp_path, "quiet", *TORCH), join=False) == [[0]]
    monkeypatch.setenv("RESTE_FAULTS", f"corrupt@sample:{sample}")
    broken = command(root, tmp_path, "broken", *TORCH, "checkpoint.every=2")
    assert run_ranks(train_here, 1, str(QUICK), broken, broken, join=False) == [[3, 0]]
    status = json.loads((tmp_path / "broken" / "manifest.json").read_text())
    assert len(status["earlier"]) == 1
    assert metrics(tmp_path / "broken" / "journal.jsonl") == metrics(tmp_path / "quiet" / "journal.jsonl")
    log = (tmp_path / "broken" / "logs" / "rank_0.log").read_text()
    assert f"{file} (sample {sample} of train, rank 0) cannot be used" in log
    assert "data.on_error=quarantine" in log


TORCH = ["data.loader=torchvision"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("loader", ["dali", "torchvision"])
def test_two_ranks_end_at_a_damaged_file_and_go_on_from_the_repaired_one(
    loader: str, root: Path, tmp_path: Path
) -> None:
    extra = ["--nproc=2", f"data.loader={loader}", "checkpoint.every=2"]
    quiet = reste("train", QUICK, *command(root, tmp_path, "quiet", *extra))
    assert quiet.returncode == 0, quiet.stderr
    sample, file = victims(root, 6).popitem()
    content = file.read_bytes()
    file.write_bytes(content[:20])
    broken = reste("train", QUICK, *command(root, tmp_path, "broken", *extra))
    assert broken.returncode == 3, broken.stderr
    [line] = [line for line in broken.stderr.splitlines() if line.startswith("error: ")]
    assert f"{file} (sample {sample} of train, rank " in line
    file.write_bytes(content)
    again = reste("train", QUICK, *command(root, tmp_path, "broken", *extra))
    assert again.returncode == 0, again.stderr
    assert metrics(tmp_path / "broken" / "journal.jsonl") == metrics(tmp_path / "quiet" / "journal.jsonl")
    ours, theirs = weights(tmp_path / "broken"), weights(tmp_path / "quiet")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
