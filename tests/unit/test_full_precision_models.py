"""The official full-precision networks: timm's contract, their first weights, and how a configuration names them."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch

import models
from reste import binary_layers
from trainer.config import load_config
from trainer.network import instantiate

every_name = pytest.mark.parametrize("name", models.FULL_PRECISION)


def test_they_are_registered_beside_the_binary_networks():
    assert models.FULL_PRECISION == ("resnet18_cifar", "resnet20", "vgg_small")
    assert not set(models.FULL_PRECISION) & set(models.MODELS)
    assert all(timm.is_model(name) for name in models.FULL_PRECISION)


@every_name
def test_they_have_the_tensors_of_their_binary_relatives_and_no_binary_layer(name):
    with torch.device("meta"):
        model, relative = timm.create_model(name), timm.create_model(f"{name}_1w1a")
    assert not list(binary_layers(model))
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (model, relative)]
    assert shapes[0] == shapes[1]


@every_name
def test_features_and_head_make_the_forward_pass(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.forward_head(model.forward_features(x)), model(x))
    extractor = timm.create_model(name, features_only=True)
    extractor.load_state_dict(model.state_dict(), strict=False)
    maps = extractor.eval()(x)
    assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
    assert [32 // m.shape[-1] for m in maps] == extractor.feature_info.reduction()
    assert torch.equal(maps[-1], model.forward_features(x))


@every_name
def test_checkpointing_changes_nothing(name):
    torch.manual_seed(0)
    model = timm.create_model(name)
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    model.set_grad_checkpointing()
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("name", "path", "deviation"),
    [
        ("resnet20", "layer3.1.conv2", (2 / (64 * 9)) ** 0.5),
        ("resnet18_cifar", "layer1.0.conv1", (1 / (64 * 9) / 3) ** 0.5),
        ("vgg_small", "conv2", (2 / (256 * 9)) ** 0.5),
    ],
)
def test_initial_deviation_is_that_of_the_official_code(name, path, deviation):
    weight = timm.create_model(name).get_submodule(path).weight
    assert weight.std().item() == pytest.approx(deviation, rel=4 / (2 * weight.numel()) ** 0.5)


def test_a_configuration_that_asks_for_bits_of_them_is_warned_and_one_that_does_not_is_left_in_peace():
    wanted = ["model.name=resnet20", "model.weight_bits=32", "model.activation_bits=32"]
    config = load_config(None, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        instantiate(config, 10)
    config = load_config(None, wanted[:1])
    with pytest.warns(UserWarning, match="resnet20 has no binary layers"):
        instantiate(config, 10)
