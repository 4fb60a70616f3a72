"""The teacher: found, loaded, checked against the student, and put beside it without belonging to it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.checkpoints import named
from trainer.config import Config
from trainer.data import datasets
from trainer.errors import ConfigError
from trainer.names import STAGE
from trainer.network import load_weights, stored_network

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation by channel, on pixels scaled to 0..1."""


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode, without gradients, on the run's device and in its precision.

    Attributes:
        network: images normalised as it was trained on, to logits.
        images: from images normalised as the student's to those.
        name: where it comes from, in words.
        digest: SHA-256 of its weights.
    """

    network: nn.Module
    images: nn.Module
    name: str
    digest: str


class Renormalised(nn.Module):
    """Images that were normalised with the student's constants, normalised with the teacher's."""

    def __init__(self, student: Constants, teacher: Constants) -> None:
        super().__init__()
        (mean, std), (own_mean, own_std) = (
            (
                torch.tensor(m, dtype=torch.float64).view(1, -1, 1, 1),
                torch.tensor(s, dtype=torch.float64).view(1, -1, 1, 1),
            )
            for m, s in (student, teacher)
        )
        self.register_buffer("gain", std / own_std)
        self.register_buffer("shift", (mean - own_mean) / own_std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to the same."""
        return images * self.gain + self.shift


def load_teacher(config: Config, classes: list[str], device: torch.device) -> Teacher:
    """The teacher that a configuration names (`distill.teacher`).

    A word is a model of timm with its published weights; `stage:NAME` and anything with a slash is a checkpoint of
    this program. No file is unpickled: weights of timm come as safetensors.

    Args:
        config: of the run.
        classes: of its data.
        device: where it computes.

    Raises:
        ConfigError: there is no such teacher, its weights cannot be had, or it was trained for other classes or
            images of another size.
    """
    assert config.distill.teacher is not None
    name = config.distill.teacher
    from_here = name.startswith(STAGE) or "/" in name
    network, constants = _ours(name, config, classes) if from_here else _of_timm(name, config, classes)
    network.eval().requires_grad_(False)
    _check_sizes(name, network, config)
    digest = _digest(network)
    own = (config.augment.mean, config.augment.std)
    images = nn.Identity() if constants == own else Renormalised(own, constants)
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    memory = torch.channels_last if config.train.channels_last else torch.contiguous_format
    network = network.to(device=device, dtype=dtype).to(memory_format=memory)
    return Teacher(network, images.to(device=device, dtype=dtype), name, digest)


def _ours(name: str, config: Config, classes: list[str]) -> tuple[nn.Module, Constants]:
    found = stored_network(named(name, config.run_dir), f"distill.teacher={name}")
    datasets.check_classes(f"distill.teacher={name}", found.classes, found.outputs, classes)
    _check_outputs(name, found.outputs, config, classes)
    if found.config.data.image_size != config.data.image_size:
        raise ConfigError(
            f"distill.teacher={name} was trained on images of {found.config.data.image_size} pixels, the run has "
            f"{config.data.image_size}: name a teacher of the same data.image_size"
        )
    return found.network, (found.config.augment.mean, found.config.augment.std)


def _of_timm(name: str, config: Config, classes: list[str]) -> tuple[nn.Module, Constants]:
    if not timm.is_model(name):
        raise ConfigError(
            f"distill.teacher={name}: timm has no such model; a checkpoint is named by its folder, with a slash "
            f"(./{name}), a run beside this one as {STAGE}{name}"
        )
    described = timm.models.get_pretrained_cfg(name)
    if described is None or not described.hf_hub_id:
        raise ConfigError(f"distill.teacher={name}: timm publishes no weights for it: name another, or a checkpoint")
    _check_outputs(name, described.num_classes, config, classes)
    network = timm.create_model(name)
    load_weights(network, load_file(_published(name, described.hf_hub_id)), Path(described.hf_hub_id))
    return network, (tuple(described.mean), tuple(described.std))


def _published(name: str, repository: str) -> Path:
    """The file of weights, from the hub's cache on this machine or from the hub."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "model.safetensors"))
    except Exception as error:  # a network raises anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"distill.teacher={name}: the weights {repository} of the Hugging Face hub are not in this machine's cache "
            f"and cannot be fetched ({reason}): run `hf download {repository} model.safetensors` where there is a "
            "network and set HF_HOME to that cache, or name a checkpoint"
        ) from None


def _check_outputs(name: str, outputs: int, config: Config, classes: list[str]) -> None:
    mine = config.model.num_classes or len(classes)
    if outputs != mine:
        raise ConfigError(
            f"distill.teacher={name} tells {outputs} classes apart, the run's network {mine}: name a teacher of the "
            "same classes"
        )


def _check_sizes(name: str, network: nn.Module, config: Config) -> None:
    dtype = next(network.parameters()).dtype
    for side in config.image_sizes.distinct:
        try:
            with torch.no_grad():
                network(torch.zeros(1, 3, side, side, dtype=dtype))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"distill.teacher={name} cannot take images of {side} pixels ({reason}): name another teacher, or set "
                "data.image_size to its own"
            ) from error


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
