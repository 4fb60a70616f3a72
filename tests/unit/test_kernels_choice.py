"""Who computes signs is chosen in the open; the kernels trace and compile on a machine without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses.fake_tensor import FakeTensorMode
from trainings import ROOT, environment
from triton.backends.compiler import GPUTarget

import reste
from reste.kernels import fused, reference, signs
from reste.kernels.device import bits_kernel, reste_kernel, sign_kernel


class Hopper:
    """What tracing asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(triton.runtime.driver, "_active", Hopper())
    torch._dynamo.reset()
    yield AotEagerAndRecordGraphs()
    torch._dynamo.reset()
    reste.choose_kernels("compiled")


def written(graph: torch.fx.GraphModule) -> list[list[str]]:
    """For each kernel in a graph, the names of the arguments that it writes."""
    wrapper = torch.ops.higher_order.triton_kernel_wrapper_functional
    return [node.kwargs["tensors_to_clone"] for node in graph.graph.nodes if node.target is wrapper]


def test_plain_code_computes_unless_something_else_is_chosen() -> None:
    assert reste.chosen_kernels() == "compiled"
    x = torch.randn(5)
    reste.choose_kernels("triton")
    try:
        assert reste.chosen_kernels() == "triton"
        # A tensor on a CPU has no kernel.
        assert torch.equal(reste.binary_sign(x), torch.where(x < 0, -1.0, 1.0))
    finally:
        reste.choose_kernels("compiled")


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="'compiled' or 'triton', got 'cuda'"):
        reste.choose_kernels("cuda")  # type: ignore[arg-type]


def test_triton_is_imported_only_when_it_is_chosen() -> None:
    code = (
        "import sys, torch, reste; assert 'reste.kernels.fused' not in sys.modules; "
        "reste.choose_kernels('triton'); assert 'reste.kernels.fused' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True)


def test_the_forward_pass_on_a_gpu_is_one_graph_with_our_kernels(recorder) -> None:
    reste.choose_kernels("triton")
    with FakeTensorMode():
        x = torch.empty(2, 3, 5, 7, device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last)
        power = torch.empty((), device="cuda")
        compiled = torch.compile(
            lambda x, o: reste.reste_sign(x, o) + reste.ste_sign(x), fullgraph=True, backend=recorder
        )
        y = compiled(x, power)
    assert (y.shape, y.stride(), y.dtype) == (x.shape, x.stride(), x.dtype)
    assert written(recorder.fw_graphs[0]) == [["sign_ptr"], ["sign_ptr", "bits_ptr"]]


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd:UserWarning")  # torch's own recorder
def test_the_backward_pass_is_one_graph_that_keeps_bits(recorder) -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3, 5, 7, memory_format=torch.channels_last).requires_grad_()
        compiled = torch.compile(lambda x: signs.ste_sign(x, 1.0, "one"), fullgraph=True, backend=recorder)
        compiled(x).sum().backward()
    assert x.grad is not None
    assert x.grad.stride() == x.stride()
    assert written(recorder.bw_graphs[0]) == [["out_ptr"]]
    kept = [node.meta["val"] for node in recorder.bw_graphs[0].graph.nodes if node.op == "placeholder"][:-1]
    assert [(t.dtype, t.shape) for t in kept] == [(torch.uint8, (27,))]


def test_the_slope_of_reste_traces_without_reading_power_or_gain(recorder) -> None:
    with FakeTensorMode():
        x, grad = torch.empty(3, 50), torch.empty(3, 50, dtype=torch.float16)
        power, gain = torch.empty(()), torch.empty(())
        compiled = torch.compile(signs.reste_backward, fullgraph=True, backend=recorder)
        back = compiled(grad, x, power, 1.5, 0.1, gain)
    assert (back.shape, back.dtype) == (grad.shape, grad.dtype)
    assert written(recorder.fw_graphs[0]) == [["out_ptr"]]


@pytest.mark.parametrize("channels_last", [False, True])
def test_fake_results_have_the_shape_type_and_layout_of_the_reference(recorder, channels_last: bool) -> None:
    form = torch.channels_last if channels_last else torch.contiguous_format
    with FakeTensorMode():
        x = torch.empty(2, 3, 5, 7, dtype=torch.bfloat16, memory_format=form)
        bits, power = torch.empty(27, dtype=torch.uint8), torch.empty(())
        samples = {
            "sign_forward": (x, torch.int8, True),
            "pack_signs": (x,),
            "sign_forward_packed": (x, torch.float16),
            "unpack_signs": (bits, [2, 3, 5, 7], torch.float32, channels_last),
            "ste_forward": (x, 1.0, True),
            "ste_backward": (x, bits, channels_last),
            "reste_backward": (x, x, power, None, 1.5, 0.1),
        }
        for name, arguments in samples.items():
            ours, theirs = (getattr(module, name)(*arguments) for module in (fused, reference))
            for actual, expected in zip(*((t if isinstance(t, tuple) else (t,)) for t in (ours, theirs)), strict=True):
                assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), name
                assert actual.stride() == expected.stride(), name


def assembly(kernel, folder: Path, **arguments: object) -> str:
    """PTX of a kernel for compute capability 9.0; "*bf16" is a pointer, other strings a type, the rest constants."""
    types = {k: v if isinstance(v, str) else "constexpr" for k, v in arguments.items()}
    constants = {(i,): v for i, v in enumerate(arguments.values()) if not isinstance(v, str)}
    aligned = {(i,): [["tt.divisibility", 16]] for i, v in enumerate(arguments.values()) if isinstance(v, str)}
    source = triton.compiler.ASTSource(kernel, types, constants, aligned)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(folder)
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]


@pytest.mark.parametrize("number", ["bf16", "fp32"])
def test_kernels_compile_for_a_gpu_and_move_sixteen_bytes_at_a_time(tmp_path: Path, number: str) -> None:
    values, bits = f"*{number}", "*u8"
    slope = assembly(
        reste_kernel,
        tmp_path,
        **dict.fromkeys(("grad_ptr", "x_ptr"), values),
        **dict.fromkeys(("power_ptr", "gain_ptr"), "*fp32"),
        out_ptr=values,
        count="i32",
        THRESHOLD=1.5,
        KNEE=0.1,
        BLOCK=2048,
    )
    assert "ex2.approx" in slope
    options = {"count": "i32", "THRESHOLD": 1.5, "ZERO_IS_ONE": True, "BYTES": 256}
    forward = assembly(sign_kernel, tmp_path, x_ptr=values, sign_ptr=values, bits_ptr=bits, **options)
    packing = assembly(sign_kernel, tmp_path, x_ptr=values, sign_ptr=None, bits_ptr=bits, **options)
    backward = assembly(bits_kernel, tmp_path, grad_ptr=values, bits_ptr=bits, out_ptr=values, count="i32", BYTES=256)
    for text in (slope, forward, packing, backward):
        assert "ld.global.v4.b32" in text.replace("::", ".").replace(".L1.evict_normal", "")
    for text in (slope, forward, backward):
        assert "st.global.v4.b32" in text
