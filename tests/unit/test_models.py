"""The contract of every registered model: names, shapes, bits, heads, features, memory format, compiling."""

from __future__ import annotations

import copy
import itertools

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import models
from models.binarization import Binarization
from models.entry import choose
from models.parts import (
    he_convolutions,
    he_convolutions_and_linear,
    padding_shortcut,
    projection_shortcut,
)
from models.resnet import BinaryResNet, BiRealBlock, PlainBlock
from reste import BinaryConv2d, Estimator, binary_layers, get_power, set_power

IMAGENET = ("resnet18_1w1a", "resnet34_1w1a")
CIFAR = ("resnet18_cifar_1w1a", "resnet20_1w1a", "resnet20_bireal_1w1a", "vgg_small_1w1a")
FIELD_SMALL = (
    "bireal20_1w1a",
    "reactnet20_1w1a",
    "real_to_binary20_1w1a",
    "binary_duo20_1w1a",
    "binary_duo20_coupled_1w2a",
)
FIELD_LARGE = (
    "bireal18_1w1a",
    "bireal34_1w1a",
    "reactnet18_1w1a",
    "reactnet_a_1w1a",
    "real_to_binary18_1w1a",
    "binary_duo18_1w1a",
    "binary_duo18_coupled_1w2a",
)
BINARY_CONVOLUTIONS = {
    "resnet18_1w1a": 16,
    "resnet34_1w1a": 32,
    "resnet18_cifar_1w1a": 16,
    "resnet20_1w1a": 18,
    "resnet20_bireal_1w1a": 18,
    "vgg_small_1w1a": 5,
    **dict.fromkeys(FIELD_SMALL, 18),
    **dict.fromkeys(FIELD_LARGE, 16),
    "bireal34_1w1a": 32,
    "reactnet_a_1w1a": 26,
}
# The two of the ReSTE paper and ReActNet-A as published; the others follow from ResNet-18's and -34's plain networks of
# timm, 11,689,512 and 21,797,672 parameters, whose 1x1 shortcuts and classifier are the same size.
PARAMETERS = {
    "resnet18_1w1a": 11_690_536,
    "resnet34_1w1a": 21_798_696,
    "bireal18_1w1a": 11_689_512,
    "bireal34_1w1a": 21_797_672,
    "reactnet_a_1w1a": 29_343_592,
    # Three numbers for each channel of an RPReLU, one for each that enters an RSign.
    "reactnet18_1w1a": 11_689_512 + 12 * (64 + 128 + 256 + 512) + (5 * 64 + 4 * 128 + 4 * 256 + 3 * 512),
    # Norms of what enters a convolution, not of what leaves it; a slope for each channel; gates of an eighth:
    # c^2 / 4 each, 3 c^2 / 32 where c is new.
    "real_to_binary18_1w1a": 11_689_512
    + 2 * (64 - 512)
    + 64
    + 4 * (64 + 128 + 256 + 512)
    + 64 * 64
    + sum(3 * c * c // 4 + 3 * c * c // 32 for c in (128, 256, 512)),
}
BINARY_WEIGHTS = {
    "resnet18_1w1a": 10_985_472,
    "resnet34_1w1a": 21_086_208,
    "bireal18_1w1a": 10_985_472,
    "bireal34_1w1a": 21_086_208,
    "reactnet18_1w1a": 10_985_472,
    "reactnet_a_1w1a": 28_253_184,
    "real_to_binary18_1w1a": 10_985_472,
}

every_name = pytest.mark.parametrize("name", IMAGENET + CIFAR + FIELD_SMALL + FIELD_LARGE)
every_official_name = pytest.mark.parametrize("name", IMAGENET + CIFAR)
# What costs seconds runs on one small network of each family.
every_family = pytest.mark.parametrize("name", IMAGENET + CIFAR + FIELD_SMALL)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def images(batch: int = 2, size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, size, size)


def structure(name: str, **options) -> nn.Module:
    """The model without values, which costs nothing to make."""
    with torch.device("meta"):
        return timm.create_model(name, **options)


def small_resnet(block: type = BiRealBlock, **options) -> BinaryResNet:
    shortcut = padding_shortcut if block is PlainBlock else projection_shortcut
    conv = Binarization(**options)
    return BinaryResNet((1, 1), (8, 16), conv=conv, block=block, shortcut=shortcut, stem=(3, 1), num_classes=5)


def official_keys(name: str) -> set[str]:
    """State-dict names of the official code, enumerated by hand."""
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

    def batch_norm(path: str) -> set[str]:
        return {f"{path}.{k}" for k in norm}

    if name == "vgg_small_1w1a":
        keys = {f"conv{i}.weight" for i in range(6)} | {"fc.weight", "fc.bias"}
        return keys.union(*(batch_norm(f"bn{i}") for i in range(6)))
    depths = {
        "resnet18_1w1a": (2, 2, 2, 2),
        "resnet34_1w1a": (3, 4, 6, 3),
        "resnet18_cifar_1w1a": (2, 2, 2, 2),
        "resnet20_1w1a": (3, 3, 3),
        "resnet20_bireal_1w1a": (3, 3, 3),
    }[name]
    shortcut = {"resnet18_cifar_1w1a": "shortcut"}.get(name, "downsample" if name in IMAGENET else None)
    head = "fc" if name in IMAGENET else "linear"
    keys = {"conv1.weight", f"{head}.weight", f"{head}.bias"} | batch_norm("bn1") | batch_norm("bn2")
    for stage, depth in enumerate(depths, start=1):
        for block in range(depth):
            path = f"layer{stage}.{block}"
            keys |= {f"{path}.conv1.weight", f"{path}.conv2.weight"}
            keys |= batch_norm(f"{path}.bn1") | batch_norm(f"{path}.bn2")
        if stage > 1 and shortcut:
            path = f"layer{stage}.0.{shortcut}"
            keys |= {f"{path}.0.weight"} | batch_norm(f"{path}.1")
    return keys


# names and sizes


def test_all_models_are_registered_with_timm():
    assert set(models.MODELS) == set(IMAGENET + CIFAR + FIELD_SMALL + FIELD_LARGE)
    assert set(models.MODELS) <= set(timm.list_models("*_1w*a"))


@every_official_name
def test_state_dict_keys_are_those_of_the_official_code(name):
    assert set(structure(name).state_dict()) == official_keys(name)


@every_name
@pytest.mark.parametrize("bits", [(32, 1), (1, 32), (32, 32)])
def test_bits_do_not_change_the_state_dict(name, bits):
    def tensors(**options):
        # A quantiser belongs to the sign it comes before, and goes with it.
        return {k: v for k, v in structure(name, **options).state_dict().items() if "_quantizer." not in k}

    other = tensors(weight_bits=bits[0], activation_bits=bits[1])
    binary = tensors()
    assert {k: v.shape for k, v in other.items()} == {k: v.shape for k, v in binary.items()}


@pytest.mark.parametrize("name", BINARY_WEIGHTS)
def test_parameter_counts_are_those_published(name):
    model = structure(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert sum(layer.weight.numel() for _, layer in binary_layers(model)) == BINARY_WEIGHTS[name]


@every_name
def test_default_cfg_names_the_first_and_last_layer(name):
    model = structure(name)
    cfg = model.default_cfg
    assert isinstance(model.get_submodule(cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert cfg["num_classes"] == model.num_classes == (1000 if name in IMAGENET + FIELD_LARGE else 10)
    assert cfg["input_size"] == ((3, 224, 224) if name in IMAGENET + FIELD_LARGE else (3, 32, 32))


# bits, estimators, numerics


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"),
    [*itertools.product(CIFAR + IMAGENET[:1] + FIELD_SMALL, (1, 32), (1, 32)), ("resnet34_1w1a", 1, 1)],
)
def test_trains_one_step_with_a_gradient_on_every_parameter(name, weight_bits, activation_bits):
    model = timm.create_model(name, weight_bits=weight_bits, activation_bits=activation_bits, num_classes=7)
    layers = list(binary_layers(model))
    assert len(layers) == (0 if weight_bits == activation_bits == 32 else BINARY_CONVOLUTIONS[name])
    assert all((m.weight_bits, m.activation_bits) == (weight_bits, activation_bits) for _, m in layers)
    logits = model(images())
    assert logits.shape == (2, 7)
    assert torch.isfinite(logits).all()
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
        assert path.endswith("bias") or parameter.grad.abs().sum() > 0, path


@every_name
def test_stem_shortcuts_and_classifier_stay_in_full_precision(name):
    model = structure(name)
    binary = {path for path, _ in binary_layers(model)}
    convolutions = {p for p, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    first = "conv0" if name == "vgg_small_1w1a" else "conv1"
    around = (".downsample.0", ".shortcut.0", ".downsample.1", ".downsample.path.1")
    assert convolutions - binary == {first} | {p for p in convolutions if p.endswith(around)}


@every_name
def test_every_tensor_has_an_estimator_of_its_own(name):
    estimators = {id(m) for m in structure(name).modules() if isinstance(m, Estimator)}
    assert len(estimators) == 2 * BINARY_CONVOLUTIONS[name]


def test_one_call_sets_the_power_of_all():
    model = timm.create_model("resnet20_1w1a")
    set_power(model, 2.5)
    assert get_power(model) == 2.5


def test_estimator_and_its_options_reach_every_layer():
    model = timm.create_model("resnet20_1w1a", estimator="ste", estimator_options={"threshold": 0.5})
    estimators = [m for m in model.modules() if isinstance(m, Estimator)]
    assert len(estimators) == 36
    assert all(e.name == "ste" and e.threshold == 0.5 for e in estimators)


@pytest.mark.parametrize(("numerics", "zero", "scale"), [("default", "one", "after"), ("reference", "zero", "before")])
def test_numerics_choose_the_sign_of_zero_and_the_place_of_the_scale(numerics, zero, scale):
    for _, layer in binary_layers(timm.create_model("resnet20_1w1a", numerics=numerics)):
        assert layer.scale == scale
        assert layer.weight_estimator.zero == layer.activation_estimator.zero == zero


CHOICES = [
    ("bireal20_1w1a", {}, ("approx_sign", "ste", "none", "channel_detached")),
    ("reactnet20_1w1a", {}, ("approx_sign", "ste", "shift", "channel_detached")),
    ("real_to_binary20_1w1a", {}, ("ste", "ste", "none", "none")),
    ("binary_duo20_1w1a", {}, ("heaviside", "identity", "none", "layer")),
    ("binary_duo20_coupled_1w2a", {}, ("ternary_duo", "identity", "none", "layer")),
    # Who names an estimator gets it on both sides; what is not named stays the family's.
    ("bireal20_1w1a", {"estimator": "reste"}, ("reste", "reste", "none", "channel_detached")),
    ("reactnet20_1w1a", {"estimator": "ede", "weight_estimator": "tanh"}, ("ede", "tanh", "shift", "channel_detached")),
    ("reactnet20_1w1a", {"weight_estimator": "reste"}, ("approx_sign", "reste", "shift", "channel_detached")),
    ("reactnet20_1w1a", {"activation_quantizer": "none"}, ("approx_sign", "ste", "none", "channel_detached")),
    ("real_to_binary20_1w1a", {"scaling": "learned"}, ("ste", "ste", "none", "learned")),
]


@pytest.mark.parametrize(("name", "given", "expected"), CHOICES)
def test_a_family_makes_its_own_choices_and_any_argument_overrules_them(name, given, expected):
    for _, layer in binary_layers(structure(name, **given)):
        quantizer = "none" if layer.activation_quantizer is None else layer.activation_quantizer.name
        names = (layer.activation_estimator.name, layer.weight_estimator.name, quantizer, layer.scaling.name)
        assert names == expected
        assert layer.weight_quantizer is None


@pytest.mark.parametrize("name", FIELD_SMALL)
def test_official_arithmetic_reaches_the_other_papers_networks(name):
    for _, layer in binary_layers(structure(name, numerics="reference")):
        assert layer.scale == "before"
        assert layer.weight_estimator.zero == layer.activation_estimator.zero == "zero"


def test_options_belong_to_what_they_are_for():
    own = {"estimator": "a", "estimator_options": {"k": 1}, "scaling": "s", "scaling_options": {"init": 1}}
    own |= {"weight_estimator": "w", "weight_estimator_options": {"k": 2}}
    assert choose(own, {}) == own
    assert choose(own, {"estimator": None, "scaling": None}) == own
    assert choose(own, {"estimator": "b"}) == {"estimator": "b", "scaling": "s", "scaling_options": {"init": 1}}
    assert "weight_estimator_options" not in choose(own, {"weight_estimator": "v"})
    assert choose(own, {"scaling": "t"}).get("scaling_options") is None
    assert choose(own, {"estimator_options": {"k": 3}})["estimator_options"] == {"k": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": 2}, r"weight_bits=2 .* use 1 \(binary\) or 32"),
        ({"activation_bits": 8}, r"activation_bits=8 .* use 1 \(binary\) or 32"),
        ({"numerics": "exact"}, "numerics='exact' .* use one of default, reference"),
        ({"estimator": "restee"}, "reste"),
        ({"estimator_options": {"kneee": 1}}, "knee"),
    ],
)
def test_a_wrong_option_is_refused_with_the_fix(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm.create_model("resnet20_1w1a", **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_not_swallowed():
    with pytest.raises(TypeError, match="banana"):
        timm.create_model("vgg_small_1w1a", banana=1)


@every_family
def test_full_precision_twin_is_the_network_of_plain_convolutions_bit_for_bit(name):
    model = timm.create_model(name, weight_bits=32, activation_bits=32)
    plain = copy.deepcopy(model)
    for parent in list(plain.modules()):
        for child, m in list(parent.named_children()):
            if isinstance(m, BinaryConv2d):
                conv = nn.Conv2d(m.in_channels, m.out_channels, 3, stride=m.stride, padding=1, bias=False)
                conv.weight = m.weight
                setattr(parent, child, conv)
    x = images()
    ours, theirs = model(x), plain(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    gradients = ((p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in gradients)


# timm's contract


@every_family
def test_forward_is_head_after_features(name):
    model = timm.create_model(name).eval()
    x = images()
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert torch.equal(model.forward_head(features), model(x))


@every_name
def test_reset_classifier_changes_the_number_of_classes_and_can_remove_the_head(name):
    model = structure(name).bfloat16()
    features = torch.empty(2, model.num_features, 4, 4, device="meta", dtype=torch.bfloat16)
    model.reset_classifier(3)
    assert model.num_classes == 3
    assert model.forward_head(features).shape == (2, 3)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.forward_head(features).shape == (2, model.head_hidden_size)
    model.reset_classifier(4, "avg")
    assert model.forward_head(features).shape == (2, 4)


def test_reset_classifier_refuses_another_pooling():
    with pytest.raises(ValueError, match="leave it out"):
        timm.create_model("resnet20_1w1a").reset_classifier(3, "max")


@every_family
def test_features_only_gives_every_declared_map(name):
    x = images(size=64 if name in IMAGENET else 32)
    model = timm.create_model(name)
    extractor = timm.create_model(name, features_only=True)
    extractor.load_state_dict(model.state_dict(), strict=False)
    maps = extractor.eval()(x)
    info = extractor.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    assert [x.shape[-1] // m.shape[-1] for m in maps] == info.reduction()
    assert torch.equal(maps[-1], model.eval().forward_features(x))


@pytest.mark.parametrize("name", FIELD_LARGE)
def test_features_only_gives_every_declared_map_of_the_large_ones(name):
    with torch.device("meta"):
        extractor = timm.create_model(name, features_only=True)
    maps = extractor(torch.empty(2, 3, 64, 64, device="meta"))
    assert [m.shape[1] for m in maps] == extractor.feature_info.channels()
    assert [64 // m.shape[-1] for m in maps] == extractor.feature_info.reduction()


def test_features_only_takes_a_choice_of_maps():
    maps = timm.create_model("resnet18_1w1a", features_only=True, out_indices=(2, 4))(images(size=64))
    assert [m.shape[1] for m in maps] == [128, 512]


@every_name
def test_number_of_image_channels_is_free(name):
    assert structure(name, in_chans=1)(images(channels=1).to("meta")).shape[0] == 2


@every_name
@pytest.mark.parametrize("size", [28, 40])
def test_other_image_sizes_work(name, size):
    model = structure(name)
    assert model(images(size=size).to("meta")).shape == (2, model.num_classes)


def test_dropout_acts_before_the_classifier_in_training_only():
    model = timm.create_model("vgg_small_1w1a", drop_rate=0.5)
    features = torch.ones(2, 512, 4, 4)
    dropped = model.forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), torch.ones(2, 8192))


# what the trainer relies on


@every_family
def test_an_empty_batch_runs_forward_and_backward_in_training(name):
    model = timm.create_model(name)
    before = {k: v.clone() for k, v in model.named_buffers() if "running" in k}
    logits = model(images(batch=0))
    assert logits.shape == (0, model.num_classes)
    logits.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.named_buffers() if "running" in k)


@every_family
def test_channels_last_is_kept_through_the_body_and_changes_no_logit(name):
    model = timm.create_model(name).double().eval()
    x = images().double()
    expected = model(x)
    model = model.to(memory_format=torch.channels_last)
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.shape[2:] == (1, 1) or features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.forward_head(features), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("block", "numerics"), [(PlainBlock, "default"), (BiRealBlock, "reference")])
def test_compiles_into_one_graph_that_serves_every_power(block, numerics):
    torch.compiler.reset()
    model = small_resnet(block, numerics=numerics)
    twin = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    x = images(size=16)
    for power in (1.0, 2.0, 3.0):
        set_power(model, power)
        set_power(twin, power)
        ours, theirs = compiled(x), twin(x)
        assert torch.equal(ours, theirs)
        ours.sum().backward()
        theirs.sum().backward()
    assert counter.frame_count == 1
    for (path, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), path


@pytest.mark.slow
@every_family
def test_every_model_compiles_into_one_graph(name):
    torch.compiler.reset()
    model = timm.create_model(name)
    twin = copy.deepcopy(model)
    x = images()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), twin(x))


@pytest.mark.parametrize("name", ["resnet20_1w1a", "resnet20_bireal_1w1a", *FIELD_SMALL])
def test_autocast_keeps_parameters_in_float32(name):
    model = timm.create_model(name)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@every_name
def test_can_be_born_on_the_meta_device(name):
    model = structure(name)
    assert all(t.is_meta for t in itertools.chain(model.parameters(), model.buffers()))
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, model.num_classes)


# initialisation


@pytest.mark.parametrize(
    ("name", "path", "deviation"),
    [
        ("resnet18_1w1a", "layer1.0.conv1", (2 / (64 * 9)) ** 0.5),
        ("resnet18_1w1a", "layer2.0.downsample.0", (2 / 64) ** 0.5),
        ("resnet18_1w1a", "conv1", (2 / (3 * 49)) ** 0.5),
        ("resnet18_1w1a", "fc", (1 / 512 / 3) ** 0.5),
        ("resnet20_1w1a", "layer3.1.conv2", (2 / (64 * 9)) ** 0.5),
        ("resnet20_bireal_1w1a", "linear", (2 / 64) ** 0.5),
        ("resnet18_cifar_1w1a", "layer1.0.conv1", (1 / (64 * 9) / 3) ** 0.5),
        ("vgg_small_1w1a", "conv2", (2 / (256 * 9)) ** 0.5),
        ("vgg_small_1w1a", "fc", 0.01),
    ],
)
def test_initial_deviation_is_that_of_the_official_code(name, path, deviation):
    weight = timm.create_model(name).get_submodule(path).weight
    # The deviation of n normal draws scatters by 1 / sqrt(2 n); four of that.
    assert weight.std().item() == pytest.approx(deviation, rel=4 / (2 * weight.numel()) ** 0.5)


def test_vgg_classifier_starts_without_bias():
    assert not timm.create_model("vgg_small_1w1a").fc.bias.any()


@pytest.mark.parametrize("init", [he_convolutions, he_convolutions_and_linear])
def test_initialisers_leave_batch_norm_alone(init):
    norm = nn.BatchNorm2d(3)
    init(norm)
    assert torch.equal(norm.weight, torch.ones(3))
    assert not norm.bias.any()


def test_padding_shortcut_takes_every_second_pixel_between_zero_channels():
    x = torch.arange(1.0, 17.0).reshape(1, 1, 4, 4).repeat(1, 2, 1, 1)
    y = padding_shortcut(2, 4, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[0, 1], torch.tensor([[1.0, 3.0], [9.0, 11.0]]))
    assert torch.equal(y[0, 2], y[0, 1])
    assert not y[0, 0].any()
    assert not y[0, 3].any()
