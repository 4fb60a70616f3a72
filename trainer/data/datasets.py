"""From the configuration to the two splits and their loaders."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import Config
from trainer.data.batch import Loader
from trainer.data.index import Index, load_index, load_summary
from trainer.data.order import Augment, EvalOrder, TrainOrder, train_kind
from trainer.data.replacing import Replacing
from trainer.data.spoiled import Spoiled
from trainer.data.synthetic import SyntheticLoader, synthetic_index
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError, DataError


@dataclass(frozen=True)
class Datasets:
    """The training and the validation split, which share their classes.

    Attributes:
        train, val: the splits.
        left_out: paths of the images that preparing left out because they cannot be decoded.
    """

    train: Index
    val: Index
    left_out: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str]:
        """Class names in label order."""
        return self.train.classes

    @property
    def digest(self) -> str:
        """SHA-256 over both splits, and over the names of what was left out, if anything was."""
        left_out = json.dumps(sorted(self.left_out)) if self.left_out else ""
        return hashlib.sha256(f"{self.train.digest}{self.val.digest}{left_out}".encode()).hexdigest()


def open_datasets(config: Config) -> Datasets:
    """Read the indices of both splits, or make synthetic ones.

    Raises:
        DataError: the data has not been prepared, is damaged, or is not what `data.expect` says.
    """
    left_out: tuple[str, ...] = ()
    if config.data.loader == "synthetic":
        made, size = config.data.synthetic, config.data.image_size
        train, val = (
            synthetic_index(made.samples, classes=made.classes, size=size, split=split) for split in ("train", "val")
        )
    else:
        root = Path(config.data.root)
        train, val = load_index(root, "train"), load_index(root, "val")
        left_out = tuple(file.path for file in load_summary(root).quarantined)
    if train.classes != val.classes:
        raise DataError(f"train and val in {config.data.root} have different classes: run reste prepare folder again")
    _check_expected(config, train, val)
    return Datasets(train, val, left_out)


def open_validation(config: Config) -> Index:
    """The validation split alone.

    Raises:
        DataError: the data has not been prepared or is damaged.
    """
    return _open_split(config, "val")


def check_classes(source: str, trained_on: list[str] | None, outputs: int | None, classes: list[str]) -> None:
    """Refuse data of other classes than a network was trained on.

    Args:
        source: which network, in words.
        trained_on: its classes; None if it numbers them.
        outputs: how many it tells apart, if `trained_on` is None.
        classes: of the data.

    Raises:
        ConfigError: saying what differs.
    """
    if trained_on is None:  # converted from a file that numbers its classes
        if outputs != len(classes):
            raise ConfigError(f"{source} tells {outputs} classes apart, the data has {len(classes)}: wrong --data?")
    elif trained_on != classes:
        raise ConfigError(
            f"{source} was trained on {len(trained_on)} classes ({', '.join(trained_on[:3])}, ...), the data has "
            f"{len(classes)} ({', '.join(classes[:3])}, ...): evaluate it on data of its own classes"
        )


def _open_split(config: Config, split: str) -> Index:
    if config.data.loader != "synthetic":
        return load_index(Path(config.data.root), split)
    made = config.data.synthetic
    return synthetic_index(made.samples, classes=made.classes, size=config.data.image_size, split=split)


def _check_expected(config: Config, train: Index, val: Index) -> None:
    expect = config.data.expect
    for what, wanted, found in (
        ("training images", expect.train, len(train)),
        ("validation images", expect.val, len(val)),
        ("classes", expect.classes, len(train.classes)),
    ):
        if wanted is not None and wanted != found:
            raise DataError(
                f"{config.data.root} holds {found} {what}, data.expect says {wanted}: complete the data, or set "
                "data.expect"
            )


def augment(config: Config) -> Augment:
    """The crops and flips of the configuration."""
    given = config.augment
    return Augment(
        image_size=config.data.image_size,
        crop=given.crop,
        scale=given.scale,
        ratio=given.ratio,
        pad=given.pad,
        flip=given.flip,
        eval_resize=config.eval_resize,
    )


def check_batch(config: Config, samples: int) -> None:
    """Refuse a batch that the training set cannot fill.

    Raises:
        ConfigError: naming the value to change.
    """
    size = config.train.batch_size
    if size > samples:
        raise ConfigError(f"train.batch_size={size} is larger than the training set of {samples} images: lower it")


def create_loader(
    config: Config,
    order: TrainOrder | EvalOrder,
    environment: Environment,
    device: torch.device,
    spoiled: Spoiled | None = None,
) -> Loader:
    """The configured loader for one order; for training one that replaces what it cannot read, if that is wanted.

    Args:
        config: chooses the loader.
        order: what it will load.
        environment, device: of this rank.
        spoiled: samples that are to be found damaged, if any.

    Raises:
        ConfigError: the loader's library is not installed.
    """
    data = config.data
    if data.loader == "synthetic":
        return SyntheticLoader(order.image_size, device=device if device.type == "cuda" else None)
    loader = _create_loader(config, order, environment, device, spoiled)
    if data.on_error == "stop" or isinstance(order, EvalOrder):  # without one image an accuracy is another number
        return loader
    return Replacing(loader, order, Path(data.root), limit=data.max_quarantined, rank=environment.rank)


def _create_loader(
    config: Config,
    order: TrainOrder | EvalOrder,
    environment: Environment,
    device: torch.device,
    spoiled: Spoiled | None,
) -> Loader:
    data = config.data
    root = Path(data.root)
    storage = spoiled.open(order.index, root) if spoiled else None
    kind = train_kind(order.augment) if isinstance(order, TrainOrder) else "resize"
    # The largest slice of a rank: batches are cut as evenly as can be.
    max_batch = -(-order.batch_size // order.world)
    if data.loader == "torchvision":
        from trainer.data.torchvision import TorchvisionLoader

        return TorchvisionLoader(
            order.index,
            root,
            image_size=order.image_size,
            kind=kind,
            max_batch=max_batch,
            workers=data.workers,
            prefetch=data.prefetch,
            rank=environment.rank,
            storage=storage,
            pinned=device.type == "cuda",
        )
    from trainer.data.dali import DaliLoader

    return DaliLoader(
        order.index,
        root,
        image_size=order.image_size,
        kind=kind,
        max_batch=max_batch,
        workers=data.workers,
        prefetch=data.prefetch,
        rank=environment.rank,
        storage=storage,
        device_id=device.index if device.type == "cuda" else None,
        dont_use_mmap=data.dont_use_mmap,
        decode_share=data.decode_share,
    )
