"""Parameter roles and groups."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import models
from reste import BinaryLinear, create_estimator
from trainer.config import load_config
from trainer.config_schema import OptimConfig
from trainer.distributed.update import update
from trainer.errors import ConfigError
from trainer.optim import binary_lr, create_optimizer, parameter_groups, parameter_roles


def test_the_roles_of_resnet18_are_those_counted_in_the_paper() -> None:
    model = timm.create_model("resnet18_1w1a", estimator="reste")
    roles = parameter_roles(model)
    sizes = dict.fromkeys(("binary", "weight", "norm", "bias"), 0)
    for name, parameter in model.named_parameters():
        sizes[roles[name]] += parameter.numel()
    assert sizes["binary"] == 10_985_472
    assert sum(sizes.values()) == 11_690_536
    assert roles["fc.bias"] == "bias"
    assert {role for name, role in roles.items() if "downsample.1" in name} == {"norm"}


@pytest.mark.parametrize("name", models.MODELS)
def test_every_parameter_is_in_exactly_one_group(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, estimator="reste")
    groups, report = parameter_groups(model, OptimConfig(weight_decay=0.1))
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())
    assert sum(row.parameters for row in report) == sum(p.numel() for p in model.parameters())
    assert {row.role: row.weight_decay for row in report} == {
        "binary": 0.1,
        "weight": 0.1,
        "norm": 0.0,
        "bias": 0.0,
    }


def test_the_reference_decays_everything() -> None:
    _, report = parameter_groups(timm.create_model("resnet20_1w1a"), OptimConfig(weight_decay=0.1, no_decay=()))
    assert {row.weight_decay for row in report} == {0.1}


@pytest.mark.parametrize(("lr", "binary_scale"), [(1e39, 1.0), (1e38, 8.0)])
def test_a_rate_that_float32_cannot_hold_is_refused(lr: float, binary_scale: float) -> None:
    with pytest.raises(ConfigError, match=r"optim.lr=.* is more than float32 holds: lower it"):
        create_optimizer(nn.Linear(2, 2), OptimConfig(lr=lr), fused=False, binary_scale=binary_scale)


def test_a_frozen_parameter_is_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    groups, _ = parameter_groups(model, OptimConfig())
    assert sum(len(g["params"]) for g in groups) == 3


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_moves_as_torch_sgd_does(nesterov: bool) -> None:
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer, _ = create_optimizer(ours, config, fused=True)
    reference = torch.optim.SGD(
        [{"params": [theirs.weight], "weight_decay": 0.01}, {"params": [theirs.bias]}],
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
    )
    for step in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        for model, opt in ((ours, optimizer), (theirs, reference)):
            opt.zero_grad()
            model(x).square().sum().backward()
            opt.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)


@pytest.mark.parametrize(
    ("steps", "overrides", "expected"),
    [
        (480, [], 8.0),
        (500, [], 8.0),
        (1000, [], 4.0),
        (4000, [], 1.0),
        (426_500, [], 1.0),
        (480, ["model.numerics=reference"], 1.0),
        (480, ["optim.binary_lr=2.5"], 2.5),
        (480, ["model.numerics=reference", "optim.binary_lr=3"], 3.0),
    ],
)
def test_binary_weights_learn_faster_on_short_schedules(steps: int, overrides: list[str], expected: float) -> None:
    assert binary_lr(load_config(None, overrides), steps) == expected


def test_only_latent_weights_have_a_rate_of_their_own() -> None:
    model = nn.Sequential(BinaryLinear(4, 4, bias=False, weight_estimator=create_estimator("reste")), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.named_parameters()}
    config = OptimConfig(momentum=0.0, weight_decay=0.0)
    optimizer, report = create_optimizer(model, config, fused=False, binary_scale=8.0)
    assert {role.role: role.lr_scale for role in report} == {"binary": 8.0, "weight": 1.0, "bias": 1.0}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    update(optimizer, optimizer, scaler, lr=0.25, blocked=torch.zeros(()))
    moved = {name: (before[name] - value).mean().item() for name, value in model.named_parameters()}
    assert moved == pytest.approx({"0.weight": 2.0, "1.weight": 0.25, "1.bias": 0.25}, rel=1e-5)


def test_an_unknown_optimizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"optim\.name='sdg'.*adamw"):
        create_optimizer(nn.Linear(1, 1), OptimConfig(name="sdg"), fused=False)
