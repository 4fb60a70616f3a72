"""What a compiled binary convolution keeps for its backward pass."""

from __future__ import annotations

import torch
import torch._functorch.config as functorch

from trainer.bench.estimator import binary_layer
from trainer.bench.memory import saved_bytes
from trainer.config_schema import TrainConfig
from trainer.distributed.environment import Environment
from trainer.hardware import apply_switches

CPU = torch.device("cpu")


def kept_and_gradients(recompute: bool) -> tuple[float, list[torch.Tensor]]:
    """Bytes kept in activations, and gradients of input and parameters."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = binary_layer(16, CPU)
    x = torch.randn(4, 16, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
    with functorch.patch(), torch.random.fork_rng():
        threads = torch.get_num_threads()
        apply_switches(TrainConfig(recompute=recompute), Environment(), CPU)
        torch.set_num_threads(threads)
        # The division between forward and backward is the same as with code generation.
        compiled = torch.compile(layer, backend="aot_eager_decomp_partition", dynamic=False)
        compiled(x).square().sum().backward()
    kept = saved_bytes(lambda: compiled(x), layer) / (x.numel() * x.element_size())
    return kept, [x.grad, *(parameter.grad for parameter in layer.parameters())]  # type: ignore[list-item]


def test_signs_are_kept_or_computed_again_and_gradients_are_the_same() -> None:
    kept, gradients = kept_and_gradients(recompute=False)
    less, same = kept_and_gradients(recompute=True)
    small = 0.2  # weights and statistics
    assert 2 <= kept < 2 + small, "the input of batch norm and the signs"
    assert 1 <= less < 1 + small, "the input of batch norm"
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
