"""BinaryDuo's decoupling: the decoupled network computes what the coupled one computed, before it is trained on."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import models  # noqa: F401  (registers the names)
from models.transfer import TRANSFERS, Inherited, decouple

COUPLED, DECOUPLED = "binary_duo20_coupled_1w2a", "binary_duo20_1w1a"


def network(name: str, **options: object) -> nn.Module:
    """In float64, with no norm and no statistic as it starts."""
    model = timm.create_model(name, num_classes=5, **options).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.3, 0.5)
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked += 7
    return model


@pytest.mark.parametrize("scaling", ["layer", "channel_detached"])
@pytest.mark.parametrize("weight_bits", [1, 32])
def test_logits_are_equal_in_evaluation_and_in_training(scaling, weight_bits):
    torch.manual_seed(0)
    source = network(COUPLED, scaling=scaling, weight_bits=weight_bits)
    target = network(DECOUPLED, scaling=scaling, weight_bits=weight_bits)
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    decouple(source, target)
    for training in (False, True):
        expected = source.train(training)(x)
        assert expected.std() > 0.1
        torch.testing.assert_close(target.train(training)(x), expected, rtol=1e-12, atol=1e-12)


def test_every_ternary_activation_is_the_mean_of_its_two_binary_ones():
    torch.manual_seed(1)
    source, target = network(COUPLED), network(DECOUPLED)
    decouple(source, target)
    seen: dict[str, list[torch.Tensor]] = {}
    for model in (source, target):
        for name, module in model.eval().named_modules():
            if name.endswith("activation_estimator"):
                module.register_forward_hook(lambda _m, _i, out, name=name: seen.setdefault(name, []).append(out))
        model(torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    assert len(seen) == 18
    for three, two in seen.values():
        assert set(three.unique().tolist()) == {0.0, 0.5, 1.0}
        assert set(two.unique().tolist()) == {0.0, 1.0}
        lower, upper = two.chunk(2, 1)
        assert torch.equal(three, (lower + upper) / 2)
        assert not ((lower == 1) & (upper == 0)).any()


def test_every_tensor_of_the_source_is_used_and_every_one_of_the_target_is_written():
    torch.manual_seed(2)
    source, target = network(COUPLED), network(DECOUPLED)
    names = list(source.state_dict())
    for changed in names:
        for tensor in source.state_dict().values():
            tensor.zero_()
        source.state_dict()[changed].fill_(3)
        for tensor in target.state_dict().values():
            tensor.fill_(77)
        found = decouple(source, target)
        assert not any((tensor == 77).any() for tensor in target.state_dict().values()), changed
        moved = target.state_dict()[changed]
        halves = changed.endswith("binary_conv.weight")
        shift = 0.25 * any(changed == f"{path}.bias" for path in target.shifted)
        expected = 3 / 2 if halves else 3 - shift
        assert torch.equal(moved.flatten()[:1], torch.full_like(moved.flatten()[:1], expected)), changed
    taken = target.state_dict()
    assert found == Inherited(len(taken), sum(tensor.numel() for tensor in taken.values()))


def test_copies_are_moved_apart_once_in_every_stage():
    torch.manual_seed(3)
    source, target = network(COUPLED), network(DECOUPLED)
    decouple(source, target)
    given, taken = source.state_dict(), target.state_dict()
    for name, bias in given.items():
        if not name.endswith("bias") or len(taken[name]) == len(bias):
            continue
        apart = 0.25 if name in ("bn2.bias", "layer2.0.bn1.bias", "layer3.0.bn1.bias") else 0.0
        assert torch.equal(taken[name], torch.cat((bias - apart, bias + apart))), name


def test_the_source_stays_as_it_is():
    source, target = network(COUPLED), network(DECOUPLED)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    TRANSFERS["decouple"](source, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ((DECOUPLED, {}), (COUPLED, {}), "from a coupled BinaryDuo network to the decoupled one"),
        (("resnet20_1w1a", {}), (DECOUPLED, {}), "from a coupled BinaryDuo network to the decoupled one"),
        ((COUPLED, {}), ("binary_duo18_1w1a", {}), "tensors differ by more than their copies"),
        ((COUPLED, {}), (DECOUPLED, {"num_classes": 6}), "2 tensors differ .* the first is fc.weight"),
        ((COUPLED, {"estimator": "ste"}), (DECOUPLED, {}), "estimator.name=ternary_duo there, which is ste"),
        ((COUPLED, {}), (DECOUPLED, {"estimator": "reste"}), "estimator.name=heaviside there, which is reste"),
        ((COUPLED, {"scaling": "none"}), (DECOUPLED, {}), "quantizer.scaling=layer or channel"),
        ((COUPLED, {"scaling": "layer"}), (DECOUPLED, {"scaling": "channel"}), "use the same model.weight_bits and"),
        ((COUPLED, {"weight_bits": 32}), (DECOUPLED, {}), "weights of 32 bits .* would become such of 1 bits"),
        ((COUPLED, {}), (DECOUPLED, {"activation_quantizer": "stochastic"}), "quantizer.activation=none or shift"),
        (
            (COUPLED, {"activation_quantizer": "recu_activation"}),
            (DECOUPLED, {}),
            "recu_activation does not do channel",
        ),
        ((COUPLED, {"weight_estimator": "reste_levels"}), (DECOUPLED, {}), "an estimator of two values"),
    ],
)
def test_what_would_not_be_equal_is_refused_in_one_line(source, target, message):
    pair = [timm.create_model(name, **options) for name, options in (source, target)]
    before = {name: tensor.clone() for name, tensor in pair[1].state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        decouple(*pair)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in pair[1].state_dict().items())


@pytest.mark.parametrize("name", ["reactnet_a_1w1a", "reactnet20_1w1a", "real_to_binary20_1w1a"])
def test_a_stage_of_binary_weights_inherits_every_tensor_of_that_of_real_ones(name):
    """The published training of the first of these lost nearly all of its weights between its stages."""
    source, target = timm.create_model(name, weight_bits=32), timm.create_model(name)
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 100)
    found, given, taken = TRANSFERS["copy"](source, target), source.state_dict(), target.state_dict()
    numbers = sum(tensor.numel() for tensor in given.values())
    assert found == Inherited(tensors=len(given), numbers=numbers)
    assert all(torch.equal(tensor, taken[tensor_name]) for tensor_name, tensor in given.items())
