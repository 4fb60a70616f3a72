"""What the number of ranks decides, and where it would change what is computed."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.config import Config
from trainer.data.order import TrainOrder, part
from trainer.distributed.batchnorm import choose_group_size
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError

_MOST_RANKS = 1024
_SHOWN = 6


def check_ranks(config: Config, world: int) -> None:
    """Refuse more ranks than a whole micro-batch has images: some would never see one.

    Raises:
        ConfigError: naming the most ranks that the batch feeds.
    """
    images = config.train.batch_size // config.train.accumulation
    if world > images:
        raise ConfigError(
            f"{world} ranks share micro-batches of {images} images (train.batch_size={config.train.batch_size}, "
            f"train.accumulation={config.train.accumulation}), so that some never get one: start at most {images} "
            "ranks, lower train.accumulation or raise train.batch_size"
        )


def batchnorm_ranks(config: Config, environment: Environment) -> int:
    """How many ranks share batch statistics; 1 for each its own."""
    sync, world = config.batchnorm.sync, environment.world_size
    if world == 1 or sync == "off":
        return 1
    if sync == "world":
        return world
    each = _images_per_rank(config, world)
    return choose_group_size(sync.images, images_per_rank=each, world=world, local_world=environment.local_world_size)


def missing_images(config: Config, group_size: int, world: int) -> str | None:
    """In words, that batch statistics are over fewer images than `batchnorm.sync` asks for; None if they are not."""
    sync = config.batchnorm.sync
    held = group_size * _images_per_rank(config, world)
    if isinstance(sync, str) or world == 1 or held >= sync.images:
        return None
    return f"batchnorm.sync asks for statistics over {sync.images} images; all {world} ranks together hold {held}"


def _images_per_rank(config: Config, world: int) -> int:
    return config.train.batch_size // config.train.accumulation // world


def batchnorm_groups(model: nn.Module, world: int, group_size: int) -> int:
    """How many parts of a micro-batch have statistics of their own; 1 for a model without batch norm.

    Groups are neighbouring ranks, and ranks take contiguous slices, so that this number alone says which images share
    statistics: 4 ranks in 2 groups cut a micro-batch exactly as 2 ranks on their own do.
    """
    return world // group_size if any(isinstance(module, _BatchNorm) for module in model.modules()) else 1


def refuse_other_statistics(config: Config, saved: int, now: int, environment: Environment) -> None:
    """Refuse to go on with batch statistics over other images than the checkpoint's run took them over.

    Args:
        config: of the run.
        saved, now: `batchnorm_groups` of the checkpoint and of this start.
        environment: this start's.

    Raises:
        ConfigError: naming the numbers of ranks that keep the statistics.
    """
    if saved == now:
        return
    images = config.train.batch_size // config.train.accumulation
    keeping = ranks_that_keep(config, saved, environment.local_world_size)
    ranks = ", ".join(map(str, keeping[:_SHOWN])) + (", ..." if len(keeping) > _SHOWN else "")
    sync = config.batchnorm.sync
    named = sync if isinstance(sync, str) else f"{{images: {sync.images}}}"
    world = f"{environment.world_size} rank{'s' if environment.world_size > 1 else ''}"
    raise ConfigError(
        f"batchnorm.sync={named} on {world} takes statistics over about {images // now} images, the checkpoint's run "
        f"took them over {images // saved}: go on with a number of ranks that keeps them ({ranks}), or start a run of "
        "another name with model.init=CHECKPOINT"
    )


def ranks_that_keep(config: Config, groups: int, local_world: int) -> list[int]:
    """The numbers of ranks, ascending, that lead to so many groups, on nodes of up to `local_world` ranks."""
    most = min(config.train.batch_size // config.train.accumulation, _MOST_RANKS)
    found = []
    for world in range(1, most + 1):
        environment = Environment(world_size=world, local_world_size=min(world, local_world))
        if world // batchnorm_ranks(config, environment) == groups:
            found.append(world)
    return found


def check_smallest_batch(order: TrainOrder, model: nn.Module, group_size: int) -> None:
    """Refuse an epoch whose last batch gives some ranks that share batch statistics too little to have any.

    Batch norm of images needs one image, batch norm of vectors (a head's) needs two.

    Raises:
        ConfigError: naming what to change.
    """
    least = 2 if any(isinstance(module, nn.BatchNorm1d) for module in model.modules()) else 1
    for size in (order.batch_size, order.last_batch_size):
        for micro in range(order.accumulation):
            bounds = part(0, size, micro, order.accumulation)
            for first in range(0, order.world, group_size):
                start, _ = part(*bounds, first, order.world)
                _, stop = part(*bounds, first + group_size - 1, order.world)
                if stop - start < least:
                    raise ConfigError(
                        f"an epoch ends in a batch of {size} images, of which some ranks' batch norm gets "
                        f"{stop - start} and needs {least}: change train.batch_size, or set "
                        f"{larger_shares(order.world // group_size, order.accumulation)}"
                    )


def larger_shares(groups: int, accumulation: int) -> str:
    """What gives ranks that share batch statistics more images of an epoch's last batch: settings, as a phrase."""
    ways = ["train.drop_last=true"]
    if groups > 1:
        ways.append("batchnorm.sync=world")
    if accumulation > 1:
        ways.append(f"a train.accumulation below {accumulation}")
    return " or ".join(ways)
