"""The closed forms of the toy network against samples, and what its descents show."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from launch.cli import app
from reste import create_estimator
from trainer.study.toy import SLOPES, Problem, coarse_gradient, descend, gradient, loss, make_problem


def some_place(seed: int, size: float = 1.0) -> tuple[Problem, np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(seed)
    target = numbers.normal(size=3)
    problem = Problem(numbers.normal(size=4), target / np.linalg.norm(target))
    return problem, numbers.normal(size=4), size * numbers.normal(size=3)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("slope", SLOPES)
def test_the_average_coarse_gradient_is_that_of_samples_through_the_estimators(slope: str, seed: int) -> None:
    problem, v, w = some_place(seed)
    estimator = create_estimator(slope)
    inputs = torch.randn(400_000, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    leaf = torch.tensor(w, requires_grad=True)
    # From -1 and 1 to 0 and 1; the factor 2 is the slope that this takes away.
    units = (1 + estimator(inputs @ leaf)) / 2
    wanted = (inputs @ torch.tensor(problem.w) > 0).double() @ torch.tensor(problem.v)
    losses = (units @ torch.tensor(v) - wanted).square() / 2
    assert losses.mean().item() == pytest.approx(loss(problem, v, w), rel=0.01)
    (sampled,) = torch.autograd.grad(losses.mean(), leaf)
    size = np.abs(v).max() * np.abs(problem.v).max()
    np.testing.assert_allclose(2 * sampled.numpy(), coarse_gradient(problem, slope, v, w), rtol=0, atol=0.012 * size)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_is_the_difference_quotient_of_the_loss(seed: int) -> None:
    problem, v, w = some_place(seed)
    of_v, of_w = gradient(problem, v, w)
    step = 1e-6
    for place, found in enumerate(of_v):
        move = step * np.eye(4)[place]
        quotient = (loss(problem, v + move, w) - loss(problem, v - move, w)) / (2 * step)
        assert found == pytest.approx(quotient, abs=1e-8)
    for place, found in enumerate(of_w):
        move = step * np.eye(3)[place]
        quotient = (loss(problem, v, w + move) - loss(problem, v, w - move)) / (2 * step)
        assert found == pytest.approx(quotient, abs=1e-8)


def test_nothing_is_clipped_where_w_is_small() -> None:
    problem, v, w = some_place(3, size=1e-2)
    plain, clipped = (coarse_gradient(problem, slope, v, w) for slope in ("relu_ste", "clipped_relu_ste"))
    np.testing.assert_allclose(clipped, plain, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_coarse_gradients_never_point_away_from_the_true_one(seed: int) -> None:
    problem, v, w = some_place(seed)
    _, of_w = gradient(problem, v, w)
    for slope in SLOPES:
        assert of_w @ coarse_gradient(problem, slope, v, w) > 0


def test_only_the_identity_does_not_vanish_at_the_spurious_minimum() -> None:
    problem = make_problem(0)
    v, w = problem.spurious
    np.testing.assert_allclose(gradient(problem, v, w)[0], 0, atol=1e-12)
    for slope in SLOPES:
        size = np.linalg.norm(coarse_gradient(problem, slope, v, w))
        assert size > 0.1 if slope == "identity" else size < 1e-9


def test_relu_slopes_settle_at_the_spurious_minimum_and_the_identity_oscillates() -> None:
    problem = make_problem(0)
    found = {slope: descend(problem, slope, "spurious minimum", 0, steps=200, rate=0.1) for slope in SLOPES}
    for slope in ("relu_ste", "clipped_relu_ste"):
        assert found[slope].rise < 1e-12
        assert found[slope].end == "spurious"
    rises = np.diff(found["identity"].losses)
    assert found["identity"].rise > 0.5
    assert (rises > 0.1).sum() > 10


@pytest.mark.parametrize("seed", range(3))
def test_anywhere_is_not_where_the_teacher_is(seed: int) -> None:
    problem = make_problem(seed)
    for slope in SLOPES:
        assert descend(problem, slope, "anywhere", seed, steps=1, rate=0.1).losses[0] > 0.1


def test_the_command_writes_table_and_figure(tmp_path: Path) -> None:
    words = ["study", "toy", "--out", str(tmp_path), "--seeds", "1", "--steps", "40"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "toy.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 9
    ends = {row["slope"]: row["end"] for row in rows if row["start"] == "spurious minimum"}
    assert ends["relu_ste"] == ends["clipped_relu_ste"] == "spurious"
