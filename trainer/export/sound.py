"""Whether the steps and tensors of a packed file are such as can be computed: compiled code relies on their sizes."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from trainer.export.steps import Step, Tensors, parts_of

Size = Annotated[int, Field(ge=1, lt=2**31)]
Border = Annotated[int, Field(ge=0, lt=2**31)]
Sizes = Annotated[list[Size], Field(min_length=2, max_length=2)]
Borders = Annotated[list[Border], Field(min_length=2, max_length=2)]
One = Annotated[list[str], Field(min_length=1, max_length=1)]
Two = Annotated[list[str], Field(min_length=2, max_length=2)]
OneOrTwo = Annotated[list[str], Field(min_length=1, max_length=2)]

_WINDOW: dict[str, Any] = {"stride": Sizes, "padding": Borders, "dilation": Sizes}
_SIGNS: dict[str, Any] = {"layer": str, "sign_input": bool, "relu": bool}
FIELDS: dict[str, dict[str, Any]] = {
    "binary_conv2d": {
        **_SIGNS,
        **_WINDOW,
        "inputs": OneOrTwo,
        "weight_shape": Annotated[list[Size], Field(min_length=4, max_length=4)],
    },
    "binary_linear": {**_SIGNS, "weight_shape": Sizes},
    "conv2d": {"layer": str, **_WINDOW, "groups": Size},
    "linear": {"layer": str},
    "affine": {"layer": str, "relu": bool},
    "relu": {},
    "add": {"inputs": Two},
    "max_pool2d": {"kernel": Sizes, "stride": Sizes, "padding": Borders},
    "mean_pool2d": {"stride": Sizes},
    "subsample_and_pad": {"stride": Size, "front": Border, "behind": Border},
    "adaptive_mean": {"size": Sizes},
    "mean": {},
    "flatten": {},
}
"""Operation to what its step must have besides `op`; one input if nothing else is said, and an output."""

_FULL = ({"weight"}, {"weight", "bias"}, {"weight", "step"}, {"weight", "step", "bias"})
PARTS: dict[str, tuple[set[str], ...]] = {
    "binary_conv2d": (
        {"bits", "scale"},
        {"bits", "scale", "bias"},
        {"bits", "scale", "multiplier", "bias"},
        {"bits", "threshold", "above"},
    ),
    "binary_linear": ({"bits", "scale"}, {"bits", "scale", "bias"}),
    "conv2d": _FULL,
    "linear": _FULL,
    "affine": ({"multiplier", "bias"},),
}
"""Operation to the tensors that its layer may have, all of one set; none if it is not here."""

_TYPES = {"bits": torch.int64, "threshold": torch.int16, "above": torch.int8}


def _form(op: str, fields: dict[str, Any]) -> type[BaseModel]:
    needed = {"inputs": One, "output": str, **fields}
    given: dict[str, Any] = {name: (kind, ...) for name, kind in needed.items()}
    return create_model(op, __config__=ConfigDict(strict=True), **given)


_FORMS = {op: _form(op, fields) for op, fields in FIELDS.items()}


def fault(steps: Any, tensors: Tensors) -> str:
    """What makes steps and tensors out of a file a network that cannot be computed, in words; "" if nothing does.

    Whether images fit is not looked at: that is known when there are images.
    """
    if not isinstance(steps, list) or not steps:
        return "it has no steps"
    made = {"images"}
    for step in steps:
        found = _of_form(step) or _of_inputs(step, made) or _of_parts(step, parts_of(step, tensors))
        if found:
            return found
        made.add(step["output"])
    return ""


def _of_form(step: Any) -> str:
    op = step.get("op") if isinstance(step, dict) else None
    if not isinstance(op, str) or op not in _FORMS:
        return f"this version knows no step {op!r}"
    try:
        _FORMS[op].model_validate(step)
    except ValidationError as error:
        first = error.errors()[0]
        return f"a step {op} has no good {first['loc'][0]}"
    return ""


def _of_inputs(step: Step, made: set[str]) -> str:
    unknown = [name for name in step["inputs"] if name not in made]
    return f"{step['output']} reads {unknown[0]}, which no step before it makes" if unknown else ""


def _of_parts(step: Step, parts: Tensors) -> str:
    op, layer = step["op"], step.get("layer")
    if parts.keys() not in PARTS.get(op, (set(),)):
        return f"{op} {layer} cannot be computed from {', '.join(sorted(parts)) or 'nothing'}"
    wrong = [part for part, tensor in parts.items() if not _fits(part, tensor, step, parts)]
    return f"{layer}.{wrong[0]} is of another type or shape" if wrong else ""


def _fits(part: str, tensor: Tensor, step: Step, parts: Tensors) -> bool:
    kind = _TYPES.get(part, torch.float32)
    if part == "weight":
        sides = 4 if step["op"] == "conv2d" else 2
        return tensor.dim() == sides and tensor.dtype == (torch.int16 if "step" in parts else kind)
    if "weight_shape" in step:
        outputs, *inputs = step["weight_shape"]
        one = part == "scale" and tensor.dim() == 0
        shape = {"bits": (outputs, -(-math.prod(inputs) // 64))}.get(part, () if one else (outputs,))
    else:
        shape = (len(parts["weight"]),) if "weight" in parts else (parts["bias"].numel(),)
    return tensor.dtype == kind and tensor.shape == shape
