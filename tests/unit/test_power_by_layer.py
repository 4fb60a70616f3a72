"""Powers that rise layer by layer, and one that is steered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from reste import BinaryLinear, create_estimator, get_power, layer_progress, set_power, set_powers, steer_power
from reste.layers import write_together
from trainer import schedule
from trainer.config import load_config
from trainer.errors import ConfigError

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


def network(*names: str) -> nn.Sequential:
    def layer(name: str) -> BinaryLinear:
        return BinaryLinear(2, 2, weight_estimator=create_estimator(name), activation_estimator=create_estimator(name))

    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(*map(layer, names[:2])), *map(layer, names[2:]))


def powers(model: nn.Module) -> list[tuple[float, float]]:
    layers = [m for m in model.modules() if isinstance(m, BinaryLinear) and m.weight_estimator.has_power]
    return [(m.weight_estimator.power.item(), m.activation_estimator.power.item()) for m in layers]


@pytest.mark.parametrize(
    ("progress", "first", "last"),
    [
        (0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
        (0.25, (0.5, 0.0, 0.0), (0.0, 0.0, 0.5)),
        (0.5, (1.0, 0.5, 0.0), (0.0, 0.5, 1.0)),
        (0.75, (1.0, 1.0, 0.5), (0.5, 1.0, 1.0)),
        (1.0, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)),
    ],
)
def test_layers_take_turns(progress: float, first: tuple[float, ...], last: tuple[float, ...]) -> None:
    for order, expected in (("first", first), ("last", last), ("together", (progress,) * 3)):
        assert tuple(layer_progress(progress, depth, order) for depth in (0.0, 0.5, 1.0)) == expected


@pytest.mark.parametrize("arguments", [(1.1, 0.5, "first"), (0.5, -0.1, "last"), (0.5, 0.5, "middle")])
def test_what_is_out_of_range_is_refused_in_one_line(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"^(progress|depth|order) must [^\n]+$"):
        layer_progress(*arguments)


def test_depth_counts_the_layers_that_have_a_power_and_buffers_are_written_in_place() -> None:
    model = network("reste", "ste", "rational", "reste_levels")
    before = [m.weight_estimator.power for m in model.modules() if hasattr(getattr(m, "weight_estimator", 0), "power")]
    set_powers(model, lambda depth: 1 + 2 * depth)
    assert powers(model) == [(1, 1), (2, 2), (3, 3)]
    assert [buffer.item() for buffer in before] == [1, 2, 3]
    with pytest.raises(ValueError, match="power must be"):
        set_powers(model, lambda depth: depth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_numbers_written_together_are_those_written_one_by_one(dtype: torch.dtype) -> None:
    together, alone = (torch.zeros(5, dtype=dtype).unbind() for _ in range(2))
    numbers = [1.0, 1 / 3, 3.0, 1e-30, 2.987]
    write_together(list(zip(together, numbers, strict=True)))
    for buffer, number in zip(alone, numbers, strict=True):
        buffer.fill_(number)
    assert torch.equal(torch.stack(together), torch.stack(alone))


@pytest.mark.parametrize("name", ["reste", "reste_levels", "rational"])
def test_what_follows_a_power_is_what_an_estimator_of_that_power_begins_with(name: str) -> None:
    for normalize in (True, False) if name != "rational" else (None,):
        options = {} if normalize is None else {"normalize": normalize}
        written, born = create_estimator(name, **options), create_estimator(name, power=2.3, **options)
        written.write_power(2.3)
        assert dict(written.named_buffers()) == dict(born.named_buffers())
        assert dict(written.at_power(2.3)).keys() <= set(written.buffers())


def test_one_power_for_all_is_what_set_power_writes() -> None:
    one, other = network("reste", "reste", "reste"), network("reste", "reste", "reste")
    set_power(one, 2.3)
    set_powers(other, lambda depth: 2.3)
    assert get_power(one) == get_power(other)
    set_powers(network(), lambda depth: 2.3)
    alone = nn.Sequential(BinaryLinear(2, 2, weight_estimator=create_estimator("reste")))
    set_powers(alone, lambda depth: 2.0 + depth)
    assert get_power(alone) == 2.0


@pytest.mark.parametrize(("order", "expected"), [("first", (3.0, 1.0)), ("last", (1.0, 3.0)), ("together", (2.0, 2.0))])
def test_the_configured_schedule_ends_with_the_last_power_in_every_layer(order: str, expected: tuple) -> None:
    words = [f"estimator.by_layer={order}", "estimator.schedule=linear", "estimator.o_end=3", "train.epochs=1"]
    power = schedule.power(load_config(QUICKSTART, words), steps_per_epoch=101)
    assert [power(50, depth) for depth in (0.0, 1.0)] == pytest.approx(expected)
    assert [power(100, depth) for depth in (0.0, 0.5, 1.0)] == pytest.approx([3.0] * 3)
    assert [power(0, depth) for depth in (0.0, 0.5, 1.0)] == [1.0] * 3
    assert power(50) == power(50, 0.5) == pytest.approx(2.0)
    assert torch.tensor([power(step, 0.2) for step in range(101)]).diff().min() >= 0


def test_a_steered_power_comes_to_where_the_wanted_value_is_measured() -> None:
    power = 1.0
    for _ in range(40):
        power = steer_power(power, measured=0.02 * power**3, wanted=0.16, end=3.0)
    assert power == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(1.0, 2.0), (1.21, 2.0 / 1.1), (100.0, 1.6), (1e-9, 2.5), (0.0, 2.0), (float("nan"), 2.0), (float("inf"), 2.0)],
)
def test_a_step_of_the_controller(measured: float, expected: float) -> None:
    assert steer_power(2.0, measured, 1.0, 3.0) == pytest.approx(expected)
    assert steer_power(1.1, 100.0, 1.0, 3.0) == 1.0
    assert steer_power(2.9, 1e-9, 1.0, 3.0) == 3.0


@pytest.mark.parametrize(
    "words", [["estimator.by_layer=first"], ["log.indicators_every=0"], ["log.indicators_every=0ep"]]
)
def test_a_steered_power_needs_probes_and_one_power(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="hold_instability"):
        load_config(QUICKSTART, ["estimator.hold_instability=0.1", *words])
