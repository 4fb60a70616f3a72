"""The arithmetic of `reste plan`: from the rate of one device to a run on many. Nothing is measured or read here."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainer.plan.network import Algorithm, Fabric, all_gather_s, all_reduce_s
from trainer.plan.rate import Rate

GATHERED_SUM = 8
"""Up to so many ranks batch norm gathers its gradients' sums, beyond it all-reduces them."""
METERS_BYTES = 32
"""Loss, two counts and the number of samples in float64, summed over all ranks at every step."""


@dataclass(frozen=True)
class Workload:
    """What is to be computed.

    Attributes:
        gradient_bytes: of all parameters.
        channels: of each batch norm.
        least_images: that ranks which share batch statistics must have together.
        train_images, val_images: sizes of the splits.
        epochs: of the whole training.
        evaluations: of the whole training.
        batch_size: global, of a step.
        accumulation: micro-batches of a step.
        drop_last: whether an epoch's smaller last batch is left out.
        bytes_per_image: mean length of a file.
        sizes: pairs of an image's pixels, as a share of those that the rate was measured with, and the epochs that
            train with it; empty for whole images throughout.
    """

    gradient_bytes: float
    channels: tuple[int, ...]
    least_images: int
    train_images: int
    val_images: int
    epochs: float
    evaluations: int
    batch_size: int
    accumulation: int
    drop_last: bool
    bytes_per_image: float
    sizes: tuple[tuple[float, float], ...] = ()

    @property
    def micro_batch(self) -> int:
        """Images of the largest micro-batch, over all ranks."""
        return -(-self.batch_size // self.accumulation)

    @property
    def last_batch(self) -> int:
        """Images of an epoch's last step."""
        rest = self.train_images % self.batch_size
        return self.batch_size if self.drop_last or not rest else rest

    @property
    def steps(self) -> float:
        """Steps of an epoch; a smaller last one counts by its images."""
        return self.train_images // self.batch_size if self.drop_last else self.train_images / self.batch_size


@dataclass(frozen=True)
class Assumptions:
    """What is believed of the machine beside the rate of one device.

    Attributes:
        fabric: links and nodes.
        algorithm: of all-reduces.
        overlap: share of the backward pass behind which gradients can travel.
        forward_share: of a step; the rest is the backward pass. An evaluation is a forward pass.
        bucket_bytes: gradients travel in pieces of this size; the last one never hides.
        loader_images_per_s: most images that the loader of one device delivers; None for no limit.
        price_per_hour: of one device.
    """

    fabric: Fabric
    algorithm: Algorithm = "best"
    overlap: float = 0.7
    forward_share: float = 1 / 3
    bucket_bytes: float = 10 * 2**20
    loader_images_per_s: float | None = None
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Prediction:
    """A run on `gpus` devices.

    Attributes:
        gpus: devices, one rank each.
        images: of the fullest rank in a micro-batch.
        group: ranks that share batch statistics.
        step_s: seconds of a step, of which
        compute_s: computing,
        batchnorm_s: exchanging batch statistics,
        gradients_s: gradients that do not hide behind the backward pass, and the sum of the losses,
        loader_s: waiting for the loader.
        images_per_s: while training, over all devices.
        efficiency: that, against as many devices at the best rate of one.
        epoch_s, run_s: seconds; the run's with its evaluations.
        bytes_per_s: from storage, over all devices.
        cost: of the run, in the unit of the price; None without one.
        notes: what to know of it.
        refused: why the trainer would not start; all figures are 0 then.
    """

    gpus: int
    images: int = 0
    group: int = 1
    step_s: float = 0.0
    compute_s: float = 0.0
    batchnorm_s: float = 0.0
    gradients_s: float = 0.0
    loader_s: float = 0.0
    images_per_s: float = 0.0
    efficiency: float = 0.0
    epoch_s: float = 0.0
    run_s: float = 0.0
    bytes_per_s: float = 0.0
    cost: float | None = None
    notes: list[str] = field(default_factory=list)
    refused: str | None = None


@dataclass(frozen=True)
class Step:
    """Seconds of one step: computing, exchanging batch statistics and gradients, waiting for the loader."""

    compute_s: float
    batchnorm_s: float
    gradients_s: float
    loader_s: float

    @property
    def whole_s(self) -> float:
        """All of it."""
        return self.compute_s + self.batchnorm_s + self.gradients_s + self.loader_s


def predict(work: Workload, rate: Rate, given: Assumptions, gpus: int, group: int = 1) -> Prediction:
    """A run on so many devices, of which groups of `group` share batch statistics.

    Figures of a step and of an epoch are for whole images, those of the run for every epoch's own.
    """
    images = -(-work.micro_batch // gpus)
    step = predict_step(work, rate, given, gpus, group)
    images_per_s = work.batch_size / step.whole_s
    evaluated = work.val_images / gpus
    evaluation_s = evaluated * rate.step_s(images) / images * given.forward_share
    if given.loader_images_per_s:
        evaluation_s = max(evaluation_s, evaluated / given.loader_images_per_s)
    run_s = work.evaluations * evaluation_s
    for pixels, epochs in work.sizes or ((1.0, work.epochs),):
        run_s += epochs * (work.steps * predict_step(work, rate, given, gpus, group, pixels).whole_s)
    price = given.price_per_hour
    return Prediction(
        gpus=gpus,
        images=images,
        group=group,
        step_s=step.whole_s,
        compute_s=step.compute_s,
        batchnorm_s=step.batchnorm_s,
        gradients_s=step.gradients_s,
        loader_s=step.loader_s,
        images_per_s=images_per_s,
        efficiency=images_per_s / (gpus * rate.best),
        epoch_s=work.steps * step.whole_s,
        run_s=run_s,
        bytes_per_s=images_per_s * work.bytes_per_image,
        cost=None if price is None else price * gpus * run_s / 3600,
        notes=remarks(work, given, gpus),
    )


def predict_step(
    work: Workload, rate: Rate, given: Assumptions, gpus: int, group: int = 1, pixels: float = 1.0
) -> Step:
    """A step on images of which so large a share of the pixels is left.

    Computing takes as long as for that share of the images; a loader decodes no faster for it.
    """
    images = -(-work.micro_batch // gpus)
    compute_s = rate.step_s(images * pixels)
    batchnorm_s = work.accumulation * batchnorm_exchange_s(work.channels, group, given)
    gradients_s = 0.0
    if gpus > 1:
        gradients_s = exposed_gradients_s(work.gradient_bytes, gpus, (1 - given.forward_share) * compute_s, given)
        gradients_s += all_reduce_s(gpus, METERS_BYTES, given.fabric, given.algorithm)
    busy_s = work.accumulation * compute_s + batchnorm_s + gradients_s
    loaded_s = work.accumulation * images / given.loader_images_per_s if given.loader_images_per_s else 0.0
    return Step(work.accumulation * compute_s, batchnorm_s, gradients_s, max(loaded_s - busy_s, 0.0))


def batchnorm_exchange_s(channels: tuple[int, ...], group: int, given: Assumptions) -> float:
    """Seconds in which a micro-batch's batch statistics travel: two collectives for each layer, none of them hidden.

    Forward, count, mean and variance of each channel are gathered; backward, two sums of each channel are added up.
    """
    if group == 1:
        return 0.0
    seconds = 0.0
    for count in channels:
        seconds += all_gather_s(group, 4 * (1 + 2 * count), given.fabric)
        size = 4 * 2 * count
        gathered = group <= GATHERED_SUM
        seconds += (
            all_gather_s(group, size, given.fabric)
            if gathered
            else all_reduce_s(group, size, given.fabric, given.algorithm)
        )
    return seconds


def exposed_gradients_s(size: float, gpus: int, backward_s: float, given: Assumptions) -> float:
    """Seconds of the gradients' all-reduces that do not hide behind a backward pass of so many seconds.

    The last bucket is ready when the pass is over; the others hide behind at most its share `overlap`.
    """
    buckets = max(math.ceil(size / given.bucket_bytes), 1)
    last = size - (buckets - 1) * given.bucket_bytes
    last_s = all_reduce_s(gpus, last, given.fabric, given.algorithm)
    whole_s = all_reduce_s(gpus, given.bucket_bytes, given.fabric, given.algorithm)
    return last_s + max((buckets - 1) * whole_s - given.overlap * backward_s, 0.0)


def remarks(work: Workload, given: Assumptions, gpus: int) -> list[str]:
    """What a reader of the prediction should know."""
    notes = []
    if work.micro_batch % gpus:
        notes.append(f"{work.micro_batch} images do not divide evenly; the ranks with one more set the pace")
    if gpus > given.fabric.per_node and gpus % given.fabric.per_node:
        notes.append(f"the last node has {gpus % given.fabric.per_node} of {given.fabric.per_node} devices")
    return notes


def needed_rate(
    work: Workload, rate: Rate, given: Assumptions, gpus: int, within_s: float, group: int = 1
) -> float | None:
    """Images per second that one device must reach by itself for a run to end in time, if nothing else changes.

    None if no rate is enough, because of communication or the loader.
    """

    def run_s(factor: float) -> float:
        return predict(work, rate.faster(factor), given, gpus, group).run_s

    low, high = 1e-6, 1e6
    if run_s(high) > within_s:
        return None
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if run_s(middle) > within_s else (low, middle)
    return high * rate.best
