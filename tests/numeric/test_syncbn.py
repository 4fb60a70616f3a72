"""Batch norm over real ranks against `nn.BatchNorm` of the ranks' batches put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spawn import run_ranks
from torch import Tensor, nn

from trainer.distributed import collectives
from trainer.distributed.batchnorm import SyncBatchNorm, convert_batchnorm, make_bn_group
from trainer.distributed.statistics import BatchNormGroup

Case = dict[str, Any]
DEFAULTS: Case = {"shape": (6, 5, 4), "dtype": torch.float64, "last": False, "options": {}, "offset": 3.0}
CASES: dict[str, Case] = {
    "images": {},
    "channels last": {"last": True},
    "vectors": {"shape": (6,)},
    "sequences": {"shape": (6, 7)},
    "cumulative average": {"options": {"momentum": None}},
    "no parameters": {"options": {"affine": False}},
    "no running statistics": {"options": {"track_running_stats": False}},
    "float32": {"dtype": torch.float32},
    "float32, mean of 1000 deviations": {"dtype": torch.float32, "offset": 1000.0},
    "bfloat16": {"dtype": torch.bfloat16},
}
UNEVEN = {2: (4, 3), 3: (5, 0, 2)}
STEPS = 2
Result = dict[str, Tensor]


def joint_batch(case: Case, step: int, n: int) -> tuple[Tensor, Tensor]:
    """Inputs of all ranks, (N, C, ...), and the gradients that flow back into the outputs."""
    generator = torch.Generator().manual_seed(step)
    x, gradient = torch.randn(2, n, *case["shape"], generator=generator, dtype=torch.float64)
    channels = case["shape"][0]
    x = x * torch.linspace(0.5, 2, channels, dtype=x.dtype).view(-1, *[1] * (x.ndim - 2)) + case["offset"]
    return x.to(case["dtype"]), gradient.to(case["dtype"])


def plain_norm(case: Case) -> nn.Module:
    kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(case["shape"])]
    norm = kind(case["shape"][0], **case["options"])
    norm.to(torch.promote_types(case["dtype"], torch.float32))
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, norm.num_features))
            norm.bias.copy_(torch.linspace(0, 1, norm.num_features))
    return norm


def train(case: Case, norm: nn.Module, part: slice, n: int) -> Result:
    """Forward and backward over two batches; outputs, gradients and buffers after the second."""
    for step in range(STEPS):
        x, gradient = (tensor[part] for tensor in joint_batch(case, step, n))
        if case["last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        x = x.clone().requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(gradient)
    found = {"y": y.detach(), "dx": x.grad}
    found |= {f"d {name}": parameter.grad for name, parameter in norm.named_parameters()}
    return found | dict(norm.named_buffers())


def bounds(sizes: tuple[int, ...], rank: int) -> slice:
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def all_cases(sizes: tuple[int, ...]) -> dict[str, Result]:
    group = make_bn_group(len(sizes))
    part = bounds(sizes, collectives.rank())
    results = {}
    for name, changes in CASES.items():
        case = DEFAULTS | changes
        norm = convert_batchnorm(plain_norm(case), group)
        assert isinstance(norm, SyncBatchNorm)
        results[name] = train(case, norm, part, sum(sizes))
    return results


@pytest.fixture(scope="module", params=UNEVEN)
def ranks(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], list[dict[str, Result]]]:
    sizes = UNEVEN[request.param]
    return sizes, run_ranks(all_cases, len(sizes), sizes)


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("name", CASES)
def test_ranks_together_are_one_big_batch(name: str, ranks: tuple[tuple[int, ...], list]) -> None:
    sizes, results = ranks
    case = DEFAULTS | CASES[name]
    expected = train(case, plain_norm(case), slice(None), sum(sizes))
    of_ranks = [result[name] for result in results]
    # At an offset of 1000 deviations the inputs' own rounding is 1000 times larger.
    tolerance = TOLERANCE[case["dtype"]] * max(case["offset"] / 10, 1)
    for what, value in expected.items():
        parts = [result[what] for result in of_ranks]
        if what in ("y", "dx"):
            found = torch.cat(parts)
        elif what.startswith("d "):
            found = torch.stack(parts).sum(0)
        else:
            found = parts[0]
            assert all(torch.equal(part, found) for part in parts), what
        assert found.dtype == value.dtype, what
        scale = value.double().abs().max().clamp(min=1)
        torch.testing.assert_close(
            found / scale, value / scale, rtol=0, atol=tolerance, msg=lambda m: f"{what}: {m}"
        )


def test_channels_last_stays_channels_last(ranks: tuple[tuple[int, ...], list]) -> None:
    first = ranks[1][0]["channels last"]
    assert first["y"].is_contiguous(memory_format=torch.channels_last)
    assert first["dx"].is_contiguous(memory_format=torch.channels_last)


def test_plain_batch_norm_on_each_rank_is_something_else() -> None:
    expected = train(DEFAULTS, plain_norm(DEFAULTS), slice(None), 7)
    alone = train(DEFAULTS, plain_norm(DEFAULTS), bounds((4, 3), 0), 7)
    for what in ("y", "dx"):
        assert (alone[what] - expected[what][:4]).abs().max() > 0.01
    assert (alone["running_var"] - expected["running_var"]).abs().max() > 0.001


def autocast_and_empty() -> dict[str, Any]:
    rank = collectives.rank()
    group = make_bn_group(2)
    torch.manual_seed(0)
    model = convert_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), group)
    x = torch.randn(5, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x[:2] if rank == 0 else x[2:])
    y.float().square().sum().backward()
    norm = model[1]
    dtypes = {name: p.grad.dtype for name, p in norm.named_parameters()} | {"y": y.dtype}
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    empty = torch.empty(0, 4, 6, 6, requires_grad=True)
    norm(empty).sum().backward()
    unchanged = all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    value = norm(torch.full((1 - rank, 4, 1, 1), 3.0))
    finite = all(bool(buffer.isfinite().all()) for buffer in norm.buffers())
    return {
        "dtypes": dtypes,
        "unchanged": unchanged,
        "single": value.detach(),
        "finite": finite,
        "before": before,
    }


def test_autocast_keeps_float32_parameters_and_empty_worlds_change_nothing() -> None:
    for found in run_ranks(autocast_and_empty, 2):
        assert found["dtypes"] == {"weight": torch.float32, "bias": torch.float32, "y": torch.bfloat16}
        assert {name: b.dtype for name, b in found["before"].items()} == {
            "running_mean": torch.float32,
            "running_var": torch.float32,
            "num_batches_tracked": torch.int64,
        }
        assert found["unchanged"], "an empty joint batch moved the running statistics"
        assert found["finite"], "a joint batch of one value has no unbiased variance, yet it was used"
        assert not found["single"].abs().sum()


def count_collectives() -> tuple[int, int]:
    """How many messages forward and backward send."""
    calls: list[str] = []

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace == "_c10d_functional" and "wait" not in func.__name__:
                calls.append(func.__name__)
            return func(*args, **(kwargs or {}))

    norm = SyncBatchNorm(4, make_bn_group(2) or BatchNormGroup("", 0))
    with Counter():
        y = norm(torch.randn(2, 4, requires_grad=True))
        forward = len(calls)
        y.sum().backward()
    return forward, len(calls) - forward


def test_one_message_forward_and_one_backward() -> None:
    assert run_ranks(count_collectives, 2) == [(1, 1), (1, 1)]


def compiled(backend: str, sizes: tuple[int, ...]) -> list[Result]:
    """Eager and compiled results of a small network; `fullgraph` makes a graph break an error."""
    group = make_bn_group(2)
    part = bounds(sizes, collectives.rank())
    results = []
    for compile_it in (False, True):
        network = nn.Sequential(plain_norm(DEFAULTS), nn.Hardtanh(), nn.BatchNorm2d(6).double())
        network = convert_batchnorm(network, group)
        run = (
            torch.compile(network, fullgraph=True, backend=backend, dynamic=False) if compile_it else network
        )
        results.append(train(DEFAULTS, run, part, sum(sizes)))
    return [{name.replace("_orig_mod.", ""): value for name, value in result.items()} for result in results]


def check_compiled(backend: str, sizes: tuple[int, ...], timeout_s: float) -> None:
    for eager, graph in run_ranks(compiled, 2, backend, sizes, timeout_s=timeout_s):
        assert eager.keys() == graph.keys()
        for name, value in eager.items():
            torch.testing.assert_close(
                graph[name], value, rtol=1e-12, atol=1e-12, msg=lambda m: f"{name}: {m}"
            )


@pytest.mark.parametrize("sizes", [(4, 3), (5, 0)], ids=["uneven", "one empty"])
def test_compiles_without_graph_breaks(sizes: tuple[int, ...]) -> None:
    check_compiled("aot_eager", sizes, 90)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(4, 3), (5, 0)], ids=["uneven", "one empty"])
def test_compiled_kernels_give_the_same(sizes: tuple[int, ...]) -> None:
    check_compiled("inductor", sizes, 280)
