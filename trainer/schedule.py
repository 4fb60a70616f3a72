"""Learning rate and estimator power as pure functions of the step; nothing here has state to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from reste import schedules as power_schedules
from trainer.cadence import duration_steps
from trainer.config import Config
from trainer.errors import ConfigError

Granularity = Literal["step", "epoch"]
Shape = Callable[[float], float]


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (SGDR, Loshchilov and Hutter 2017, eq. 5 without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return 1.0 - progress


def constant(progress: float) -> float:
    """Always 1."""
    return 1.0


def stairs(milestones: tuple[float, ...], gamma: float) -> Shape:
    """`gamma` to the power of how many milestones (shares of training) have been reached."""

    def shape(progress: float) -> float:
        # A step count divided by a total seldom equals 2/3 exactly.
        return gamma ** sum(progress >= milestone - 1e-9 for milestone in milestones)

    return shape


def snap(step: int, steps_per_epoch: int, granularity: Granularity) -> int:
    """The step whose value holds at `step`: itself, or the first of its epoch."""
    return step if granularity == "step" else step - step % steps_per_epoch


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up from peak / warmup_steps, then `shape` from `peak` to `floor` over the steps that remain.

    Attributes:
        peak: highest rate.
        floor: rate at the end.
        shape: share of (peak - floor) for a progress in [0, 1].
        warmup_steps: steps of warm-up; the rate first equals `peak` at this step.
        total_steps: steps of the whole training.
        steps_per_epoch: steps of one epoch.
        granularity: whether the rate moves every step or every epoch.
    """

    peak: float
    floor: float
    shape: Shape
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    granularity: Granularity

    def __call__(self, step: int) -> float:
        """The rate for the step after `step` completed ones."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        at = snap(step, self.steps_per_epoch, self.granularity)
        span = max(self.total_steps - self.warmup_steps, 1)
        progress = min(max((at - self.warmup_steps) / span, 0.0), 1.0)
        return self.floor + (self.peak - self.floor) * self.shape(progress)


@dataclass(frozen=True)
class ReferenceRate:
    """The official learning rate: a cosine that moves every epoch, and the warm-up of its `--warm_up`.

    The first `warmup` epochs rise to the peak in equal stairs. The cosine, of `epochs - warmup + 1` epochs, is then
    entered `warmup - 1` epochs before its top, at the peak: it rises a little above it and does not reach 0.

    Attributes:
        peak: the rate that the warm-up reaches.
        epochs: epochs of the whole training.
        warmup: epochs of warm-up; 5 in the official code, 0 for a plain cosine.
        steps_per_epoch: steps of one epoch.
    """

    peak: float
    epochs: int
    warmup: int
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """The rate for the step after `step` completed ones."""
        epoch, lead = step // self.steps_per_epoch, max(self.warmup - 1, 0)
        if epoch < self.warmup:
            return self.peak * (epoch + 1) / self.warmup
        length = self.epochs - lead
        return self.peak * cosine((epoch - 2 * lead) / length) / cosine(lead / length)


@dataclass(frozen=True)
class Progress:
    """The share of training that is done: epoch / epochs with granularity `epoch`, as in the official code, else
    step / (steps - 1)."""

    total_steps: int
    steps_per_epoch: int
    granularity: Granularity

    def __call__(self, step: int) -> float:
        """In [0, 1], for the step after `step` completed ones."""
        at = snap(step, self.steps_per_epoch, self.granularity)
        span = self.total_steps if self.granularity == "epoch" else max(self.total_steps - 1, 1)
        return min(at / span, 1.0)


@dataclass(frozen=True)
class Power:
    """The estimator's power o from 1 to `end` (ReSTE, Wu et al. 2023).

    With granularity `epoch` it never reaches `end`, as in the official code; with `step` the last step has it exactly.
    """

    end: float
    shape: Callable[[float, float], float]
    progress: Progress
    by_layer: power_schedules.LayerOrder = "together"

    def __call__(self, step: int, depth: float = 0.5) -> float:
        """The power for the step after `step` completed ones, of a layer at a depth from 0 (first) to 1 (last)."""
        own = power_schedules.layer_progress(self.progress(step), depth, self.by_layer)
        return self.shape(own, self.end)


def learning_rate(config: Config, steps_per_epoch: int) -> LearningRate | ReferenceRate:
    """The configured learning-rate schedule.

    Raises:
        ConfigError: the reference schedule with a warm-up that is no number of whole epochs below half the training.
    """
    optim, total = config.optim, config.train.epochs * steps_per_epoch
    warmup_steps = duration_steps(optim.warmup, steps_per_epoch, total)
    if optim.schedule == "reference":
        warmup, rest = divmod(warmup_steps, steps_per_epoch)
        if rest or 2 * warmup > config.train.epochs:
            raise ConfigError(
                f"optim.warmup={optim.warmup} does not go with optim.schedule=reference: give whole epochs, at most "
                "half of train.epochs (the official code has 5ep)"
            )
        return ReferenceRate(optim.lr, config.train.epochs, warmup, steps_per_epoch)
    shapes = {
        "cosine": cosine,
        "linear": linear,
        "constant": constant,
        "step": stairs(optim.milestones, optim.gamma),
    }
    return LearningRate(
        peak=optim.lr,
        floor=optim.min_lr,
        shape=shapes[optim.schedule],
        warmup_steps=warmup_steps,
        total_steps=total,
        steps_per_epoch=steps_per_epoch,
        granularity=optim.granularity,
    )


def power(config: Config, steps_per_epoch: int) -> Power:
    """The configured power schedule."""
    return Power(
        end=config.estimator.o_end,
        shape=power_schedules.POWER_SCHEDULES[config.estimator.schedule],
        progress=progress(config, steps_per_epoch),
        by_layer=config.estimator.by_layer,
    )


def progress(config: Config, steps_per_epoch: int) -> Progress:
    """How far training is, for what is annealed."""
    return Progress(config.train.epochs * steps_per_epoch, steps_per_epoch, config.estimator.granularity)


SLOWEST = 0.2
"""Least share of their usual pace at which running statistics move: an average over about a hundred batches."""
LONGEST = 0.1
"""Part of a training's steps that the statistics look back on at most, on average: else they lag behind the weights."""
MOMENTUM = 0.1
"""That of batch norms: the usual pace."""


def statistics_share(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """The pace of running statistics after so many completed steps, as a share of the usual one.

    That of the learning rate in its peak, at least `SLOWEST`, and at least what `LONGEST` allows; 1 in the warm-up
    and where `batchnorm.momentum` is fixed.
    """
    chosen = config.batchnorm.momentum
    if chosen == "fixed" or (chosen == "auto" and config.model.numerics == "reference"):
        return constant
    rate = learning_rate(config, steps_per_epoch)
    total = config.train.epochs * steps_per_epoch
    warmup = duration_steps(config.optim.warmup, steps_per_epoch, total)
    least = max(SLOWEST, 1 / (LONGEST * total * MOMENTUM))

    def share(step: int) -> float:
        return 1.0 if step < warmup else min(max(rate(step) / config.optim.lr, least), 1.0)

    return share
