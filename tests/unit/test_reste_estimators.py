"""The registry, the options, and a power that survives what happens to modules."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from reste import (
    BinaryConv2d,
    BinaryLinear,
    Estimator,
    create_estimator,
    estimators,
    list_estimators,
    register_estimator,
    reste_sign,
    set_power,
)

POWER = 2.9843  # not representable in bfloat16 (2.984375) or float16 (2.984375)


FIELD = ["ede", "dsq", "fda", "swish_sign", "tanh", "relu_ste", "clipped_relu_ste", "heaviside", "ternary_duo"]
NAMES = sorted(["reste", "ste", "identity", "approx_sign", "rational", "reste_levels", *FIELD])


def test_the_methods_of_the_documentation_are_registered():
    assert list_estimators() == NAMES


@pytest.mark.parametrize("name", list_estimators())
def test_create_returns_a_new_estimator_of_that_name(name):
    one, other = create_estimator(name), create_estimator(name)
    assert isinstance(one, Estimator)
    assert one is not other
    assert one.name == name
    assert one.has_power == (name in {"rational", "reste", "reste_levels"})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("restee", "did you mean 'reste'?"),
        ("aprox_sign", "did you mean 'approx_sign'?"),
        ("zzz", "known: approx"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, hint):
    with pytest.raises(ValueError, match="unknown estimator") as caught:
        create_estimator(name)
    message = str(caught.value)
    assert hint in message
    assert ", ".join(NAMES) in message
    assert "\n" not in message


def test_an_unknown_option_is_answered_with_the_options():
    with pytest.raises(ValueError, match=r"^estimator 'ste' has no option 'knee'; its options: threshold, zero$"):
        create_estimator("ste", knee=0.1)
    with pytest.raises(ValueError, match="no option 'o_end'; its options: threshold, knee, power, normalize, zero"):
        create_estimator("reste", o_end=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reste", {"threshold": 0.05}),
        ("reste", {"knee": 0.0}),
        ("reste", {"knee": 2.0}),
        ("reste", {"power": 0.99}),
        ("reste", {"zero": "minus"}),
        ("ste", {"threshold": -1.0}),
        ("ste", {"threshold": float("nan")}),
        ("ste", {"zero": "minus"}),
        ("identity", {"zero": "minus"}),
        ("approx_sign", {"zero": "minus"}),
    ],
)
def test_an_option_out_of_range_is_refused_when_it_is_given(name, options):
    with pytest.raises(ValueError, match="must"):
        create_estimator(name, **options)


def test_the_interface_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        Estimator()


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(estimators._REGISTRY, "classes", dict(estimators._REGISTRY.classes))


class Opposite(Estimator):
    name = "opposite"
    has_power = False

    def forward(self, x):
        return -x.sign()

    def curve(self, x):
        return -x


def test_a_new_method_is_available_under_its_name(registry):
    assert register_estimator(Opposite) is Opposite
    assert "opposite" in list_estimators()
    assert create_estimator("opposite")(torch.ones(1)).item() == -1


def test_a_name_cannot_be_taken_twice(registry):
    register_estimator(Opposite)
    with pytest.raises(ValueError, match="'opposite' is registered already"):
        register_estimator(Opposite)


def test_options_reach_the_arithmetic():
    estimator = create_estimator("reste", threshold=0.8, knee=0.2, power=2.0, zero="zero")
    x = (torch.arange(-20, 21) / 20).requires_grad_()
    y = estimator(x)
    y.sum().backward()
    size = x.detach().abs()
    expected = torch.where(size <= 0.2 + 1e-6, 0.2**-0.5, torch.where(size <= 0.8 + 1e-6, 0.5 / size.sqrt(), 0))
    torch.testing.assert_close(x.grad, expected)
    assert y[20].item() == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("reste", {"threshold": 0.8, "knee": 0.2, "power": 2.0}), ("ste", {"threshold": 0.5})],
)
def test_options_reach_the_curve_as_they_reach_the_sign(name, options):
    estimator = create_estimator(name, **options)
    gradients = []
    for function in (estimator, estimator.curve):
        x = torch.linspace(-1, 1, 202, dtype=torch.float64, requires_grad=True)
        function(x).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    assert 0 < (gradients[0] == 0).sum() < 202


@pytest.mark.parametrize("name", list_estimators())
def test_a_printed_estimator_shows_its_options(name):
    assert "zero='one'" in repr(create_estimator(name))
    assert "threshold=1.5, knee=0.1" in repr(create_estimator("reste"))


# ---- the power buffer ----


def power_of(module: nn.Module) -> torch.Tensor:
    (found,) = [buffer for name, buffer in module.named_buffers() if name.endswith("power")]
    return found


@pytest.fixture(params=["alone", "in a layer", "deep"])
def module(request):
    if request.param == "alone":
        module = create_estimator("reste")
    else:
        module = BinaryLinear(2, 2, weight_estimator=create_estimator("reste"))
        if request.param == "deep":
            module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), module), nn.BatchNorm1d(2))
    set_power(module, POWER)
    return module


CASTS = {
    "to_bfloat16": lambda module: module.to(torch.bfloat16),
    "bfloat16": lambda module: module.bfloat16(),
    "half": lambda module: module.half(),
    "to_half_and_cpu": lambda module: module.to("cpu", torch.float16),
    "double": lambda module: module.double(),
    "type": lambda module: module.type(torch.bfloat16),
    "there_and_back": lambda module: module.half().float(),
    "to_like": lambda module: module.to(torch.zeros((), dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS.keys())
def test_the_power_survives_every_cast_of_the_module(module, cast):
    buffer = power_of(module)
    cast(module)
    assert power_of(module).dtype == torch.float32
    assert power_of(module).item() == torch.tensor(POWER).item()
    assert power_of(module) is buffer, "a compiled graph holds on to this tensor"


def test_the_cast_reaches_everything_else():
    layer = BinaryConv2d(2, 2, 3, weight_estimator=create_estimator("reste")).to(torch.bfloat16)
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16


def test_the_power_follows_to_another_device_in_float32(module):
    assert power_of(module.to("meta", torch.bfloat16)).device.type == "meta"
    assert power_of(module).dtype == torch.float32


def test_a_module_born_on_meta_starts_at_power_one(module):
    module.to("meta").to_empty(device="cpu")
    assert power_of(module).device.type == "cpu"
    assert power_of(module).item() == 1
    set_power(module, POWER)
    assert power_of(module).item() == pytest.approx(POWER)


def test_the_power_is_not_in_the_state_dict(module):
    assert not any("power" in key for key in module.state_dict())
    assert not any("estimator" in key for key in module.state_dict())


def test_a_binary_layers_state_dict_is_that_of_the_plain_layer():
    layer = BinaryConv2d(2, 3, 3, weight_estimator=create_estimator("reste"))
    assert list(layer.state_dict()) == ["weight", "bias"]
    nn.Conv2d(2, 3, 3).load_state_dict(layer.state_dict())
    layer.load_state_dict(nn.Conv2d(2, 3, 3).state_dict())


def test_a_loaded_state_leaves_the_power_alone(module):
    module.load_state_dict(copy.deepcopy(module.state_dict()))
    assert power_of(module).item() == pytest.approx(POWER)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_has_its_own_power_at_the_same_value(module, clone):
    other = clone(module)
    assert power_of(other).item() == pytest.approx(POWER)
    set_power(other, 1.5)
    assert power_of(module).item() == pytest.approx(POWER)


def test_autograd_refuses_a_power_that_changed_between_forward_and_backward():
    estimator = create_estimator("reste", power=2.0)
    out = estimator(torch.ones(3, requires_grad=True))
    set_power(estimator, 2.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_buffer_is_what_the_backward_pass_uses():
    estimator = create_estimator("reste")
    for power in (1.0, 2.0, 3.0):
        set_power(estimator, power)
        gradients = []
        for function in (estimator, lambda x, power=power: reste_sign(x, power)):
            x = torch.linspace(-2, 2, 33, requires_grad=True)
            function(x).sum().backward()
            gradients.append(x.grad)
        assert torch.equal(*gradients)
