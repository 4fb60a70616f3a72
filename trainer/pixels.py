"""From uint8 pixels to what the network sees: flip, normalise, cast, on the device."""

from __future__ import annotations

import torch

from trainer.config import Config
from trainer.data.batch import Batch

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Pixels:
    """Moves a batch to the device and normalises it there.

    Args:
        device: where the network lives.
        precision: fp64 gives float64 images, all others float32 (autocast casts further).
        channels_last: memory format of the result.
        mean, std: per channel, on pixels scaled to 0..1.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        precision: str,
        channels_last: bool,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.device = device
        self._dtype = DTYPES[precision]
        self._channels_last = channels_last
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(mean, dtype=torch.float64).mul(255).to(device, self._dtype).view(shape)
        self._std = torch.tensor(std, dtype=torch.float64).mul(255).to(device, self._dtype).view(shape)

    @classmethod
    def of(cls, config: Config, device: torch.device) -> Pixels:
        """As a configuration says."""
        return cls(
            device,
            precision=config.train.precision,
            channels_last=config.train.channels_last,
            mean=config.augment.mean,
            std=config.augment.std,
        )

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B, 3, S, S) and labels (B,) on the device."""
        pixels = batch.images.to(self.device, non_blocking=True)
        flips = batch.flips.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        pixels = torch.where(flips[:, None, None, None], pixels.flip(2), pixels)
        # An NHWC tensor seen as NCHW already lies in channels_last order.
        images = pixels.permute(0, 3, 1, 2).to(self._dtype).sub_(self._mean).div_(self._std)
        return (images if self._channels_last else images.contiguous()), labels

    def blank(self, count: int, size: int) -> torch.Tensor:
        """A batch of the shape, type and layout that training sees, (count, 3, size, size), all mid-grey."""
        images = torch.zeros((count, size, size, 3), dtype=self._dtype, device=self.device).permute(0, 3, 1, 2)
        return images if self._channels_last else images.contiguous()
