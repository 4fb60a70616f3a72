"""Training stage after stage on the ranks that one command has: where each stands, and what is told of the whole.

The folder of the whole holds, beside one folder a stage: `stages.json` (their names), `config.yaml`, `status.json`
(kept up to date by every status of a stage), `checkpoints` (a link to those of the newest stage) and, once all are
trained, `result.json`. So launchers, job scripts and commands that know a run's folder know this one too.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trainer import failures
from trainer.config import Config, load_config
from trainer.errors import EXIT_FINISHED, EXIT_STOPPED, ConfigError, UserError
from trainer.signals import Requests
from trainer.stages import Stage, Training
from trainer.tracking.files import write_json
from trainer.tracking.staging import FILE
from trainer.tracking.status import read_status, write_status

log = logging.getLogger(__name__)


def train_stages(training: Training, requests: Requests, train: Callable[[Config, Requests], int]) -> int:
    """Train what is not trained yet, one stage after the other; every rank calls it.

    Args:
        training: with at least one stage.
        requests: signals to this process.
        train: trains one run and returns its exit code.

    Returns:
        The exit code of `reste train`: 0 if all stages are trained, else that of the stage that ended the training.

    Raises:
        UserError: on every rank: the folder holds another training, a stage cannot follow its predecessor, or a
            stage failed.
    """
    folder, main = training.config.run_dir, failures.environment_rank() == 0
    with requests.at_once(), _said_by_one():
        missing = _missing(training)
        rehearse(training)
    if main and missing:
        _begin(training, folder)
    with ExitStack() as undo:
        parent = _track(training, folder, undo) if main and missing else None
        try:
            code = _train_each(training, missing, parent, requests, train, main=main)
        except BaseException as error:
            if main:
                failures.note_end(folder, error)
            raise
        if main and code == EXIT_FINISHED:
            _finish(training, folder)
    return code


def rehearse(training: Training) -> None:
    """Make the network of every stage and hand weights on between them: what would go wrong does so before training.

    Raises:
        ConfigError: a network cannot be made, or one stage's weights do not fit into the next.
    """
    from trainer.network import instantiate, transfer

    before: Any = None
    for stage in training.stages:
        try:
            network = instantiate(stage.config, stage.config.model.num_classes or 10)
            if before is not None and stage.config.model.transfer is not None:
                transfer(before, network, stage.config.model.transfer)
        except ConfigError as error:
            raise ConfigError(f"stage {stage.name}: {error}") from None
        before = network


def is_finished(stage: Stage) -> bool:
    """Whether a stage has come to its end, which `train.max_steps` may have moved since."""
    try:
        result = json.loads((stage.config.run_dir / "result.json").read_text(encoding="utf-8"))
        end = stage.config.train.epochs * result["steps_per_epoch"]
        return bool(result["steps"] >= min(end, stage.config.train.max_steps or end))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _missing(training: Training) -> list[Stage]:
    """The stages that are still to be trained: from the first unfinished one on."""
    folder = training.config.run_dir
    if (folder / "checkpoints").is_dir() and not (folder / "checkpoints").is_symlink():
        raise ConfigError(f"{folder} holds a run without stages: choose another run.name")
    if training.config.resume == "never":
        return list(training.stages)
    _refuse_another(training.config, folder)
    done = [is_finished(stage) for stage in training.stages]
    if all(done):
        return []
    first = done.index(False)
    for later in training.stages[first + 1 :]:
        if (later.config.run_dir / "checkpoints").is_dir():
            raise ConfigError(
                f"stage {later.name} in {folder} began when stage {training.stages[first].name} had ended, which is "
                "to go on now: choose another run.name"
            )
    return list(training.stages[first:])


def _refuse_another(config: Config, folder: Path) -> None:
    from trainer.resume import differences

    if not (folder / "config.yaml").is_file():
        return
    changed = differences(load_config(folder / "config.yaml"), config)
    if changed:
        raise ConfigError(
            f"{folder} holds a training under another configuration ({'; '.join(changed)}): choose another run.name, "
            "or resume=never"
        )


@contextmanager
def _said_by_one() -> Iterator[None]:
    """Around checks that all ranks make alike: what they find is said by rank 0 alone."""
    try:
        yield
    except UserError as error:
        error.everywhere = True
        raise


def _begin(training: Training, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"stages": [stage.name for stage in training.stages]})
    (folder / "config.yaml").write_text(training.config.to_yaml(), encoding="utf-8")
    (folder / "result.json").unlink(missing_ok=True)


def _train_each(
    training: Training,
    missing: list[Stage],
    parent: str | None,
    requests: Requests,
    train: Callable[[Config, Requests], int],
    *,
    main: bool,
) -> int:
    for stage in missing:
        number = training.stages.index(stage) + 1
        if main:
            _point_at(stage, training.config.run_dir)
            print(f"stage {number} of {len(training.stages)}: {stage.name}", flush=True)
        code = train(_below(stage.config, parent), requests)
        if code != EXIT_FINISHED:
            return code
        if stage is not missing[-1]:
            _forget()
    return EXIT_FINISHED


def _below(config: Config, parent: str | None) -> Config:
    """A stage's configuration, with the MLflow run that it belongs to; what is computed stays the same."""
    if parent is None:
        return config
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"parent": parent})})


def _point_at(stage: Stage, folder: Path) -> None:
    """Make `checkpoints` name those of a stage, in one atomic replacement of a link."""
    link = folder / ".checkpoints.tmp"
    link.unlink(missing_ok=True)
    link.symlink_to(Path(stage.name) / "checkpoints", target_is_directory=True)
    link.replace(folder / "checkpoints")


def _forget() -> None:
    """Give back what a stage leaves behind in this process."""
    import torch

    from trainer.logs import speak_plainly

    speak_plainly(failures.environment_rank())  # the log file of the stage before is closed with this
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _track(training: Training, folder: Path, undo: ExitStack) -> str | None:
    """The MLflow run above the stages, unless there is one above the whole already, or MLflow is not to be used."""
    config = training.config
    if not config.tracking.enabled or config.tracking.parent is not None:
        return config.tracking.parent
    from trainer.tracking.address import resolve_uri
    from trainer.tracking.parent import ParentRun
    from trainer.tracking.sync import flatten

    above = ParentRun(
        folder,
        uri=resolve_uri(config.tracking.uri, config.run_dir),
        experiment=config.tracking.experiment,
        params=flatten(config.model_dump(mode="json")),
        tags={"stages": ", ".join(stage.name for stage in training.stages)},
        artifacts=(folder / "config.yaml", folder / "result.json"),
    )
    run_id = above.begin()
    undo.callback(lambda: above.end(_how_it_ended(folder), [stage.config.run_dir for stage in training.stages]))
    return run_id


def _how_it_ended(folder: Path) -> Any:
    status = read_status(folder)
    ends = {0: "FINISHED", EXIT_STOPPED: "KILLED"}
    return "FAILED" if status is None or status.exit_code is None else ends.get(status.exit_code, "FAILED")


def _finish(training: Training, folder: Path) -> None:
    """Write the last stage's result, with those of all, and that the whole is finished."""
    results = {}
    for stage in training.stages:
        results[stage.name] = json.loads((stage.config.run_dir / "result.json").read_text(encoding="utf-8"))
    last = training.stages[-1]
    write_json(folder / "result.json", {**results[last.name], "stages": results})
    _point_at(last, folder)
    status = read_status(last.config.run_dir)
    if status is not None:
        write_status(
            folder,
            "finished",
            step=status.step,
            total_steps=status.total_steps,
            epoch=status.epoch,
            metrics=status.metrics,
            checkpoint=None if status.checkpoint is None else f"{last.name}/{status.checkpoint}",
            exit_code=EXIT_FINISHED,
            stage=last.name,
        )
    told = ", ".join(f"{name} {result['best'].get('top1', float('nan')):.2f} %" for name, result in results.items())
    print(f"{folder}: all stages are trained (best top-1: {told})", flush=True)
