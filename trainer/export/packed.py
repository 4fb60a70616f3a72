"""The packed network: one safetensors file with one bit for a binary weight, its writer, its reader.

The reader is torch's own operators on +-1: slow, obvious, and equal to the trained network bit for bit on a CPU.
`trainer.export.native` computes the same numbers fast. docs/export.md says what lies where in the file.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from reste import binary_sign
from reste.layers import over_channels
from trainer.durable import replace_file
from trainer.errors import ConfigError
from trainer.export.bits import unpack_signs
from trainer.export.fold import affine, fold
from trainer.export.program import Deployed
from trainer.export.sound import fault
from trainer.export.steps import Step, Tensors, parts_of, trace_steps
from trainer.export.threads import one_thread

SMALL = 2**16
"""Weights of a convolution that stays float32 in a file of 16 bits."""
FORMAT = "reste-packed-1"
Operation = Callable[..., Tensor]
"""Computes a step from it, the tensors of its layer by part, and the values it names."""
CONVENTIONS = "bit 1 is -1, bit 0 is +1; sign(0) = +1; padding is 0 after the sign"


@dataclass(frozen=True)
class Packed:
    """What a packed file holds.

    Attributes:
        steps: what is computed, in order; see `trainer.export.steps`.
        tensors: `LAYER.part` to tensor.
        facts: what must be known to use it; see `trainer.export.program.Deployed`.
    """

    steps: list[Step]
    tensors: Tensors
    facts: Deployed

    def bytes_of(self, *, binary: bool) -> int:
        """Bytes of the tensors of its binary layers, with their scales and folded batch norms, or of all others."""
        names = {step["layer"] for step in self.steps if "layer" in step and step["op"].startswith("binary_")}
        return sum(t.nbytes for name, t in self.tensors.items() if (name.rpartition(".")[0] in names) is binary)


def pack(model: nn.Module, facts: Deployed, *, half: bool = False) -> Packed:
    """Pack a network in eval mode on the CPU.

    Args:
        model: the network.
        facts: of the checkpoint it comes from.
        half: keep the weights of full-precision layers in 16 bits, but for those that read the images, and for
            convolutions of fewer than `SMALL` weights: many signs come after these, and they are a small part of the
            file. All else that is not a bit stays float32, too: it is a hundredth of the file and decides signs.

    Raises:
        ConfigError: it has no binary layer, or something that cannot be packed exactly.
    """
    with one_thread():
        steps, tensors = fold(*trace_steps(copy.deepcopy(model).float()))
    if not any(step["op"].startswith("binary_") for step in steps):
        raise ConfigError(f"{facts.model} has no binary layer to pack: use --to onnx or --to pt2")
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ConfigError(f"{bad[0]} holds values that are not finite: export another checkpoint")
    if half:
        for step in steps:
            if step["op"] in ("conv2d", "linear") and "images" not in step["inputs"]:
                weight = f"{step['layer']}.weight"
                if step["op"] == "linear" or tensors[weight].numel() >= SMALL:
                    rounded = to_16_bits(tensors[weight])
                    tensors |= {f"{step['layer']}.{part}": tensor for part, tensor in rounded.items()}
    return Packed(steps, tensors, facts)


def to_16_bits(weight: Tensor) -> Tensors:
    """A weight (O, ...) in whole steps: `weight` int16, and `step` (O), the largest magnitude of an output over 32767.

    In front of signs rounding counts, and steps of equal size round the largest weights 16 times finer than float16.
    """
    largest = weight.flatten(1).abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny * 2**15)
    step = largest / (2**15 - 1)
    return {"weight": (weight / _as_outputs(step, weight)).round().to(torch.int16), "step": step}


def _as_outputs(step: Tensor, weight: Tensor) -> Tensor:
    return step.view(-1, *[1] * (weight.dim() - 1))


def write_packed(packed: Packed, path: Path) -> Path:
    """Write a packed network, whole or not at all; returns its name.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    about = {
        "format": FORMAT,
        "conventions": CONVENTIONS,
        "steps": json.dumps(packed.steps),
        "deployed": json.dumps(asdict(packed.facts)),
    }
    about["sha256"] = _digest(about, packed.tensors)
    content = safetensors.torch.save({name: t.contiguous() for name, t in packed.tensors.items()}, about)
    return replace_file(path, content)


def _digest(about: Mapping[str, str], tensors: Tensors) -> str:
    """SHA-256 over steps and facts as they are in the file, and the name and bytes of every tensor, by name."""
    digest = hashlib.sha256((about["steps"] + about["deployed"]).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_packed(path: Path) -> Packed:
    """Read what `write_packed` wrote; nothing in it is run.

    Raises:
        ConfigError: the file is missing, damaged, or no packed network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            # Copied to where torch puts tensors: matrix products round otherwise where numbers lie otherwise.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        if about.get("format") != FORMAT:
            raise ConfigError(f"{path} is not of the format {FORMAT}: export it again with --to packed")
        steps = json.loads(about["steps"])
        found = fault(steps, tensors)
        if found:
            raise ValueError(found)
        if about["sha256"] != _digest(about, tensors):
            raise ValueError("its content is not what was written")
        return Packed(steps, tensors, TypeAdapter(Deployed).validate_json(about["deployed"]))
    except (OSError, SafetensorError, ValidationError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} cannot be read as a packed network ({reason}): export it again") from None


class PackedNet:
    """Computes a packed network with torch's operators.

    Called with images (B, 3, S, S), normalised as `Packed.facts` say, it gives logits (B, classes) in float32. On a CPU
    they are those of the trained network in eval mode, bit for bit, if full-precision weights are float32.
    """

    def __init__(self, packed: Packed) -> None:
        self.facts = packed.facts
        self._plan = [(step, *self._prepare(step, parts_of(step, packed.tensors))) for step in packed.steps]
        self._unused = _unused_after(packed.steps)

    def _prepare(self, step: Step, parts: Tensors) -> tuple[Operation, Tensors]:
        """What computes a step, and its tensors as that wants them."""
        if "bits" in parts:
            parts["weight"] = unpack_signs(parts.pop("bits"), tuple(step["weight_shape"]))
        if "step" in parts:
            parts["weight"] = parts["weight"] * _as_outputs(parts.pop("step"), parts["weight"])
        return OPERATIONS[step["op"]], {part: tensor.float() for part, tensor in parts.items()}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """See the class."""
        memory = torch.channels_last if self.facts.channels_last else torch.contiguous_format
        values = {"images": images.float().contiguous(memory_format=memory)}
        for step, operation, parts in self._plan:
            y = operation(step, parts, *(values[name] for name in step["inputs"]))
            values[step["output"]] = y
            for name in self._unused[step["output"]]:
                del values[name]
        return y


def _unused_after(steps: list[Step]) -> dict[str, list[str]]:
    """Output of a step to the values that no later step needs."""
    last = {name: step["output"] for step in steps for name in step["inputs"]}
    return {step["output"]: [name for name, at in last.items() if at == step["output"]] for step in steps}


def finish_sums(step: Step, parts: Tensors, sums: Tensor, residual: Tensor | None = None) -> Tensor:
    """What becomes of a binary convolution's sums, (B, O, H, W); see `trainer.export.fold`."""
    if "threshold" in parts:
        threshold, above = (parts[part][:, None, None] for part in ("threshold", "above"))
        return torch.where(sums >= threshold, above, -above)
    y = sums * over_channels(parts["scale"], 2)
    y = F.relu(y) if step["relu"] else y
    if "multiplier" in parts:
        y = affine(y, parts["multiplier"], parts["bias"])
    elif "bias" in parts:
        y = y + parts["bias"][:, None, None]
    return y if residual is None else y + residual


def _binary_conv2d(step: Step, parts: Tensors, x: Tensor, residual: Tensor | None = None) -> Tensor:
    x = binary_sign(x) if step["sign_input"] else x
    sums = F.conv2d(x, parts["weight"], None, step["stride"], step["padding"], step["dilation"])
    return finish_sums(step, parts, sums, residual)


def _affine(step: Step, parts: Tensors, x: Tensor) -> Tensor:
    return affine(F.relu(x) if step["relu"] else x, parts["multiplier"], parts["bias"])


def _binary_linear(step: Step, parts: Tensors, x: Tensor) -> Tensor:
    x = binary_sign(x) if step["sign_input"] else x
    y = F.linear(x, parts["weight"]) * parts["scale"]
    return y + parts["bias"] if "bias" in parts else y


def _conv2d(step: Step, parts: Tensors, x: Tensor) -> Tensor:
    shape = (step["stride"], step["padding"], step["dilation"], step["groups"])
    return F.conv2d(x, parts["weight"], parts.get("bias"), *shape)


def _subsample_and_pad(step: Step, _parts: Tensors, x: Tensor) -> Tensor:
    return F.pad(x[:, :, :: step["stride"], :: step["stride"]], (0, 0, 0, 0, step["front"], step["behind"]))


OPERATIONS: dict[str, Operation] = {
    "binary_conv2d": _binary_conv2d,
    "binary_linear": _binary_linear,
    "conv2d": _conv2d,
    "linear": lambda _, parts, x: F.linear(x, parts["weight"], parts.get("bias")),
    "affine": _affine,
    "relu": lambda _step, _parts, x: F.relu(x),
    "add": lambda _step, _parts, x, y: x + y,
    "max_pool2d": lambda step, _, x: F.max_pool2d(x, step["kernel"], step["stride"], step["padding"]),
    "mean_pool2d": lambda step, _, x: F.avg_pool2d(x, step["stride"], step["stride"], 0, True, False),
    "subsample_and_pad": _subsample_and_pad,
    "adaptive_mean": lambda step, _, x: F.adaptive_avg_pool2d(x, step["size"]),
    "mean": lambda _step, _parts, x: x.mean((2, 3)),
    "flatten": lambda _step, _parts, x: x.flatten(1),
}
"""Name of a step's operation to what computes it."""
