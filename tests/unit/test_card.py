"""`reste card` of runs written by hand: what it says, what timm and the hub's library read in it, what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from report_runs import CLASSES, write_run
from typer.testing import CliRunner

import models
from launch.cli import app
from trainer import checkpoints
from trainer.card.folder import load_trained, preprocessing
from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.network import create_network

assert models.MODELS, "registered with timm"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    expect = "data.expect={train: 50000, val: 10000, classes: 10}"
    write_run(folder, expect, "train.epochs=1000", "train.batch_size=256", top1=(40.0, 86.25, 70.0))
    return folder


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card")
    (out / "kept.txt").write_text("of somebody else")
    done = CliRunner().invoke(app, ["card", str(run), "--out", str(out), "--license", "cc-by-nc-4.0"])
    assert done.exit_code == 0, done.output
    return out


def test_the_folder_holds_a_card_and_what_timm_loads_beside_what_was_there(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "kept.txt",
        "model.safetensors",
    ]


def test_timm_makes_the_best_checkpoint_again(run: Path, folder: Path) -> None:
    best = checkpoints.best(run / "checkpoints")
    assert best is not None
    assert best.name == "step_00000040"
    ours = create_network(load_config(best / "config.yaml"), CLASSES, torch.device("cpu")).eval()
    ours.load_state_dict(torch.load(best / "model.pt", weights_only=True))
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    # Sums are rounded otherwise where channels lie last.
    images, ours = torch.randn(4, 3, 16, 16), ours.to(memory_format=torch.contiguous_format)
    assert torch.equal(theirs(images), ours(images))
    assert str(theirs) == str(ours)
    assert theirs.pretrained_cfg["label_names"] == CLASSES
    assert tuple(timm.data.resolve_model_data_config(theirs)["input_size"]) == (3, 16, 16)


def test_the_hubs_library_reads_numbers_and_licence_in_the_header(folder: Path) -> None:
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-nc-4.0", "timm", "image-classification")
    assert data.datasets == ["cifar10"]
    assert data.eval_results is not None
    assert [(r.metric_name, r.metric_value) for r in data.eval_results] == [
        ("top-1 accuracy", 86.25),
        ("top-5 accuracy", 99.5),
    ]


def test_the_card_says_numbers_recipe_and_licence_in_words(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "| this model | 86.250 | 99.500 |" in text
    assert "| the paper, 1000 epochs of 256, the same schedule | 86.75 | - |" in text
    for line in ("train.epochs=1000", "train.batch_size=256", "optim.warmup=3ep"):
        assert f"\n{line}\n" in text
    for key in ("run.dir", "data.root", "optim.momentum"):
        assert f"\n{key}=" not in text
    assert "`cc-by-nc-4.0`" in text
    assert "not ±1" in text
    assert "\n\n\n\n" not in text


def card_of_the_last(run: Path, out: Path) -> str:
    done = CliRunner().invoke(app, ["card", str(run / "checkpoints" / "step_00000060"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return (out / "README.md").read_text()


def test_a_checkpoint_that_is_not_the_best_has_its_own_number_and_is_not_called_the_best(
    run: Path, folder: Path, tmp_path: Path
) -> None:
    text = card_of_the_last(run, tmp_path / "last")
    assert "| this model | 70.000 | 99.500 |" in text
    assert "the best of its run" not in text
    assert "not evaluated" not in text
    [top1, _] = ModelCard.load(tmp_path / "last" / "README.md").data.eval_results or []
    assert top1.metric_value == 70
    assert "the best of its run" in (folder / "README.md").read_text()


def test_a_checkpoint_between_two_evaluations_claims_no_number(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "eval.every=2ep")  # after 40 steps, and not after 60
    text = card_of_the_last(tmp_path / "run", tmp_path / "last")
    assert "has not evaluated this checkpoint" in text
    assert "model-index" not in text


def test_a_card_lies_in_its_run_and_never_in_a_checkpoint_that_the_run_may_remove(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    newest = run / "checkpoints" / "step_00000060"
    before = sorted(newest.iterdir())
    for named in (newest, run / "checkpoints", run / "checkpoints" / "best"):
        done = CliRunner().invoke(app, ["card", str(named)])
        assert isinstance(done.exception, ConfigError)
        assert "name --out DIR" in str(done.exception)
    assert sorted(newest.iterdir()) == before
    assert not list(run.rglob("card"))
    assert CliRunner().invoke(app, ["card", str(run)]).exit_code == 0
    assert (run / "card" / "README.md").is_file()


@pytest.mark.parametrize(("size", "short"), [(224, 256), (224, 257), (176, 232), (32, 32), (32, 24), (97, 113)])
def test_timm_resizes_to_exactly_the_side_that_our_evaluation_takes(size: int, short: int) -> None:
    config = load_config(None, [f"data.image_size={size}", f"augment.eval_resize={short}"])
    found = preprocessing(config)
    assert math.floor(size / found["crop_pct"]) == short
    assert json.loads(json.dumps(found))["crop_pct"] == found["crop_pct"]


def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    newest = checkpoints.steps(tmp_path / "run" / "checkpoints")[-1]
    (newest / "model.pt").write_bytes(b"spoiled")
    with pytest.raises(ConfigError, match=r"model.pt is damaged.*another checkpoint"):
        load_trained(newest)
    done = CliRunner().invoke(app, ["card", str(newest), "--out", str(tmp_path / "out")])
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "out").exists()
