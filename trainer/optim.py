"""Parameter groups by declared role, proved total, and the optimizer from timm's factory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import timm.optim
import torch
from torch import nn

from reste import binary_layers
from trainer.config import Config
from trainer.config_schema import OptimConfig
from trainer.errors import ConfigError

ROLES = ("binary", "weight", "norm", "bias")
LONG_STEPS = 4000
"""A schedule of so many steps lets binary weights find their signs at the rate of all others."""
MOST = 8.0
"""Largest multiple of the rate on shorter ones."""


@dataclass(frozen=True)
class RoleCount:
    """Tensors and numbers under a role, their weight decay, and their learning rate as a multiple of `optim.lr`."""

    role: str
    tensors: int
    parameters: int
    weight_decay: float
    lr_scale: float


def binary_lr(config: Config, total_steps: int) -> float:
    """The learning rate of latent weights, as a multiple of `optim.lr`.

    A latent weight acts by its sign alone, so that what its rate means depends on its size: it turns after about
    |w| / (rate x gradient) steps. At the paper's rate and initialisation, a schedule of some hundred steps turns
    hardly any. `auto` is min(8, 4000 / steps), at least 1; the official arithmetic has 1 (docs/short_trainings.md).

    Args:
        config: its `optim.binary_lr` is the answer, if it is a number.
        total_steps: optimizer steps of the whole schedule.
    """
    if config.optim.binary_lr != "auto":
        return config.optim.binary_lr
    if config.model.numerics == "reference":
        return 1.0
    return min(max(LONG_STEPS / total_steps, 1.0), MOST)


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """The role of every trainable parameter, by the type of the module that owns it, never by its name.

    Roles: `binary` (latent weights of binary layers), `norm` (parameters of normalisation layers), `bias` (other
    parameters of fewer than two dimensions), `weight` (all else).

    Raises:
        AssertionError: a parameter is shared between modules of different roles.
    """
    latent = {id(layer.weight) for _, layer in binary_layers(model) if layer.weight_bits == 1}
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    roles: dict[str, str] = {}
    owner: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in latent:
                role = "binary"
            elif isinstance(module, norms):
                role = "norm"
            else:
                role = "bias" if parameter.ndim < 2 else "weight"
            assert owner.setdefault(id(parameter), role) == role, f"{prefix}.{name} is shared between roles"
            if parameter.requires_grad:
                roles[f"{prefix}.{name}" if prefix else name] = role
    return roles


def parameter_groups(
    model: nn.Module, config: OptimConfig, binary_scale: float = 1.0
) -> tuple[list[dict[str, Any]], list[RoleCount]]:
    """One optimizer group per role that the model has, and a report of them.

    Each has `lr_scale`, its rate as a multiple of the common one: `binary_scale` for latent weights, else 1.

    Raises:
        AssertionError: a parameter would be left out or appear twice.
    """
    roles = parameter_roles(model)
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = []
    report: list[RoleCount] = []
    for role in ROLES:
        members = [named[name] for name in named if roles.get(name) == role]
        if not members:
            continue
        decay = 0.0 if role in config.no_decay else config.weight_decay
        scale = binary_scale if role == "binary" else 1.0
        groups.append({"params": members, "weight_decay": decay, "lr_scale": scale})
        report.append(RoleCount(role, len(members), sum(p.numel() for p in members), decay, scale))
    covered = [id(p) for group in groups for p in group["params"]]
    trainable = [id(p) for p in model.parameters() if p.requires_grad]
    assert sorted(covered) == sorted(trainable), "parameter roles do not cover the model exactly once"
    return groups, report


def create_optimizer(
    model: nn.Module, config: OptimConfig, *, fused: bool, binary_scale: float = 1.0
) -> tuple[torch.optim.Optimizer, list[RoleCount]]:
    """The configured optimizer over role groups, and the groups' report.

    Args:
        model: its trainable parameters are all covered.
        config: name, momentum, weight decay; the learning rate is set before each step.
        fused: use torch's fused kernels where the optimizer has them.
        binary_scale: rate of latent weights, as a multiple of all others'.

    Raises:
        ConfigError: timm's factory does not know the optimizer, or a rate is more than float32 holds.
    """
    if config.lr * max(binary_scale, 1.0) > torch.finfo(torch.float32).max:
        raise ConfigError(
            f"optim.lr={config.lr:g}, {max(binary_scale, 1.0):g} times that for binary weights, is more than float32 "
            "holds: lower it"
        )
    groups, report = parameter_groups(model, config, binary_scale)
    # In timm's factory `sgd` means Nesterov's momentum, `momentum` means the plain one.
    name = "momentum" if config.name == "sgd" and not config.nesterov else config.name
    options = {"fused": True} if fused and name in {"sgd", "momentum", "adam", "adamw"} else {}
    try:
        optimizer = timm.optim.create_optimizer_v2(
            groups,
            opt=name,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **options,
        )
    except (ValueError, AssertionError) as error:
        known = ", ".join(timm.optim.list_optimizers())
        raise ConfigError(f"optim.name={config.name!r} does not work ({error}); timm knows {known}") from None
    return optimizer, report
