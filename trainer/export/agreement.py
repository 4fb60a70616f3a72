"""Whether an exported network does what the trained one does: the same images through both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import load_config
from trainer.data import datasets
from trainer.data.order import EvalOrder
from trainer.distributed import collectives
from trainer.distributed.environment import resolve_environment
from trainer.evaluation import Block, blocks
from trainer.export.program import Deployed
from trainer.export.threads import one_thread
from trainer.pixels import AUTOCAST, Pixels

NOISE_IMAGES = 16


@dataclass(frozen=True)
class Agreement:
    """Two networks on the same images.

    Attributes:
        images: how many.
        same_top1: of them with the same first class.
        largest_difference: of two logits, in their unit.
        spread: standard deviation of the trained network's logits, in the same unit.
        correct1: first classes of the exported network that are right; None where images have no label.
        correct1_trained: those of the trained one; None likewise.
    """

    images: int
    same_top1: int
    largest_difference: float
    spread: float
    correct1: int | None
    correct1_trained: int | None


def compare(
    trained: Callable[[Tensor], Tensor],
    exported: Callable[[Tensor], Tensor],
    work: Iterable[Block],
    *,
    precision: str,
    labelled: bool,
) -> Agreement:
    """Run both networks over blocks of images and labels; a block may have fewer labels than images, as `blocks` says.

    On one thread and the trained one in its `train.precision`, as `reste evaluate` computes a block on a CPU, so that
    numbers can be compared with its.
    """
    autocast = AUTOCAST.get(precision)
    pairs, labels = [], []
    with one_thread(), torch.no_grad():
        for images, known in work:
            with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
                theirs = trained(images)[: len(known)]
            pairs.append((theirs.double(), exported(images)[: len(known)].double()))
            labels.append(known)
    expected, ours = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    right = torch.cat(labels)
    first, first_trained = ours.argmax(1), expected.argmax(1)
    return Agreement(
        images=len(right),
        same_top1=int((first == first_trained).sum()),
        largest_difference=(ours - expected).abs().max().item(),
        spread=expected.std().item(),
        correct1=int((first == right).sum()) if labelled else None,
        correct1_trained=int((first_trained == right).sum()) if labelled else None,
    )


def noise(facts: Deployed, count: int = NOISE_IMAGES) -> Iterator[Block]:
    """A block of images of normally distributed noise, the same each time; their labels mean nothing."""
    generator = torch.Generator().manual_seed(0)
    side = facts.image_size
    images = torch.randn((count, 3, side, side), generator=generator, dtype=getattr(torch, facts.dtype))
    memory = torch.channels_last if facts.channels_last else torch.contiguous_format
    yield images.contiguous(memory_format=memory), torch.zeros(count, dtype=torch.int64)


@contextmanager
def validation(checkpoint: Path, facts: Deployed, root: Path) -> Iterator[Iterator[Block]]:
    """The validation split of a data set, as `reste evaluate` sees it on a CPU.

    Raises:
        ConfigError: it has other classes than the checkpoint.
        DataError: it is missing, or an image cannot be read.
    """
    config = load_config(checkpoint / "config.yaml", [f"data.root={json.dumps(str(root))}"])
    device = torch.device("cpu")
    with ExitStack() as undo:
        environment = resolve_environment(os.environ)
        collectives.init_process_group(environment, device)
        undo.callback(collectives.shutdown)
        data = datasets.open_validation(config)
        datasets.check_classes(str(checkpoint), facts.classes, len(facts.labels), data.classes)
        size = config.eval.batch_size or config.train.batch_size
        order = EvalOrder(data, datasets.augment(config), batch_size=size, rank=0, world=1)
        loader = datasets.create_loader(config, order, environment, device)
        undo.callback(loader.close)
        yield blocks(loader.load(order.plans()), Pixels.of(config, device))
