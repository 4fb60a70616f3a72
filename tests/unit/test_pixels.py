"""What the network sees of a batch, against NumPy's arithmetic on one image after the other."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch

from trainer.data.batch import Batch
from trainer.pixels import Pixels, mirrored

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def batch_of(count: int, size: int) -> Batch:
    random = np.random.default_rng(count)
    images = torch.from_numpy(random.integers(0, 256, (count, size, size, 3), dtype=np.uint8))
    flips = torch.from_numpy(random.random(count) < 0.5)
    return Batch(images, flips, torch.arange(count), torch.arange(count), plan=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["fp32", "fp64", "bf16"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("count", "size"), [(7, 5), (1, 8), (0, 4)])
def test_images_are_mirrored_and_normalised(precision: str, channels_last: bool, count: int, size: int) -> None:
    pixels = Pixels(torch.device("cpu"), precision=precision, channels_last=channels_last, mean=MEAN, std=STD)
    check(pixels, precision, channels_last, count, size)


@pytest.mark.parametrize(("precision", "channels_last"), [("bf16", True), ("fp64", False)])
def test_compiled_they_are_the_same(precision: str, channels_last: bool) -> None:
    """As on a GPU, by a CPU's compiler, which divides as NumPy does."""
    cpu = torch.device("cpu")
    pixels = Pixels(cpu, precision=precision, channels_last=channels_last, mean=MEAN, std=STD, compile=True)
    with patch.object(Pixels, "_line", side_effect=AssertionError("not by compiled code")):
        for count in (7, 5):
            pixels.settle(count, 6)
            check(pixels, precision, channels_last, count, 6, whole=True)
    check(pixels, precision, channels_last, 3, 6)


def check(pixels: Pixels, precision: str, channels_last: bool, count: int, size: int, *, whole: bool = False) -> None:
    """What `pixels` makes of a batch, bit for bit."""
    batch = batch_of(count, size)
    images, labels = pixels(batch, whole=whole)
    dtype = np.float64 if precision == "fp64" else np.float32
    assert images.shape == (count, 3, size, size)
    assert labels.tolist() == list(range(count))
    for image, raw, flip in zip(images.numpy(), batch.images.numpy(), batch.flips.tolist(), strict=True):
        for channel in range(3):
            plane = raw[:, ::-1, channel] if flip else raw[:, :, channel]
            mean, std = dtype(MEAN[channel] * 255), dtype(STD[channel] * 255)
            np.testing.assert_array_equal(image[channel], (plane.astype(dtype) - mean) / std)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)
    assert images.numpy().dtype == dtype


def test_images_of_two_sizes_follow_each_other() -> None:
    pixels = Pixels(torch.device("cpu"), precision="fp32", channels_last=True, mean=MEAN, std=STD)
    assert [pixels(batch_of(2, size))[0].shape[-1] for size in (4, 6, 4)] == [4, 6, 4]


@pytest.mark.parametrize("size", [3, 4, 6])
def test_images_of_other_types_are_mirrored_too(size: int) -> None:
    images, flips = torch.randn(3, size, size, 3), torch.tensor([True, False, True])
    images[0, 0, 0, 0] = torch.nan
    expected = np.stack([image[:, ::-1] if flip else image for image, flip in zip(images.numpy(), flips, strict=True)])
    np.testing.assert_array_equal(mirrored(images, flips).numpy(), expected)


def test_the_loader_s_images_stay_as_they_are() -> None:
    batch = batch_of(3, 4)
    before = batch.images.clone()
    mirrored(batch.images, torch.tensor([True, True, False]))
    assert torch.equal(batch.images, before)
