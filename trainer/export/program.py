"""A checkpoint as a graph of plain torch operators, with what one needs to use it, and no code of ours.

`export_program` traces the network in eval mode with `torch.export`: forward signs only, no estimator, any batch
size. `save_program` writes it as one file, which `torch.export.load` reads where nothing but torch is installed.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.export import Dim, ExportedProgram

from trainer import checkpoint, checkpoints
from trainer.cadence import due, duration_steps
from trainer.config import Config, load_config
from trainer.durable import replace_file
from trainer.errors import ConfigError
from trainer.export.untrusted import read_archive, suspect, write_archive
from trainer.network import instantiate, load_as_saved
from trainer.pixels import DTYPES

FACTS_FILE = "deployed.json"
"""The facts, as an extra file inside the saved program."""


@dataclass(frozen=True)
class Deployed:
    """What must be known to use an exported network, and where it comes from; plain values, JSON in the file.

    An image is decoded to RGB, its shorter side is resized to `resize` pixels (bilinear, antialiased; the longer side
    rounded down), `image_size` x `image_size` are cut from its middle (zeros outside), and (value / 255 - mean) / std
    taken for each channel.

    Attributes:
        labels: class names in the order of the logits; numbers as text where the checkpoint names no class.
        named: how many of them, the first ones, name classes; 0 if the checkpoint was converted.
        image_size: side of the network's input in pixels.
        resize: shorter side before the crop in pixels.
        mean, std: by channel (red, green, blue), on pixels scaled to 0..1.
        dtype: "float32" or "float64", of images and logits.
        channels_last: whether the training run's images lie that way; the result may differ in the last bits else.
        precision: `train.precision`; bf16 and fp16 mean that the run evaluated under autocast, which a graph does not.
        model: model name.
        weight_bits, activation_bits: of its binary layers, 1 or 32.
        weights: "model" or "ema", which weights of the checkpoint these are.
        step: of the checkpoint.
        config_digest, data_digest: of the run's configuration and data; None if the checkpoint was converted.
        world_size: ranks that trained it; None likewise.
        metrics: `val/...` of this checkpoint, percent for accuracies; empty if it was never evaluated.
    """

    labels: list[str]
    named: int
    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: str
    channels_last: bool
    precision: str
    model: str
    weight_bits: int
    activation_bits: int
    weights: str
    step: int
    config_digest: str | None
    data_digest: str | None
    world_size: int | None
    metrics: dict[str, float]

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes of the run's data; None if the checkpoint numbers them."""
        return self.labels[: self.named] or None


_FACTS = TypeAdapter(Deployed)


def export_program(path: Path, *, weights: str = "auto") -> tuple[ExportedProgram, Deployed]:
    """The evaluated network of a checkpoint as a graph, on the CPU, in eval mode, for any number of images.

    Input (B, 3, S, S), output (B, classes) logits, both of `Deployed.dtype`.

    Args:
        path: a checkpoint, or a run folder (its best checkpoint).
        weights: "model", "ema", or "auto": the moving average if there is one.

    Raises:
        ConfigError: no checkpoint there, a damaged one, weights that it does not hold, or a model that torch cannot
            export.
    """
    folder, config, facts = open_checkpoint(path, weights)
    return trace_program(evaluated_network(folder, config, facts), facts), facts


def open_checkpoint(path: Path, weights: str) -> tuple[Path, Config, Deployed]:
    """Folder, configuration and facts of a checkpoint of which every byte has been verified.

    Args:
        path, weights: as in `export_program`.

    Raises:
        ConfigError: no checkpoint there, a damaged one, or weights that it does not hold.
    """
    folder = checkpoints.resolve(path)
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"{'; '.join(damage)}: name another checkpoint of the run")
    config = load_config(folder / "config.yaml")
    facts = describe(folder, config, checkpoints.choose_weights(folder, weights))
    return folder, config, facts


def describe(folder: Path, config: Config, weights: str) -> Deployed:
    """The facts of a whole checkpoint of this configuration; `weights` is "model" or "ema"."""
    manifest = checkpoint.read_manifest(folder)
    progress = manifest["progress"]
    classes = manifest.get("classes") or []
    evaluated = checkpoints.choose_weights(folder, "auto")
    return Deployed(
        # A network may have more outputs than its data has classes.
        labels=classes + [str(label) for label in range(len(classes), config.model.num_classes or 0)],
        named=len(classes),
        image_size=config.data.image_size,
        resize=config.eval_resize,
        mean=config.augment.mean,
        std=config.augment.std,
        dtype=str(DTYPES[config.train.precision]).removeprefix("torch."),
        channels_last=config.train.channels_last,
        precision=config.train.precision,
        model=config.model.name,
        weight_bits=config.model.weight_bits,
        activation_bits=config.model.activation_bits,
        weights=weights,
        step=progress["step"],
        config_digest=manifest.get("config_digest"),
        data_digest=manifest.get("data_digest"),
        world_size=manifest.get("world_size"),
        # A run evaluates its moving average if it has one, and those numbers are not the model's.
        metrics=dict(progress["last"]) if _was_evaluated(config, manifest) and weights == evaluated else {},
    )


def _was_evaluated(config: Config, manifest: Mapping[str, Any]) -> bool:
    """Whether the newest evaluation is that of the checkpoint's own step, not of an earlier one."""
    progress, per_epoch = manifest["progress"], manifest.get("steps_per_epoch")
    if progress["evaluation_due"] or not progress["last"] or per_epoch is None:
        return False
    total = config.train.epochs * per_epoch
    end = min(total, config.train.max_steps or total)
    step = progress["step"]
    return step in (end, progress["best_step"]) or due(step, duration_steps(config.eval.every, per_epoch, total))


def evaluated_network(folder: Path, config: Config, facts: Deployed) -> nn.Module:
    """The network of a checkpoint with its weights, on the CPU, in eval mode, laid out in memory as in training."""
    model = instantiate(config, len(facts.labels))
    load_as_saved(model, folder, facts.weights, config)
    memory = torch.channels_last if facts.channels_last else torch.contiguous_format
    return model.to(dtype=getattr(torch, facts.dtype)).to(memory_format=memory).eval()


def trace_program(model: nn.Module, facts: Deployed) -> ExportedProgram:
    """An evaluated network as a graph; see `export_program`.

    Raises:
        ConfigError: torch cannot export it.
    """
    side = facts.image_size
    # Two images: torch would take the batch size for a constant if it were 1.
    images = torch.zeros((2, 3, side, side), dtype=getattr(torch, facts.dtype))
    memory = torch.channels_last if facts.channels_last else torch.contiguous_format
    # The layout decides which kernel runs, and so the last bits: the graph sees to it itself.
    hook = model.register_forward_pre_hook(lambda _, given: (given[0].clone(memory_format=memory),))
    try:
        with torch.no_grad():
            program = torch.export.export(model, (images,), dynamic_shapes=({0: Dim("images", min=1)},))
    except Exception as error:  # torch raises anything
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{facts.model} cannot be exported as a graph ({reason}): choose another model") from error
    finally:
        hook.remove()
    # One number seen as so many images: it is stored, and MLflow takes no graph without an example.
    program.example_inputs = ((images.new_zeros(()).expand(images.shape),), {})
    return program


def save_program(program: ExportedProgram, facts: Deployed, path: Path) -> Path:
    """Write a program with its facts as one file, whole or not at all; returns its name.

    Raises:
        ConfigError: it holds an operator that `load_program` would not let through; nothing is written.
        OSError: it cannot be written; nothing is left.
    """
    archive = io.BytesIO()
    with warnings.catch_warnings():
        # Of tensors in channels_last order: their memory is stored whole, with their strides.
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, archive, extra_files={FACTS_FILE: json.dumps(asdict(facts))})
    found = suspect(read_archive(archive))
    if found is not None:
        raise ConfigError(f"{facts.model} as a graph holds {found}, which is not read back: choose another model")
    return replace_file(path, archive.getbuffer())


def load_program(path: Path) -> tuple[ExportedProgram, Deployed]:
    """Read what `save_program` wrote; a file that could run code when it is read is refused.

    Raises:
        ConfigError: the file is missing, damaged, or not one of ours.
    """
    extra = {FACTS_FILE: ""}
    try:
        files = read_archive(path)
        found = suspect(files)
        if found is not None:
            raise ConfigError(f"{path} holds {found}, which reste does not write: export or register it again")
        program = torch.export.load(write_archive(files), extra_files=extra)
        return program, _FACTS.validate_json(extra[FACTS_FILE])
    except ConfigError:
        raise
    except (ValidationError, FileNotFoundError):
        raise ConfigError(f"{path} is no network that reste has exported: export or register it again") from None
    except Exception as error:  # torch raises anything for a damaged file
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{path} cannot be read ({reason}): export or register it again") from error
