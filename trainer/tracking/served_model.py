"""The model that MLflow serves: images in, labels and probabilities out.

MLflow keeps a copy of this file beside the exported graph and runs it wherever the model is loaded ("models from
code"), so it imports nothing of this project. What it does to an image is what evaluation does, step by step.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc import PythonModel
from PIL import Image, UnidentifiedImageError

_BLOCK = 16
"""Images go through the graph so many at a time, the last block filled up, as evaluation does: kernels round otherwise
for other sizes, and a binary network turns a last bit into a flipped sign."""


class ImageClassifier(PythonModel):
    """One column, `image`: the bytes of an image file, the same as base64 text, or pixels from 0 to 255.

    Pixels are (H, W, 3) for red, green and blue, or (H, W) or (H, W, 1) for grey.

    Gives a row for each image: `label`, and `probabilities` in the order of the labels. Runs on the CPU, or where
    `MLFLOW_DEFAULT_PREDICTION_DEVICE` says.
    """

    def load_context(self, context: Any) -> None:
        """Read the graph and what belongs to it."""
        extra = {"deployed.json": ""}
        program = torch.export.load(context.artifacts["program"], extra_files=extra)
        self._facts = json.loads(extra["deployed.json"])
        self._device = torch.device(os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE") or "cpu")
        if self._device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, self._device)
        self._network = program.module()
        self._block = int((context.model_config or {}).get("block", _BLOCK))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Labels and probabilities of a table of images.

        Raises:
            ValueError: something in it is no image; its number is named.
        """
        images = [image for cell in model_input["image"] for image in _images(cell)]
        pixels = np.empty((len(images), *[self._facts["image_size"]] * 2, 3), dtype=np.uint8)
        for number, image in enumerate(images):
            try:
                pixels[number] = cut(image, self._facts["image_size"], self._facts["resize"])
            except (OSError, ValueError, binascii.Error, Image.DecompressionBombError) as error:
                raise ValueError(f"image {number}: {error}") from None
        probabilities = self._probabilities(torch.from_numpy(pixels))
        labels = [self._facts["labels"][best] for best in probabilities.argmax(1).tolist()]
        return pd.DataFrame({"label": labels, "probabilities": probabilities.tolist()})

    def _probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (N, S, S, 3) to float64 (N, classes)."""
        dtype = getattr(torch, self._facts["dtype"])
        mean, std = (
            torch.tensor(self._facts[name], dtype=torch.float64).mul(255).to(self._device, dtype).view(1, 3, 1, 1)
            for name in ("mean", "std")
        )
        found = []
        with torch.no_grad():
            for block in pixels.to(self._device).permute(0, 3, 1, 2).split(self._block):
                images = block.to(dtype).sub_(mean).div_(std)
                filling = images.new_zeros((self._block - len(images), *images.shape[1:]))
                logits = self._network(torch.cat([images, filling]))[: len(images)]
                found.append(logits.double().softmax(1).cpu())
        return torch.cat(found) if found else torch.zeros((0, len(self._facts["labels"])), dtype=torch.float64)


def _images(cell: Any) -> Iterator[Any]:
    """The images of a cell: one, or several in a list or array."""
    if isinstance(cell, (bytes, str)):
        yield cell
    elif isinstance(cell, (list, tuple)) and cell and isinstance(cell[0], (bytes, str)):
        yield from cell
    else:
        pixels = np.asarray(cell)
        yield from pixels if pixels.ndim == 4 else [pixels]


def cut(image: Any, side: int, short: int) -> np.ndarray:
    """Decode, resize the shorter side to `short` pixels, cut (side, side) from the middle; uint8 (side, side, 3)."""
    with _open(image) as opened:
        rgb = opened.convert("RGB")
    shorter = min(rgb.size)
    width, height = (short * length // shorter for length in rgb.size)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.BILINEAR)
    # Half a pixel goes to the even side; a smaller image gets zeros around it.
    left, top = (round(room / 2) if room >= 0 else -(-room // 2) for room in (width - side, height - side))
    return np.asarray(rgb.crop((left, top, left + side, top + side)))


def _open(image: Any) -> Image.Image:
    if isinstance(image, (bytes, str)):
        data = base64.b64decode(image, validate=True) if isinstance(image, str) else image
        try:
            return Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            raise ValueError("it is no image that can be read") from None
    pixels = np.asarray(image)
    if pixels.shape[2:] not in ((3,), (1,), ()) or pixels.ndim < 2 or not np.issubdtype(pixels.dtype, np.integer):
        raise ValueError(f"pixels must be whole numbers (H, W, 3) or (H, W), not {pixels.dtype} {pixels.shape}")
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    if pixels.size and (pixels.min() < 0 or pixels.max() > 255):
        raise ValueError("pixels must lie between 0 and 255")
    return Image.fromarray(pixels.astype(np.uint8))


mlflow.models.set_model(ImageClassifier())
