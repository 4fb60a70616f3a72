"""The code that MLflow serves does to an image what evaluation does, and shares nothing with it."""

from __future__ import annotations

import ast
import base64
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from trainer.data.geometry import Augment, eval_geometry
from trainer.data.pillow import cut as evaluation_cut
from trainer.tracking.packing import SERVED

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint")  # of MLflow's import, about its own classes


@pytest.fixture(scope="module")
def served():
    """The file as MLflow loads it: by its place."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("served", SERVED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(16, 16), (20, 31), (31, 20), (9, 40), (64, 17), (15, 15), (1, 5)])
@pytest.mark.parametrize("short", [16, 17, 18, 12])
def test_an_image_is_cut_as_evaluation_cuts_it(served, size: tuple[int, int], short: int) -> None:
    pixels = noise(*size)
    geometry = eval_geometry(Augment(image_size=16, eval_resize=short), np.array([size[0]]), np.array([size[1]]))
    expected = evaluation_cut(Image.fromarray(pixels), geometry, 0)
    assert np.array_equal(served.cut(pixels, 16, short), expected)


def test_files_text_and_pixels_are_the_same_image(served) -> None:
    pixels = noise(18, 23)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    ways = [file.getvalue(), base64.b64encode(file.getvalue()).decode(), pixels.tolist(), pixels.astype(np.int64)]
    expected = served.cut(pixels, 16, 16)
    for way in ways:
        assert np.array_equal(served.cut(way, 16, 16), expected)
    grey = Image.fromarray(pixels).convert("L")
    file = io.BytesIO()
    grey.save(file, "PNG")
    expected = served.cut(np.asarray(grey.convert("RGB")), 16, 16)
    for way in (file.getvalue(), np.asarray(grey), np.asarray(grey).tolist(), np.asarray(grey)[..., None]):
        [image] = served._images(way)
        assert np.array_equal(served.cut(image, 16, 16), expected)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (b"nothing", "no image that can be read"),
        ("no base64!", "base64"),
        (np.zeros((4, 4)), "whole numbers"),
        (np.zeros((4, 4, 3)), "whole numbers"),
        (np.zeros(4, int), "whole numbers"),
        (np.zeros((4, 4, 4), int), "whole numbers"),
        (np.zeros((2, 4, 4, 3), int), "whole numbers"),
        (np.full((4, 4, 3), 256), "between 0 and 255"),
    ],
)
def test_what_is_no_image_is_named(served, image: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        served.cut(image, 16, 16)


def test_an_image_that_is_too_large_is_named_like_any_other(served, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    Image.fromarray(noise(18, 23)).save(file, "PNG")
    model = served.ImageClassifier()
    model._facts = {"image_size": 16, "resize": 16}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"image 1: .*decompression bomb"):
        model.predict(None, pd.DataFrame({"image": [noise(4, 4).tolist(), file.getvalue()]}))


def test_it_imports_nothing_of_this_project() -> None:
    found: set[str] = set()
    for node in ast.walk(ast.parse(Path(SERVED).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(str(node.module).split(".")[0])
    assert found - sys.stdlib_module_names == {"mlflow", "numpy", "pandas", "torch", "PIL"}
