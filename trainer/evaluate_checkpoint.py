"""`reste evaluate`: a checkpoint or a registered model, a validation split, exact counts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
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
from trainer.network import create_network, load_as_saved
from trainer.pixels import AUTOCAST, Pixels
from trainer.registered import numbered, open_registered
from trainer.signals import Requests
from trainer.tracking.registry import SCHEME

Network = Callable[[list[str], torch.device], nn.Module]


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        source: the checkpoint's folder, or the registered model and its version.
        config: the run's configuration with the caller's overrides.
        weights: `model` or `ema`.
        classes: names that it was trained on; None if it numbers its classes.
        network: makes it, for the classes of the data, on a device.
    """

    source: str
    config: Config
    weights: str
    classes: list[str] | None
    network: Network


def run_rank(
    source: str,
    data: Path | None,
    *,
    batch_size: int | None,
    loader: str | None,
    weights: str,
    uri: str | None,
    as_json: bool,
) -> int:
    """Evaluate as one rank; rank 0 prints. Returns the exit code."""

    def work() -> int:
        with ExitStack() as undo:
            environment = resolve_environment(os.environ)
            collectives.init_process_group(environment, choose_device(environment))
            undo.callback(collectives.shutdown)
            chosen: dict[str, Any] = {"batch_size": batch_size, "loader": loader, "weights": weights}
            if source.startswith(SCHEME):
                folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="reste-evaluate-"))
                address = agreed_version(source, uri)
                with collectives.agreed_errors():
                    request = prepare_registered(address, data, uri=uri, folder=Path(folder), **chosen)
            else:
                with collectives.agreed_errors():
                    request = prepare(Path(source), data, **chosen)
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
    """Verify a checkpoint and put the caller's choices into its configuration.

    Raises:
        ConfigError: no checkpoint there, a damaged one, or weights it does not hold.
    """
    folder = checkpoints.resolve(path)
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"{'; '.join(damage)}: evaluate another checkpoint of the run")
    chosen = checkpoints.choose_weights(folder, weights)
    config = load_config(folder / "config.yaml", _overrides(data, batch_size, loader))
    classes = checkpoint.read_manifest(folder)["classes"]
    return Request(str(folder), config, chosen, classes, partial(_from_checkpoint, folder, config, chosen))


def agreed_version(address: str, uri: str | None) -> str:
    """The `models:/NAME/VERSION` that rank 0 finds under an address, on every rank: an alias may move meanwhile.

    Raises:
        ConfigError: no such model; on every rank.
        UserError: MLflow does not answer rank 0.
    """
    with collectives.agreed_errors():
        if collectives.is_main():
            address = numbered(address, uri)
    return collectives.broadcast_object(address)


def prepare_registered(
    address: str,
    data: Path | None,
    *,
    batch_size: int | None,
    loader: str | None,
    weights: str,
    uri: str | None,
    folder: Path,
) -> Request:
    """Copy a registered model into an empty folder and put the caller's choices into its configuration.

    Raises:
        ConfigError: no such model, or files that are not ours.
        UserError: MLflow does not answer.
    """
    if weights != "auto":
        raise ConfigError(f"--weights {weights}: {address} has one kind of weights, leave it out")
    found = open_registered(address, uri, folder)
    config = load_config(found.config, _overrides(data, batch_size, loader))
    return Request(found.source, config, found.facts.weights, found.facts.classes, found.network)


def _overrides(data: Path | None, batch_size: int | None, loader: str | None) -> list[str]:
    overrides = [f"data.root={json.dumps(str(data))}"] if data else []
    overrides += [f"eval.batch_size={batch_size}"] if batch_size else []
    return overrides + ([f"data.loader={loader}"] if loader else [])


def _from_checkpoint(path: Path, config: Config, weights: str, classes: list[str], device: torch.device) -> nn.Module:
    model = create_network(config, classes, device, weights_follow=True)
    load_as_saved(model, path, weights, config)
    return model


def evaluate_request(request: Request) -> Evaluation | None:
    """Evaluate over all ranks, which have met; the numbers on rank 0, None elsewhere.

    Raises:
        ConfigError: the checkpoint's classes are not those of the data.
        DataError: the data is missing or an image cannot be read.
    """
    environment = resolve_environment(os.environ)
    device = choose_device(environment)
    config = request.config
    apply_switches(config.train, environment, device)
    with ExitStack() as undo:
        with collectives.agreed_errors():
            data = datasets.open_validation(config)
            datasets.check_classes(request.source, request.classes, config.model.num_classes, data.classes)
            model = request.network(data.classes, device)
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


def _facts(request: Request, found: Evaluation) -> Mapping[str, Any]:
    return {
        "top1": found.top1,
        "top5": found.top5,
        "loss": found.loss,
        "samples": found.samples,
        "correct1": found.correct1,
        "correct5": found.correct5,
        "checkpoint": request.source,
        "weights": request.weights,
        "data": request.config.data.root,
    }


def _sentence(request: Request, found: Evaluation) -> str:
    return (
        f"{request.source} ({request.weights}) on {request.config.data.root}: top-1 {found.top1:.3f} % "
        f"({found.correct1} of {found.samples}), top-5 {found.top5:.3f} %, loss {found.loss:.5f}"
    )
