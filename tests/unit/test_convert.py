"""Official checkpoints, opened safely and evaluated to the same numbers as without this project."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from image_tree import make_tree
from official_twins import OFFICIAL, OFFICIAL_FULL_PRECISION, randomise
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from launch.cli import app
from trainer import checkpoint, checkpoints
from trainer.config import load_config
from trainer.convert import KNOWN, convert
from trainer.data.prepare.folder import prepare_folder
from trainer.errors import ConfigError
from trainer.evaluate_checkpoint import evaluate_request, prepare
from trainer.network import create_network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of 32-pixel photographs."""
    root = make_tree(tmp_path_factory.mktemp("data"), train=10, val=40, classes=10, size=(32, 32))
    prepare_folder(root, workers=1)
    return root


def official_net(name: str) -> nn.Module:
    torch.manual_seed(5)
    net = (OFFICIAL | OFFICIAL_FULL_PRECISION)[name]()
    randomise(net)
    return net.eval()


def write_official(net: nn.Module, file: Path, **changes: object) -> Path:
    """What the official code saves after an epoch."""
    saved = {
        "epoch": 1000,
        "model": "resnet20_1w1a",
        "state_dict": net.state_dict(),
        "best_prec1": 86.75,
        "parameters": list(net.parameters()),
    }
    torch.save(saved | changes, file)
    return file


def evaluate_without_us(net: nn.Module, root: Path) -> tuple[int, float]:
    """Correct answers and mean loss over the validation images, read with Pillow."""
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    correct, losses = 0, []
    for label, folder in enumerate(sorted((root / "val").iterdir())):
        for path in sorted(folder.iterdir()):
            pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            with torch.no_grad():
                logits = net(((pixels - mean) / deviation)[None])
            correct += int(logits.argmax() == label)
            losses.append(F.cross_entropy(logits.double(), torch.tensor([label])).item())
    return correct, math.fsum(losses) / len(losses)


@pytest.mark.parametrize("name", ["resnet20_1w1a", "resnet20"])
def test_a_converted_checkpoint_evaluates_to_the_numbers_of_the_official_network(name, data, tmp_path):
    net = official_net(name)
    found = convert(write_official(net, tmp_path / "model_best.pth.tar", model=name), name, tmp_path / "out")
    assert found.facts == {"model": name, "epoch": 1000, "best_prec1": 86.75}
    request = prepare(tmp_path / "out", data, batch_size=None, loader="torchvision", weights="auto")
    ours = evaluate_request(request)
    correct, loss = evaluate_without_us(net, data)
    assert (ours.correct1, ours.samples) == (correct, 40)
    assert ours.loss == pytest.approx(loss, rel=1e-5)
    assert found.config.model.numerics == "reference"


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("bare", [False, True])
def test_prefixed_and_bare_state_dicts_are_the_same_weights(prefix, bare, tmp_path):
    net = official_net("resnet20_bireal_1w1a")
    named = {prefix + key: value for key, value in net.state_dict().items()}
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(named if bare else {"state_dict": named, "epoch": 3}, file)
    found = convert(file, "resnet20_bireal_1w1a", tmp_path / "out")
    assert found.facts == ({} if bare else {"epoch": 3})
    weights = checkpoint.load_payload(found.folder, "model")
    assert weights.keys() == net.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())


def test_training_can_start_from_a_converted_checkpoint(tmp_path):
    net = official_net("resnet20_1w1a")
    convert(write_official(net, tmp_path / "a.pth.tar"), "resnet20_1w1a", tmp_path / "out")
    overrides = ["model.name=resnet20_1w1a", f"model.init={tmp_path / 'out'}"]
    model = create_network(load_config(None, overrides), [str(i) for i in range(10)], torch.device("cpu"))
    for name, tensor in net.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_a_recipe_and_overrides_decide_what_the_file_does_not_say(tmp_path):
    file = write_official(official_net("resnet20_1w1a"), tmp_path / "a.pth.tar")
    recipe = Path(__file__).resolve().parents[2] / "configs" / "cifar10" / "resnet20_1w32a.yaml"
    config = convert(file, "resnet20_1w1a", tmp_path / "b", config=recipe).config
    assert (config.model.activation_bits, config.model.numerics) == (32, "reference")
    assert (config.data.root, config.data.image_size) == ("data/cifar10", 32)
    config = convert(file, "resnet20_1w1a", tmp_path / "c", overrides=["model.numerics=default"]).config
    assert (config.model.activation_bits, config.model.numerics, config.data.image_size) == (1, "default", 32)


class Malicious:
    """Unpickled without care, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["state_dict", "beside it"])
def test_a_file_with_code_in_it_is_refused_in_one_line_and_not_run(place, tmp_path):
    bomb = Malicious(tmp_path / "was_here")
    net = official_net("resnet20_1w1a")
    changes = {"state_dict": bomb} if place == "state_dict" else {"arguments": bomb}
    file = write_official(net, tmp_path / "a.pth.tar", **changes)
    with pytest.raises(ConfigError, match=r"holds more than tensors and plain values \(posix\.system\)") as caught:
        convert(file, "resnet20_1w1a", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth.tar"]


def test_a_harmless_object_is_refused_too_with_the_way_out(tmp_path):
    net = official_net("resnet20_1w1a")
    file = write_official(net, tmp_path / "a.pth.tar", arguments=argparse.Namespace(lr=0.1))
    with pytest.raises(ConfigError, match=r"argparse\.Namespace.*save its state_dict alone"):
        convert(file, "resnet20_1w1a", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no checkpoint that torch can read"),
        (b"not a pickle at all", "is no checkpoint that torch can read"),
        ({"epoch": 3}, "holds no state dict"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"state_dict": {"conv1.weight": 3}}, "holds no state dict"),
        ({1: torch.zeros(1)}, "holds no state dict"),
        ([1, 2], "holds no state dict"),
    ],
)
def test_what_is_no_checkpoint_is_one_line_and_leaves_nothing(content, message, tmp_path):
    file = tmp_path / "a.pth.tar"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ConfigError, match=message) as caught:
        convert(file, "resnet20_1w1a", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_network_are_named_with_the_one_they_fit(tmp_path):
    file = write_official(official_net("resnet18_cifar_1w1a"), tmp_path / "a.pth.tar", model="resnet18_1w1a")
    with pytest.raises(
        ConfigError, match=r"holds no resnet18_1w1a .*--model resnet18_cifar_1w1a or resnet18_cifar fits"
    ):
        convert(file, "resnet18_1w1a", tmp_path / "out")
    torch.save({"a": torch.zeros(3)}, file)
    with pytest.raises(ConfigError, match="no network of the official code fits"):
        convert(file, "resnet20_1w1a", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "wrong", "right", "bits"),
    [
        ("resnet20_bireal_1w1a", "resnet20_1w1a", "resnet20_bireal_1w1a", (1, 1)),
        ("resnet20", "resnet20_1w1a", "resnet20", (32, 32)),
        ("vgg_small", "vgg_small_1w1a", "vgg_small", (32, 32)),
        ("resnet18", "resnet18_cifar_1w1a", "resnet18_1w1a", (32, 32)),
    ],
)
def test_the_file_says_which_network_it_holds_where_tensors_fit_several(said, wrong, right, bits, tmp_path):
    nets = OFFICIAL | OFFICIAL_FULL_PRECISION
    net = nets[said if said in nets else right]()
    file = write_official(net, tmp_path / "a.pth.tar", model=said)
    with pytest.raises(ConfigError, match=rf"says that it holds the official {said}: use --model .*{right}$"):
        convert(file, wrong, tmp_path / "out")
    model = convert(file, right, tmp_path / "out").config.model
    assert (model.name, model.weight_bits, model.activation_bits) == (right, *bits)


def test_an_unknown_network_a_full_folder_and_a_missing_file_are_refused(tmp_path):
    file = write_official(official_net("resnet20_1w1a"), tmp_path / "a.pth.tar")
    with pytest.raises(ConfigError, match=f"--model resnet50: official checkpoints are of {', '.join(KNOWN)}"):
        convert(file, "resnet50", tmp_path / "out")
    with pytest.raises(ConfigError, match="there already and not empty"):
        convert(file, "resnet20_1w1a", tmp_path)
    with pytest.raises(ConfigError, match=r"there is no file .*name an official checkpoint"):
        convert(tmp_path / "none.pth.tar", "resnet20_1w1a", tmp_path / "out")


def test_data_with_another_number_of_classes_is_refused(tmp_path):
    root = make_tree(tmp_path / "data", train=4, val=4, classes=2, size=(32, 32))
    prepare_folder(root, workers=1)
    convert(write_official(official_net("resnet20_1w1a"), tmp_path / "a.pth.tar"), "resnet20_1w1a", tmp_path / "out")
    with pytest.raises(ConfigError, match="tells 10 classes apart, the data has 2"):
        evaluate_request(prepare(tmp_path / "out", root, batch_size=None, loader="torchvision", weights="auto"))


def test_the_command_says_what_it_found_and_what_to_do_next(tmp_path):
    file = write_official(official_net("vgg_small_1w1a"), tmp_path / "a.pth.tar", model="vgg_small_1w1a")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["ckpt", "convert", str(file), "--model", "vgg_small_1w1a", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "vgg_small_1w1a, 1W1A, 10 classes, reference numerics" in done.output
    assert "the file says: model vgg_small_1w1a, epoch 1000, best top-1 86.75 %" in done.output
    assert f"reste evaluate {out} --data ROOT" in done.output
    manifest = checkpoint.read_manifest(checkpoints.resolve(out))
    assert manifest["converted"]["sha256"] == checkpoint.file_digest(file)
