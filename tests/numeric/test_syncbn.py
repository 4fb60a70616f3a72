"""Batch norm over real ranks against `nn.BatchNorm` of the ranks' batches put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from spawn import run_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.distributed import collectives, statistics
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
        error = (found.double() - value.double()).abs() / scale
        assert error.max() <= tolerance, (what, error.max())


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


def autocast(group: BatchNormGroup, rank: int) -> tuple[nn.Module, dict[str, torch.dtype]]:
    """A convolution and a batch norm after a step in bfloat16, and the dtypes of what came out."""
    torch.manual_seed(0)
    model = convert_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), group)
    x = torch.randn(5, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x[:2] if rank == 0 else x[2:])
    y.float().square().sum().backward()
    tensors = {"y": y, **dict(model[1].named_buffers())}
    tensors |= {f"d {name}": parameter.grad for name, parameter in model[1].named_parameters()}
    return model[1], {name: tensor.dtype for name, tensor in tensors.items()}


class MessageCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.messages = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.messages += func.namespace == "_c10d_functional" and "wait" not in func.__name__
        return func(*args, **(kwargs or {}))


def many_ranks_path(group: BatchNormGroup, rank: int) -> tuple[Tensor, Tensor]:
    """Input gradients with sums that are gathered, and with sums that are reduced as in large groups."""
    gradients = []
    for limit in (statistics._GATHERED_SUM, 0):
        statistics._GATHERED_SUM = limit
        x, gradient = (tensor[bounds((4, 3), rank)] for tensor in joint_batch(DEFAULTS, 0, 7))
        x.requires_grad_()
        convert_batchnorm(plain_norm(DEFAULTS), group)(x).backward(gradient)
        assert x.grad is not None
        gradients.append(x.grad)
    return gradients[0], gradients[1]


def corners() -> dict[str, Any]:
    rank, group = collectives.rank(), make_bn_group(2)
    assert group
    norm, dtypes = autocast(group, rank)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    norm(torch.empty(0, 4, 6, 6, requires_grad=True)).sum().backward()
    unchanged = all(torch.equal(buffer, before[name]) for name, buffer in norm.named_buffers())
    alone = norm(torch.full((1 - rank, 4, 1, 1), 3.0)).detach()
    finite = all(bool(buffer.isfinite().all()) for buffer in norm.buffers())
    with MessageCounter() as forward:
        y = norm(torch.randn(2, 4, requires_grad=True))
    with MessageCounter() as backward:
        y.sum().backward()
    messages = (forward.messages, backward.messages)
    gathered, reduced = many_ranks_path(group, rank)
    return {
        "paths": (gathered, reduced),
        "dtypes": dtypes,
        "unchanged": unchanged,
        "alone": alone,
        "finite": finite,
        "messages": messages,
    }


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, Any]]:
    return run_ranks(corners, 2)


def test_autocast_gives_low_precision_outputs_and_keeps_float32_parameters(two_ranks: list) -> None:
    expected = {
        "y": torch.bfloat16,
        "running_mean": torch.float32,
        "running_var": torch.float32,
        "num_batches_tracked": torch.int64,
        "d weight": torch.float32,
        "d bias": torch.float32,
    }
    assert [found["dtypes"] for found in two_ranks] == [expected, expected]


def test_an_empty_joint_batch_leaves_the_running_statistics_alone(two_ranks: list) -> None:
    assert all(found["unchanged"] for found in two_ranks)


def test_a_joint_batch_of_one_value_stays_finite(two_ranks: list) -> None:
    assert all(found["finite"] for found in two_ranks)
    shapes = [found["alone"].shape for found in two_ranks]
    assert shapes == [(1, 4, 1, 1), (0, 4, 1, 1)]
    assert not two_ranks[0]["alone"].isnan().any()


def test_large_groups_compute_the_same_gradient(two_ranks: list) -> None:
    for gathered, reduced in (found["paths"] for found in two_ranks):
        assert (gathered - reduced).abs().max() < 1e-14
        assert gathered.abs().max() > 0.1


def test_one_message_forward_and_one_backward(two_ranks: list) -> None:
    assert [found["messages"] for found in two_ranks] == [(1, 1), (1, 1)]


COMPILED_SIZES = [(4, 3), (5, 0)]


def compiled(backend: str) -> list[tuple[Result, Result]]:
    """Eager and compiled results of a small network; `fullgraph` makes a graph break an error."""
    group = make_bn_group(2)
    pairs = []
    for sizes in COMPILED_SIZES:
        part = bounds(sizes, collectives.rank())
        results = []
        for compile_it in (False, True):
            network = nn.Sequential(plain_norm(DEFAULTS), nn.Hardtanh(), nn.BatchNorm2d(6).double())
            run = network = convert_batchnorm(network, group)
            if compile_it:
                run = torch.compile(network, fullgraph=True, backend=backend, dynamic=False)
            result = train(DEFAULTS, run, part, sum(sizes))
            results.append({name.replace("_orig_mod.", ""): value for name, value in result.items()})
        pairs.append((results[0], results[1]))
    return pairs


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_without_graph_breaks_to_the_same(backend: str) -> None:
    for rank, pairs in enumerate(run_ranks(compiled, 2, backend, timeout_s=280)):
        for sizes, (eager, graph) in zip(COMPILED_SIZES, pairs, strict=True):
            assert eager.keys() == graph.keys()
            for name, value in eager.items():
                error = (graph[name] - value).abs().double()
                assert not (error > 1e-12).any(), (rank, sizes, name, error.max())
