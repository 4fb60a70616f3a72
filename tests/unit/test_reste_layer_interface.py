"""What layers tell about themselves, and the functions that walk a model by type."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import reste
from reste import BinaryConv2d, BinaryLinear, binary_layers, create_estimator, get_power, set_power


def estimator(name):
    return create_estimator(name) if name else None


def conv(weight=None, activation=None, **options):
    return BinaryConv2d(
        2, 2, 3, weight_estimator=estimator(weight), activation_estimator=estimator(activation), **options
    )


def linear(weight=None, activation=None, **options):
    return BinaryLinear(2, 2, weight_estimator=estimator(weight), activation_estimator=estimator(activation), **options)


def mixed_model():
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(2, 2, 3),
            "both": conv("reste", "reste"),
            "weights": conv("reste"),
            "inputs": linear(None, "ste"),
            "neither": conv(),
            "nested": nn.Sequential(linear("ste", "reste")),
        }
    )


@pytest.mark.parametrize("make", [conv, linear])
@pytest.mark.parametrize(
    ("weight", "activation", "bits"),
    [("reste", "ste", (1, 1)), ("ste", None, (1, 32)), (None, "identity", (32, 1)), (None, None, (32, 32))],
)
def test_bits_say_what_is_binary(make, weight, activation, bits):
    layer = make(weight, activation)
    assert (layer.weight_bits, layer.activation_bits) == bits
    assert f"weight_bits={bits[0]}, activation_bits={bits[1]}, scale='after'" in repr(layer)


def test_bits_follow_an_estimator_that_is_taken_away():
    layer = conv("reste", "reste")
    layer.activation_estimator = None
    assert (layer.weight_bits, layer.activation_bits) == (1, 32)
    layer.activation_estimator = create_estimator("ste")
    assert layer.activation_bits == 1


def test_binary_layers_are_plain_layers_by_type():
    assert isinstance(conv("ste"), nn.Conv2d)
    assert isinstance(linear("ste"), nn.Linear)


def test_binary_layers_lists_those_with_a_one_bit_tensor_in_order():
    model = mixed_model()
    found = dict(binary_layers(model))
    assert list(found) == ["both", "weights", "inputs", "nested.0"]
    assert found["nested.0"] is model["nested"][0]


def test_binary_layers_of_a_layer_is_the_layer():
    layer = conv("ste")
    assert list(binary_layers(layer)) == [("", layer)]


@pytest.mark.parametrize("make", [conv, linear])
def test_an_unknown_scale_is_refused(make):
    with pytest.raises(ValueError, match="scale must be one of after, before, none; got 'behind'"):
        make("ste", scale="behind")


def test_estimators_are_keyword_only():
    with pytest.raises(TypeError):
        BinaryLinear(2, 2, True, None, None, create_estimator("ste"))


def test_layers_can_be_born_on_meta_and_in_low_precision():
    layer = BinaryConv2d(2, 2, 3, device="meta", dtype=torch.bfloat16, weight_estimator=create_estimator("ste"))
    assert layer.weight.is_meta
    assert layer.weight.dtype == torch.bfloat16


def test_a_layer_on_meta_gives_shapes():
    layer = conv("reste", "reste", stride=2).to("meta")
    assert layer(torch.empty(3, 2, 9, 9, device="meta")).shape == (3, 2, 4, 4)


def test_set_power_reaches_every_power_and_nothing_else():
    model = mixed_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    powers = [module.power for module in model.modules() if getattr(module, "has_power", False)]
    set_power(model, 2.25)
    assert len(powers) == 4
    assert [power.item() for power in powers] == [2.25] * 4, "written in place"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_get_power_reads_what_set_power_wrote():
    model = mixed_model()
    assert get_power(model) == 1
    set_power(model, 2.984)
    assert get_power(model) == pytest.approx(2.984, rel=1e-7)
    assert isinstance(get_power(model), float)


def test_a_model_without_a_power_has_none_and_accepts_one():
    model = nn.Sequential(conv("ste", "identity"), nn.Linear(2, 2))
    set_power(model, 2.0)
    assert get_power(model) is None


def test_different_powers_have_no_single_answer():
    model = mixed_model()
    set_power(model["both"], 2.0)
    with pytest.raises(ValueError, match=r"different powers \[1\.0, 2\.0\]; call set_power"):
        get_power(model)


@pytest.mark.parametrize("value", [0.999, 0, -1, math.nan, math.inf])
def test_a_power_below_one_is_refused_before_anything_is_written(value):
    model = mixed_model()
    with pytest.raises(ValueError, match="power must be a finite number >= 1"):
        set_power(model, value)
    assert get_power(model) == 1


def test_the_public_names_exist():
    assert sorted(reste.__all__) == sorted(set(reste.__all__))
    for name in reste.__all__:
        assert hasattr(reste, name), name
    promised = """binary_sign reste_sign reste_curve Estimator create_estimator list_estimators BinaryConv2d
        BinaryLinear binary_layers set_power estimating_error gradient_instability collect_indicators"""
    assert set(promised.split()) <= set(reste.__all__)
