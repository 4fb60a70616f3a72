"""Our networks in timm's hands: its data configuration and transforms, save and load, adaptation of both ends."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

import models
from trainer.config import load_config
from trainer.data.geometry import Augment, eval_geometry
from trainer.data.pillow import cut

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = (*models.MODELS, *models.FULL_PRECISION)
LARGE = ("resnet18_1w1a", "resnet34_1w1a", "resnet18_cifar")
IMAGENET = tuple(name for name in NAMES if timm.get_pretrained_cfg(name).input_size[-1] == 224)
SMALL = tuple(name for name in NAMES if name not in LARGE + IMAGENET)
every_name = pytest.mark.parametrize("name", NAMES)


def photograph(width: int, height: int) -> Image.Image:
    """Made-up pixels whose every one differs from its neighbours."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 7 + columns, rows + columns * 5, rows * columns], axis=-1) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def saved(model: torch.nn.Module, folder: Path, **options: object) -> str:
    save_for_hf(model, folder, safe_serialization=True, **options)
    return f"local-dir:{folder}"


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """In eval mode, with no tensor as it was initialised."""
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(0.01 * torch.rand_like(value) if value.is_floating_point() else 1)
    return model.eval()


@every_name
def test_timms_transform_shows_the_pixels_that_our_evaluation_sees(name: str) -> None:
    recipe = CONFIGS / ("imagenet" if name in IMAGENET else "cifar10") / "base.yaml"
    config = load_config(recipe)
    with torch.device("meta"):
        found = timm.data.resolve_data_config({}, model=timm.create_model(name))
    size = config.data.image_size
    assert found["input_size"] == (3, size, size)
    assert (found["mean"], found["std"]) == (config.augment.mean, config.augment.std)
    augment = Augment(size, crop=config.augment.crop, eval_resize=config.eval_resize)
    for width, height in ((300, 200), (211, 301)):
        image = photograph(width, height)
        geometry = eval_geometry(augment, np.array([height]), np.array([width]))
        ours = torch.from_numpy(np.array(cut(image, geometry, 0))).permute(2, 0, 1)
        theirs = timm.data.create_transform(**found, is_training=False)(image)
        std, mean = (torch.tensor(found[key]).view(3, 1, 1) for key in ("std", "mean"))
        torch.testing.assert_close((theirs * std + mean) * 255, ours.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_a_saved_network_comes_back_from_its_folder_with_the_same_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = trained(timm.create_model(name, num_classes=7))
    address = saved(model, tmp_path, model_config={"label_names": list("abcdefg")})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = timm.create_model(address, pretrained=True).eval()
    weights = model.state_dict()
    assert [key for key, value in again.state_dict().items() if not torch.equal(value, weights[key])] == []
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert again.pretrained_cfg["label_names"] == list("abcdefg")


def test_bits_estimator_and_arithmetic_come_back_too(tmp_path: Path) -> None:
    options = {"estimator": "ste", "estimator_options": {"threshold": 0.5}, "activation_bits": 32}
    model = timm.create_model("resnet20_1w1a", **options, numerics="reference")
    again = timm.create_model(saved(model, tmp_path), pretrained=True)
    assert str(again) == str(model)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "resnet20_1w1a"
    assert {key: config["model_args"][key] for key in options} == options


def test_both_ends_adapt_when_a_saved_network_is_fine_tuned(tmp_path: Path) -> None:
    model = timm.create_model("resnet20_1w1a")
    address = saved(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = timm.create_model(address, pretrained=True, num_classes=3, in_chans=1).eval()
    assert other(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    weights, theirs = model.state_dict(), other.state_dict()
    same = [key for key, value in weights.items() if key in theirs and torch.equal(value, theirs[key])]
    assert set(weights) - set(same) == {"conv1.weight", "linear.weight", "linear.bias"}
    torch.testing.assert_close(theirs["conv1.weight"], weights["conv1.weight"].sum(1, keepdim=True))


def test_a_saved_network_gives_features(tmp_path: Path) -> None:
    model = trained(timm.create_model("resnet20_1w1a"))
    extractor = timm.create_model(saved(model, tmp_path), pretrained=True, features_only=True).eval()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(extractor(images)[-1], model.forward_features(images))
