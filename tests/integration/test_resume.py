"""A run killed twice in one epoch ends bit for bit where the uninterrupted one ends."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import QUICK, SMALL, Life, metrics, records, reste

from trainer import checkpoint, checkpoints

STEPS = 24  # of the 31 steps of the first epoch
BASE = [*SMALL, f"train.max_steps={STEPS}", "checkpoint.every=5", "eval.every=12"]
PLAIN: tuple[str, ...] = ()
MIXED = ("train.precision=fp16", "train.ema=0.9", "train.clip_norm=1.0", "train.accumulation=2", "train.batch_size=26")


def arguments(runs: Path, name: str, digits: Path, ranks: int, extra: tuple[str, ...]) -> list[str]:
    return [str(QUICK), *BASE, *extra, f"data.root={digits}", f"run.dir={runs}", f"run.name={name}", f"--nproc={ranks}"]


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("ranks", "extra"),
    [
        pytest.param(1, PLAIN, id="1-rank", marks=pytest.mark.slow),
        pytest.param(2, PLAIN, id="2-ranks"),
        pytest.param(3, PLAIN, id="3-ranks", marks=pytest.mark.slow),
        pytest.param(2, MIXED, id="2-ranks-fp16-ema-clip-accumulation", marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_twice_equals_the_uninterrupted_one(
    tmp_path: Path, digits: Path, ranks: int, extra: tuple[str, ...]
) -> None:
    whole = reste("train", *arguments(tmp_path, "whole", digits, ranks, extra))
    assert whole.returncode == 0, whole.stderr

    command = arguments(tmp_path, "killed", digits, ranks, extra)
    run = tmp_path / "killed"
    journal, log = run / "journal.jsonl", tmp_path / "log.txt"
    for step, saved in ((8, 5), (17, 15)):
        # The steps after it are slow, so that it is not over before it is killed.
        with Life(*command, log=log, faults=f"slow@*:{step + 1}-{STEPS}=0.5") as life:
            life.wait_for_step(journal, step)
            life.wait_for(run / f"checkpoints/step_{saved:08d}/manifest.json")
            life.kill()
    last = reste("train", *command)
    assert last.returncode == 0, last.stderr

    # It did resume, both times, and not from the beginning.
    resumed = [r for path in [*sorted(run.glob("journal.lost-*.jsonl")), journal] for r in records(path)]
    steps = [r["step"] for r in resumed if r.get("event") == "resumed"]
    assert len(steps) == 2
    assert 0 < steps[0] < steps[1] < STEPS
    assert not [r for r in records(tmp_path / "whole" / "journal.jsonl") if r.get("event") == "resumed"]

    assert metrics(journal) == metrics(tmp_path / "whole" / "journal.jsonl")
    final = f"checkpoints/step_{STEPS:08d}"
    stems = ["model", "engine", *(["ema"] if "train.ema=0.9" in extra else [])]
    for stem in stems:
        left, right = (torch.load(tmp_path / n / final / f"{stem}.pt", weights_only=True) for n in ("whole", "killed"))
        assert equal(left, right), stem
    if "ema" in stems:
        assert torch.load(run / final / "engine.pt", weights_only=True)["scaler"]["scale"] > 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_killed_at_ten_random_moments_while_it_always_saves(tmp_path: Path, digits: Path) -> None:
    busy = (f"train.max_steps={2 * STEPS}", "checkpoint.every=1", "train.batch_size=16", "log.indicators_every=0")
    whole = reste("train", *arguments(tmp_path, "whole", digits, 1, busy), timeout_s=900)
    assert whole.returncode == 0, whole.stderr
    command = arguments(tmp_path, "killed", digits, 1, busy)
    run = tmp_path / "killed"
    draw = random.Random(11)
    newest = 0
    for _ in range(10):
        with Life(*command, log=tmp_path / "log.txt") as life:
            life.wait_for_step(run / "journal.jsonl", newest + 2)
            time.sleep(draw.uniform(0, 0.2))
            life.kill()
        path = checkpoints.newest_valid(run / "checkpoints")
        assert path is not None
        assert checkpoint.step_of(path) > newest, "a life that saves moves on"
        newest = checkpoint.step_of(path)
        assert all(map(checkpoint.is_valid, checkpoints.steps(run / "checkpoints")))
    last = reste("train", *command, timeout_s=900)
    assert last.returncode == 0, last.stderr
    assert metrics(run / "journal.jsonl") == metrics(tmp_path / "whole" / "journal.jsonl")
    final = f"checkpoints/step_{2 * STEPS:08d}"
    assert equal(*(checkpoint.load_payload(tmp_path / name / final, "model") for name in ("whole", "killed")))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_may_begin_at_another_ones_checkpoint_and_goes_on_from_its_own(tmp_path: Path, digits: Path) -> None:
    quick = ("train.batch_size=96", "eval.every=3")
    assert reste("train", *arguments(tmp_path, "first", digits, 1, (*quick, "train.max_steps=6"))).returncode == 0
    start = tmp_path / "first" / "checkpoints" / "step_00000005"
    command = arguments(tmp_path, "second", digits, 1, (*quick, f"resume={start}"))
    for end in (8, 12):
        done = reste("train", *command, f"train.max_steps={end}", "checkpoint.every=4")
        assert done.returncode == 0, done.stderr
        assert "metrics are missing" not in done.stderr
    journal = records(tmp_path / "second" / "journal.jsonl")
    begun = [(r["step"], r["from"]) for r in journal if r.get("event") == "resumed"]
    assert begun == [(5, str(start)), (8, "checkpoints/step_00000008")]
    losses = [r["step"] for r in journal if "train/loss" in r.get("metrics", {})]
    assert losses == list(range(6, 13)), "each step once"
    # The best is one of its own evaluations: those before step 5 are another run's.
    best = (tmp_path / "second" / "checkpoints" / "best").resolve()
    assert checkpoint.step_of(best) in (6, 8, 9, 12)


def test_the_moving_average_is_of_the_weights_after_each_step_and_is_what_is_evaluated(
    tmp_path: Path, digits: Path
) -> None:
    ask = ("train.ema=1ep", "train.max_steps=3", "checkpoint={every: 1, keep: 3}", "eval.every=3")
    done = reste("train", *arguments(tmp_path, "averaged", digits, 1, ask))
    assert done.returncode == 0, done.stderr
    steps = [tmp_path / "averaged" / "checkpoints" / f"step_{step:08d}" for step in (1, 2, 3)]
    weights = [torch.load(step / "model.pt", weights_only=True) for step in steps]
    average = torch.load(steps[-1] / "ema.pt", weights_only=True)
    for name, value in average.items():
        if value.is_floating_point():
            mean = torch.stack([each[name].double() for each in weights]).mean(0)
            torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(average[name], weights[-1][name]) for name in average), "they moved"
    asked = ("evaluate", tmp_path / "averaged", "--json")
    by_default, last = (json.loads(reste(*asked, *which).stdout) for which in ((), ("--weights", "model")))
    final = json.loads((tmp_path / "averaged" / "result.json").read_text())["final"]
    assert by_default["loss"] == final["loss"] != last["loss"]
