"""Images prepared on a GPU, by compiled code and by plain, against NumPy's double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.data.batch import Batch
from trainer.pixels import Pixels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CUDA = torch.device("cuda")


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("on_device", [False, True])
def test_images_are_mirrored_and_normalised(compile: bool, channels_last: bool, on_device: bool) -> None:
    """Within 4 units in the last place: a GPU's compiler divides a little less exactly than a CPU does."""
    random = np.random.default_rng(0)
    raw, flips = random.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), random.random(16) < 0.5
    where = CUDA if on_device else torch.device("cpu")
    images = torch.from_numpy(raw).to(where)
    batch = Batch(images, torch.from_numpy(flips), torch.arange(16), torch.arange(16), plan=None)  # type: ignore[arg-type]
    pixels = Pixels(CUDA, precision="bf16", channels_last=channels_last, mean=MEAN, std=STD, compile=compile)
    pixels.settle(16, 32)
    made, labels = pixels(batch, whole=True)
    assert made.is_cuda
    assert labels.is_cuda
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert made.is_contiguous(memory_format=layout)
    turned = np.where(flips[:, None, None, None], raw[:, :, ::-1], raw).astype(np.float64)
    mean, std = (np.array(values, dtype=np.float64) * 255 for values in (MEAN, STD))
    expected = ((turned - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2).astype(np.float32)
    np.testing.assert_array_max_ulp(made.cpu().numpy(), expected, maxulp=4)
