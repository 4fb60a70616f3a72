"""The fused kernels against arithmetic written again in NumPy and against plain torch code, on a GPU.

`tests/numeric/test_kernels_interpreted.py` runs this file on a CPU, where triton interprets the kernels.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

import reste
from reste.kernels import reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="needs a GPU"),
]

HALVES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float64, torch.float32, *HALVES)
SHAPES = ((), (1,), (7,), (8,), (9,), (2048,), (2049,), (0,), (0, 3, 2, 2), (3, 5), (2, 3, 5, 7), (4, 1, 3, 3))
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1.5, -1.5, 0.1, -0.1, 1e-7, float("inf"), -float("inf"), float("nan"))
POWERS = (1.0, 1.25, 2.0, 2.984, 3.0)
ULP = 2.0**-23


@pytest.fixture(scope="module")
def fused():
    from reste.kernels import fused

    return fused


@pytest.fixture
def kernels_chosen():
    reste.choose_kernels("triton")
    yield
    reste.choose_kernels("compiled")


def values(shape, dtype=torch.float32, *, channels_last=False, seed=0, special=True):
    """Normal values with some special ones among them, where there is room."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if special and x.numel() > len(SPECIAL):
        x.view(-1)[1 : 1 + len(SPECIAL)] = torch.tensor(SPECIAL, dtype=torch.float64)
    x = x.to(DEVICE, dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def bits_of(flags, *, channels_last=False):
    """The documented layout, by NumPy."""
    array = flags.cpu().numpy()
    ordered = (array.transpose(0, 2, 3, 1) if channels_last else array).reshape(-1)
    return np.packbits(ordered, bitorder="little").tolist()


def layouts(shapes):
    return [(s, False) for s in shapes] + [(s, True) for s in shapes if len(s) == 4 and s[1] > 1]


@pytest.mark.parametrize(("shape", "channels_last"), layouts(SHAPES))
def test_bits_are_those_of_numpy_and_give_the_signs_back(fused, shape, channels_last):
    x = values(shape, channels_last=channels_last)
    expected = bits_of(~(x < 0), channels_last=channels_last)
    assert fused.pack_signs(x).tolist() == expected
    assert reference.pack_signs(x).tolist() == expected
    for module in (fused, reference):
        back = module.unpack_signs(module.pack_signs(x), x.shape, torch.float16, channels_last)
        assert back.dtype == torch.float16
        assert back.stride() == x.stride()
        assert torch.equal(back.float(), torch.where(x < 0, -1.0, 1.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_is_one", [True, False])
def test_signs_are_one_minus_one_and_what_zero_is_said_to_be(fused, dtype, zero_is_one):
    x = values((300,), dtype)
    wide = x.double().cpu().numpy()
    expected = np.where(wide > 0, 1.0, np.where(wide < 0, -1.0, 1.0 if zero_is_one else 0.0)).tolist()
    for out in (dtype, torch.int8, torch.bfloat16):
        for module in (fused, reference):
            sign = module.sign_forward(x, out, zero_is_one)
            assert sign.dtype == out
            assert sign.tolist() == expected


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_pass_gives_the_signs_and_their_bits(fused, channels_last):
    x = values((2, 3, 5, 7), torch.bfloat16, channels_last=channels_last)
    for module in (fused, reference):
        sign, bits = module.sign_forward_packed(x, torch.int8)
        assert torch.equal(sign, torch.where(x < 0, -1, 1).to(torch.int8))
        assert sign.stride() == x.stride()
        assert bits.tolist() == bits_of(~(x < 0), channels_last=channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "channels_last"), layouts(SHAPES))
def test_the_bit_within_the_threshold_is_all_that_ste_needs(fused, shape, channels_last, dtype):
    x = values(shape, dtype, channels_last=channels_last)
    grad = values(shape, dtype, seed=1, special=False)
    inside = x.double().abs() <= np.float32(1.5)
    for module in (fused, reference):
        sign, bits = module.ste_forward(x, 1.5)
        assert torch.equal(sign, torch.where(x < 0, -1.0, 1.0).to(dtype))
        assert bits.tolist() == bits_of(inside, channels_last=channels_last)
        back = module.ste_backward(grad, bits, channels_last)
        assert back.dtype == dtype
        assert torch.equal(back, torch.where(inside, grad, 0 * grad))
        assert back.stride() == x.stride()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_gradient_that_is_not_finite_stays_so_outside_the_threshold(fused):
    x = torch.tensor([0.5, 2.0, 2.0, 0.5], device=DEVICE)
    grad = torch.tensor([float("nan"), float("nan"), float("inf"), float("inf")], device=DEVICE)
    for module in (fused, reference):
        back = module.ste_backward(grad, module.ste_forward(x, 1.0)[1], False)
        assert back.isfinite().tolist() == [False] * 4


def slope_by_numpy(x, power, threshold, knee, gain):
    """ReSTE's slope in float64, with bounds as float32 sees them."""
    threshold, knee = float(np.float32(threshold)), float(np.float32(knee))
    size = np.abs(x.double().cpu().numpy())
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.power(np.clip(size, knee, threshold), (1 - power) / power)
    return np.where(size <= threshold, root * np.where(size <= knee, 1.0, 1.0 / power), 0.0) * gain


@pytest.mark.parametrize("gain", [None, 0.7])
@pytest.mark.parametrize("power", POWERS)
def test_the_slope_of_reste_is_that_of_numpy_to_sixteen_units_in_the_last_place(fused, power, gain):
    x, grad = values((6000,)), values((6000,), seed=1, special=False)
    on_device = [None if v is None else torch.tensor(v, device=DEVICE) for v in (power, gain)]
    back = fused.reste_backward(grad, x, *on_device, 1.5, 0.1).double().cpu().numpy()
    rounded = [1.0 if v is None else float(np.float32(v)) for v in (power, gain)]
    expected = grad.double().cpu().numpy() * slope_by_numpy(x, rounded[0], 1.5, 0.1, rounded[1])
    assert np.isfinite(back).all()
    assert (np.abs(back - expected) <= 16 * ULP * np.abs(expected)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_low_precision_is_computed_in_float32_and_rounded_once(fused, dtype):
    x, grad = values((6000,), dtype), values((6000,), dtype, seed=1, special=False)
    power = torch.tensor(2.5, device=DEVICE)
    back = fused.reste_backward(grad, x, power, None, 1.5, 0.1)
    assert back.dtype == dtype
    exact = grad.double().cpu().numpy() * slope_by_numpy(x, 2.5, 1.5, 0.1, 1.0)
    expected = torch.from_numpy(exact).to(dtype).to(DEVICE)
    # A last bit of float32 decides only where the product lies half way between two neighbours.
    # The interpreter cuts off what bfloat16 has no room for, where devices round.
    assert (back != expected).float().mean() < (1e-3 if not INTERPRETED or dtype == torch.float16 else 1)
    torch.testing.assert_close(back, expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_float64_is_computed_in_float64(fused):
    x, grad = values((3000,), torch.float64), values((3000,), torch.float64, seed=1, special=False)
    power = torch.tensor(2.5, dtype=torch.float64, device=DEVICE)
    back = fused.reste_backward(grad, x, power, None, 1.5, 0.125)
    expected = grad.cpu().numpy() * slope_by_numpy(x, 2.5, 1.5, 0.125, 1.0)
    np.testing.assert_allclose(back.cpu().numpy(), expected, rtol=1e-14)


def test_the_power_is_read_when_the_kernel_runs(fused):
    x = torch.full((8,), 0.5, device=DEVICE)
    power = torch.ones((), device=DEVICE)
    seen = []
    for value in (1.0, 2.0):
        power.fill_(value)
        seen.append(fused.reste_backward(torch.ones_like(x), x, power, None, 1.5, 0.1)[0].item())
    assert seen == pytest.approx([1.0, 0.5 * 0.5**-0.5], rel=1e-6)


@pytest.mark.parametrize("layout", ["rows", "channels_last", "sliced", "transposed", "expanded"])
def test_any_layout_of_input_and_gradient_gives_the_same_numbers(fused, layout):
    def make(seed, like):
        x = values((4, 6, 5, 8), seed=seed, special=False)
        return {
            "rows": x,
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "sliced": x[:, ::2, 1:],
            "transposed": x.transpose(2, 3),
            "expanded": x[:1].expand(4, -1, -1, -1),
        }[like]

    x = make(0, layout)
    power = torch.tensor(2.0, device=DEVICE)
    for grad in (make(1, layout), make(1, layout).contiguous()):
        expected = reference.reste_backward(grad, x, power, None, 1.5, 0.1)
        torch.testing.assert_close(fused.reste_backward(grad, x, power, None, 1.5, 0.1), expected)
        channels_last = reference.is_channels_last(x)
        bits = fused.ste_forward(x, 1.0)[1]
        assert torch.equal(fused.ste_backward(grad, bits, channels_last), grad * (x.abs() <= 1))
    assert torch.equal(fused.sign_forward(x, x.dtype), torch.where(x < 0, -1.0, 1.0))


def operator_samples():
    x, grad = values((2, 3, 5, 7), channels_last=True), values((2, 3, 5, 7), seed=1, special=False)
    bits, power = reference.pack_signs(x), torch.tensor(2.0, device=DEVICE)
    return {
        "sign_forward": (x, torch.int8, True),
        "pack_signs": (x,),
        "sign_forward_packed": (x, torch.bfloat16),
        "unpack_signs": (bits, [2, 3, 5, 7], torch.float32, True),
        "ste_forward": (x, 1.0, True),
        "ste_backward": (grad, bits, True),
        "reste_backward": (grad, x, power, power.clone(), 1.5, 0.1),
    }


@pytest.mark.parametrize("name", list(reference.__dict__.keys() & operator_samples().keys()) if INTERPRETED else [])
def test_operators_keep_their_schema(fused, name):
    torch.library.opcheck(getattr(fused, name), operator_samples()[name], test_utils="test_schema")


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be traced")
def test_operators_pass_all_checks_of_torch(fused):
    for name, arguments in operator_samples().items():
        torch.library.opcheck(getattr(fused, name), arguments)


def signs():
    power, gain = torch.tensor(2.5, device=DEVICE), torch.tensor(0.8, device=DEVICE)
    return {
        "identity": lambda x: reste.identity_sign(x),
        "ste": lambda x: reste.ste_sign(x, 1.2),
        "approx": lambda x: reste.approx_sign(x),
        "reste": lambda x: reste.reste_sign(x, power),
        "reste with a gain": lambda x: reste.reste_sign(x, power, 1.2, 0.2, gain=gain),
        "reste with numbers": lambda x: reste.reste_sign(x, 2.5, gain=0.8),
        "reste as published": lambda x: reste.reste_sign(x, power, zero="zero"),
        "ste as published": lambda x: reste.ste_sign(x, zero="zero"),
    }


def forward_and_gradient(sign, x, grad):
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = sign(x)
    y.backward(grad)
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", list(signs()) if INTERPRETED or torch.cuda.is_available() else [])
def test_chosen_kernels_give_what_plain_code_gives(kernels_chosen, name, channels_last, dtype):
    x = values((2, 4, 5, 7), dtype, channels_last=channels_last)
    grad = values((2, 4, 5, 7), dtype, seed=1, special=False)
    sign = signs()[name]
    y, through = forward_and_gradient(sign, x, grad)
    assert reste.chosen_kernels() == "triton"
    reste.choose_kernels("compiled")
    expected, expected_through = forward_and_gradient(sign, x, grad)
    assert torch.equal(y, expected)
    if name.startswith("reste"):
        tolerance = {torch.float64: 1e-13, torch.float32: 32 * ULP}.get(dtype, torch.finfo(dtype).eps)
        torch.testing.assert_close(through, expected_through, rtol=tolerance, atol=1e-12)
    else:
        assert torch.equal(through, expected_through)
    assert through.stride() == x.stride()


def saved_bytes(sign, x):
    """Bytes that autograd keeps between forward and backward, beside tensors of one value."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
        y = sign(x.clone().requires_grad_())
        y.backward(torch.ones_like(y))
    return sum(size for size in kept if size > 8)


def test_ste_keeps_one_bit_per_value(kernels_chosen):
    x = values((4000,), torch.bfloat16)
    assert saved_bytes(lambda x: reste.ste_sign(x, 1.0), x) == 500
    reste.choose_kernels("compiled")
    assert saved_bytes(lambda x: reste.ste_sign(x, 1.0), x) == 8000


def test_the_gradient_on_kernels_is_that_of_the_curve_in_float64(kernels_chosen):
    # Away from the corners, where the curve has no derivative.
    x = torch.tensor([-1.9, -1.4, -0.6, -0.11, -0.05, 0.02, 0.3, 0.9, 1.45, 1.6], dtype=torch.float64, device=DEVICE)
    power = torch.tensor(2.3, dtype=torch.float64, device=DEVICE)
    _, through = forward_and_gradient(lambda x: reste.reste_sign(x, power), x, torch.ones_like(x))
    _, expected = forward_and_gradient(lambda x: reste.reste_curve(x, power), x, torch.ones_like(x))
    torch.testing.assert_close(through, expected, rtol=1e-12, atol=0)


def network():
    torch.manual_seed(0)
    parts = []
    for name in ("ste", "reste", "identity"):
        made = {f"{kind}_estimator": reste.create_estimator(name) for kind in ("weight", "activation")}
        parts += [reste.BinaryConv2d(4, 4, 3, padding=1, bias=False, **made), torch.nn.BatchNorm2d(4)]
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(4), *parts).to(DEVICE)
    reste.set_power(net, 2.2)
    return net


def step(net, x):
    net.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in net.parameters())]


def test_a_network_on_kernels_has_the_gradients_of_plain_code(kernels_chosen):
    x = values((2, 4, 6, 6), special=False)
    net = network()
    on_kernels = step(net, x)
    reste.choose_kernels("compiled")
    for actual, expected in zip(on_kernels, step(net, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(INTERPRETED, reason="interpreted kernels cannot be traced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_on_kernels_compiles_to_one_graph_for_all_powers(kernels_chosen, dtype):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    net, x = network().to(dtype), values((2, 4, 6, 6), dtype, channels_last=True, special=False)
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    for power in (1.0, 1.7, 3.0):
        reste.set_power(net, power)
        for actual, expected in zip(step(compiled, x), step(net, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-2, atol=1e-3)
    assert counter.frame_count == 1
    torch._dynamo.reset()
