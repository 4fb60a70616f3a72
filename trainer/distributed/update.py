"""What both engines do alike around an optimizer step."""

from __future__ import annotations

from typing import Any

import torch


def update(
    target: Any, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, lr: float, blocked: torch.Tensor
) -> None:
    """Set the learning rate and step, unless `blocked` holds 1.

    Args:
        target: whose `step()` moves the weights: the optimizer, or what an engine has put around it.
        optimizer: the basic one, whose kernels compute.
        scaler: of fp16's loss; disabled for other precisions.
        lr: learning rate; each group's is this times its `lr_scale`.
        blocked: 0-d, on the device.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if scaler.is_enabled():
        if not blocked.item():
            scaler.step(target)
        scaler.update()
    elif optimizer.defaults.get("fused"):
        # torch's fused kernels skip the update where this holds 1, so the host need not wait to know.
        optimizer.found_inf = blocked  # type: ignore[attr-defined]
        target.step()
    elif not blocked.item():
        target.step()


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a saved state. Whether fused kernels compute stays as it is here: they are this device's and this life's.

    Args:
        optimizer: of the same parameters as the saved one.
        state: of its `state_dict`, from any device.
    """
    groups = state["param_groups"]
    if "fused" in optimizer.defaults:
        groups = [group | {"fused": optimizer.defaults["fused"]} for group in groups]
    optimizer.load_state_dict(state | {"param_groups": groups})


def answered_by_scaler(norm: torch.Tensor, scaler: torch.amp.GradScaler) -> torch.Tensor:
    """The gradient norm, or 0 where it is not finite because fp16's loss scale is too large: the scaler halves that.

    Below a scale of 1 there is nothing left to halve: what overflows then is the gradient itself.
    """
    return norm.nan_to_num(0.0, 0.0, 0.0) if scaler.is_enabled() and scaler.get_scale() >= 1 else norm
