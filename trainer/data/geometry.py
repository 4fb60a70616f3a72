"""What part of an image is shown at what size: crops as arrays, a batch at a time.

The formulas are torchvision's (`RandomResizedCrop`, `RandomCrop` with padding, `Resize`, `CenterCrop`),
including its rounding (half to even); the randomness is our own words instead of torch's generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from trainer.data.counter import Words, to_integer, to_unit
from trainer.errors import ConfigError

WORDS_PER_SAMPLE = 24
"""Word 0 flips, 1 and 2 place the crop, 3 is spare, 4 to 23 are ten tries of (area, aspect ratio)."""

TRIES = 10
_FIRST_TRY = 4

Ints = npt.NDArray[np.int32]
Longs = npt.NDArray[np.int64]
GeometryKind = Literal["window", "resize"]


@dataclass(frozen=True)
class Augment:
    """How images are cropped and flipped.

    Attributes:
        image_size: side S of the square the network sees, in pixels.
        crop: "rrc" (random area and aspect ratio), "pad" (random offset in the zero-padded image) or "none".
        scale: range of the crop's share of the image area, for "rrc"; shares above 1 are rejected and
            redrawn.
        ratio: range of the crop's width / height, for "rrc".
        pad: pixels added on every side, for "pad".
        flip: mirror half of the training samples left to right.
        eval_resize: shorter side, in pixels, before the centre crop of evaluation; None means S * 256 / 224
            for "rrc", S otherwise.
    """

    image_size: int
    crop: str = "rrc"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    flip: bool = True
    eval_resize: int | None = None

    def __post_init__(self) -> None:
        if self.crop not in ("rrc", "pad", "none"):
            raise ConfigError(f"augment.crop={self.crop!r} is unknown: choose rrc, pad or none")
        if self.image_size < 1 or self.pad < 0 or (self.eval_resize is not None and self.eval_resize < 1):
            raise ConfigError("data.image_size and augment.eval_resize must be >= 1, augment.pad >= 0")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high or not math.isfinite(high):
                raise ConfigError(f"augment.{name}=[{low}, {high}] must be two rising positive numbers")


@dataclass(frozen=True)
class Geometry:
    """What a loader does to each image of a batch; the result is always (size, size).

    Attributes:
        kind: "window": decode `windows` and resize them to (size, size).
            "resize": resize the whole image to `sizes`, then cut (size, size) at `offsets`, zero outside.
        size: side of the result in pixels.
        windows: int32 (B, 4) of top, left, height, width in the decoded image; (0, 4) for "resize".
        sizes: int32 (B, 2) of height, width after the resize; (0, 2) for "window".
        offsets: int32 (B, 2) of top, left in the resized image, may be negative; (0, 2) for "window".
    """

    kind: GeometryKind
    size: int
    windows: Ints
    sizes: Ints
    offsets: Ints


def train_kind(augment: Augment) -> GeometryKind:
    """The kind of geometry that training with `augment` asks of a loader."""
    return "resize" if augment.crop == "pad" else "window"


def train_geometry(augment: Augment, words: Words, heights: Longs, widths: Longs) -> Geometry:
    """Training crops of a batch from its words (B, 24) and its image sizes (B,)."""
    if augment.crop == "rrc":
        windows = random_resized_windows(words, heights, widths, scale=augment.scale, ratio=augment.ratio)
        return _window_geometry(augment.image_size, windows)
    if augment.crop == "pad":
        offsets = to_integer(words[:, 1:3], 2 * augment.pad + 1) - augment.pad
        return _resize_geometry(augment.image_size, np.full_like(offsets, augment.image_size), offsets)
    zero = np.zeros_like(heights)
    return _window_geometry(augment.image_size, np.stack([zero, zero, heights, widths], axis=1))


def eval_geometry(augment: Augment, heights: Longs, widths: Longs) -> Geometry:
    """Evaluation crops: the shorter side resized, then the centre cut out (zero-padded if too small)."""
    side = augment.image_size
    short = augment.eval_resize or (round(side * 256 / 224) if augment.crop == "rrc" else side)
    shorter = np.minimum(heights, widths)
    sizes = np.stack([short * heights // shorter, short * widths // shorter], axis=1)
    room = sizes - side
    offsets = np.where(room >= 0, np.rint(room / 2).astype(np.int64), -(-room // 2))
    return _resize_geometry(side, sizes, offsets)


def flips(augment: Augment, words: Words) -> npt.NDArray[np.bool_]:
    """Which samples of a batch are mirrored, from the highest bit of each sample's first word; shape (B,)."""
    if not augment.flip:
        return np.zeros(len(words), dtype=np.bool_)
    return (words[:, 0] >> np.uint64(63)).astype(np.bool_)


def random_resized_windows(
    words: Words, heights: Longs, widths: Longs, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> Longs:
    """Ten tries of area and log-uniform aspect ratio, the first that fits, else the central fallback.

    Returns:
        int64 (B, 4) of top, left, height, width.
    """
    u = to_unit(words[:, _FIRST_TRY : _FIRST_TRY + 2 * TRIES]).reshape(-1, TRIES, 2)
    height, width = heights[:, None], widths[:, None]
    target = (height * width) * (scale[0] + u[..., 0] * (scale[1] - scale[0]))
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(log_low + u[..., 1] * (log_high - log_low))
    crop_w, crop_h = np.rint(np.sqrt(target * aspect)), np.rint(np.sqrt(target / aspect))
    fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
    rows, first = np.arange(len(words)), fits.argmax(axis=1)
    found = fits[rows, first]
    central_h, central_w = _central_sizes(heights, widths, ratio)
    h = np.where(found, crop_h[rows, first], central_h).astype(np.int64)
    w = np.where(found, crop_w[rows, first], central_w).astype(np.int64)
    top = np.where(found, to_integer(words[:, 1], heights - h + 1), (heights - h) // 2)
    left = np.where(found, to_integer(words[:, 2], widths - w + 1), (widths - w) // 2)
    return np.stack([top, left, h, w], axis=1)


def _central_sizes(heights: Longs, widths: Longs, ratio: tuple[float, float]) -> tuple[Longs, Longs]:
    shape = widths / heights
    h = np.where(shape < ratio[0], np.rint(widths / ratio[0]), heights)
    w = np.where(shape > ratio[1], np.rint(heights * ratio[1]), widths)
    return np.maximum(h, 1).astype(np.int64), np.maximum(w, 1).astype(np.int64)


def _window_geometry(size: int, windows: Longs) -> Geometry:
    none = np.zeros((0, 2), dtype=np.int32)
    return Geometry("window", size, windows.astype(np.int32), none, none)


def _resize_geometry(size: int, sizes: Longs, offsets: Longs) -> Geometry:
    none = np.zeros((0, 4), dtype=np.int32)
    return Geometry("resize", size, none, sizes.astype(np.int32), offsets.astype(np.int32))
