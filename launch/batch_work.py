"""What a job of SLURM trains, as the shell of its script has it: a run, a run for each task, or a study's runs."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.batch_options import BatchOptions, array_tasks
from trainer.config import Config, load_config
from trainer.config_yaml import UNPRINTABLE
from trainer.errors import ConfigError
from trainer.secrets import redact
from trainer.stages import load_training
from trainer.study.cases import parse_case, plan_cases
from trainer.study.sweep import is_finished

TASK = "%a"
"""In an override: the number of the array's task, as in file names of sbatch."""

_STAND_IN = "40494049"  # for the task's number, where a configuration is read to learn its folder


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job trains.

    Attributes:
        folder: the run's folder, with `%a` where an array's task has its number; of a study `CASE-seedN`.
        logs: where script and output of a submitted job stay.
        name: the job's, unless one is given.
        words: behind `reste slurm render`, before the options of the job.
        place: shell lines that set RUN, the run's folder, and what else the task's number decides.
        passed: names of the variables that they set.
        arguments: behind `-m trainer`, as the shell reads them.
        array: the tasks that are left to do, if the work decides which there are.
        after: what to do once all is trained.
    """

    folder: Path
    logs: Path
    name: str
    words: tuple[str, ...]
    place: str
    passed: str
    arguments: tuple[str, ...]
    array: str | None = None
    after: str | None = None


def plan_work(path: Path, overrides: list[str], options: BatchOptions, cases: Sequence[str], seeds: int) -> Work:
    """What a configuration, its overrides and the cases of a study ask for.

    Args:
        path: a configuration file, as it is found from the folder in which the job is submitted.
        overrides: `key=value` strings.
        options: what the job asks for.
        cases: those of `reste study runs`; none: a run, or one for each task of `options.array`.
        seeds: runs of each case.

    Raises:
        ConfigError: the configuration is wrong, or cannot be trained by a job that starts again.
    """
    _refuse_what_no_script_may_hold([str(path), *overrides, *cases])
    if cases:
        return _study(path, overrides, options, cases, seeds)
    if seeds > 1:
        raise ConfigError("--seeds is for the cases of a study: give --case 'NAME: key=value', or --array and seed=%a")
    return _runs(path, overrides, options)


def _runs(path: Path, overrides: list[str], options: BatchOptions) -> Work:
    folder = _run_folder(path, overrides, options)
    return Work(
        folder=folder,
        # The tasks of an array share one folder for script and output, beside their run folders.
        logs=(folder.parent if options.array else folder) / "slurm",
        name=folder.name.replace(TASK, "").strip("-_."),
        words=(str(path), *overrides),
        place=f"RUN={_quoted(str(folder))}",
        passed="RUN",
        arguments=tuple(_quoted(word) for word in [str(path), *overrides]),
    )


def _run_folder(path: Path, overrides: list[str], options: BatchOptions) -> Path:
    marked = any(TASK in override for override in overrides)
    if marked and options.array is None:
        raise ConfigError(f"{TASK} in an override is the number of an array's task: give --array, e.g. --array 0-4")
    for task in array_tasks(options.array or "0")[:: max(len(array_tasks(options.array or "0")) - 1, 1)]:
        _check(load_training(path, [override.replace(TASK, str(task)) for override in overrides]).config)
    config = load_config(path, [override.replace(TASK, _STAND_IN) for override in overrides])
    folder = Path(str(config.run_dir).replace(_STAND_IN, TASK))
    if options.array is not None and (TASK not in folder.name or TASK in str(folder.parent)):
        raise ConfigError(f"the tasks of an array need run folders of their own: run.name={config.run.name}-{TASK}")
    return folder


def _study(path: Path, overrides: list[str], options: BatchOptions, cases: Sequence[str], seeds: int) -> Work:
    if any(TASK in word for word in (*overrides, *cases)):
        raise ConfigError(f"{TASK} is for arrays without --case: the cases and seeds of a study number its tasks")
    sweep = plan_cases(path, overrides, [parse_case(case) for case in cases], seeds, None)
    last = len(sweep.points) - 1
    if options.array is not None and max(array_tasks(options.array)) > last:
        raise ConfigError(f"--array {options.array}: the tasks of this study are 0-{last}, a case and a seed each")
    missing = [number for number, point in enumerate(sweep.points) if not is_finished(sweep, point)]
    if not missing:
        raise ConfigError(
            f"all runs in {sweep.directory} are finished: compare them with reste study runs ... --report"
        )
    study = [*(word for case in cases for word in ("--case", case)), *(["--seeds", str(seeds)] if seeds > 1 else [])]
    words = (str(path), *overrides, *study)
    return Work(
        folder=sweep.directory / "CASE-seedN",
        logs=sweep.directory / "slurm",
        name=sweep.directory.name,
        words=words,
        place="\n".join(
            [
                "case $SLURM_ARRAY_TASK_ID in  # a case and a seed each",
                *(
                    f"    {number}) RUN={shlex.quote(str(sweep.folder(point)))} OWN=({shlex.join(point.overrides)}) ;;"
                    for number, point in enumerate(sweep.points)
                ),
                f'    *) echo "the tasks are 0-{last}: give --array" >&2; exit 2 ;;',
                "esac",
            ]
        ),
        passed="RUN OWN",
        arguments=(shlex.join([str(path), *sweep.given]), '"${OWN[@]}"', shlex.join(sweep.fixed)),
        array=f"0-{last}" if len(missing) == last + 1 else ",".join(map(str, missing)),
        after=shlex.join(["reste", "study", "runs", *words, "--report"]),
    )


def _refuse_what_no_script_may_hold(words: list[str]) -> None:
    for word in words:
        if UNPRINTABLE.search(word):
            raise ConfigError(f"{word!r} holds a control character or a line end, which would end a line of the script")
        if redact(word) != word:
            raise ConfigError(
                f"{redact(word)} holds a password, which the script would keep: give it to the job by its environment "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)"
            )


def _check(config: Config) -> None:
    if config.resume != "auto":
        raise ConfigError(
            f"resume={config.resume}: a job that is requeued must go on from its own newest checkpoint: use resume=auto"
        )


def _quoted(text: str) -> str:
    """A word for the shell, in which `%a` becomes the number of the array's task."""
    parts = text.split(TASK)
    return '"$SLURM_ARRAY_TASK_ID"'.join(shlex.quote(part) if part else "" for part in parts)
