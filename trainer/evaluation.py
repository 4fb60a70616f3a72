"""Exact evaluation: integer counts over every sample, once, whatever the number of ranks and the batch size.

Counting exactly is not enough. A binary network turns a last-bit difference into a flipped sign, and matrix kernels
round differently for other batch sizes and thread counts. So every image goes through the network in a block of one
fixed shape, on a CPU computed by one thread; several threads work on several blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from trainer.data.batch import Batch
from trainer.distributed import collectives
from trainer.losses import correct_counts, cross_entropy_sum
from trainer.pixels import Pixels

BLOCK = {"cpu": 16, "cuda": 256}
Forward = Callable[[torch.Tensor], torch.Tensor]
Block = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What a model scores on a whole split.

    Attributes:
        samples: images evaluated, over all ranks.
        correct1, correct5: right answers, first and among the first five.
        loss: mean cross-entropy, without label smoothing.
    """

    samples: int
    correct1: int
    correct5: int
    loss: float

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.correct1 / self.samples

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent."""
        return 100 * self.correct5 / self.samples

    def metrics(self) -> dict[str, float]:
        """Under the names of the journal."""
        return {"val/loss": self.loss, "val/top1": self.top1, "val/top5": self.top5}


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    pixels: Pixels,
    *,
    samples: int,
    autocast: torch.dtype | None = None,
) -> Evaluation:
    """Evaluate a model over this rank's batches and sum over all ranks.

    Args:
        model: (B, 3, S, S) to (B, classes) logits; evaluated in eval mode, its mode is restored.
        batches: this rank's share of the split; batches may be empty.
        pixels: prepares images on the device.
        samples: how many samples all ranks together must have seen.
        autocast: low precision to compute in, if any.

    Raises:
        AssertionError: another number of samples was seen.
    """
    device = pixels.device
    counts = torch.zeros(3, dtype=torch.int64, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)

    def forward(images: torch.Tensor) -> torch.Tensor:
        # Both modes belong to the thread that sets them.
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            return model(images)

    was_training = model.training
    model.eval()
    try:
        for logits, labels in _forward_all(forward, blocks(batches, pixels), device):
            counts[:2] += correct_counts(logits, labels)
            counts[2] += len(labels)
            loss += cross_entropy_sum(logits.double(), labels, smoothing=0.0)
    finally:
        model.train(was_training)
    collectives.all_reduce_(counts)
    collectives.all_reduce_(loss)
    correct1, correct5, seen = counts.tolist()
    assert seen == samples, f"evaluation saw {seen} samples of {samples}"
    return Evaluation(samples=seen, correct1=correct1, correct5=correct5, loss=loss.item() / seen)


def blocks(batches: Iterable[Batch], pixels: Pixels) -> Iterator[Block]:
    """The images of all batches in blocks of one size, the last one filled up with blank images that have no label."""
    size = BLOCK[pixels.device.type]
    waiting_images: list[torch.Tensor] = []
    waiting_labels: list[torch.Tensor] = []
    for batch in batches:
        images, labels = pixels(batch)
        waiting_images.append(images)
        waiting_labels.append(labels)
        if sum(map(len, waiting_labels)) < size:
            continue
        images, labels = torch.cat(waiting_images), torch.cat(waiting_labels)
        whole = len(labels) // size * size
        yield from zip(images[:whole].split(size), labels[:whole].split(size), strict=True)
        waiting_images, waiting_labels = [images[whole:]], [labels[whole:]]
    rest = sum(map(len, waiting_labels))
    if rest:
        blank = pixels.blank(size - rest, waiting_images[0].shape[-1])
        yield torch.cat([*waiting_images, blank]), torch.cat(waiting_labels)


def _forward_all(forward: Forward, work: Iterator[Block], device: torch.device) -> Iterator[Block]:
    """Logits and labels of each block, in order, without the rows that only filled it up."""
    if device.type != "cpu":
        yield from ((forward(images)[: len(labels)], labels) for images, labels in work)
        return
    threads = torch.get_num_threads()
    ahead: deque[tuple[Future[torch.Tensor], torch.Tensor]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for images, labels in work:
                ahead.append((pool.submit(forward, images), labels))
                if len(ahead) > 2 * threads:
                    logits, known = ahead.popleft()
                    yield logits.result()[: len(known)], known
            for logits, known in ahead:
                yield logits.result()[: len(known)], known
    finally:
        # The count is the process's too, not only the pool's.
        torch.set_num_threads(threads)
