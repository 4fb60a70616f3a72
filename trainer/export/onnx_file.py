"""A network as an ONNX file of plain operators: for engines that compute binary networks densely, or convert them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from trainer.durable import replace_file
from trainer.errors import ConfigError
from trainer.export.frozen import freeze
from trainer.export.program import FACTS_FILE, Deployed

OPSET = 23
"""The newest that onnxruntime 1.23, the oldest supported, runs; what torch takes by itself is older."""


def write_onnx(model: nn.Module, facts: Deployed, path: Path) -> Path:
    """Write a network in eval mode, in float32, checked by ONNX's own checker; whole or not at all.

    Input `images` (B, 3, S, S) and output `logits` (B, classes), B free. A binary layer is a sign, a convolution with
    +-1 as float32, and a multiplication. The facts are a property of the file, as JSON under `deployed.json`.

    Raises:
        ConfigError: torch cannot express the network in ONNX.
        OSError: the file cannot be written; nothing is left.
    """
    side = facts.image_size
    try:
        file = as_onnx(model, (3, side, side))
    except Exception as error:  # torch raises anything
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{facts.model} cannot be written as ONNX ({reason}): use --to pt2") from error
    file.metadata_props.add(key=FACTS_FILE, value=json.dumps(asdict(facts)))
    onnx.checker.check_model(file, full_check=True)
    return replace_file(path, file.SerializeToString())


def as_onnx(model: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """A network in eval mode, for any number of images of a shape (C, H, W), in memory and not yet checked."""
    # Two images: torch would take the batch size for a constant if it were 1.
    images = torch.zeros((2, *shape))
    frozen = freeze(model).float().to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        # Of torch's own pieces, which a caller can do nothing about.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            frozen,
            (images,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def run_onnx(file: Path | bytes, *, threads: int | None = None) -> Callable[[Tensor], Tensor]:
    """What computes an ONNX file in onnxruntime on the CPU: images (B, 3, S, S) to logits.

    Args:
        file: its path, or its content.
        threads: of one call; torch's number by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.float().contiguous().numpy()})[0])

    return forward
