"""Everything a run consists of, assembled by `build` and driven by `train`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from reste import Estimator, SignMemory, power_layers, set_draws, set_progress, write_powers
from trainer.config import Config
from trainer.criterion import Criterion
from trainer.data.batch import Loader
from trainer.data.order import EvalOrder, Plan as BatchPlan, TrainOrder
from trainer.distributed.engine import Engine
from trainer.distributed.environment import Environment
from trainer.faults import Faults
from trainer.feed import Feed
from trainer.finite import FiniteGuard
from trainer.meters import Meters
from trainer.pixels import AUTOCAST, Pixels
from trainer.pulse import Pulse
from trainer.quarantine import SharedQuarantine
from trainer.running_statistics import RunningStatistics
from trainer.saver import Saver
from trainer.schedule import Power
from trainer.stopping import Stopper
from trainer.stragglers import Stragglers
from trainer.tracking.recorder import Recorder


@dataclass(frozen=True)
class Plan:
    """Counts of steps that follow from the configuration and the size of the data.

    Attributes:
        steps_per_epoch: optimizer steps in one epoch.
        total_steps: steps of the schedules.
        end_step: where this run ends; before `total_steps` if `train.max_steps` says so.
        accumulation: micro-batches per step.
        log_every, indicators_every, eval_every, checkpoint_every: steps between them, 0 for never.
        read_every: steps between host reads of the finite guard and agreements to stop.
        average: decay of the weights' moving average; None without one.
    """

    steps_per_epoch: int
    total_steps: int
    end_step: int
    accumulation: int
    log_every: int
    indicators_every: int
    eval_every: int
    checkpoint_every: int
    read_every: int
    average: float | None


@dataclass
class State:
    """What moves while a run trains, beside tensors; saved in every checkpoint.

    Attributes:
        step: completed optimizer steps.
        samples_seen: training samples over all ranks.
        seconds: training time over all attempts.
        last: newest evaluation (`val/...` metrics).
        best: evaluation with the highest top-1, first one if equal.
        best_step: its step.
        evaluation_due: whether the evaluation that belongs to this step is still to be made.
        skipped: steps left out because they were not finite (`train.nonfinite=skip N`).
        returned: how often the run has gone back to the checkpoint of a step (`train.nonfinite=rollback`).
        steered_power: where `estimator.hold_instability` has brought the power; None before the first probe.
    """

    step: int = 0
    samples_seen: int = 0
    seconds: float = 0.0
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    evaluation_due: bool = False
    skipped: int = 0
    returned: dict[str, int] = field(default_factory=dict)
    steered_power: float | None = None


@dataclass
class Run:
    """One rank's view of a run."""

    config: Config
    environment: Environment
    device: torch.device
    plan: Plan
    state: State
    model: nn.Module
    ema: ModelEmaV3 | None
    engine: Engine
    criterion: Criterion
    learning_rate: Callable[[int], float]
    power: Power
    progress: Callable[[int], float]
    statistics: RunningStatistics
    pixels: Pixels
    order: TrainOrder
    feed: Feed
    eval_order: EvalOrder
    eval_loader: Loader
    meters: Meters
    guard: FiniteGuard
    stopper: Stopper
    pulse: Pulse
    stragglers: Stragglers
    quarantine: SharedQuarantine
    recorder: Recorder
    saver: Saver
    faults: Faults
    directory: Path
    about: dict[str, Any]
    signs: SignMemory = field(default_factory=SignMemory)
    close: Callable[[], None] = lambda: None
    """Stops loaders, sender and process group; `build` sets it."""

    def follow_schedules(self, step: int) -> None:
        """Write into the network what holds for the step after `step` completed ones; nothing is recompiled."""
        write_powers(self.power_layers, partial(self.power_at, step))
        set_progress(self.model, self.progress(step))
        if self.ema is not None:
            set_progress(self.ema.module, self.progress(step))

    @cached_property
    def power_layers(self) -> list[list[Estimator]]:
        """The estimators that have a power, layer by layer; none if the method has no such thing."""
        return power_layers(self.model)

    def follow_batch(self, plan: BatchPlan) -> None:
        """Write into the network what the noise of the coming forward pass belongs to, if it has any."""
        set_draws(self.model, seed=self.config.seed, step=plan.step, samples=torch.tensor(plan.ids))

    def power_at(self, step: int, depth: float = 0.5) -> float:
        """The power for the step after `step` completed ones, at a layer's depth: scheduled, or steered by probes."""
        if self.config.estimator.hold_instability is None:
            return self.power(step, depth)
        return self.state.steered_power or 1.0

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that evaluation and `best` are about: the moving average if there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.directory / "checkpoints"

    @property
    def autocast(self) -> torch.dtype | None:
        """The low precision of forward passes, if any."""
        return AUTOCAST.get(self.config.train.precision)
