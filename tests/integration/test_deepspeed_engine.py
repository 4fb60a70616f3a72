"""The DeepSpeed engine alone: blocked updates, and a state that fits every number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spawn import run_ranks
from torch import nn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(45, 7))
    return layers.to(memory_format=torch.channels_last)


def create(zero: int, optimizer: torch.optim.Optimizer, model: nn.Module):  # type: ignore[no-untyped-def]
    from trainer.config import load_config
    from trainer.distributed import collectives
    from trainer.distributed.deepspeed import DeepSpeedEngine, prepare
    from trainer.distributed.deepspeed_settings import deepspeed_settings

    settings = deepspeed_settings(
        load_config(None, ["engine=deepspeed", f"deepspeed.zero={zero}"]), collectives.world_size()
    )
    device = torch.device("cpu")
    prepare(device, collectives.rank(), settings, optimizer)
    return DeepSpeedEngine(
        model, optimizer, precision="fp32", clip_norm=None, compile=False, device=device, settings=settings
    )


def groups(model: nn.Module) -> list[dict[str, object]]:
    parameters = list(model.parameters())
    return [{"params": parameters[::2], "weight_decay": 0.1}, {"params": parameters[1::2], "weight_decay": 0.0}]


def step(engine, blocked: float) -> None:  # type: ignore[no-untyped-def]
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    with engine.accumulate(last=True):
        engine.backward(engine.forward(images, whole=True).square().mean())
    engine.finish_gradients()
    engine.step(lr=0.1, blocked=torch.tensor(blocked))


def blocked_steps(loaded: bool) -> list[tuple[bool, bool, bool]]:
    """For ZeRO 0 and 1, fused and not: whether a step, a blocked one and a further one have moved the weights.

    Args:
        loaded: after a state of an optimizer of the other kind.
    """
    found = []
    for zero in (0, 1):
        for fused in (False, True):
            model = network()
            engine = create(zero, torch.optim.SGD(groups(model), lr=0.1, momentum=0.9, fused=fused), model)
            if loaded:
                other = torch.optim.SGD(groups(model), lr=0.1, momentum=0.9, fused=not fused)
                engine.load_state({"optimizer": other.state_dict(), "scaler": {}})
            moved = []
            for blocked in (0.0, 1.0, 0.0):
                before = [p.detach().clone() for p in model.parameters()]
                step(engine, blocked)
                moved.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
            found.append(tuple(moved))
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("loaded", [False, True])
def test_a_blocked_update_moves_no_weight(loaded: bool) -> None:
    assert run_ranks(blocked_steps, 2, loaded, timeout_s=300) == [[(True, False, True)] * 4] * 2


def make_state(path: str) -> None:
    """Two steps of a whole AdamW over the same network, saved with the weights."""
    model = network()
    optimizer = torch.optim.AdamW(groups(model), lr=0.1)
    for _ in range(2):
        model(torch.randn(4, 3, 5, 5)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)


def state_survives(path: str) -> bool:
    """Whether ZeRO 1 gives back the state that it was given, whole, with its strides, and the weights with it."""
    saved = torch.load(path, weights_only=True)
    model = network()
    engine = create(1, torch.optim.AdamW(groups(model), lr=0.1), model)
    model.load_state_dict(saved["model"])
    engine.load_state({"optimizer": saved["optimizer"], "scaler": {}})
    found = engine.state()["optimizer"]
    assert found["param_groups"] == saved["optimizer"]["param_groups"]
    assert found["state"].keys() == saved["optimizer"]["state"].keys()
    for number, expected in saved["optimizer"]["state"].items():
        assert found["state"][number].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found["state"][number][key], value), (number, key)
            assert found["state"][number][key].stride() == value.stride(), (number, key)

    step(engine, 1.0)
    return all(torch.equal(saved["model"][name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_state_of_whole_parameters_fits_every_number_of_ranks(tmp_path: Path, world: int) -> None:
    path = str(tmp_path / "state.pt")
    make_state(path)
    assert run_ranks(state_survives, world, path, timeout_s=300) == [True] * world
