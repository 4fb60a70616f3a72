"""From a configuration to a `Run`: the one place where parts are chosen and put together."""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.transfer import Inherited
from reste import SignMemory, set_draws
from trainer import resume, schedule
from trainer.cadence import decay, duration_steps
from trainer.config import Config, config_digest
from trainer.criterion import Criterion, LabelLoss
from trainer.data import datasets
from trainer.data.order import EvalOrder, TrainOrder, part
from trainer.data.spoiled import Spoiled
from trainer.distill.criterion import pair
from trainer.distill.teacher import Teacher, load_teacher
from trainer.distributed import collectives
from trainer.distributed.batchnorm import convert_batchnorm, make_bn_group
from trainer.distributed.ddp import DdpEngine
from trainer.distributed.deepspeed_settings import SETTINGS, deepspeed_settings
from trainer.distributed.engine import Engine
from trainer.distributed.environment import Environment, resolve_environment
from trainer.doctor.preflight import preflight
from trainer.failures import note_end
from trainer.faults import Faults
from trainer.feed import Feed
from trainer.finite import FiniteGuard
from trainer.hardware import apply_switches, choose_device, compiler_cache
from trainer.logs import log_to_file
from trainer.meters import Meters
from trainer.network import average_weights, create_network, load_initial_weights
from trainer.nonfinite import most_skipped
from trainer.optim import RoleCount, binary_lr, create_optimizer
from trainer.pixels import Pixels
from trainer.profiling.record import record_steps
from trainer.quarantine import SharedQuarantine
from trainer.ranks import (
    batchnorm_groups,
    batchnorm_ranks,
    check_ranks,
    check_smallest_batch,
    missing_images,
)
from trainer.run import Plan, Run, State
from trainer.running_statistics import RunningStatistics
from trainer.saver import Saver
from trainer.signals import Requests
from trainer.stopping import Stopper
from trainer.stragglers import Stragglers
from trainer.tracking.address import resolve_uri
from trainer.tracking.recorder import Recorder
from trainer.watchdog import Watchdog, collective_timeout_s, create_watchdog

log = logging.getLogger(__name__)


def build(config: Config, requests: Requests | None = None, watchdog: Watchdog | None = None) -> Run:
    """Assemble a run: environment, data, model, optimizer, engine, resumed state, tracker.

    Every rank calls it, and there meets the others. Nothing is written to the run's folder before all ranks have
    found the configuration and the data good. `run.close()` gives everything back.

    Args:
        config: what to train.
        requests: signals to this process; none are listened to by default.
        watchdog: at work already; by default none is.

    Raises:
        ConfigError: on every rank, if any rank finds the configuration or the environment wrong.
        DataError: on every rank, if any rank finds the data missing or wrong.
    """
    environment = resolve_environment(os.environ)
    device = choose_device(environment)
    apply_switches(config.train, environment, device)
    with ExitStack() as undo:
        collectives.init_process_group(environment, device, timeout_s=collective_timeout_s(config))
        undo.callback(collectives.shutdown)
        try:
            run = _build(config, environment, device, requests or Requests(), watchdog or create_watchdog(config), undo)
        except BaseException:
            collectives.give_up()
            raise
        if config.log.profile is not None:
            undo.callback(record_steps(run, config.log.profile))
        run.close = undo.pop_all().close
    return run


def _build(
    config: Config,
    environment: Environment,
    device: torch.device,
    requests: Requests,
    watchdog: Watchdog,
    undo: ExitStack,
) -> Run:
    given = _agree(config, environment, device)
    faults, data, order, plan, teacher = given.faults, given.data, given.order, given.plan, given.teacher
    model, groups = share_statistics(config, environment, order, given.model)
    with collectives.agreed_errors():
        trained, criterion = choose_criterion(config, model, teacher, device)
    ema = average_weights(model, plan.average)
    with collectives.agreed_errors():
        scale = binary_lr(config, plan.total_steps)
        optimizer, roles = create_optimizer(model, config.optim, fused=may_fuse(config, device), binary_scale=scale)
        loader = datasets.create_loader(config, order, environment, device, spoiled(faults, directory=config.run_dir))
        undo.callback(loader.close)
        eval_loader = datasets.create_loader(config, given.eval_order, environment, device)
        undo.callback(eval_loader.close)
    preflight(config, environment, model)
    if environment.rank == 0:
        faults.before_resuming(config.run_dir / "checkpoints")
    digest = None if teacher is None else teacher.digest
    directory, found = resume.claim(
        config, environment, undo, data_digest=data.digest, batchnorm_groups=groups, teacher_digest=digest
    )
    undo.push(partial(_note_end, directory))
    log_to_file(directory, environment.rank)
    undo.callback(watchdog.close)
    places = watchdog.attach(directory, environment.rank)
    engine, pixels, settled_s = create_engine(config, trained, optimizer, order, environment, device, given.settings)
    undo.callback(engine.close)
    meters = Meters(device, criterion.parts)
    signs = SignMemory()
    state = resume.restore(found, model, ema, engine, meters, signs) if found else State()
    about = facts(config, data, environment, groups) | {"steps_per_epoch": plan.steps_per_epoch}
    about |= {} if digest is None else {"teacher_digest": digest}
    recorder = create_recorder(config, directory, plan, about, found, given.settings, faults)
    undo.callback(recorder.abandon)
    quarantine = SharedQuarantine(order, config.data, recorder, step=state.step)
    saver = create_saver(config, directory, faults)
    undo.callback(saver.close)
    describe(recorder, config, plan, environment, device, roles, found)
    if teacher is not None:
        recorder.note(f"learns from {teacher.name} ({', '.join(criterion.parts)})")
    if given.inherited is not None and found is None:
        tell_inherited(recorder, config, given.inherited)
    if config.train.compile:
        log_compilation(recorder, state.step, settled_s)
    return Run(
        config=config,
        environment=environment,
        device=device,
        plan=plan,
        state=state,
        model=model,
        ema=ema,
        engine=engine,
        criterion=criterion,
        learning_rate=given.learning_rate,
        power=given.power,
        progress=schedule.progress(config, order.steps_per_epoch),
        statistics=RunningStatistics(model, schedule.statistics_share(config, order.steps_per_epoch)),
        pixels=pixels,
        order=order,
        feed=Feed(faults.around(loader.load(order.plans(state.step, plan.end_step))), watchdog.pulse),
        eval_order=given.eval_order,
        eval_loader=eval_loader,
        meters=meters,
        guard=create_guard(config, model, plan, device),
        stopper=create_stopper(config, directory, requests, watchdog, plan),
        pulse=watchdog.pulse,
        stragglers=create_stragglers([place.host for place in places], model),
        quarantine=quarantine,
        recorder=recorder,
        saver=saver,
        faults=faults,
        directory=directory,
        about=about,
        signs=signs,
    )


@dataclass(frozen=True)
class _Given:
    """What configuration, data and number of ranks decide alone; nothing of it has touched the run's folder.

    Attributes:
        faults: that the run is to meet.
        data: both splits.
        order, eval_order: of this rank.
        plan: durations in steps.
        learning_rate, power: after so many steps; the power also at a layer's depth.
        settings: what DeepSpeed is told; None for the DDP engine.
        model: with the weights that training starts from.
        inherited: what of them is another network's; None if nothing is.
        teacher: that it learns from, if any.
    """

    faults: Faults
    data: datasets.Datasets
    order: TrainOrder
    eval_order: EvalOrder
    plan: Plan
    learning_rate: Callable[[int], float]
    power: schedule.Power
    settings: dict[str, Any] | None
    model: nn.Module
    inherited: Inherited | None
    teacher: Teacher | None


def _agree(config: Config, environment: Environment, device: torch.device) -> _Given:
    """Make what the run is about, and see to it that all ranks make the same."""
    collectives.check_equal("run folder", str(config.run_dir))
    collectives.check_equal("configuration", config_digest(config))
    with collectives.agreed_errors():
        check_ranks(config, environment.world_size)
        resolve_uri(config.tracking.uri, config.run_dir)
        faults = Faults.from_environment(os.environ, config.run_dir, environment.rank)
        data = datasets.open_datasets(config)
        order, eval_order = create_orders(config, data, environment)
        plan = make_plan(config, order.steps_per_epoch, device)
        learning_rate = schedule.learning_rate(config, order.steps_per_epoch)
        power = schedule.power(config, order.steps_per_epoch)
        settings = deepspeed_settings(config, environment.world_size) if config.engine == "deepspeed" else None
        model = create_network(config, data.classes, device, weights_follow=True)
        inherited = None if config.model.init is None else load_initial_weights(model, config)
        teacher = None if config.distill.teacher is None else load_teacher(config, data.classes, device)
    collectives.check_equal("data set", data.digest)
    collectives.check_equal("teacher", "none" if teacher is None else teacher.digest)
    collectives.check_equal("engine", json.dumps([config.engine, settings], sort_keys=True))
    return _Given(faults, data, order, eval_order, plan, learning_rate, power, settings, model, inherited, teacher)


def share_statistics(
    config: Config, environment: Environment, order: TrainOrder, model: nn.Module
) -> tuple[nn.Module, int]:
    """The model with its batch norms converted, and how many parts of a micro-batch have statistics of their own.

    Raises:
        ConfigError: on every rank, if an epoch's smallest batch is too small for them.
    """
    group_size = batchnorm_ranks(config, environment)
    if collectives.is_main() and (missing := missing_images(config, group_size, environment.world_size)):
        log.warning("%s, which are used", missing)
    with collectives.agreed_errors():
        check_smallest_batch(order, model, group_size)
    model = convert_batchnorm(model, make_bn_group(group_size))
    return model, batchnorm_groups(model, environment.world_size, group_size)


def choose_criterion(
    config: Config, model: nn.Module, teacher: Teacher | None, device: torch.device
) -> tuple[nn.Module, Criterion]:
    """What the engine trains, which is the model or the model with its feature maps, and the loss of its outputs.

    Raises:
        ConfigError: the model and its teacher do not go together.
    """
    if teacher is None:
        return model, LabelLoss(config.train.label_smoothing)
    return pair(config, model, teacher, device)


def create_guard(config: Config, model: nn.Module, plan: Plan, device: torch.device) -> FiniteGuard:
    """The judge of loss and gradient; it lets steps after a bad one count where bad ones are skipped."""
    room = most_skipped(config.train.nonfinite)
    return FiniteGuard(model, device, lasting=room == 0, room=min(max(plan.read_every, 1), room + 1) if room else 1)


def create_saver(config: Config, directory: Path, faults: Faults) -> Saver:
    """The writer of checkpoints, with the faults that it is to meet."""
    keep = config.checkpoint.keep
    return Saver(directory / "checkpoints", keep=keep, writing=faults.writing, written=faults.written)


def create_stopper(config: Config, directory: Path, requests: Requests, watchdog: Watchdog, plan: Plan) -> Stopper:
    """What ends the run before its last step: signals, a stop file, a time limit."""
    limit = config.run.time_limit_min
    return Stopper(directory, requests, watchdog.pulse, time_limit_min=limit, every=plan.read_every)


def create_stragglers(hosts: list[str], model: nn.Module) -> Stragglers:
    """The comparison of ranks, told how much gradient they sum."""
    gradients = (p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Stragglers(hosts, sum(gradients))


def spoiled(faults: Faults, directory: Path) -> Spoiled | None:
    """Training samples that the schedule of faults damages, if it does."""
    samples = frozenset(faults.spoiled_samples())
    return Spoiled(samples, faults.spoiled, directory / "faults") if samples else None


def may_fuse(config: Config, device: torch.device) -> bool:
    """Whether torch's fused optimizers may be used.

    On a CPU they round an element by where it lies in its tensor, so that ZeRO 1's flat parts would differ from DDP's
    tensors. Fused SGD leaves its momentum uninitialised if it skips the first step, which the loss scaler of fp16
    and `train.nonfinite=skip` may do.
    """
    skips = config.train.precision == "fp16" or most_skipped(config.train.nonfinite) > 0
    return device.type == "cuda" and not skips


def facts(config: Config, data: datasets.Datasets, environment: Environment, groups: int) -> dict[str, Any]:
    """What every checkpoint's manifest says of the run."""
    return {
        "config_digest": config_digest(config),
        "data_digest": data.digest,
        "classes": data.classes,
        "world_size": environment.world_size,
        "batchnorm_groups": groups,
    }


def _note_end(directory: Path, _kind: object, error: BaseException | None, _trace: object) -> None:
    if error is not None:
        note_end(directory, error)


def create_orders(config: Config, data: datasets.Datasets, environment: Environment) -> tuple[TrainOrder, EvalOrder]:
    """The orders of training and evaluation for this rank.

    Raises:
        ConfigError: the batch is larger than the training set, or cannot be cut into its micro-batches.
    """
    augment = datasets.augment(config)
    rank, world = environment.rank, environment.world_size
    datasets.check_batch(config, len(data.train))
    train = TrainOrder(
        data.train,
        augment,
        seed=config.seed,
        image_sizes=config.image_sizes,
        batch_size=config.train.batch_size,
        accumulation=config.train.accumulation,
        rank=rank,
        world=world,
        drop_last=config.train.drop_last,
    )
    batch_size = config.eval.batch_size or config.train.batch_size
    return train, EvalOrder(data.val, augment, batch_size=batch_size, rank=rank, world=world)


def make_plan(config: Config, steps_per_epoch: int, device: torch.device) -> Plan:
    """Every duration of the configuration in steps."""
    total = config.train.epochs * steps_per_epoch

    def steps(duration: str) -> int:
        return duration_steps(duration, steps_per_epoch, total)

    log_every = steps(config.log.every)
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        end_step=min(total, config.train.max_steps or total),
        accumulation=config.train.accumulation,
        log_every=log_every,
        indicators_every=steps(config.log.indicators_every),
        eval_every=steps(config.eval.every),
        checkpoint_every=steps(config.checkpoint.every),
        # On a CPU a host read is free; on a GPU it waits for the device.
        read_every=1 if device.type == "cpu" else max(log_every, 1),
        average=None if config.train.ema is None else decay(config.train.ema, steps_per_epoch, total),
    )


def create_engine(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    order: TrainOrder,
    environment: Environment,
    device: torch.device,
    settings: dict[str, Any] | None,
) -> tuple[Engine, Pixels, float]:
    """The engine, settled on this rank's full micro-batch, the preparation of its images, and the seconds of settling.

    Args:
        settings: what DeepSpeed is told; None for the DDP engine.

    Raises:
        ConfigError: on every rank, if any rank cannot import DeepSpeed or the optimizer cannot be split.
    """
    common: dict[str, Any] = {
        "precision": config.train.precision,
        "clip_norm": config.train.clip_norm,
        "compile": config.train.compile,
        "device": device,
    }
    engine: Engine
    if settings is None:
        engine = DdpEngine(model, optimizer, reduce_dtype=config.train.reduce_dtype, **common)
    else:
        # Its import takes seconds, so that it comes only where it is wanted.
        from trainer.distributed import deepspeed

        with collectives.agreed_errors():
            deepspeed.prepare(device, environment.local_rank, settings, optimizer)
        engine = deepspeed.DeepSpeedEngine(model, optimizer, settings=settings, **common)
    pixels = Pixels.of(config, device)
    began = time.perf_counter()
    # The largest first: they decide how much memory there has to be. A compiler makes a graph for every size.
    sides, sizes = config.image_sizes.distinct, order.micro_batch_sizes
    for side, size in itertools.product(sides, sizes) if config.train.compile else [(sides[0], sizes[0])]:
        start, stop = part(0, size, order.rank, order.world)
        # The shape that sample ids will have, so that noise is compiled once.
        set_draws(model, seed=config.seed, step=0, samples=torch.arange(stop - start))
        pixels.settle(stop - start, side)
        engine.settle(pixels.blank(stop - start, side))
    return engine, pixels, time.perf_counter() - began


def create_recorder(
    config: Config,
    directory: Path,
    plan: Plan,
    about: dict[str, Any],
    found: resume.Found | None,
    settings: dict[str, Any] | None,
    faults: Faults,
) -> Recorder:
    """The account of the run, begun; silent on all ranks but 0."""
    recorder = Recorder(
        directory,
        enabled=collectives.is_main(),
        total_steps=plan.end_step,
        steps_per_epoch=plan.steps_per_epoch,
        eval_every=plan.eval_every,
        print_s=config.log.print_s,
    )
    recorder.begin(
        config.to_yaml(),
        about,
        seed=config.seed,
        step=found.progress.step if found else 0,
        journal_offset=found.progress.journal_offset if found else 0,
        resumed_from=found.path if found else None,
    )
    recorder.keep(SETTINGS, settings)
    if config.tracking.enabled:
        recorder.track(config.tracking, down=faults.tracker_is_down)
    return recorder


def log_compilation(recorder: Recorder, step: int, seconds: float) -> None:
    """Tell what compilation took, the first passes through the network included, and where the next start finds it."""
    recorder.metrics(step, {"perf/compile_s": seconds})
    recorder.note(f"compiled in {seconds:.1f} s; the compiler keeps its work in {compiler_cache()}")


def tell_inherited(recorder: Recorder, config: Config, inherited: Inherited) -> None:
    """Tell what a new run's network has from another one, and journal it."""
    fresh = inherited.fresh
    named = f" ({', '.join(fresh[:3])}{', ...' if len(fresh) > 3 else ''})" if fresh else ""
    recorder.note(
        f"inherits {inherited.tensors} tensors of {inherited.numbers:,} numbers from {config.model.init}; "
        f"{len(fresh)} begin anew{named}"
    )
    counts = {"tensors": inherited.tensors, "numbers": inherited.numbers, "fresh": list(fresh)}
    recorder.event("inherited", step=0, source=config.model.init, **counts)


def describe(
    recorder: Recorder,
    config: Config,
    plan: Plan,
    environment: Environment,
    device: torch.device,
    roles: list[RoleCount],
    found: resume.Found | None,
) -> None:
    """Tell the user what begins."""
    ranks = f"{environment.world_size} rank{'s' if environment.world_size > 1 else ''}"
    recorder.note(
        f"{config.model.name}  {config.model.weight_bits}W{config.model.activation_bits}A  {config.estimator.name}  "
        f"{ranks} on {device.type} ({environment.reason})  {config.data.loader} loader  {config.train.precision}"
        + (f"  DeepSpeed ZeRO {config.deepspeed.zero}" if config.engine == "deepspeed" else "")
    )
    for role in roles:
        recorder.note(
            f"  {role.role:<7} {role.parameters:>11,} parameters in {role.tensors} tensors, weight decay "
            f"{role.weight_decay:g}" + (f", rate x {role.lr_scale:.3g}" if role.lr_scale != 1 else "")
        )
    where = "starts from new weights" if config.model.init is None else f"starts from {config.model.init}"
    if found:
        other = "" if found.world_size == environment.world_size else f", saved by {found.world_size}"
        where = f"goes on from {found.path} (step {found.progress.step}{other})"
    recorder.note(f"{plan.end_step} steps, {plan.steps_per_epoch} an epoch; {where}; files in {recorder.directory}")
