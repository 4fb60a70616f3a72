"""What is done before the sign: against plain loops, autograd, and one compiled graph for a whole schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from reste import BinaryConv2d, create_estimator, create_quantizer, list_quantizers, set_progress

PLAIN = [name for name in list_quantizers() if not name.startswith("stochastic")]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) * 0.3 + 0.05


def standardized(rows):
    found = []
    for row in rows:
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        found.append([(value - mean) / deviation for value in row])
    return found


def recu_by_hand(rows, tau):
    found = []
    for row in rows:
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / (len(row) - 1)
        found.append([(value - mean) / (math.sqrt(variance + 1e-5) / 2 / math.sqrt(2)) for value in row])
    sizes = [abs(value) for row in found for value in row]
    bound = -sum(sizes) / len(sizes) * math.log(2 - 2 * tau)
    return [[min(max(value, -bound), bound) for value in row] for row in found]


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (5, 9)])
def test_standardize_has_mean_zero_and_deviation_one_in_every_channel(shape):
    found = create_quantizer("standardize", shape[0])(weight(*shape)).flatten(1)
    expected = standardized(weight(*shape).flatten(1).tolist())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_the_gradient_of_standardize_is_that_of_the_formula():
    quantizer = create_quantizer("standardize", 3)
    assert torch.autograd.gradcheck(quantizer, (weight(3, 2, 2, 2).requires_grad_(),))


@pytest.mark.parametrize("name", sorted({*PLAIN} & {*list_quantizers("weight")}))
@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (3, 1, 1, 1)])
def test_equal_weights_are_no_division_by_zero(name, shape):
    x = torch.full(shape, 0.25, requires_grad=True)
    found = create_quantizer(name, 3)(x)
    found.sum().backward()
    assert torch.equal(found, torch.zeros(shape))
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("progress", "tau"), [(0.0, 0.85), (1.0, 0.99), (0.5, 0.08147674 * math.exp(0.5) + 0.76852326)]
)
def test_recu_is_its_formula_along_its_schedule(progress, tau):
    quantizer = create_quantizer("recu", 6)
    set_progress(quantizer, progress)
    assert quantizer.tau.item() == pytest.approx(tau, abs=1e-7)
    x = weight(6, 5, 3, 3)
    x[0, 0, 0] = torch.tensor([9.0, -9.0, 0.0])
    expected = recu_by_hand(x.flatten(1).tolist(), quantizer.tau.item())
    np.testing.assert_allclose(quantizer(x).flatten(1).numpy(), expected, rtol=1e-6)


def test_recu_clamps_at_the_quantile_of_a_laplace_distribution():
    uniform = torch.rand(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    quantizer = create_quantizer("recu", 1, tau_start=0.9)
    clamped = quantizer(laplace.view(1, -1))
    share = (clamped == clamped.max()).double().mean().item()
    assert share == pytest.approx(0.1, abs=5 * math.sqrt(0.1 * 0.9 / 400_000))


def test_no_gradient_passes_beyond_the_clamp_and_the_bound_itself_has_none():
    quantizer = create_quantizer("recu", 2)
    x = weight(2, 40).requires_grad_()
    (found,) = torch.autograd.grad(quantizer(x).square().sum(), x)

    rest = x - x.mean(1, keepdim=True)
    w = rest / (rest.var(1, keepdim=True) + 1e-5).sqrt() * 8**0.5
    bound = -w.abs().mean().item() * math.log(2 - 2 * 0.85)
    inside = w.abs() <= bound
    assert 0 < inside.sum() < inside.numel()
    expected = torch.autograd.grad(torch.where(inside, w, 0).square().sum(), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("given", [{"tau_start": 0.5}, {"tau_start": 0.9, "tau_end": 0.8}, {"tau_end": 1.0}])
def test_taus_out_of_order_are_refused(given):
    with pytest.raises(ValueError, match=r"0\.5 < tau_start <= tau_end < 1"):
        create_quantizer("recu", 1, **given)


def test_recu_divides_each_sample_by_its_deviation_in_training_alone():
    quantizer = create_quantizer("recu_activation", 3)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64) * 3 + 1
    expected = np.stack([sample / np.sqrt(np.var(sample, ddof=1) + 1e-5) for sample in x.numpy()])
    np.testing.assert_allclose(quantizer(x).numpy(), expected, rtol=1e-12)
    assert quantizer(x[:0]).shape == (0, 3, 5, 5)
    assert torch.equal(quantizer.eval()(x), x)


def test_shift_moves_the_threshold_of_each_channel():
    quantizer = create_quantizer("shift", 3)
    x = torch.tensor([0.3, -0.2, 0.1]).view(1, 3, 1, 1).expand(2, 3, 2, 2)
    assert torch.equal(quantizer(x), x)
    with torch.no_grad():
        quantizer.shift.copy_(torch.tensor([-0.5, 0.5, 0.0]))
    assert quantizer(x)[0, :, 0, 0].sign().tolist() == [-1, 1, 1]
    assert torch.equal(quantizer(x[:, :, 0, 0]), quantizer(x)[:, :, 0, 0])
    quantizer(x).sum().backward()
    assert quantizer.shift.grad.tolist() == [8, 8, 8]


def test_a_shift_too_small_for_low_precision_still_decides_the_sign():
    quantizer = create_quantizer("shift", 1)
    torch.nn.init.constant_(quantizer.shift, -1 - 2**-20)
    found = quantizer(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert found.item() < 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list_quantizers())
def test_every_precision_keeps_its_type_and_agrees(name, dtype):
    quantizer = create_quantizer(name, 4).to(dtype)
    x = weight(4, 4, 3, 3)
    found = quantizer(x.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), create_quantizer(name, 4)(x.to(dtype).double()), rtol=1e-2, atol=1e-2)


def test_casts_leave_the_schedule_alone_and_moves_take_it_along():
    quantizer = create_quantizer("recu", 2)
    set_progress(quantizer, 0.7)
    tau = quantizer.tau.item()
    assert quantizer.bfloat16().tau.dtype == torch.float32
    assert quantizer.tau.item() == tau
    assert list(quantizer.state_dict()) == []
    assert quantizer.to("meta").to_empty(device="cpu").tau.item() == pytest.approx(0.85)


@pytest.mark.parametrize(
    "name", [name if name == "recu" else pytest.param(name, marks=pytest.mark.slow) for name in PLAIN]
)
def test_one_graph_serves_the_whole_schedule_of_a_layer(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    side = "weight" if name in list_quantizers("weight") else "activation"
    signs = {f"{which}_estimator": create_estimator("approx_sign") for which in ("weight", "activation")}
    layer = BinaryConv2d(4, 4, 3, **signs, **{f"{side}_quantizer": create_quantizer(name, 4)}).double()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    seen = []
    for progress in (0.0, 0.3, 0.6, 1.0):
        set_progress(layer, progress)
        found = []
        for module in (layer, compiled):
            layer.zero_grad()
            module(x).square().sum().backward()
            found.append([parameter.grad.clone() for parameter in layer.parameters()])
        for eager, graph in zip(*found, strict=True):
            torch.testing.assert_close(graph, eager, rtol=1e-9, atol=1e-12)
        seen.append(found[0][0])
    assert counter.frame_count == 1
    assert name != "recu" or (seen[0] - seen[-1]).norm() > 0.01 * seen[0].norm()
    torch._dynamo.reset()
