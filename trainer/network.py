"""The network of a run: created, initialised, put on its device."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import models
from models.transfer import TRANSFERS, Inherited
from reste import create_estimator, list_quantizers, power_layers, set_progress
from reste.estimators import option_names
from trainer import checkpoint, checkpoints, schedule
from trainer.config import Config, load_config
from trainer.config_schema import EstimatorConfig
from trainer.errors import ConfigError
from trainer.seeding import seed_initialisation


def create_network(
    config: Config, classes: list[str], device: torch.device, *, weights_follow: bool = False
) -> nn.Module:
    """The configured model with the run's initial weights, equal on every rank.

    Args:
        config: of the run.
        classes: of its data.
        device: where it is to be.
        weights_follow: the caller loads all weights, so that what `model.init` names need not be there.

    Raises:
        ConfigError: model or estimator unknown, or `model.init` does not fit.
    """
    num_classes = config.model.num_classes or len(classes)
    if num_classes < len(classes):
        raise ConfigError(
            f"model.num_classes={num_classes} is less than the {len(classes)} classes of the data: leave it null"
        )
    seed_initialisation(config.seed)
    model = instantiate(config, num_classes)
    check_image_sizes(config, model)
    if config.model.init is not None and not weights_follow:
        load_initial_weights(model, config)
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


def instantiate(config: Config, num_classes: int) -> nn.Module:
    """The configured model: one of this project's binary networks, or any other of timm's, which has no binary layer.

    Raises:
        ConfigError: a name or an option is unknown, or what is asked for does not go together.
    """
    model = config.model
    if model.name in models.MODELS:
        choices = binarization(config)
        try:
            made = timm.create_model(model.name, num_classes=num_classes, **choices)
        except ValueError as error:
            raise ConfigError(f"model.name={model.name}: {error}") from None
        if config.estimator.hold_instability is not None and not power_layers(made):
            raise ConfigError(
                f"estimator.hold_instability steers a power, and {config.estimator.name} has none: use reste, or null"
            )
        return made
    if not timm.is_model(model.name):
        near = difflib.get_close_matches(model.name, [*models.MODELS, *timm.list_models()], n=3, cutoff=0.4)
        raise ConfigError(
            f"model.name: there is no model {model.name!r}; did you mean "
            f"{' or '.join(near) or 'one of `reste summary --list`'}?"
        )
    if (model.weight_bits, model.activation_bits) != (32, 32):
        warnings.warn(f"{model.name} has no binary layers: bits, numerics and estimator have no effect", stacklevel=2)
    return timm.create_model(model.name, num_classes=num_classes)


def binarization(config: Config) -> dict[str, Any]:
    """The arguments of `timm.create_model` that say how a network is binarised (`models.binarization`).

    Raises:
        ConfigError: an estimator or one of its options is unknown; the nearest are offered.
    """
    estimator, quantizer, numerics = config.estimator, config.quantizer, config.model.numerics
    _refuse_unused(config)
    choices: dict[str, Any] = {
        "estimator": estimator.name,
        "estimator_options": estimator_options(estimator, numerics),
        "weight_bits": config.model.weight_bits,
        "activation_bits": config.model.activation_bits,
        "numerics": numerics,
        "weight_quantizer": quantizer.weight,
        "activation_quantizer": quantizer.activation,
        "quantizer_options": quantizer.options or None,
        "scaling": quantizer.scaling,
        "scaling_options": quantizer.scaling_options or None,
    }
    if estimator.weights is not None:
        choices["weight_estimator"] = estimator.weights
        choices["weight_estimator_options"] = _usable(
            "estimator.weights", estimator.weights, estimator.weights_options, numerics
        )
    return choices


def _refuse_unused(config: Config) -> None:
    estimator, quantizer = config.estimator, config.quantizer
    if estimator.weights_options and estimator.weights is None:
        raise ConfigError("estimator.weights_options are of estimator.weights, which is not set: set it, or drop them")
    for name in quantizer.options:
        if name not in list_quantizers():
            near = difflib.get_close_matches(name, list_quantizers(), n=3, cutoff=0.4) or list_quantizers()
            raise ConfigError(f"quantizer.options: there is no quantiser {name!r}; did you mean {' or '.join(near)}?")
        if name not in (chosen := (quantizer.weight, quantizer.activation)) and None not in chosen:
            warnings.warn(f"quantizer.options.{name} has no effect: no side uses that quantiser", stacklevel=3)


def estimator_options(config: EstimatorConfig, numerics: str) -> dict[str, Any]:
    """The options of the estimator that the configuration sets and that the estimator has.

    ReSTE's slope is normalised unless the configuration or the official arithmetic says otherwise.

    Raises:
        ConfigError: the estimator or an option of `estimator.options` is unknown (the nearest names are offered), an
            option is set in two places or out of its range.
    """
    known = _option_names("estimator.name", config.name)
    short = {"threshold": config.threshold, "knee": config.knee, "normalize": config.normalize}
    given = {name: value for name, value in short.items() if value is not None}
    for name in [name for name in given if name not in known]:
        warnings.warn(f"estimator.{name} has no effect: {config.name} has no such option", stacklevel=2)
        del given[name]
    if twice := sorted(given.keys() & config.options.keys()):
        raise ConfigError(f"estimator.{twice[0]} and estimator.options.{twice[0]} are both set: keep one of them")
    return _usable("estimator", config.name, config.options | given, numerics)


def _option_names(key: str, name: str) -> tuple[str, ...]:
    try:
        return option_names(name)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None


def _usable(key: str, name: str, options: Mapping[str, Any], numerics: str) -> dict[str, Any]:
    """Options that an estimator can be made with, and what the numerics say of it."""
    try:
        made = create_estimator(name, **options)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from None
    if made.has_power and "power" in options:
        raise ConfigError(f"{key}: the power of {name} is a schedule: set estimator.o_end and estimator.schedule")
    return ({"normalize": numerics == "default"} if hasattr(made, "normalize") else {}) | dict(options)


def average_weights(model: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """The moving average a <- d a + (1 - d) w of weights and buffers (Polyak), or None if not asked for.

    After t steps d is the smaller of `decay` and (t - 1) / t: the plain mean of all steps, until the span of the
    average, 1 / (1 - decay) steps, is full. So it never remembers where the weights began.

    Args:
        model: that is averaged.
        decay: d at its largest, in [0, 1).
    """
    if decay is None:
        return None
    return ModelEmaV3(model, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=1.0, foreach=True)


@dataclass(frozen=True)
class Stored:
    """A network from a checkpoint, on the CPU, with its evaluated weights (its moving average if it has one).

    Attributes:
        path: the checkpoint.
        config: of its run.
        network: with its weights.
        classes: that it was trained on; None if it numbers them.
        outputs: how many it tells apart.
    """

    path: Path
    config: Config
    network: nn.Module
    classes: list[str] | None
    outputs: int


def stored_network(path: Path, key: str, *, at: str = "best") -> Stored:
    """The network that a checkpoint, or a checkpoint of a run, holds.

    Args:
        path: a checkpoint or a run folder.
        key: what names it, for messages.
        at: as in `checkpoints.resolve`.

    Raises:
        ConfigError: no checkpoint there, or a damaged one.
    """
    folder = _sound(path, key, at)
    config = load_config(folder / "config.yaml")
    classes = checkpoint.read_manifest(folder)["classes"]
    outputs = config.model.num_classes or len(classes or [])
    network = instantiate(config, outputs)
    load_as_saved(network, folder, checkpoints.choose_weights(folder, "auto"), config)
    return Stored(folder, config, network, classes, outputs)


def load_initial_weights(model: nn.Module, config: Config) -> Inherited:
    """Start from a checkpoint's evaluated weights alone (its moving average if it has one): `model.init`.

    Raises:
        ConfigError: no checkpoint there, a damaged one, or one of another model than `model.transfer` can take.
    """
    assert config.model.init is not None
    path, key = checkpoints.named(config.model.init, config.run_dir), f"model.init={config.model.init}"
    if config.model.transfer is not None:
        source = stored_network(path, key, at=config.model.init_at)
        return transfer(source.network, model, config.model.transfer)
    folder = _sound(path, key, config.model.init_at)
    weights = _evaluated_weights(folder)
    load_weights(model, weights, folder)
    return Inherited(len(weights), sum(tensor.numel() for tensor in weights.values()))


def transfer(source: nn.Module, target: nn.Module, way: str) -> Inherited:
    """Hand a network's weights on to another one, and see that every tensor of the target is accounted for.

    Raises:
        ConfigError: there is no such way, or something of the source would be lost.
    """
    if way not in TRANSFERS:
        raise ConfigError(f"model.transfer={way!r} is not available: use one of {', '.join(sorted(TRANSFERS))}")
    try:
        inherited = TRANSFERS[way](source, target)
    except ValueError as error:
        raise ConfigError(f"model.transfer={way}: {error}") from None
    held = len(target.state_dict())
    assert inherited.tensors + len(inherited.fresh) == held, f"{way} accounts for {inherited} of {held} tensors"
    return inherited


def _sound(path: Path, key: str, at: str) -> Path:
    try:
        folder = checkpoints.resolve(path, at=at)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"{key}: {'; '.join(damage)}; name another checkpoint")
    return folder


def _evaluated_weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_payload(folder, checkpoints.choose_weights(folder, "auto"))


def load_as_saved(model: nn.Module, folder: Path, weights: str, config: Config) -> None:
    """Make a model what it was when a checkpoint was saved: its weights, and what a schedule changes and no file holds.

    The threshold at which ReCU clamps weights is such: no sign depends on it, a scale of clamped weights does.

    Args:
        model: as the configuration creates it.
        folder: the checkpoint.
        weights: the payload, `model` or `ema`.
        config: of the run.

    Raises:
        ConfigError: names or shapes differ.
    """
    load_weights(model, checkpoint.load_payload(folder, weights), folder)
    manifest = checkpoint.read_manifest(folder)
    step, steps_per_epoch = manifest["progress"]["step"], manifest.get("steps_per_epoch")
    # A converted checkpoint is of a finished training that knew no steps.
    set_progress(model, schedule.progress(config, steps_per_epoch)(max(step - 1, 0)) if steps_per_epoch else 1.0)


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
