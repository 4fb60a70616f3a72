"""`reste train --dry-run`: what would happen, in words; nothing is trained, nothing is written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from models import summarize
from reste import power_layers
from trainer import schedule
from trainer.assembly import make_plan
from trainer.config import Config
from trainer.data import datasets
from trainer.data.order import part
from trainer.distributed.deepspeed_settings import deepspeed_settings
from trainer.distributed.environment import Environment
from trainer.errors import DataError
from trainer.network import check_image_sizes, instantiate
from trainer.ranks import batchnorm_ranks, check_ranks, missing_images
from trainer.run import Plan
from trainer.site import told
from trainer.staged import rehearse
from trainer.stages import load_training


def print_plan(path: Path, overrides: list[str], world: int) -> None:
    """Print the resolved configuration and everything that follows from it.

    Args:
        path: a configuration file.
        overrides: `key=value` strings.
        world: number of ranks that would train.

    Raises:
        ConfigError: the configuration, the model or the batch is wrong.
    """
    training = load_training(path, overrides)
    console = Console(highlight=False, soft_wrap=True)
    console.print(training.config.to_yaml().rstrip(), markup=False)
    site = told(path, overrides)
    last = [("site file", site)] if site else []
    if not training.stages:
        _print_table(console, "plan", plan_rows(training.config, world) + last)
        return
    rehearse(training)
    for number, stage in enumerate(training.stages, 1):
        title = f"plan of stage {number} of {len(training.stages)}: {stage.name}"
        _print_table(console, title, plan_rows(stage.config, world) + last)


def _print_table(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def plan_rows(config: Config, world: int) -> list[tuple[str, str]]:
    """The plan as pairs of a name and a sentence."""
    check_ranks(config, world)
    train, val, classes, source = _sizes(config)
    count = config.model.num_classes or classes or 1000
    model = instantiate(config, count)
    rows = [("data", source), ("model", _model(config, model, count)), ("batch", _batch(config, world))]
    rows.append(("batch norm", _batchnorm(config, world)))
    rows += _from_others(config)
    if config.data.image_size_schedule:
        rows.append(("image sizes", _image_sizes(config)))
    if train:
        datasets.check_batch(config, train)
        steps = train // config.train.batch_size if config.train.drop_last else -(-train // config.train.batch_size)
        plan = make_plan(config, steps, torch.device("cpu"))
        rows += [("steps", _steps(plan, config)), *_schedules(config, plan, has_power=bool(power_layers(model)))]
    device = f"{torch.cuda.device_count()} GPUs here" if torch.cuda.is_available() else "CPU (no GPU here)"
    rows.append(("ranks", f"{world} on {device}, engine {config.engine}, {config.train.precision}"))
    if config.engine == "deepspeed":
        rows.append(("deepspeed", json.dumps(deepspeed_settings(config, world))))
    rows.append(("evaluation", f"{val or 'unknown number of'} images, every {config.eval.every}"))
    rows.append(("files", _files(config)))
    return rows


def _sizes(config: Config) -> tuple[int | None, int | None, int | None, str]:
    expect = config.data.expect
    try:
        data = datasets.open_datasets(config)
    except DataError as error:
        known = f"{expect.train} training and {expect.val} validation images" if expect.train else "sizes unknown"
        return expect.train, expect.val, expect.classes, f"not there yet ({error}); data.expect: {known}"
    sizes = len(data.train), len(data.val), len(data.classes)
    where = "synthetic" if config.data.loader == "synthetic" else config.data.root
    return *sizes, f"{where}: {sizes[0]} training and {sizes[1]} validation images, {sizes[2]} classes"


def _model(config: Config, model: nn.Module, count: int) -> str:
    check_image_sizes(config, model)
    found = summarize(model, config.data.image_size)
    return (
        f"{config.model.name} ({config.model.weight_bits}W{config.model.activation_bits}A, "
        f"{config.model.numerics} numerics), "
        f"{count} classes, {found.parameters:,} parameters, {found.binary_parameters:,} of one bit, "
        f"estimator {config.estimator.name}"
    )


def _batch(config: Config, world: int) -> str:
    batch, parts = config.train.batch_size, config.train.accumulation
    cuts = Counter(stop - start for start, stop in (part(0, batch, micro, parts) for micro in range(parts)))
    shared = []
    for micro in sorted(cuts, reverse=True):
        shares = Counter(stop - start for start, stop in (part(0, micro, rank, world) for rank in range(world)))
        each = " and ".join(f"{ranks} of {size}" for size, ranks in sorted(shares.items(), reverse=True))
        shared.append(
            f"{cuts[micro]} micro-batch{'es' if cuts[micro] > 1 else ''} over "
            f"{world} rank{'s' if world > 1 else ''}: {each}"
        )
    return f"{batch} images a step = {'; '.join(shared)}"


def _batchnorm(config: Config, world: int) -> str:
    size = batchnorm_ranks(config, Environment(world_size=world, local_world_size=world))
    _, micro = part(0, config.train.batch_size, 0, config.train.accumulation)
    if size == 1:
        return f"each rank its own statistics, over about {micro // world} images"
    groups = f"{world // size} group{'s' if world > size else ''} of {size} ranks, {micro * size // world} images each"
    missing = missing_images(config, size, world)
    return f"{groups} ({missing})" if missing else groups


def _from_others(config: Config) -> list[tuple[str, str]]:
    """What a network has from another one: its first weights, its teacher."""
    rows = []
    if config.model.init is not None:
        how = f" by {config.model.transfer}" if config.model.transfer else ""
        rows.append(("weights", f"from {config.model.init} ({config.model.init_at} checkpoint){how}"))
    if config.distill.teacher is not None:
        d = config.distill
        loss = f"{d.labels:g} labels + {d.weight:g} answers at temperature {d.temperature:g}"
        rows.append(("teacher", f"{d.teacher}: {loss}" + (f" + {d.attention:g} attention" if d.attention else "")))
    return rows


def _image_sizes(config: Config) -> str:
    sizes, epochs, side = config.image_sizes, config.train.epochs, config.data.image_size
    share = sizes.pixels(epochs) / side**2
    return f"{sizes.words(epochs)}; evaluated at {side} px, of whose pixels training sees {100 * share:.0f} %"


def _steps(plan: Plan, config: Config) -> str:
    return (
        f"{plan.end_step} ({config.train.epochs} epochs of {plan.steps_per_epoch}); log every "
        f"{plan.log_every}, indicators every "
        f"{plan.indicators_every}, evaluate every {plan.eval_every}, checkpoint every {plan.checkpoint_every}"
    )


def _schedules(config: Config, plan: Plan, *, has_power: bool) -> list[tuple[str, str]]:
    points = sorted({0, plan.total_steps // 4, plan.total_steps // 2, plan.total_steps - 1})
    rate = schedule.learning_rate(config, plan.steps_per_epoch)
    power = schedule.power(config, plan.steps_per_epoch)

    def at_points(values: Callable[[int], float]) -> str:
        return ", ".join(f"step {step}: {values(step):.4g}" for step in points)

    rows = [("learning rate", at_points(rate)), *([("power", at_points(power))] if has_power else [])]
    if plan.average is not None:
        rows.append(
            ("average", f"of the weights over about {1 / (1 - plan.average):.0f} steps; it is what is evaluated")
        )
    return rows


def _files(config: Config) -> str:
    return (
        f"{config.run_dir}/: config.yaml, manifest.json, journal.jsonl, status.json, result.json, logs/, checkpoints/ "
        f"({config.checkpoint.keep} newest and best)"
    )
