"""From uint8 pixels to what the network sees: flip, normalise, cast, on the device."""

from __future__ import annotations

import torch

from trainer.config import Config
from trainer.data.batch import Batch

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mirrored(images: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
    """The images (B, S, S, 3), those that `flips` (B,) names mirrored left to right."""
    # Several values are chosen at a time, as many as fit into a word: one by one they take a CPU several times as long.
    size = images.shape[1:].numel() * images.itemsize
    word = next(dtype for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8) if size % dtype.itemsize == 0)
    plain, turned = (each.flatten(1).view(word) for each in (images, images.flip(2)))
    return torch.where(flips[:, None], turned, plain).view(images.dtype).view(images.shape)


def normalised(
    images: torch.Tensor, flips: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, channels_last: bool
) -> torch.Tensor:
    """(B, S, S, 3) to (B, 3, S, S): mirrored where `flips` (B,) says so, minus `mean` (3,), over `std` (3,).

    One expression, for a compiler that makes one kernel of it.
    """
    turned = torch.where(flips[:, None, None, None], images.flip(2), images)
    result = turned.to(mean.dtype).sub(mean).div(std).permute(0, 3, 1, 2)
    return result if channels_last else result.contiguous()


class Pixels:
    """Moves a batch to the device and normalises it there.

    Args:
        device: where the network lives.
        precision: fp64 gives float64 images, all others float32 (autocast casts further).
        channels_last: memory format of the result.
        mean, std: per channel, on pixels scaled to 0..1.
        compile: prepare the micro-batches of whole batches by one compiled kernel. Made for a GPU, whose memory would
            be written in five passes otherwise. Compiled for a CPU it takes longer than those passes.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        precision: str,
        channels_last: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        compile: bool = False,
    ) -> None:
        self.device = device
        self._dtype = DTYPES[precision]
        self._channels_last = channels_last
        self._mean = torch.tensor(mean, dtype=torch.float64).mul(255).to(device, self._dtype)
        self._std = torch.tensor(std, dtype=torch.float64).mul(255).to(device, self._dtype)
        self._lines: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        # Replayed as a CUDA graph it would hand out the same memory again while the last images are still wanted.
        options = {"triton.cudagraphs": False}
        self._compiled = torch.compile(normalised, dynamic=False, options=options) if compile else None

    @classmethod
    def of(cls, config: Config, device: torch.device) -> Pixels:
        """As a configuration says."""
        return cls(
            device,
            precision=config.train.precision,
            channels_last=config.train.channels_last,
            mean=config.augment.mean,
            std=config.augment.std,
            compile=config.train.compile and device.type == "cuda",
        )

    def __call__(self, batch: Batch, *, whole: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) and labels (B,) on the device.

        Args:
            batch: of this rank.
            whole: as in `Engine.forward`; what is not part of a whole batch has its own shape, and is not compiled.
        """
        pixels = batch.images.to(self.device, non_blocking=True)
        flips = batch.flips.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        return self._prepare(pixels, flips, whole=whole), labels

    def _prepare(self, pixels: torch.Tensor, flips: torch.Tensor, *, whole: bool) -> torch.Tensor:
        if whole and self._compiled is not None:
            images: torch.Tensor = self._compiled(pixels, flips, self._mean, self._std, self._channels_last)
            return images
        count, size = pixels.shape[:2]
        mean, std = self._line(size)
        # By lines: a CPU that normalises three values at a time takes several times as long.
        lines = mirrored(pixels, flips).view(count, size, size * 3).to(self._dtype).sub_(mean).div_(std)
        # An NHWC tensor seen as NCHW already lies in channels_last order.
        images = lines.view(count, size, size, 3).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()

    def settle(self, count: int, size: int) -> None:
        """Let what is to be compiled for micro-batches of such a shape be compiled now."""
        pixels = torch.zeros((count, size, size, 3), dtype=torch.uint8, device=self.device)
        self._prepare(pixels, torch.zeros(count, dtype=torch.bool, device=self.device), whole=True)

    def _line(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of every value in a line of an image, (3 * size,)."""
        if size not in self._lines:
            self._lines[size] = self._mean.repeat(size), self._std.repeat(size)
        return self._lines[size]

    def blank(self, count: int, size: int) -> torch.Tensor:
        """A batch of the shape, type and layout that training sees, (count, 3, size, size), all mid-grey."""
        images = torch.zeros((count, size, size, 3), dtype=self._dtype, device=self.device).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()
