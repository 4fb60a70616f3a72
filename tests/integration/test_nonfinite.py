"""Steps that are not finite, in real trainings of two ranks: left out, gone back from, or the end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from spawn import run_ranks
from trainings import QUICK, SMALL, environment, records, reste

from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.data import datasets
from trainer.data.order import TrainOrder

pytestmark = pytest.mark.timeout(600)
BAD = 6
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
    "quiet": ("", ("train.max_steps=5",)),
    "skipped": (f"nan@1:{BAD}", ("train.max_steps=6", "train.nonfinite=skip 1")),
    "returned": (f"nan@0:{BAD}", ("train.max_steps=6", "train.nonfinite=rollback")),
    "aborted": (f"nan@1:{BAD}", ("train.max_steps=9",)),
}
ALONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "too_many": ("nan@0:2 nan@0:4", ("train.max_steps=9", "train.nonfinite=skip 1")),
    "nothing_to_return_to": ("nan@0:2", ("train.max_steps=9", "train.nonfinite=rollback")),
    # Signs are finite: without shortcuts the loss does not tell of a NaN.
    "hidden": ("nan@0:2", ("train.max_steps=2", "model.name=vgg_small_1w1a", "train.batch_size=4")),
}


def train_all(runs: dict[str, tuple[str, tuple[str, ...]]], digits: str, folder: str) -> dict[str, int]:
    """Runs with their faults, one after the other; exit codes by name."""
    from trainer.main import run_rank

    codes = {}
    for name, (faults, overrides) in runs.items():
        os.environ["RESTE_FAULTS"] = faults
        common = [*SMALL, "data.loader=torchvision", "checkpoint.every=3", "eval.every=0", "log.indicators_every=0"]
        places = [f"data.root={digits}", f"run.dir={folder}", f"run.name={name}"]
        codes[name] = run_rank(QUICK, [*common, *places, *overrides])
    return codes


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("nonfinite")
    first: dict[str, int] = {}
    for name, run in RUNS.items():
        # Processes of their own: a rank that is done sooner must not meet the other one's run before.
        codes, others = run_ranks(train_all, 2, {name: run}, str(digits), str(folder), join=False, timeout_s=120)
        assert codes == others
        first |= codes
    [alone] = run_ranks(train_all, 1, ALONE, str(digits), str(folder), join=False, timeout_s=300)
    return folder, first | alone


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights, batch statistics and momentum of a checkpoint, loaded with torch alone."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    found = dict(torch.load(folder / "model.pt", weights_only=True))
    state = torch.load(folder / "engine.pt", weights_only=True)["optimizer"]["state"]
    return found | {f"momentum {number}": kept["momentum_buffer"] for number, kept in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def events(run: Path, name: str) -> list[dict[str, object]]:
    return [record for record in records(run / "journal.jsonl") if record.get("event") == name]


def test_a_skipped_step_leaves_no_trace(runs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = runs
    assert codes["skipped"] == 0
    assert same(tensors(folder / "skipped", BAD), tensors(folder / "quiet", BAD - 1))
    [event] = events(folder / "skipped", "nonfinite")
    assert (event["step"], event["policy"], event["loss"]) == (BAD, "skip 1", "nan")


def test_a_rollback_goes_on_with_the_last_checkpoint(runs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = runs
    assert codes["returned"] == 0
    assert same(tensors(folder / "returned", BAD), tensors(folder / "returned", 3))
    assert not same(tensors(folder / "quiet", 5), tensors(folder / "returned", 3))
    [event] = events(folder / "returned", "rolled_back")
    assert (event["checkpoint"], event["left_out"]) == (3, [4, BAD])


def test_an_abort_names_the_step_and_saves_nothing_of_it(runs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = runs
    assert codes["aborted"] == 4
    status = json.loads((folder / "aborted" / "status.json").read_text())
    assert status["exit_code"] == 4
    assert f"not finite at step {BAD}" in status["error"]
    assert [path.name for path in checkpoints.steps(folder / "aborted" / "checkpoints")] == ["step_00000003"]


def test_the_report_holds_the_images_of_all_ranks(runs: tuple[Path, dict[str, int]]) -> None:
    folder, _ = runs
    report = json.loads((folder / "aborted" / "nonfinite" / f"step_{BAD:08d}.json").read_text())
    config = load_config(folder / "aborted" / "config.yaml")
    index = datasets.open_datasets(config).train
    augment = datasets.augment(config)
    seen = []
    for rank in (0, 1):
        order = TrainOrder(index, augment, seed=config.seed, batch_size=48, rank=rank, world=2)
        seen.append(next(order.plans(BAD - 1, BAD)).ids)
    assert report["samples"] == np.concatenate(seen).tolist()
    assert report["files"][0] == index.paths[int(seen[0][0])]
    assert (report["step"], report["world_size"], report["seed"]) == (BAD, 2, config.seed)


def test_the_checkpoint_before_a_bad_step_is_kept_where_training_goes_on(runs: tuple[Path, dict[str, int]]) -> None:
    folder, _ = runs
    report = json.loads((folder / "skipped" / "nonfinite" / f"step_{BAD:08d}.json").read_text())
    [resume] = [word for word in shlex.split(report["reproduce"]) if word.startswith("resume=")]
    kept, own = Path(resume.removeprefix("resume=")), folder / "skipped" / "checkpoints" / "step_00000003"
    assert kept == folder / "skipped" / "nonfinite" / "step_00000003"
    assert not checkpoint.problems(kept)
    assert (kept / "model.pt").samefile(own / "model.pt"), "it takes no room"


def test_every_policy_has_an_end(runs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = runs
    assert (codes["too_many"], codes["nothing_to_return_to"]) == (4, 4)
    assert "2 steps were not finite" in json.loads((folder / "too_many" / "status.json").read_text())["error"]


def test_a_nan_that_signs_hide_is_not_saved(runs: tuple[Path, dict[str, int]]) -> None:
    folder, codes = runs
    assert codes["hidden"] == 4
    assert not checkpoints.steps(folder / "hidden" / "checkpoints")


@pytest.mark.slow
def test_the_command_in_the_report_makes_it_happen_again(digits: Path, tmp_path: Path) -> None:
    places = (f"data.root={digits}", f"run.dir={tmp_path}", "run.name=hot", "checkpoint.every=2", "train.max_steps=30")
    done = reste("train", QUICK, *SMALL, *places, "optim.lr=1e25", "optim.warmup=0ep", "data.loader=torchvision")
    assert done.returncode == 4, done.stderr
    [path] = (tmp_path / "hot" / "nonfinite").iterdir()
    report = json.loads(path.read_text())
    command = shlex.split(report["reproduce"])
    again = subprocess.run(
        [sys.executable, "-m", "launch", *command[1:]], env=environment(), capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 4, again.stderr
    assert f"not finite at step {report['step']};" in again.stderr
