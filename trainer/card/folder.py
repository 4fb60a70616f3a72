"""A checkpoint as timm keeps models: model.safetensors and config.json, from which timm makes it again."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from trainer import checkpoint, checkpoints
from trainer.config import Config, load_config
from trainer.errors import ConfigError
from trainer.export.program import describe
from trainer.network import create_network, load_as_saved

FILES = ("README.md", "model.safetensors", "config.json")


@dataclass(frozen=True)
class Trained:
    """A checkpoint with its network.

    Attributes:
        path: the checkpoint's folder.
        config: of its run.
        manifest: of the checkpoint.
        classes: their names by index, None if they are unknown.
        weights: "model", or "ema" where there is a moving average.
        model: the network in eval mode, float32, on the CPU.
        accuracy: `val/...` of these very weights, empty if the run has not evaluated them.
    """

    path: Path
    config: Config
    manifest: dict[str, Any]
    classes: list[str] | None
    weights: str
    model: nn.Module
    accuracy: dict[str, float]

    @property
    def step(self) -> int:
        """Completed optimizer steps."""
        return int(self.manifest["progress"]["step"])

    @property
    def leading(self) -> bool:
        """Whether its run had seen none better when it was saved."""
        return bool(self.manifest["progress"]["best_step"] == self.step)


def load_trained(path: Path) -> Trained:
    """The checkpoint that `reste evaluate` would take, verified, with its network.

    Args:
        path: a run folder or a checkpoint.

    Raises:
        ConfigError: no checkpoint there, a damaged one, or one of another model than its configuration says.
    """
    folder = checkpoints.resolve(path)
    damage = checkpoint.problems(folder)
    if damage:
        raise ConfigError(f"{'; '.join(damage)}: name another checkpoint of the run")
    config = load_config(folder / "config.yaml")
    manifest = checkpoint.read_manifest(folder)
    weights = checkpoints.choose_weights(folder, "auto")
    accuracy = describe(folder, config, weights).metrics
    model = create_network(config, manifest["classes"] or [], torch.device("cpu"), weights_follow=True)
    load_as_saved(model, folder, weights, config)
    return Trained(folder, config, manifest, manifest["classes"], weights, model.float().eval(), accuracy)


def preprocessing(config: Config) -> dict[str, Any]:
    """timm's words for the evaluation's crop and normalisation: what `timm.data.create_transform` takes.

    timm resizes the shorter side to floor(size / crop_pct).
    """
    size, short = config.data.image_size, config.eval_resize
    share = size / short
    while math.floor(size / share) < short:
        share = math.nextafter(share, 0)
    return {
        "input_size": (3, size, size),
        "crop_pct": share,
        "crop_mode": "center",
        "interpolation": "bilinear",
        "mean": config.augment.mean,
        "std": config.augment.std,
    }


def write_folder(trained: Trained, card: str, out: Path) -> None:
    """Put card, weights and configuration into a folder; other files there stay.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    named = trained.classes if trained.classes and len(trained.classes) == trained.model.num_classes else None
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out, prefix=".unfinished-") as unfinished:
            save_for_hf(
                trained.model.to(memory_format=torch.contiguous_format),
                unfinished,
                safe_serialization=True,
                model_config={"label_names": named} if named else None,
                data_config=preprocessing(trained.config),
            )
            (Path(unfinished) / "README.md").write_text(card, encoding="utf-8")
            for name in FILES:
                shutil.move(Path(unfinished) / name, out / name)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): name another folder with --out") from None
