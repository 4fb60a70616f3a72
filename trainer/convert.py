"""An official checkpoint as one of ours: the same weights under the same names, in a folder with a manifest.

The official file is a pickle. It is opened with torch's restricted unpickler, which builds tensors and plain values and
refuses all else; nothing in the file is run. What the official code itself writes passes: `state_dict`, `epoch`,
`model`, `best_prec1` and a second copy of the weights, `parameters`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import models
from trainer import checkpoint
from trainer.config import Config, config_digest, load_config
from trainer.durable import file_digest
from trainer.errors import ConfigError
from trainer.network import instantiate, tensor_differences

KNOWN = (*models.MODELS, *models.FULL_PRECISION)
_OURS = {"resnet18_1w1a": ("resnet18_1w1a", "resnet18_cifar_1w1a"), "resnet18": ("resnet18_cifar", "resnet18_1w1a")}
"""Official names that stand for two networks, one for CIFAR and one for ImageNet: what they are called here."""
_FACTS = {"model": str, "epoch": int, "best_prec1": float}


@dataclass(frozen=True)
class Official:
    """What an official file holds.

    Attributes:
        weights: tensors by official name, without `module.`.
        facts: those of `model`, `epoch` and `best_prec1` (%) that the file has.
    """

    weights: dict[str, Tensor]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """What came of it.

    Attributes:
        folder: the new checkpoint.
        config: the configuration inside.
        facts: as in `Official`.
    """

    folder: Path
    config: Config
    facts: dict[str, Any]


def convert(
    file: Path, name: str, out: Path, *, config: Path | None = None, overrides: list[str] | tuple[str, ...] = ()
) -> Converted:
    """Write the weights of an official checkpoint as a folder that `model.init` and `reste evaluate` take.

    Args:
        file: the official `.pth.tar`, or a bare state dict.
        name: our name of the network.
        out: folder to make.
        config: gives data, augmentation and bits; None: the defaults, at the network's own image size.
        overrides: `key=value`; `model.numerics` is `reference` unless one says otherwise.

    Raises:
        ConfigError: no such file or network, a file with more than tensors and plain values, or one of another network,
            or a folder that is not empty. Nothing has been written then.
    """
    if name not in KNOWN:
        raise ConfigError(f"--model {name}: official checkpoints are of {', '.join(KNOWN)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out} is there already and not empty: name a new folder")
    official = read_official(file)
    _refuse_another_network(official, file, name)
    resolved = load_config(config, [*_defaults(name, official, config), *overrides])
    model = instantiate(resolved, resolved.model.num_classes or 0)
    _load(model, official, file, name)
    made = not out.exists()
    try:
        folder = checkpoint.save(
            out,
            {"model": model.state_dict()},
            progress=checkpoint.Progress(0, 0, 0.0, {}, {}, None, 0, []),
            config_yaml=resolved.to_yaml(),
            about={
                "config_digest": config_digest(resolved),
                "data_digest": "",
                "classes": None,
                "world_size": 1,
                "converted": {"file": file.name, "sha256": file_digest(file), **official.facts},
            },
        )
    except OSError as error:
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise ConfigError(f"--out {out}: {error.strerror}; free or choose another disk") from None
    return Converted(folder, resolved, official.facts)


def read_official(file: Path) -> Official:
    """Open an official file, or a bare state dict, without running anything in it.

    Raises:
        ConfigError: it is missing, damaged, or holds more than tensors and plain values.
    """
    if not file.is_file():
        raise ConfigError(f"there is no file {file}: name an official checkpoint, e.g. model_best.pth.tar")
    try:
        # No class is added to what torch allows: the official code writes none, and what builds one kind of object by
        # name may build another.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"{file} is no checkpoint that torch can read ({first_line})") from None
        raise ConfigError(
            f"{file} holds more than tensors and plain values ({found[1]}) and is not opened: if you trust it, save "
            "its state_dict alone with torch.save where it was made, and convert that"
        ) from None
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not weights or not all(map(_is_named_tensor, weights.items())):
        raise ConfigError(f"{file} holds no state dict: neither under `state_dict` nor as a whole")
    wrapped = all(key.startswith("module.") for key in weights)
    facts = {k: kind(content[k]) for k, kind in _FACTS.items() if isinstance(content.get(k), kind | int | float)}
    return Official({key.removeprefix("module.") if wrapped else key: weights[key] for key in weights}, facts)


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _refuse_another_network(official: Official, file: Path, name: str) -> None:
    """Names and shapes of tensors do not tell all networks apart, with or without signs; what the file says does."""
    said = official.facts.get("model", name)
    ours = _OURS.get(said, (said,)) if said in (*_OURS, *KNOWN) else (name,)
    if name not in ours:
        raise ConfigError(f"{file} says that it holds the official {said}: use --model {' or '.join(ours)}")


def _defaults(name: str, official: Official, config: Path | None) -> list[str]:
    """The overrides that describe the file, before those of the caller."""
    weights = official.weights
    about = timm.get_pretrained_cfg(name)
    assert about is not None, name
    head = weights.get(f"{about.classifier}.weight")
    classes = len(head) if head is not None else about.num_classes
    found = [f"model.name={name}", "model.numerics=reference", f"model.num_classes={classes}", "model.init=null"]
    if name in models.FULL_PRECISION or official.facts.get("model") == "resnet18":
        found += ["model.weight_bits=32", "model.activation_bits=32"]
    if config is None:
        size = about.input_size[-1]
        found += [f"data.image_size={size}", f"augment.crop={'rrc' if size == 224 else 'pad'}"]
    return found


def _load(model: nn.Module, official: Official, file: Path, name: str) -> None:
    differing = tensor_differences(model, official.weights)
    if differing:
        fits = [known for known in KNOWN if known != name and _fits(known, official.weights)]
        hint = f"--model {' or '.join(fits)} fits" if fits else "no network of the official code fits"
        raise ConfigError(
            f"{file} holds no {name} ({len(differing)} tensors differ: {', '.join(differing[:3])}); {hint}"
        )
    model.load_state_dict(official.weights)


def _fits(name: str, weights: dict[str, Tensor]) -> bool:
    with torch.device("meta"):
        model = timm.create_model(name)
        head = weights.get(f"{model.default_cfg['classifier']}.weight")
        model.reset_classifier(len(head) if head is not None else model.num_classes)
    return not tensor_differences(model, weights)
