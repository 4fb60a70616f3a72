"""A model out of the registry, ready to be evaluated like a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from trainer.errors import ConfigError
from trainer.export.program import Deployed, load_program
from trainer.tracking.packing import ARTIFACTS, CONFIG, PROGRAM
from trainer.tracking.registry import SCHEME, Registry, registry_uri


@dataclass(frozen=True)
class RegisteredModel:
    """The files of a version on this machine.

    Attributes:
        source: which it is, in words.
        config: file of the run's configuration.
        facts: labels, preprocessing, origin.
        program: the graph.
    """

    source: str
    config: Path
    facts: Deployed
    program: ExportedProgram

    def network(self, classes: list[str], device: torch.device) -> nn.Module:
        """The graph as a module on a device; it computes as in evaluation in either mode.

        Raises:
            ConfigError: it tells fewer classes apart than there are.
        """
        if len(self.facts.labels) < len(classes):
            known = len(self.facts.labels)
            raise ConfigError(f"{self.source} tells {known} classes apart, the data has {len(classes)}: wrong --data?")
        program = self.program
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        network = program.module()
        # A graph refuses to change its mode, and has only this one.
        network.train = partial(_stay, network)  # type: ignore[method-assign, assignment]
        network.eval = partial(_stay, network)  # type: ignore[method-assign, assignment]
        return network


def _stay(network: nn.Module, mode: bool = False) -> nn.Module:
    return network


def numbered(address: str, uri: str | None) -> str:
    """The `models:/NAME/VERSION` that an address means now.

    Raises:
        ConfigError: no such version.
        UserError: MLflow does not answer.
    """
    version = Registry(registry_uri(uri)).version(address)
    return f"{SCHEME}{version.name}/{version.number}"


def open_registered(address: str, uri: str | None, folder: Path) -> RegisteredModel:
    """Copy a registered model here and read it; none of its code is run.

    Args:
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: the store; None is the default one.
        folder: an empty one for its files.

    Raises:
        ConfigError: no such version, or files that are not ours.
        UserError: MLflow does not answer.
    """
    registry = Registry(registry_uri(uri))
    version = registry.version(address)
    files = registry.download(version, folder) / ARTIFACTS
    if not (files / CONFIG).is_file():
        raise ConfigError(f"{version} was not registered by reste register: evaluate its checkpoint")
    program, facts = load_program(files / PROGRAM)
    return RegisteredModel(str(version), files / CONFIG, facts, program)
