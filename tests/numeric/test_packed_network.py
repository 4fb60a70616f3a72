"""The packed file and both of its readers against the network that was trained."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import models
from reste import BinaryConv2d, create_estimator, list_quantizers, list_scalings
from reste.scalings import LearnedScaling
from trainer.errors import ConfigError
from trainer.export.bits import pack_signs, unpack_signs
from trainer.export.fold import fold
from trainer.export.native import BinaryConv, NativeNet
from trainer.export.packed import OPERATIONS, Packed, PackedNet, pack, read_packed, to_16_bits, write_packed
from trainer.export.program import Deployed
from trainer.export.sound import FIELDS, PARTS
from trainer.export.steps import Step, Tensors, trace_steps
from trainer.export.threads import one_thread

FACTS = Deployed(
    labels=[str(label) for label in range(10)],
    named=0,
    image_size=32,
    resize=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    dtype="float32",
    channels_last=True,
    precision="fp32",
    model="resnet20_1w1a",
    weight_bits=1,
    activation_bits=1,
    weights="model",
    step=1,
    config_digest=None,
    data_digest=None,
    world_size=None,
    metrics={},
)


@pytest.fixture(autouse=True)
def _as_evaluated() -> Iterator[None]:
    with one_thread():
        yield


def network(name: str, *, num_classes: int = 10, channels_last: bool = True, **options: object) -> nn.Module:
    """A network in eval mode with batch norms far from the identity, some of their factors negative or zero."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 0.5, 0.5)
            nn.init.normal_(module.bias, 0, 0.5)
            module.weight.data[0] = 0
            module.running_mean.normal_(2, 1)
            module.running_var.uniform_(0.5, 4)
    return model.to(memory_format=torch.channels_last) if channels_last else model


def through_a_file(model: nn.Module, tmp_path: Path, **facts: object) -> Packed:
    return read_packed(write_packed(pack(model, replace(FACTS, **facts)), tmp_path / "net.safetensors"))


@pytest.mark.parametrize("shape", [(3, 64, 3, 3), (5, 16, 3, 3), (2, 3, 5, 1), (4, 130)])
def test_words_hold_the_signs_where_the_document_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight.flatten()[:2] = torch.tensor([0.0, -0.0])
    words = pack_signs(weight).numpy().view(np.uint64)
    channels, *kernel = shape[1:]
    for output in range(shape[0]):
        bits = "".join(f"{int(word):064b}"[::-1] for word in words[output])
        places = [p if kernel else () for p in np.ndindex(*kernel)]
        expected = [int(weight[(output, c, *p)] < 0) for p in places for c in range(channels)]
        assert bits.rstrip("0") == "".join(map(str, expected)).rstrip("0")
        assert len(bits) - 64 < len(expected) <= len(bits)
    assert torch.equal(unpack_signs(pack_signs(weight), shape), torch.where(weight < 0, -1.0, 1.0))


OFFICIAL = {*models.resnet.default_cfgs, *models.vgg.default_cfgs}
EVERY_LAYOUT = [(name, True) for name in sorted(OFFICIAL - {"resnet34_1w1a"})] + [
    ("resnet20_bireal_1w1a", False),
    ("bireal20_1w1a", True),
    ("vgg_small_1w1a", False),
]


@pytest.mark.parametrize(("name", "channels_last"), EVERY_LAYOUT)
def test_both_readers_give_the_trained_logits_bit_for_bit(name: str, channels_last: bool, tmp_path: Path) -> None:
    model = network(name, channels_last=channels_last)
    packed = through_a_file(model, tmp_path, channels_last=channels_last)
    images = torch.randn(2, 3, 32, 32)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=memory))
    assert torch.equal(PackedNet(packed)(images), expected)
    assert torch.equal(NativeNet(packed)(images), expected)
    assert expected.std() > 0.1


WAYS = list(zip(list_scalings(), [None, *list_quantizers("weight"), None], strict=False))


@pytest.mark.parametrize(("scaling", "quantizer"), WAYS)
def test_scales_and_quantised_weights_are_packed_bit_for_bit(
    scaling: str, quantizer: str | None, tmp_path: Path
) -> None:
    model = network("resnet20_bireal_1w1a", scaling=scaling, weight_quantizer=quantizer)
    packed = through_a_file(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(PackedNet(packed)(images), expected)
    assert torch.equal(NativeNet(packed)(images), expected)


@pytest.mark.parametrize("scaling", ["channel", "learned"])
def test_thresholds_hold_for_a_scale_of_each_channel(scaling: str, tmp_path: Path) -> None:
    model = network("resnet20_1w1a", scaling=scaling)
    for module in model.modules():
        if isinstance(module, LearnedScaling):
            module.alpha.data[::3] *= -1
    packed = through_a_file(model, tmp_path)
    assert any(name.endswith(".threshold") for name in packed.tensors)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(NativeNet(packed)(images), expected)


def test_an_input_quantizer_that_keeps_signs_needs_no_step_and_another_is_refused(tmp_path: Path) -> None:
    model = network("resnet20_1w1a", activation_quantizer="recu_activation")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(PackedNet(through_a_file(model, tmp_path))(images), expected)
    with pytest.raises(ConfigError, match="before the sign has no packed form: use --to onnx or pt2"):
        pack(network("resnet20_1w1a", activation_quantizer="shift"), FACTS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reactnet20_1w1a", "layer1.0.binary_conv: what is done to its input before the sign has no packed form"),
        ("real_to_binary20_1w1a", r"act1_weight \(act1.weight\) has no packed form: use --to onnx or --to pt2"),
        ("binary_duo20_1w1a", r"cat \(cat\) has no packed form: use --to onnx or --to pt2"),
        ("binary_duo20_coupled_1w2a", "layer1.0.binary_conv: ternary_duo gives 0, 0.5, 1, not the -1 and 1 of a bit"),
    ],
)
def test_networks_that_signs_alone_do_not_describe_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        pack(network(name), FACTS)
    assert "\n" not in str(caught.value)


def whole_sums(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Sums of products of signs in int64, tap by tap."""
    signs = torch.where(x < 0, -1, 1)
    padded = nn.functional.pad(signs, (padding,) * 4)
    taps = torch.where(weight < 0, -1, 1)
    windows = padded.unfold(2, weight.shape[2], stride).unfold(3, weight.shape[3], stride)
    return torch.einsum("bchwij,ocij->bohw", windows, taps)


@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "stride", "padding", "threads"),
    [
        (64, 64, 9, 3, 1, 1, 1),
        (16, 8, 8, 3, 1, 1, 2),
        (128, 136, 7, 3, 2, 1, 3),
        (512, 72, 5, 3, 1, 1, 1),
        (4, 16, 11, 5, 3, 2, 1),
        (20, 24, 6, 1, 1, 0, 1),
        (12, 40, 7, 3, 2, 0, 2),
        (256, 64, 1, 3, 1, 1, 1),
    ],
)
def test_compiled_sums_are_the_integers(
    channels: int, outputs: int, size: int, kernel: int, stride: int, padding: int, threads: int
) -> None:
    torch.manual_seed(channels)
    x = torch.randn(2, channels, size, size + 1)
    x[:, ::3, ::2] = torch.tensor([0.0, -0.0]).repeat(size)[: size + 1]
    weight = torch.randn(outputs, channels, kernel, kernel)
    weight[0], weight[1] = 1, -1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = BinaryConv(weight, [stride] * 2, [padding] * 2)(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(y.long(), whole_sums(x, weight, stride, padding))


def test_sums_of_all_products_alike_do_not_overflow() -> None:
    x = torch.ones(1, 2048, 4, 4)
    weight = -torch.ones(8, 2048, 3, 3)
    y = BinaryConv(weight, [1, 1], [1, 1])(x)
    assert y.min() == -9 * 2048
    assert y[0, 0, 0, 0] == -4 * 2048


def test_sizes_that_do_not_fit_are_refused_before_memory_is_touched() -> None:
    weight = torch.ones(8, 16, 3, 3)
    sides = ([1, 1], [1, 1])
    short = {"multiplier": torch.ones(4), "bias": torch.ones(8)}
    with pytest.raises(ValueError, match="do not fit"):
        BinaryConv(weight, *sides, parts=short)
    with pytest.raises(ValueError, match="out of range"):
        BinaryConv(torch.ones(8, 2**13, 3, 3), *sides)
    for half in ("threshold", "above", "multiplier"):
        with pytest.raises(ValueError, match="finished with"):
            BinaryConv(weight, *sides, parts={half: torch.ones(8)})
    for stride, padding in (([2**64 + 1, 1], [1, 1]), ([1, 1], [1, 2**31]), ([1, 1, 1], [1, 1]), ([1, 1], [1])):
        with pytest.raises(ValueError, match="out of range"):
            BinaryConv(weight, stride, padding)
    conv = BinaryConv(weight, *sides)
    for x, residual in (
        (torch.ones(1, 20, 4, 4), None),
        (torch.ones(1, 16, 0, 4), None),
        (torch.ones(1, 16, 4, 4), torch.ones(1, 8, 3, 4)),
    ):
        with pytest.raises(ValueError, match="fit"):
            conv(x, residual)


def test_a_short_affine_map_is_refused_before_memory_is_touched() -> None:
    step = {"op": "affine", "layer": "norm", "relu": False, "inputs": ["images"], "output": "y"}
    tensors = {"norm.multiplier": torch.ones(8), "norm.bias": torch.ones(16)}
    with pytest.raises(ValueError, match="fit"):
        NativeNet(Packed([step], tensors, FACTS))(torch.ones(1, 16, 2, 2))


def test_a_net_of_plain_blocks_keeps_thresholds_instead_of_batch_norms() -> None:
    steps, tensors = fold(*trace_steps(network("resnet20_1w1a")))
    first = [step["layer"] for step in steps if step["op"] == "binary_conv2d" and step["layer"].endswith("conv1")]
    assert len(first) == 9
    for layer in first:
        assert {name.rpartition(".")[2] for name in tensors if name.startswith(f"{layer}.")} == {
            "bits",
            "threshold",
            "above",
        }
    assert not [step for step in steps if step["op"] == "add"]


def test_thresholds_turn_where_batch_norm_does() -> None:
    torch.manual_seed(0)
    block = network("resnet20_1w1a").layer1[0]
    _, tensors = fold(*trace_steps(nn.Sequential(block.conv1, block.act1, block.bn1, block.conv2)))
    sums = torch.arange(-144.0, 145.0)
    scale = block.conv1.weight.abs().mean()
    with torch.no_grad():
        y = block.bn1((sums * scale).relu().expand(1, 16, 1, -1))[0, :, 0]
    threshold, above = tensors["0.threshold"][:, None], tensors["0.above"][:, None]
    assert torch.equal(torch.where(sums >= threshold, above, -above) < 0, y < 0)
    assert len({above.item() for above in tensors["0.above"]}) == 2


def test_a_resnet18_for_1000_classes_fits_into_3_megabytes(tmp_path: Path) -> None:
    model = timm.create_model("resnet18_1w1a", num_classes=1000).eval()
    packed = pack(model, FACTS, half=True)
    path = write_packed(packed, tmp_path / "net.safetensors")
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, BinaryConv2d))
    assert packed.bytes_of(binary=True) <= 4 * weights / 25
    assert path.stat().st_size <= 3.0e6
    assert packed.bytes_of(binary=True) + packed.bytes_of(binary=False) < path.stat().st_size


def test_16_bits_round_a_weight_by_at_most_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 3, 3)
    weight[2] = 0
    kept = to_16_bits(weight)
    error = (kept["weight"] * kept["step"].view(-1, 1, 1, 1) - weight).abs().flatten(1).amax(1)
    assert (error <= kept["step"] * 0.5001).all()
    assert torch.allclose(kept["step"][[0, 1, 3]] * 32767, weight.flatten(1).abs().amax(1)[[0, 1, 3]])
    assert error[2] == 0


def test_16_bits_turn_no_sign_where_only_the_last_layer_has_them(tmp_path: Path) -> None:
    model = network("resnet20_1w1a")
    packed = read_packed(write_packed(pack(model, FACTS, half=True), tmp_path / "net.safetensors"))
    assert [name for name, tensor in packed.tensors.items() if tensor.dtype == torch.int16 and "weight" in name] == [
        "linear.weight"
    ]
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    difference = (PackedNet(packed)(images) - expected).abs().max()
    assert 0 < difference < 1e-3 * expected.std()


def test_16_bits_keep_the_answers_of_an_untrained_resnet18() -> None:
    """The hardest case: no training has pulled the logits apart, and what one turned sign moves may decide."""
    torch.manual_seed(1)
    model = timm.create_model("resnet18_1w1a", num_classes=1000)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(16, 3, 64, 64))
        model.eval()
        images = torch.randn(256, 3, 64, 64)
        expected = torch.cat([model(part) for part in images.split(64)]).argmax(1)
    net = PackedNet(pack(model, FACTS, half=True))
    found = torch.cat([net(part) for part in images.split(64)]).argmax(1)
    assert (found == expected).double().mean() >= 0.98  # 0.79 if all convolutions but the first are rounded


def test_binary_weights_alone_are_packed_and_computed_with_full_precision_inputs(tmp_path: Path) -> None:
    model = network("resnet20_1w1a", activation_bits=32)
    packed = through_a_file(model, tmp_path)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(PackedNet(packed)(images), expected)
    assert torch.equal(NativeNet(packed)(images), expected)
    assert not [name for name in packed.tensors if name.endswith(".threshold")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"numerics": "reference"}, "numerics=reference"),
        ({"weight_bits": 32}, "full-precision weight"),
        ({"estimator": "ternary_duo", "weight_estimator": "ste"}, "ternary_duo gives 0, 0.5, 1"),
    ],
)
def test_what_one_bit_cannot_hold_is_refused_in_one_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        pack(network("resnet20_1w1a", **options), FACTS)
    assert "\n" not in str(caught.value)
    assert "--to" in str(caught.value)


def test_a_layer_with_a_bias_and_no_batch_norm_is_exact(tmp_path: Path) -> None:
    torch.manual_seed(0)
    signs = {kind: create_estimator("ste") for kind in ("weight_estimator", "activation_estimator")}
    conv = BinaryConv2d(16, 16, 3, padding=1, **signs)
    model = nn.Sequential(conv, nn.ReLU()).to(memory_format=torch.channels_last)
    packed = through_a_file(model, tmp_path)
    images = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(PackedNet(packed)(images), expected)
    assert torch.equal(NativeNet(packed)(images), expected)


def without(part: str, op: str) -> Callable[[list[Step], Tensors], None]:
    def change(steps: list[Step], tensors: Tensors) -> None:
        layers = [step["layer"] for step in steps if step["op"] == op]
        del tensors[next(f"{layer}.{part}" for layer in layers if f"{layer}.{part}" in tensors)]

    return change


def with_field(op: str, **fields: object) -> Callable[[list[Step], Tensors], None]:
    return lambda steps, _: next(step for step in steps if step["op"] == op).update(fields)


def cut(part: str, op: str) -> Callable[[list[Step], Tensors], None]:
    def change(steps: list[Step], tensors: Tensors) -> None:
        name = next(f"{step['layer']}.{part}" for step in steps if step["op"] == op)
        tensors[name] = tensors[name][:-1]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("above", "binary_conv2d"), "cannot be computed from bits, threshold"),
        (without("bias", "binary_conv2d"), "cannot be computed from bits, multiplier, scale"),
        (without("scale", "binary_conv2d"), "cannot be computed from"),
        (without("multiplier", "affine"), "cannot be computed from bias"),
        (cut("multiplier", "affine"), "multiplier is of another type or shape"),
        (cut("bias", "linear"), "bias is of another type or shape"),
        (cut("bits", "binary_conv2d"), "bits is of another type or shape"),
        (with_field("binary_conv2d", stride=[2**64 + 1, 1]), "no good stride"),
        (with_field("binary_conv2d", padding=[1, -1]), "no good padding"),
        (with_field("binary_conv2d", stride=[1, 1, 1]), "no good stride"),
        (with_field("binary_conv2d", weight_shape=[16, 2**40, 3, 3]), "no good weight_shape"),
        (with_field("binary_conv2d", inputs=["nowhere"]), "reads nowhere"),
        (with_field("conv2d", stride=None), "no good stride"),
        (lambda steps, _: steps.clear(), "no steps"),
        (lambda steps, _: steps.insert(0, 1), "knows no step None"),
        (lambda steps, _: steps.insert(0, {"op": "binary_conv2d"}), "no good inputs"),
        (lambda steps, _: steps.insert(0, {"op": ["add"]}), "knows no step"),
    ],
)
def test_a_file_that_compiled_code_could_not_compute_is_refused(
    change: Callable[[list[Step], Tensors], None], said: str, tmp_path: Path
) -> None:
    packed = pack(network("resnet20_1w1a"), FACTS)
    packed.steps.insert(1, {"op": "affine", "layer": "norm", "relu": False, "inputs": ["images"], "output": "unused"})
    packed.tensors.update({f"norm.{part}": torch.ones(3) for part in ("multiplier", "bias")})
    read_packed(write_packed(packed, tmp_path / "net.safetensors"))
    change(packed.steps, packed.tensors)
    path = write_packed(packed, tmp_path / "net.safetensors")
    with pytest.raises(ConfigError, match=said) as caught:
        read_packed(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("export it again")


def test_what_is_asked_of_a_file_is_known_for_every_operation() -> None:
    assert FIELDS.keys() == OPERATIONS.keys()
    assert PARTS.keys() <= FIELDS.keys()


def test_a_damaged_or_foreign_file_is_one_line(tmp_path: Path) -> None:
    path = write_packed(pack(network("resnet20_1w1a"), FACTS), tmp_path / "net.safetensors")
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])

    def with_header(changed: dict[str, object]) -> bytes:
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    about = dict(header["__metadata__"])
    steps = json.loads(about["steps"])
    wider = [
        step | {"weight_shape": [step["weight_shape"][0] + 8, 16, 3, 3]} for step in steps if "weight_shape" in step
    ]
    damaged = {
        "cut": content[:-100],
        "empty": b"",
        "another format": with_header(header | {"__metadata__": about | {"format": "other"}}),
        "no steps": with_header(header | {"__metadata__": {"format": about["format"]}}),
        "unknown step": with_header(header | {"__metadata__": about | {"steps": '[{"op": "run"}]'}}),
        "other shapes": with_header(header | {"__metadata__": about | {"steps": json.dumps(wider)}}),
    }
    damaged["a flipped bit"] = content[:-500] + bytes([content[-500] ^ 1]) + content[-499:]
    for name, bad in damaged.items():
        path.write_bytes(bad)
        with pytest.raises(ConfigError, match="export it again") as caught:
            read_packed(path)
        assert "\n" not in str(caught.value), name
    with pytest.raises(ConfigError, match="export it again"):
        read_packed(tmp_path / "absent")
