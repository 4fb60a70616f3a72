"""Layers against the plain operator fed with hand-made signs, and the two numerics against each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from reste import BinaryConv2d, BinaryLinear, create_estimator, set_power, weight_scale

CONV_OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"dilation": 2, "bias": False},
    {"groups": 2, "padding": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "reflect"},
]


def signs(x):
    """+-1 the long way round, as constants."""
    return torch.tensor([1.0 if value >= 0 else -1.0 for value in x.flatten().tolist()], dtype=x.dtype).view(x.shape)


def conv_with_zeros(**options):
    """A float64 convolution, 4 -> 6 channels, some of its latent weights exactly +0.0 and -0.0."""
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 6, 3, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight[0, 0, 0] = torch.tensor([0.0, -0.0, 1e-310])
    return layer


def image():
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[:, :, 0, :2] = torch.tensor([0.0, -0.0])
    return x


def plain_conv(layer):
    """nn.Conv2d with the options and parameters of `layer`."""
    plain = torch.nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,
        dtype=layer.weight.dtype,
    )
    plain.load_state_dict(layer.state_dict())
    return plain


@pytest.mark.parametrize("options", CONV_OPTIONS)
def test_without_estimators_the_convolution_is_the_plain_one_bit_for_bit(options):
    layer = conv_with_zeros(**options)
    plain = plain_conv(layer)
    assert torch.equal(layer(image()), plain(image()))
    layer(image()).sum().backward()
    plain(image()).sum().backward()
    assert torch.equal(layer.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_estimators_the_linear_layer_is_the_plain_one_bit_for_bit(dtype):
    layer, plain = BinaryLinear(7, 3, dtype=dtype), torch.nn.Linear(7, 3, dtype=dtype)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(5, 7).to(dtype)
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize("scale", ["after", "before", "none"])
@pytest.mark.parametrize(("weight", "activation"), [("reste", "reste"), ("ste", None), (None, "approx_sign")])
@pytest.mark.parametrize("options", CONV_OPTIONS)
def test_convolution_equals_the_plain_one_fed_with_signs(options, weight, activation, scale):
    layer = conv_with_zeros(
        weight_estimator=create_estimator(weight) if weight else None,
        activation_estimator=create_estimator(activation) if activation else None,
        scale=scale,
        **options,
    )
    plain = plain_conv(layer)
    with torch.no_grad():
        if weight:
            size = 1.0 if scale == "none" else layer.weight.numpy(force=True).__abs__().mean()
            plain.weight.copy_(signs(layer.weight) * size)
        expected = plain(signs(image()) if activation else image())
    torch.testing.assert_close(layer(image()), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("scale", ["after", "before", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_equals_the_plain_one_fed_with_signs(bias, scale):
    layer = BinaryLinear(
        7,
        3,
        bias,
        dtype=torch.float64,
        weight_estimator=create_estimator("ste"),
        activation_estimator=create_estimator("ste"),
        scale=scale,
    )
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    size = 1.0 if scale == "none" else layer.weight.numpy(force=True).__abs__().mean()
    expected = F.linear(signs(x), signs(layer.weight) * size, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-14)


def test_an_unbatched_image_is_accepted():
    layer = conv_with_zeros(weight_estimator=create_estimator("ste"))
    torch.testing.assert_close(layer(image()[0]), layer(image())[0], rtol=0, atol=1e-14)


def test_weight_gradient_is_slope_times_gradient_plus_the_scales_own():
    """y = s * (sign W . x): dL/dW = s g(W) dL/d(sign W) + sign(W)/n * (dL/ds), written out with matrices."""
    layer = BinaryLinear(4, 3, False, dtype=torch.float64, weight_estimator=create_estimator("reste", power=2.0))
    x = torch.randn(5, 4, dtype=torch.float64)
    grad = torch.randn(5, 3, dtype=torch.float64)
    layer(x).backward(grad)
    weight = layer.weight.detach()
    size = weight.abs()
    slope = torch.where(size <= 0.1, 0.1**-0.5, 0.5 / size.sqrt())
    scale_grad = (grad * (x @ signs(weight).T)).sum()
    expected = size.mean() * slope * (grad.T @ x) + signs(weight) / weight.numel() * scale_grad
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0, atol=1e-12)


def test_a_weight_of_zeros_has_a_finite_gradient():
    layer = BinaryLinear(4, 3, False, dtype=torch.float64, weight_estimator=create_estimator("reste", power=2.0))
    torch.nn.init.zeros_(layer.weight)
    layer(torch.randn(5, 4, dtype=torch.float64)).sum().backward()
    assert torch.equal(layer.weight.grad, torch.zeros(3, 4, dtype=torch.float64))


def test_what_the_convolution_gives_is_not_kept_for_the_backward_pass():
    layer = conv_with_zeros(bias=False, weight_estimator=create_estimator("ste"))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        out = layer(image().requires_grad_())
    assert image().shape in kept, "what it multiplies is"
    assert out.shape not in kept


def test_scale_is_one_number_and_lets_the_gradient_through():
    weight = torch.tensor([[1.0, -3.0], [0.5, -0.5]], requires_grad=True)
    scale = weight_scale(weight)
    scale.backward()
    assert scale.shape == ()
    assert scale.item() == 1.25
    assert weight.grad.tolist() == [[0.25, -0.25], [0.25, -0.25]]


class OfficialConv(torch.nn.Conv2d):
    """The official code's forward pass: torch.sign, and mean|W| sign(W) into the convolution."""

    def forward(self, x):
        binary_x = x + (torch.sign(x) - x).detach()
        signed = self.weight + (torch.sign(self.weight) - self.weight).detach()
        return F.conv2d(binary_x, self.weight.abs().mean() * signed, self.bias, self.stride, self.padding)


def reference_pair():
    """An official convolution and ours in reference numerics, with the same weights, estimator "identity"."""
    layer = conv_with_zeros(
        padding=1,
        bias=False,
        weight_estimator=create_estimator("identity", zero="zero"),
        activation_estimator=create_estimator("identity", zero="zero"),
        scale="before",
    )
    official = OfficialConv(4, 6, 3, padding=1, bias=False, dtype=torch.float64)
    official.load_state_dict(layer.state_dict())
    return official, layer


def test_reference_numerics_are_the_official_arithmetic():
    official, layer = reference_pair()
    inputs = [image().requires_grad_() for _ in range(2)]
    outputs = [module(x) for module, x in zip((official, layer), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-14)
    for out in outputs:
        out.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.weight.grad, official.weight.grad, rtol=1e-12, atol=1e-12)


def test_the_two_numerics_differ_where_zeros_are_and_only_there():
    official, reference = reference_pair()
    default = copy.deepcopy(reference)
    default.scale = "after"
    default.weight_estimator, default.activation_estimator = (create_estimator("identity") for _ in range(2))
    assert not torch.allclose(default(image()), official(image()))
    with torch.no_grad():
        for module in (official, default):
            module.weight.masked_fill_(module.weight == 0, 0.1)
    x = image().masked_fill(image() == 0, 0.1)
    torch.testing.assert_close(default(x), official(x), rtol=0, atol=1e-13)


def test_scale_after_keeps_exact_zeros_and_scale_before_turns_them_into_noise():
    torch.manual_seed(0)
    make = {kind: create_estimator("ste") for kind in ("weight_estimator", "activation_estimator")}
    layer = BinaryConv2d(16, 32, 3, bias=False, **make)
    x = torch.randn(8, 16, 12, 12)
    ties = F.conv2d(signs(x), signs(layer.weight)) == 0
    assert 0.05 < ties.float().mean() < 0.09, "6.8 % is what 144 fair coins give"
    assert torch.equal(layer(x) == 0, ties)
    layer.scale = "before"
    assert (layer(x)[ties] != 0).float().mean() > 0.25
    torch.testing.assert_close(layer(x)[ties], torch.zeros(int(ties.sum())), rtol=0, atol=1e-4)


def test_zero_padding_stays_zero_after_the_sign():
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False, activation_estimator=create_estimator("ste"))
    with torch.no_grad():
        layer.weight.fill_(1)
    ones = torch.ones(1, 1, 3, 3)
    assert layer(ones).flatten().tolist() == [4, 6, 4, 6, 9, 6, 4, 6, 4]


@pytest.mark.parametrize("scale", ["after", "before", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_the_dtype_of_a_plain_convolution_and_integers_times_scale(dtype, scale):
    torch.manual_seed(0)
    make = {kind: create_estimator("reste") for kind in ("weight_estimator", "activation_estimator")}
    layer = BinaryConv2d(4, 6, 3, scale=scale, **make)
    x = torch.randn(2, 4, 6, 6)
    with torch.autocast("cpu", dtype=dtype):
        low = layer(x)
    low.sum().backward()
    assert low.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(low.float(), layer(x), rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_module_keeps_its_dtype_from_input_to_gradient(dtype):
    make = {kind: create_estimator("reste") for kind in ("weight_estimator", "activation_estimator")}
    layer = BinaryConv2d(4, 6, 3, **make).to(dtype)
    set_power(layer, 2.984)
    x = torch.randn(2, 4, 6, 6).to(dtype).requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == layer.weight.grad.dtype == dtype
    assert layer.weight.grad.isfinite().all()


def test_channels_last_passes_through():
    make = {kind: create_estimator("reste") for kind in ("weight_estimator", "activation_estimator")}
    layer = BinaryConv2d(4, 6, 3, **make).to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 6, 6)
    out = layer(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, layer(x))


def test_activation_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    make = {kind: create_estimator("reste", power=2.0) for kind in ("weight_estimator", "activation_estimator")}
    layer = conv_with_zeros(**make)
    layer(image()).square().sum().backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    checkpoint(layer, image(), use_reentrant=False).square().sum().backward()
    assert torch.equal(layer.weight.grad, expected)
