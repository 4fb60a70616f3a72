"""The reference mode against a second statement of the published layer and networks, in float32."""

from __future__ import annotations

import pytest
import timm
import torch
from official_twins import OFFICIAL, OFFICIAL_FULL_PRECISION, Binarizer, BinaryConv, randomise

import models
from models.binarization import Binarization
from reste import binary_layers, create_estimator, set_power

POWER = 2.0


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    yield
    torch.set_num_threads(before)


def pair(name: str, *, official=OFFICIAL, **options) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and the twin with the same weights; loading is strict, so names and shapes are the same too."""
    twin = official[name]()
    randomise(twin)
    ours = timm.create_model(name, **options)
    ours.load_state_dict(twin.state_dict(), strict=True)
    set_power(ours, POWER)
    for module in twin.modules():
        if isinstance(module, BinaryConv):
            module.power = POWER
            module.binary_input = options.get("activation_bits", 1) == 1
    return ours, twin


def images(name: str) -> torch.Tensor:
    # Sizes that every stage divides, so that the heads see what they were built for.
    return torch.randn(4, 3, *((64, 64) if name in ("resnet18_1w1a", "resnet34_1w1a") else (32, 32)))


def assert_same_logits(ours: torch.nn.Module, twin: torch.nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        for training in (False, True):
            found, expected = ours.train(training)(x), twin.train(training)(x)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # The training pass has moved the running statistics, alike.
    torch.testing.assert_close(ours.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", OFFICIAL)
def test_logits_of_every_official_network_are_equal_in_training_and_evaluation(name):
    ours, twin = pair(name, numerics="reference")
    assert len(list(binary_layers(ours))) == sum(isinstance(m, BinaryConv) for m in twin.modules())
    assert_same_logits(ours, twin, images(name))


@pytest.mark.parametrize("name", ["resnet20_1w1a", "resnet18_1w1a"])
def test_logits_with_full_precision_activations_are_equal(name):
    assert_same_logits(*pair(name, numerics="reference", activation_bits=32), images(name))


@pytest.mark.parametrize("name", ["resnet20_bireal_1w1a", "resnet34_1w1a"])
def test_large_logits_of_new_weights_are_equal_too(name):
    """Before training, batch norms divide by 1 and real activations grow to millions: 1e-5 leaves no room there."""
    twin = OFFICIAL[name]()
    ours = timm.create_model(name, numerics="reference", activation_bits=32).eval()
    twin.load_state_dict(ours.state_dict())
    for module in twin.eval().modules():
        if isinstance(module, BinaryConv):
            module.binary_input = False
    x = images(name)
    with torch.no_grad():
        found, expected = ours(x), twin(x)
    assert expected.abs().max() > 100
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OFFICIAL_FULL_PRECISION)
def test_logits_of_every_official_full_precision_network_are_equal(name):
    bits = {"weight_bits": 32, "activation_bits": 32, "numerics": "reference"} if name in models.MODELS else {}
    assert_same_logits(*pair(name, official=OFFICIAL_FULL_PRECISION, **bits), images(name))


def test_every_network_of_the_official_code_is_compared():
    assert set(OFFICIAL) == {*models.resnet.default_cfgs, *models.vgg.default_cfgs}
    assert set(OFFICIAL_FULL_PRECISION) - set(OFFICIAL) == set(models.FULL_PRECISION)


def dense_grid() -> torch.Tensor:
    """-2 to 2 in steps of 1/1000, and float32's neighbours of every place where the slope changes."""
    corners = torch.tensor([0.0, -0.0, 0.1, -0.1, 1.5, -1.5])
    up, down = (torch.nextafter(corners, torch.full_like(corners, end)) for end in (2.0, -2.0))
    return torch.cat([torch.linspace(-2, 2, 4001), corners, up, down])


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0])
def test_the_binarizer_is_equal_on_a_dense_grid_forward_and_backward(power):
    ours, theirs = (dense_grid().requires_grad_() for _ in range(2))
    estimator = create_estimator("reste", zero="zero", threshold=1.5, knee=0.1)
    set_power(estimator, power)
    found, expected = estimator(ours), Binarizer.apply(theirs, power)
    assert torch.equal(found, expected)
    incoming = torch.randn(len(found))
    found.backward(incoming)
    expected.backward(incoming)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


def test_the_layer_and_all_its_gradients_are_equal():
    ours = Binarization(numerics="reference")(16, 6, 2)
    twin = BinaryConv(16, 6, 3, stride=2, padding=1, bias=False)
    randomise(twin)
    ours.load_state_dict(twin.state_dict())
    set_power(ours, POWER)
    twin.power = POWER
    x = torch.randn(3, 16, 9, 9)
    x[:, :, ::3] = 0.0
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(value) for layer, value in zip((ours, twin), inputs, strict=True)]
    # Bit for bit: which zero sums come out as noise, and of which sign, is part of the published numbers.
    assert torch.equal(*outputs)
    direction = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(direction)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.weight.grad, twin.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OFFICIAL)
def test_batch_norms_of_the_reference_mode_start_as_the_official_ones(name):
    with torch.device("meta"):
        modules = dict(OFFICIAL[name]().named_modules())
    kinds = torch.nn.BatchNorm1d | torch.nn.BatchNorm2d
    names = {path for path, module in modules.items() if isinstance(module, kinds)}
    model = timm.create_model(name, numerics="reference")
    for path in names:
        norm = model.get_submodule(path)
        assert torch.equal(norm.weight, torch.ones_like(norm.weight)), path
        assert not norm.bias.any(), path
