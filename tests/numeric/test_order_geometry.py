"""Crops against torchvision and against its algorithm written for one image at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from image_tree import photo
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from trainer.data.counter import STREAM_SAMPLE, random_words
from trainer.data.geometry import (
    WORDS_PER_SAMPLE,
    Augment,
    eval_geometry,
    flips,
    random_resized_windows,
    train_geometry,
)
from trainer.data.pillow import cut
from trainer.errors import ConfigError


def words_of(rows: int, seed: int = 0) -> np.ndarray:
    return random_words(seed, STREAM_SAMPLE, 0, start=0, rows=rows, width=WORDS_PER_SAMPLE)


def one_window(words: list[int], height: int, width: int, scale: tuple, ratio: tuple) -> list[int]:
    """torchvision's RandomResizedCrop.get_params with the random numbers taken from `words`."""
    unit = [(word >> 11) / 2**53 for word in words]
    for attempt in range(10):
        area = height * width * (scale[0] + unit[4 + 2 * attempt] * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + unit[5 + 2 * attempt] * (high - low))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(unit[1] * (height - h + 1)), int(unit[2] * (width - w + 1)), h, w]
    if width / height < min(ratio):
        w, h = width, round(width / min(ratio))
    elif width / height > max(ratio):
        h, w = height, round(height * max(ratio))
    else:
        w, h = width, height
    return [(height - h) // 2, (width - w) // 2, h, w]


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.35, 1.6), (3 / 4, 4 / 3)), ((1.2, 2.0), (0.9, 1.1))],
)
def test_random_resized_windows_follow_the_algorithm_sample_by_sample(scale: tuple, ratio: tuple) -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 700, (2, 400))
    heights[:4], widths[:4] = [1, 1, 1000, 3], [1, 1000, 1, 3]
    words = words_of(400)
    windows = random_resized_windows(words, heights, widths, scale=scale, ratio=ratio)
    for row, window in enumerate(windows.tolist()):
        expected = one_window(words[row].tolist(), int(heights[row]), int(widths[row]), scale, ratio)
        assert window == expected, row
    top, left, height, width = windows.T
    assert ((top >= 0) & (left >= 0) & (height >= 1) & (width >= 1)).all()
    assert ((top + height <= heights) & (left + width <= widths)).all()


def test_windows_are_spread_like_torchvisions() -> None:
    n, height, width = 4000, 375, 500
    augment = Augment(224)
    full = np.full(n, 1)
    ours = train_geometry(augment, words_of(n), full * height, full * width).windows.astype(float)
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    crop = transforms.RandomResizedCrop
    theirs = np.array([crop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(n)], dtype=float)
    for column in range(4):
        grid = np.linspace(0, 500, 101)
        apart = np.abs(
            np.searchsorted(np.sort(ours[:, column]), grid) - np.searchsorted(np.sort(theirs[:, column]), grid)
        )
        assert apart.max() / n < 1.63 * math.sqrt(2 / n), column  # Kolmogorov-Smirnov at 1 %


SIZES = [(375, 500), (420, 281), (256, 256), (40, 60), (33, 32), (300, 301), (97, 400)]


@pytest.mark.parametrize(("image_size", "resize"), [(224, 256), (32, 32), (64, 48), (65, 48), (64, 49)])
def test_evaluation_crop_is_torchvisions_resize_and_centre_crop(image_size: int, resize: int) -> None:
    heights, widths = np.array(SIZES).T
    geometry = eval_geometry(Augment(image_size, crop="none", eval_resize=resize), heights, widths)
    for position, (height, width) in enumerate(SIZES):
        image = photo(position, size=(width, height))
        expected = functional.center_crop(functional.resize(image, resize), [image_size, image_size])
        np.testing.assert_array_equal(cut(image, geometry, position), np.asarray(expected), str(SIZES[position]))


def test_window_is_torchvisions_resized_crop() -> None:
    heights, widths = np.array(SIZES).T
    geometry = train_geometry(Augment(96), words_of(len(SIZES)), heights, widths)
    for position, (height, width) in enumerate(SIZES):
        image = photo(position, size=(width, height))
        expected = functional.resized_crop(image, *geometry.windows[position].tolist(), [96, 96])
        np.testing.assert_array_equal(cut(image, geometry, position), np.asarray(expected))


def test_padded_crop_is_torchvisions_at_every_offset() -> None:
    n, side, pad = 600, 32, 2
    size = np.full(n, side)
    geometry = train_geometry(Augment(side, crop="pad", pad=pad), words_of(n), size, size)
    image = photo(1, size=(side, side))
    padded = functional.pad(image, [pad] * 4)
    counts = {(top, left): 0 for top in range(-pad, pad + 1) for left in range(-pad, pad + 1)}
    for position, (top, left) in enumerate(geometry.offsets.tolist()):
        counts[top, left] += 1
        if counts[top, left] == 1:
            expected = functional.crop(padded, top + pad, left + pad, side, side)
            np.testing.assert_array_equal(cut(image, geometry, position), np.asarray(expected))
    assert min(counts.values()) >= 6, "24 are expected of each of 25 offsets"


def test_no_crop_shows_the_whole_image() -> None:
    geometry = train_geometry(Augment(32, crop="none"), words_of(2), np.array([40, 7]), np.array([50, 9]))
    assert geometry.windows.tolist() == [[0, 0, 40, 50], [0, 0, 7, 9]]


def test_half_of_the_images_are_flipped_whatever_the_crop() -> None:
    words = words_of(2000)
    mirrored = flips(Augment(32, crop="rrc"), words)
    assert abs(mirrored.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(mirrored, flips(Augment(32, crop="pad"), words))
    assert not flips(Augment(32, flip=False), words).any()


def test_evaluation_resize_follows_imagenets_practice_unless_given() -> None:
    size = np.array([500])
    assert eval_geometry(Augment(224), size, size).sizes.tolist() == [[256, 256]]
    assert eval_geometry(Augment(160), size, size).sizes.tolist() == [[183, 183]]
    assert eval_geometry(Augment(32, crop="pad"), size, size).sizes.tolist() == [[32, 32]]


@pytest.mark.parametrize(
    "options",
    [{"crop": "center"}, {"scale": (0.0, 1.0)}, {"ratio": (2.0, 1.0)}, {"pad": -1}, {"image_size": 0}],
)
def test_impossible_augmentation_is_refused_in_one_line(options: dict) -> None:
    with pytest.raises(ConfigError) as caught:
        Augment(**{"image_size": 32, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (375, 500)])
def test_crops_of_up_to_five_quarters_of_the_image_are_those_of_up_to_the_image(height, width):
    # Kolmogorov-Smirnov: two samples of 40,000 of one distribution differ by 0.0138 once in a thousand.
    count = 40_000
    found = {}
    for largest, seed in ((1.0, 1), (1.25, 2), (0.7, 3)):
        augment = Augment(image_size=16, crop="rrc", scale=(0.08, largest))
        sizes = np.full(count, height), np.full(count, width)
        windows = train_geometry(augment, words_of(count, seed), *sizes).windows
        found[largest] = np.sort(windows[:, 2].astype(np.int64) * windows[:, 3])
    at = np.unique(found[1.0])
    share = {key: np.searchsorted(areas, at, side="right") / count for key, areas in found.items()}
    assert np.abs(share[1.25] - share[1.0]).max() < 0.0138
    assert np.abs(share[0.7] - share[1.0]).max() > 0.03
