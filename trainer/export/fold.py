"""Fewer steps for the same numbers: what follows a binary convolution becomes part of it.

A binary convolution gives whole numbers. One step takes them through everything that is done to each of them alone:

    y = bias + multiplier * relu(scale * sum) + residual          each operation rounded as the network rounds it

and where nothing but signs is taken of y, the sums are compared with one integer per channel instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.export.steps import Step, Tensors

NEVER = 2**15 - 1
"""A threshold that no sum reaches; its negative is one that every sum reaches."""


def fold(steps: list[Step], tensors: Tensors) -> tuple[list[Step], Tensors]:
    """Steps and tensors with every ReLU, batch norm, sum and sign folded into the binary convolution before it."""
    steps, tensors = [dict(step) for step in steps], dict(tensors)
    # One with a bias of its own adds it before all of this.
    convs = [step for step in steps if step["op"] == "binary_conv2d" and f"{step['layer']}.bias" not in tensors]
    for conv in convs:
        _take_relu(conv, steps)
        _take_affine(conv, steps, tensors)
        _take_residual(conv, steps)
    for conv in convs:
        _take_sign(conv, steps, tensors)
    for relu in [step for step in steps if step["op"] == "relu"]:
        _join_affine(relu, steps)
    return steps, tensors


def _next(step: Step, steps: list[Step], op: str) -> Step | None:
    """The one step that uses the output of `step`, if it is an `op`."""
    users = [other for other in steps if step["output"] in other["inputs"]]
    return users[0] if len(users) == 1 and users[0]["op"] == op else None


def _take_relu(conv: Step, steps: list[Step]) -> None:
    relu = _next(conv, steps, "relu")
    if relu is not None:
        steps.remove(relu)
        conv |= {"relu": True, "output": relu["output"]}


def _take_affine(conv: Step, steps: list[Step], tensors: Tensors) -> None:
    affine = _next(conv, steps, "affine")
    if affine is not None:
        steps.remove(affine)
        conv["output"] = affine["output"]
        for part in ("multiplier", "bias"):
            tensors[f"{conv['layer']}.{part}"] = tensors.pop(f"{affine['layer']}.{part}")


def _take_residual(conv: Step, steps: list[Step]) -> None:
    total = _next(conv, steps, "add")
    if total is None:
        return
    others = [value for value in total["inputs"] if value != conv["output"]]
    if len(others) == 1:
        # In the place of the sum: what is added may be made after the convolution.
        steps.remove(conv)
        steps[steps.index(total)] = conv
        conv |= {"inputs": [*conv["inputs"], *others], "output": total["output"]}


def _join_affine(relu: Step, steps: list[Step]) -> None:
    after = _next(relu, steps, "affine")
    if after is not None:
        steps.remove(relu)
        after |= {"inputs": relu["inputs"], "relu": True}


def _take_sign(conv: Step, steps: list[Step], tensors: Tensors) -> None:
    users = [step for step in steps if conv["output"] in step["inputs"]]
    signs = all(user["op"] == "binary_conv2d" and user["sign_input"] for user in users)
    # A residual is added as it is, not as its sign.
    added = any(conv["output"] in user["inputs"][1:] for user in users)
    products = torch.Size(conv["weight_shape"][1:]).numel()
    if not (users and signs and not added and len(conv["inputs"]) == 1 and conv["sign_input"] and products < NEVER):
        return
    name = conv["layer"]
    multiplier, bias = tensors.pop(f"{name}.multiplier", None), tensors.pop(f"{name}.bias", None)
    scale = tensors.pop(f"{name}.scale")
    tensors |= {
        f"{name}.{part}": tensor
        for part, tensor in thresholds(conv, products, scale=scale, multiplier=multiplier, bias=bias).items()
    }


def thresholds(step: Step, products: int, *, scale: Tensor, multiplier: Tensor | None, bias: Tensor | None) -> Tensors:
    """Where the sign of a layer's output turns, found by computing it for every sum there can be.

    Args:
        step: the binary convolution.
        products: K, to an output; a sum is any whole number from -K to K, fewer at a padded border.
        scale: () or (O), of the weight.
        multiplier, bias: (O), or None.

    Returns:
        `threshold` int16 (O) and `above` int8 (O): the sign is `above` where sum >= threshold, else -`above`.
    """
    outputs = step["weight_shape"][0]
    sums = torch.arange(-products, products + 1, dtype=torch.float32)
    y = sums * scale.view(-1, 1)
    y = F.relu(y) if step["relu"] else y
    table = y.expand(outputs, -1)
    if multiplier is not None and bias is not None:
        table = affine(table.T.contiguous(), multiplier, bias).T
    negative = table < 0
    # Rounding keeps order, so that a row turns once at most.
    assert int((negative[:, 1:] != negative[:, :-1]).sum(1).max()) <= 1
    above = torch.where(negative[:, -1], -1, 1).to(torch.int8)
    other = (negative != negative[:, -1:]).sum(1)
    threshold = torch.where(other == 0, -NEVER, other - products)
    return {"threshold": threshold.to(torch.int16), "above": above}


def affine(x: Tensor, multiplier: Tensor, bias: Tensor) -> Tensor:
    """`multiplier` * `x` + `bias` along dimension 1, rounded as torch's batch norm rounds it, which it is."""
    zeros = torch.zeros_like(multiplier)
    return F.batch_norm(x, zeros, torch.ones_like(multiplier), multiplier, bias, eps=0.0)
