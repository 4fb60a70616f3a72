"""The two-layer network on which a straight-through estimator can be understood (Yin et al., ICLR 2019).

    y(Z) = v's(Z w),    s(x) = 1 for x > 0, else 0         Z: m x n, independent standard normal numbers
    loss = (v's(Z w) - v*'s(Z w*))^2 / 2                   averaged over Z; v* (m,) and w* (n,), |w*| = 1, are sought

s has no useful derivative, but the average loss f has one. With a the angle between w and w*, and e the unit vector at
right angles to w on the side of w*:

    f     = (v'(I + 11')v - 2 v'((1 - 2a/pi) I + 11')v* + v*'(I + 11')v*) / 8
    df/dv = ((I + 11')v - ((1 - 2a/pi) I + 11')v*) / 4
    df/dw = -(v'v*) e / (2 pi |w|)

Training does not see f but the coarse gradient of w, with a slope g in the place of s':

    sum_i v_i z_i g(z_i'w) (v's(Z w) - v*'s(Z w*)),    g(x) = 1, or 1 for x > 0, or 1 for 0 < x < 1

Its average has a closed form too (`coarse_gradient`). Besides the global minimum there is a spurious one at w = -w*,
v = -v* + 2 (1'v*) 1 / (m+1), if (1'v*)^2 < (m+1) |v*|^2 / 2. There both ReLU slopes average to 0, and the identity's
average is not 0.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.durable import replace_file

Vector = npt.NDArray[np.float64]
SLOPES = ("relu_ste", "clipped_relu_ste", "identity")
STARTS = ("anywhere", "spurious minimum", "global minimum")
PEAK = 1 / math.sqrt(2 * math.pi)
HIDDEN, INPUTS = 8, 10


@dataclass(frozen=True)
class Problem:
    """What is sought: v* (m,) and w* (n,), of length 1."""

    v: Vector
    w: Vector

    @property
    def spurious(self) -> tuple[Vector, Vector]:
        """The other minimum, (v, w)."""
        return 2 * self.v.sum() / (len(self.v) + 1) - self.v, -self.w


@dataclass(frozen=True)
class Descent:
    """One descent along the average coarse gradient.

    Attributes:
        slope: one of `SLOPES`.
        start: one of `STARTS`.
        seed: of the start.
        losses: before each step, and after the last.
        angles: between w and w*, in degrees, likewise.
    """

    slope: str
    start: str
    seed: int
    losses: Vector
    angles: Vector

    @property
    def rise(self) -> float:
        """The largest rise of the loss in one step; 0 if it never rises."""
        return max(float(np.diff(self.losses).max()), 0.0)

    @property
    def end(self) -> str:
        """At which minimum it stands in the end, if at one."""
        if self.losses[-1] < 1e-2 * self.losses[0] or self.losses[-1] < 1e-4:
            return "global"
        return "spurious" if self.angles[-1] > 179 else "neither"


def make_problem(seed: int) -> Problem:
    """A problem that has the spurious minimum, drawn from a seed."""
    numbers = np.random.default_rng(seed)
    while True:
        v, w = numbers.normal(size=HIDDEN), numbers.normal(size=INPUTS)
        if v.sum() ** 2 < (HIDDEN + 1) / 2 * (v @ v):
            return Problem(v, w / np.linalg.norm(w))


def loss(problem: Problem, v: Vector, w: Vector) -> float:
    """f(v, w); see the module's first lines."""
    angle = _place(problem, w)[2]

    def product(x: Vector, y: Vector, share: float) -> float:
        return float(share * (x @ y) + x.sum() * y.sum())

    cross = product(v, problem.v, 1 - 2 * angle / math.pi)
    return (product(v, v, 1) - 2 * cross + product(problem.v, problem.v, 1)) / 8


def gradient(problem: Problem, v: Vector, w: Vector) -> tuple[Vector, Vector]:
    """df/dv (m,) and df/dw (n,)."""
    length, _, angle, side = _place(problem, w)
    of_v = (v + v.sum() - (1 - 2 * angle / math.pi) * problem.v - problem.v.sum()) / 4
    return of_v, -(v @ problem.v) / (2 * math.pi * length) * side


def coarse_gradient(problem: Problem, slope: str, v: Vector, w: Vector) -> Vector:
    """The average coarse gradient of w, (n,).

    With u = w/|w|, R = 1/|w|, c = 1/sqrt(2 pi), and phi and Phi the standard normal density and distribution:

        identity            c (|v|^2 u - (v'v*) w*)
        relu_ste            c (q + |v|^2) u - (v'v*) c (u + w*) / 2
        clipped_relu_ste    (c - phi(R)) (q + |v|^2) u - (v'v*) b

        q = ((1'v)^2 - (1'v)(1'v*) - |v|^2 + v'v*) / 2: what the other hidden units give
        b = (c/2 - phi(R) Phi(R cot a) + cos(a) d) u + sin(a) d e,    d = c (Phi(R / sin a) - 1/2)

    The last becomes the second as |w| goes to 0 and nothing is clipped.

    Args:
        problem: what is sought.
        slope: one of `SLOPES`.
        v, w: where, (m,) and (n,).
    """
    length, unit, angle, side = _place(problem, w)
    size, match = v @ v, v @ problem.v
    if slope == "identity":
        return PEAK * (size * unit - match * problem.w)
    others = (v.sum() * (v.sum() - problem.v.sum()) - size + match) / 2
    if slope == "relu_ste":
        return PEAK * ((others + size) * unit - match * (unit + problem.w) / 2)
    bound, sine, cosine = 1 / length, max(math.sin(angle), 1e-12), math.cos(angle)
    beyond = PEAK * math.exp(-(bound**2) / 2)
    across = PEAK * (_normal(bound / sine) - 0.5)
    along = PEAK / 2 - beyond * _normal(bound * cosine / sine) + cosine * across
    return (PEAK - beyond) * (others + size) * unit - match * (along * unit + math.sin(angle) * across * side)


def descend(problem: Problem, slope: str, start: str, seed: int, *, steps: int, rate: float) -> Descent:
    """Gradient descent on v, coarse gradient descent on w.

    Args:
        problem: what is sought.
        slope: one of `SLOPES`.
        start: one of `STARTS`; at a minimum, 0.01 beside it in every coordinate (standard deviation).
        seed: of the start.
        steps: how many.
        rate: of each step.
    """
    # Not [seed, 0], whose numbers are those of seed alone: the problem's.
    numbers = np.random.default_rng([1, seed, STARTS.index(start)])
    v, w = numbers.normal(size=problem.v.shape), numbers.normal(size=problem.w.shape)
    if start != "anywhere":
        at_v, at_w = problem.spurious if start == "spurious minimum" else (problem.v, problem.w)
        v, w = at_v + 0.01 * v, at_w + 0.01 * w
    losses, angles = [], []
    for _ in range(steps + 1):
        losses.append(loss(problem, v, w))
        angles.append(math.degrees(_place(problem, w)[2]))
        v, w = v - rate * gradient(problem, v, w)[0], w - rate * coarse_gradient(problem, slope, v, w)
    return Descent(slope, start, seed, np.array(losses), np.array(angles))


def descents(seed: int, *, seeds: int, steps: int, rate: float) -> Iterator[Descent]:
    """Every slope from every start, `seeds` times."""
    problem = make_problem(seed)
    for start in STARTS:
        for slope in SLOPES:
            for own in range(seed, seed + seeds):
                yield descend(problem, slope, start, own, steps=steps, rate=rate)


def write_table(found: list[Descent], path: Path) -> None:
    """A line for each descent."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["start", "slope", "seed", "first_loss", "last_loss", "largest_rise", "last_angle_degrees", "end"])
    for one in found:
        numbers = (one.losses[0], one.losses[-1], one.rise, one.angles[-1])
        writer.writerow([one.start, one.slope, one.seed, *(f"{number:.6g}" for number in numbers), one.end])
    replace_file(path, text.getvalue().encode())


def _place(problem: Problem, w: Vector) -> tuple[float, Vector, float, Vector]:
    """|w|, w/|w|, the angle to w* in radians, and e, which is 0 where w and w* are parallel."""
    length = max(float(np.linalg.norm(w)), 1e-12)
    unit = w / length
    cosine = float(unit @ problem.w)
    side = problem.w - cosine * unit
    sine = float(np.linalg.norm(side))
    return length, unit, math.atan2(sine, cosine), side / sine if sine > 1e-12 else np.zeros_like(side)


def _normal(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2
