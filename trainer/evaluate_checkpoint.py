"""`reste evaluate`: a checkpoint, a validation split, exact counts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from trainer import checkpoint, checkpoints
from trainer.config import Config, load_config
from trainer.data import datasets
from trainer.data.order import EvalOrder
from trainer.distributed import collectives
from trainer.distributed.environment import resolve_environment
from trainer.errors import ConfigError
from trainer.evaluation import Evaluation, evaluate
from trainer.hardware import apply_switches, choose_device
from trainer.main import guarded
from trainer.network import create_network, load_weights
from trainer.pixels import AUTOCAST, Pixels
from trainer.signals import Requests


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        path: the checkpoint's folder.
        config: the run's configuration with the caller's overrides.
        weights: `model` or `ema`.
    """

    path: Path
    config: Config
    weights: str


def run_rank(
    path: Path,
    data: Path | None,
    *,
    batch_size: int | None,
    loader: str | None,
    weights: str,
    as_json: bool,
) -> int:
    """Evaluate as one rank; rank 0 prints. Returns the exit code."""

    def work() -> int:
        request = prepare(path, data, batch_size=batch_size, loader=loader, weights=weights)
        found = evaluate_request(request)
        if found is not None:
            print(json.dumps(_facts(request, found)) if as_json else _sentence(request, found))
        return 0

    requests = Requests()
    with requests.received():
        return guarded(partial(_at_once, requests, work))


def _at_once(requests: Requests, work: Callable[[], int]) -> int:
    with requests.at_once():
        return work()


def prepare(path: Path, data: Path | None, *, batch_size: int | None, loader: str | None, weights: str) -> Request:
    """Verify the checkpoint and put the caller's choices into its configuration.

    Raises:
        ConfigError: no checkpoint there, a damaged one, or weights it does not hold.
    """
    folder = checkpoints.resolve(path)
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"{'; '.join(damage)}: evaluate another checkpoint of the run")
    overrides = [f"data.root={json.dumps(str(data))}"] if data else []
    overrides += [f"eval.batch_size={batch_size}"] if batch_size else []
    overrides += [f"data.loader={loader}"] if loader else []
    has_average = (folder / "ema.pt").is_file()
    if weights not in {"auto", "model", "ema"} or (weights == "ema" and not has_average):
        raise ConfigError(f"--weights {weights}: {folder} holds model{' and ema' if has_average else ' only'}")
    chosen = ("ema" if has_average else "model") if weights == "auto" else weights
    return Request(folder, load_config(folder / "config.yaml", overrides), chosen)


def evaluate_request(request: Request) -> Evaluation | None:
    """Evaluate over all ranks; the numbers on rank 0, None elsewhere.

    Raises:
        ConfigError: the checkpoint's classes are not those of the data.
        DataError: the data is missing or an image cannot be read.
    """
    environment = resolve_environment(os.environ)
    device = choose_device(environment)
    config = request.config
    apply_switches(config.train, environment, device)
    with ExitStack() as undo:
        collectives.init_process_group(environment, device)
        undo.callback(collectives.shutdown)
        with collectives.agreed_errors():
            data = datasets.open_validation(config)
            model = _model(request, data.classes, device)
            order = EvalOrder(
                data,
                datasets.augment(config),
                batch_size=config.eval.batch_size or config.train.batch_size,
                rank=environment.rank,
                world=environment.world_size,
            )
            loader = datasets.create_loader(config, order, environment, device)
        undo.callback(loader.close)
        pixels = Pixels.of(config, device)
        found = evaluate(
            model,
            loader.load(order.plans()),
            pixels,
            samples=len(data),
            autocast=AUTOCAST.get(config.train.precision),
        )
        return found if collectives.is_main() else None


def _model(request: Request, classes: list[str], device: Any) -> nn.Module:
    trained_on = checkpoint.read_manifest(request.path)["classes"]
    if trained_on is None:  # converted from a file that numbers its classes
        number = request.config.model.num_classes
        if number != len(classes):
            raise ConfigError(
                f"{request.path} tells {number} classes apart, the data has {len(classes)}: wrong --data?"
            )
    elif trained_on != classes:
        raise ConfigError(
            f"{request.path} was trained on {len(trained_on)} classes ({', '.join(trained_on[:3])}, ...), the data has "
            f"{len(classes)} ({', '.join(classes[:3])}, ...): evaluate it on data of its own classes"
        )
    model = create_network(request.config, classes, device)
    load_weights(model, checkpoint.load_payload(request.path, request.weights), request.path)
    return model


def _facts(request: Request, found: Evaluation) -> dict[str, Any]:
    return {
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "samples": found.samples,
        "correct1": found.correct1,
        "correct5": found.correct5,
        "checkpoint": str(request.path),
        "weights": request.weights,
        "data": request.config.data.root,
    }


def _sentence(request: Request, found: Evaluation) -> str:
    return (
        f"{request.path} ({request.weights}) on {request.config.data.root}: top-1 {found.top1:.3f} % "
        f"({found.correct1} of {found.samples}), top-5 {found.top5:.3f} %, loss {found.loss:.5f}"
    )
