"""Fused kernels for signs and their slopes, and the choice between them and plain torch code.

    "compiled"    plain torch expressions, which `torch.compile` fuses; the default, on every device
    "triton"      the kernels of this package, for tensors on a GPU; tensors elsewhere stay with plain code

`reference` defines what every kernel computes. `fused` holds the kernels as torch operators; it needs triton, which
is imported when "triton" is chosen and not before. The choice belongs to the process: make it before the first
forward pass. An operator runs on the current device.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

Kernels = Literal["compiled", "triton"]
"""Who computes signs and slopes."""

_signs: ModuleType | None = None


def choose_kernels(name: Kernels) -> None:
    """Decide, for this process, what computes the signs and slopes of `functional`.

    Raises:
        ValueError: `name` is neither "compiled" nor "triton".
        ImportError: "triton" without triton.
    """
    global _signs
    if name not in get_args(Kernels):
        raise ValueError(f"kernels must be 'compiled' or 'triton', got {name!r}")
    if name == "compiled":
        _signs = None
    else:
        from . import signs

        _signs = signs


def chosen_kernels() -> Kernels:
    """The choice that holds."""
    return "compiled" if _signs is None else "triton"


def kernels_for(x: Tensor) -> ModuleType | None:
    """The module `signs` where the kernels are chosen and can take `x`; else None, and plain code computes."""
    return _signs if _signs is not None and (x.is_cuda or _signs.INTERPRETED) else None
