"""The network of a run: created, initialised, put on its device."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import models
from reste import create_estimator
from trainer import checkpoint, checkpoints
from trainer.config import Config, EstimatorConfig, ModelConfig
from trainer.errors import ConfigError
from trainer.seeding import seed_initialisation


def create_network(config: Config, classes: list[str], device: torch.device) -> nn.Module:
    """The configured model with the run's initial weights, equal on every rank.

    Raises:
        ConfigError: model or estimator unknown, or `model.init` does not fit.
    """
    num_classes = config.model.num_classes or len(classes)
    if num_classes < len(classes):
        raise ConfigError(
            f"model.num_classes={num_classes} is less than the {len(classes)} classes of the data: leave it null"
        )
    seed_initialisation(config.seed)
    model = instantiate(config.model, config.estimator, num_classes)
    check_image_sizes(config, model)
    if config.model.init is not None:
        load_initial_weights(model, Path(config.model.init))
    dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
    memory = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return model.to(device=device, dtype=dtype).to(memory_format=memory)


def check_image_sizes(config: Config, model: nn.Module) -> None:
    """Refuse a schedule of image sizes with one that the network cannot compute.

    Raises:
        ConfigError: naming the size.
    """
    for side in config.image_sizes.distinct if config.data.image_size_schedule else ():
        try:
            models.summarize(model, side)
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"data.image_size_schedule: {config.model.name} cannot take images of {side} pixels ({reason}): choose "
                "other sizes"
            ) from error


def instantiate(model: ModelConfig, estimator: EstimatorConfig, num_classes: int) -> nn.Module:
    """A model by name: one of this project's binary networks, or any other of timm's, which then has no binary layer.

    Raises:
        ConfigError: the name is unknown; the nearest ones are offered.
    """
    options = estimator_options(estimator, model.numerics)
    if model.name in models.MODELS:
        return timm.create_model(
            model.name,
            num_classes=num_classes,
            estimator=estimator.name,
            estimator_options=options,
            weight_bits=model.weight_bits,
            activation_bits=model.activation_bits,
            numerics=model.numerics,
        )
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, [*models.MODELS, *timm.list_models()], n=3, cutoff=0.4)
        raise ConfigError(
            f"model.name: there is no model {model.name!r}; did you mean "
            f"{' or '.join(near) or 'one of `reste summary --list`'}?"
        )
    if (model.weight_bits, model.activation_bits) != (32, 32):
        warnings.warn(f"{model.name} has no binary layers: bits, numerics and estimator have no effect", stacklevel=2)
    return timm.create_model(model.name, num_classes=num_classes)


def estimator_options(config: EstimatorConfig, numerics: str) -> dict[str, float | bool]:
    """The options of the estimator that the configuration sets and that the estimator has.

    ReSTE's slope is normalised unless the configuration or the official arithmetic says otherwise.

    Raises:
        ConfigError: the estimator is unknown; the nearest names are offered.
    """
    try:
        plain = create_estimator(config.name)
    except ValueError as error:
        raise ConfigError(f"estimator.name: {error}") from None
    options = {"threshold": config.threshold, "knee": config.knee, "normalize": config.normalize}
    given = {name: value for name, value in options.items() if value is not None}
    usable: dict[str, float | bool] = {}
    for name, value in given.items():
        try:
            create_estimator(config.name, **{name: value})
        except ValueError:
            warnings.warn(f"estimator.{name} has no effect: {config.name} has no such option", stacklevel=2)
        else:
            usable[name] = value
    if hasattr(plain, "normalize"):
        usable.setdefault("normalize", numerics == "default")
    return usable


def average_weights(model: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """The moving average of weights and buffers (Polyak), or None if not asked for."""
    return None if decay is None else ModelEmaV3(model, decay=decay, foreach=True)


def load_initial_weights(model: nn.Module, path: Path) -> None:
    """Start from a checkpoint's evaluated weights alone (its moving average if it has one).

    Raises:
        ConfigError: no checkpoint there, a damaged one, or one of another model.
    """
    folder = checkpoints.resolve(path)
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"model.init={path}: {'; '.join(damage)}; name another checkpoint")
    stem = "ema" if (folder / "ema.pt").is_file() else "model"
    load_weights(model, checkpoint.load_payload(folder, stem), folder)


def load_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        ConfigError: names or shapes differ; the first differences are shown.
    """
    differing = tensor_differences(model, weights)
    if differing:
        raise ConfigError(
            f"{source} is a checkpoint of another model ({len(differing)} tensors differ: {', '.join(differing[:3])}): "
            "check model.name, bits and number of classes"
        )
    model.load_state_dict(weights)


def tensor_differences(model: nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    """Every name whose tensor is missing, superfluous or of another shape in `weights`, with both shapes."""
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differing = sorted(n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n))
    return [f"{n} {theirs.get(n, 'missing')} instead of {mine.get(n, 'nothing')}" for n in differing]
