"""What a configuration gives a prediction: the network's gradients and batch norms, the data, the groups of ranks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.cadence import duration_steps
from trainer.config import Config
from trainer.data import datasets
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError, DataError
from trainer.network import instantiate
from trainer.plan.predict import Workload
from trainer.ranks import batchnorm_ranks, larger_shares

IMAGENET_BYTES = 115_000.0
"""Mean length of ImageNet-1k's training images: a tar file of 147.9 GB holds 1,281,167."""


@dataclass(frozen=True)
class Data:
    """Sizes of a data set, and where they come from."""

    train: int
    val: int
    classes: int
    bytes_per_image: float
    source: str


def describe_data(config: Config, bytes_per_image: float | None) -> Data:
    """The data set's sizes from its index, or from `data.expect` where it is not there.

    Args:
        config: of the run.
        bytes_per_image: mean length of a file; None for the index's own, or ImageNet's.

    Raises:
        ConfigError: neither is known.
    """
    expect = config.data.expect
    try:
        data = datasets.open_datasets(config)
    except DataError:
        if not (expect.train and expect.val and expect.classes):
            raise ConfigError(
                f"the sizes of {config.data.root} are unknown: run reste prepare, or set data.expect.train, val and "
                "classes"
            ) from None
        return Data(expect.train, expect.val, expect.classes, bytes_per_image or IMAGENET_BYTES, "data.expect")
    mean = float(data.train.bytes.mean())
    return Data(len(data.train), len(data.val), len(data.classes), bytes_per_image or mean, "the index")


def workload(config: Config, data: Data) -> Workload:
    """The whole training of a configuration, on any number of devices.

    Raises:
        ConfigError: the model is unknown, or the batch is larger than the training set.
    """
    datasets.check_batch(config, data.train)
    model = instantiate(config, config.model.num_classes or data.classes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    norms = [module.num_features for module in model.modules() if isinstance(module, _BatchNorm)]
    size = config.train.batch_size
    steps = data.train // size if config.train.drop_last else -(-data.train // size)
    total = config.train.epochs * steps
    end = min(total, config.train.max_steps or total)
    every = duration_steps(config.eval.every, steps, total)
    return Workload(
        gradient_bytes=_gradient_width(config) * sum(p.numel() for p in trained),
        channels=tuple(norms),
        # As `trainer.ranks.check_smallest_batch` has it.
        least_images=2 if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()) else 1,
        train_images=data.train,
        val_images=data.val,
        epochs=end / steps,
        evaluations=-(-end // every) if every else 1,
        batch_size=size,
        accumulation=config.train.accumulation,
        drop_last=config.train.drop_last,
        bytes_per_image=data.bytes_per_image,
        sizes=_sizes(config, end / steps),
    )


def _sizes(config: Config, epochs: float) -> tuple[tuple[float, float], ...]:
    """Share of the pixels of whole images, and epochs, of each part of a training that ends after so many epochs."""
    sizes = config.image_sizes
    ends = [min(end, epochs) for end in (*sizes.starts[1:], config.train.epochs)]
    spans = zip(sizes.sides, sizes.starts, ends, strict=True)
    return tuple(((side / config.data.image_size) ** 2, end - start) for side, start, end in spans if end > start)


def _gradient_width(config: Config) -> int:
    """Bytes of one number of a gradient on its way between ranks."""
    if config.train.reduce_dtype != "full":
        return 2
    return 8 if config.train.precision == "fp64" else 4


def with_batch(config: Config, batch_size: int) -> Config:
    """The configuration with another global batch."""
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch_size})})


def statistics_group(config: Config, work: Workload, gpus: int, per_node: int) -> tuple[int, list[str]]:
    """How many ranks share batch statistics, and what is to be said of it.

    Raises:
        ConfigError: the trainer would refuse so many ranks.
    """
    most = work.batch_size // work.accumulation
    if gpus > most:
        raise ConfigError(f"more ranks than a micro-batch has images ({most})")
    group = batchnorm_ranks(config, Environment(world_size=gpus, local_world_size=min(gpus, per_node)))
    parts = gpus // group
    size = min(work.batch_size, work.last_batch)
    least = size // work.accumulation // parts
    if work.channels and least < work.least_images:
        raise ConfigError(
            f"a batch of {size} images leaves {f'some of {parts} groups of batch norm' if parts > 1 else 'batch norm'} "
            f"{least}, it needs {work.least_images}: set {larger_shares(parts, work.accumulation)}"
        )
    notes = []
    sync = config.batchnorm.sync
    images = work.batch_size // work.accumulation // parts
    if work.channels and not isinstance(sync, str) and images < sync.images:
        notes.append(f"statistics over {images} images, {sync.images} are asked for")
    return group, notes
