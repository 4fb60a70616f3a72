"""Trainings of several stages: one configuration, one command, one ordinary run for each stage, in one folder.

A stage is a run like any other: its folder lies in that of the whole, its configuration says where its weights and
its teacher come from (`model.init=stage:NAME`, `distill.teacher=stage:NAME`). This file says which runs there are;
`trainer.staged` trains them. Imports nothing heavy: the command line reads it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config, load_config, validate
from trainer.config_schema import StageConfig
from trainer.config_source import read_source
from trainer.errors import ConfigError
from trainer.names import STAGE
from trainer.site import read_site
from trainer.tracking.address import default_uri
from trainer.tracking.staging import stage_names

OWN = ("run", "stages", "resume", "tracking", "registry")
"""Groups that are the whole training's: no stage sets them."""


@dataclass(frozen=True)
class Stage:
    """One of the runs that a training consists of.

    Attributes:
        name: of its folder.
        config: its whole configuration.
    """

    name: str
    config: Config


@dataclass(frozen=True)
class Training:
    """What one command trains: a run, or several stages.

    Attributes:
        config: as the file and the command line have it; its run folder is that of the whole.
        stages: none for an ordinary run.
    """

    config: Config
    stages: tuple[Stage, ...] = ()


def load_training(path: Path, overrides: list[str]) -> Training:
    """Read a configuration with that of every stage.

    A stage's `set` wins over the file, the command line over both: what is given there holds in every stage.

    Raises:
        ConfigError: as `load_config`, for any stage too.
    """
    config = load_config(path, overrides)
    if config.stages and config.resume not in ("auto", "never"):
        raise ConfigError(f"resume={config.resume}: a training of several stages goes on by itself: use resume=auto")
    stages = (Stage(s.name, _configure(path, overrides, config, n)) for n, s in enumerate(config.stages))
    return Training(config, tuple(stages))


def begun_stages(folder: Path) -> list[Path]:
    """The folders of all stages that have begun, in their order; `folder` itself for an ordinary run."""
    names = stage_names(folder)
    return [folder / name for name in names if (folder / name / "config.yaml").is_file()] if names else [folder]


def _configure(path: Path, overrides: list[str], whole: Config, number: int) -> Config:
    stage = whole.stages[number]
    source = read_site()
    for given in (read_source(path, []), read_source(None, _own(stage)), read_source(None, overrides)):
        source.merge(given.values, given.origins)
    _merge_quietly(source.values, _fixed(whole, number))
    try:
        return validate(source)
    except ConfigError as error:
        raise ConfigError(f"stage {stage.name}: {error}") from None


def _own(stage: StageConfig) -> list[str]:
    """What a stage sets, as overrides: JSON is YAML."""
    for key in stage.set:
        if key.partition(".")[0] in OWN:
            raise ConfigError(f"stages: {stage.name} sets {key}, which is the whole training's: set it beside stages")
    teacher = [] if stage.teacher is None else [f'distill.teacher="{STAGE}{stage.teacher}"']
    return [*(f"{key}={json.dumps(value)}" for key, value in stage.set.items()), *teacher]


def _fixed(whole: Config, number: int) -> dict[str, Any]:
    """What follows from a stage's place: folders, what it starts from, who registers."""
    stage, last = whole.stages[number], number == len(whole.stages) - 1
    values: dict[str, Any] = {"stages": [], "run": {"dir": str(whole.run_dir), "name": stage.name}}
    if stage.share is not None:
        values["train"] = {"epochs": max(1, round(stage.share * whole.train.epochs))}
    if number:
        inherits = stage.transfer is not None
        values["model"] = {
            "init": STAGE + whole.stages[number - 1].name if inherits else None,
            "init_at": stage.start,
            "transfer": stage.transfer,
        }
    if whole.tracking.uri is None:
        values["tracking"] = {"uri": default_uri(whole.run_dir)}
    if not last:
        values["registry"] = {"name": None}
    return values


def _merge_quietly(values: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict):
            values[key] = {**(values.get(key) or {}), **value}
        else:
            values[key] = value
