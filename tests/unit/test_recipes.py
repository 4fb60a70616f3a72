"""Shipped configurations: what they say of themselves, what follows from them, what makes some of them official."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from launch.cli import app
from trainer.config import flat_config, load_config
from trainer.data.order import part
from trainer.schedule import learning_rate, power

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
OWN = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in FILES}
RECIPES = [path for path in FILES if "run" in OWN[path]]
OFFICIAL = [path for path in RECIPES if "_official" in path.stem]
FACTS = ("# Run:", "# Hardware:", "Time:", "# Expected:", "# Differs from the paper in:")

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda p: f"{p.parent.name}-{p.stem}")


def plan(path: Path, *options: str) -> str:
    """What `--dry-run` prints, in this process."""
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["train", str(path), "--dry-run", *options])
    assert found.exit_code == 0, found.output
    return found.output


@every_recipe
def test_every_recipe_opens_with_its_facts_and_names_itself(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for fact in FACTS:
        assert fact in text, fact
    assert f"reste train configs/{path.relative_to(ROOT / 'configs')}" in text
    assert "extends" in OWN[path]


def test_no_two_recipes_share_a_run_folder_and_fragments_have_none() -> None:
    names = [load_config(path).run.name for path in RECIPES]
    assert len(set(names)) == len(names)
    for path in set(FILES) - set(RECIPES):
        # A study names its runs itself.
        assert path.parent.name == "methods" or path.stem in ("base", "reference", "equilibrium"), path


@every_recipe
def test_every_recipe_can_be_planned_without_its_data(path: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = plan(path, "--nproc", "3")
    for row in ("data", "model", "batch norm", "evaluation", "files"):
        assert f"│ {row} " in printed, row
    assert "over 3 ranks: " in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["imagenet", "cifar10"])
def test_recipes_of_a_data_set_say_its_sizes_so_that_the_plan_has_steps(folder: str) -> None:
    sizes = {"imagenet": (1_281_167, 50_000, 1000), "cifar10": (50_000, 10_000, 10)}[folder]
    for path in (path for path in RECIPES if path.parent.name == folder):
        expect = load_config(path).data.expect
        assert (expect.train, expect.val, expect.classes) == sizes, path


def test_750_images_over_8_ranks_are_cut_exactly_and_the_plan_says_so(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shares = [stop - start for start, stop in (part(0, 750, rank, 8) for rank in range(8))]
    assert (sum(shares), shares.count(94), shares.count(93)) == (750, 6, 2)
    printed = plan(ROOT / "configs" / "imagenet" / "resnet18_reste.yaml", "--nproc", "8")
    assert "750 images a step = 1 micro-batch over 8 ranks: 6 of 94 and 2 of 93" in printed
    assert "2 groups of 4 ranks, 375 images each" in printed
    cut = plan(ROOT / "configs" / "imagenet" / "resnet18_reste.yaml", "--nproc", "8", "train.accumulation=4")
    assert "2 micro-batches over 8 ranks: 4 of 24 and 4 of 23; 2 micro-batches over 8 ranks: 3 of 24 and 5 of 23" in cut
    assert "427250 (250 epochs of 1709)" in printed


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_official_recipes_have_every_official_choice(path: Path) -> None:
    # The official command line's defaults, and what its code fixes.
    flat = flat_config(load_config(path))
    expected = {
        "model.numerics": "reference",
        "model.weight_bits": 1,
        "estimator.name": "reste",
        "estimator.o_end": 3.0,
        "estimator.threshold": 1.5,
        "estimator.knee": 0.1,
        "estimator.normalize": False,
        "estimator.granularity": "epoch",
        "estimator.schedule": "cosine",
        "train.precision": "fp32",
        "train.accumulation": 1,
        "train.drop_last": False,
        "train.label_smoothing": 0.0,
        "train.clip_norm": None,
        "train.ema": None,
        "optim.name": "sgd",
        "optim.lr": 0.1,
        "optim.momentum": 0.9,
        "optim.nesterov": False,
        "optim.weight_decay": 1e-4,
        "optim.no_decay": [],
        "optim.schedule": "reference",
        "batchnorm.sync": "world",
        "augment.flip": True,
    }
    if path.parent.name == "imagenet":
        expected |= {"augment.crop": "rrc", "augment.scale": [0.08, 1.25], "augment.eval_resize": 256}
        expected |= {"optim.warmup": "0ep"}
    else:
        expected |= {"augment.crop": "pad", "augment.pad": 4, "optim.warmup": "5ep"}
    assert {key: flat[key] for key in expected} == expected


def test_official_epochs_batches_and_bits_are_those_published() -> None:
    published = {
        "resnet18_official": ("resnet18_1w1a", 250, 750, 1),
        "resnet34_official": ("resnet34_1w1a", 250, 750, 1),
        "resnet18_official_1w32a": ("resnet18_1w1a", 250, 750, 32),
        "resnet34_official_1w32a": ("resnet34_1w1a", 250, 750, 32),
        "resnet18_official_150ep_b512": ("resnet18_1w1a", 150, 512, 1),
        "resnet18_official_200ep_b512": ("resnet18_1w1a", 200, 512, 1),
        "resnet18_official_200ep_b750": ("resnet18_1w1a", 200, 750, 1),
        "resnet20_1w1a_official": ("resnet20_1w1a", 1000, 256, 1),
        "resnet20_bireal_1w1a_official": ("resnet20_bireal_1w1a", 1000, 256, 1),
        "resnet20_1w32a_official": ("resnet20_1w1a", 1000, 256, 32),
        "vgg_small_1w1a_official": ("vgg_small_1w1a", 1000, 256, 1),
        "resnet18_1w1a_official": ("resnet18_cifar_1w1a", 2000, 96, 1),
    }
    found = {}
    for path in OFFICIAL:
        config = load_config(path)
        found[path.stem] = (
            config.model.name,
            config.train.epochs,
            config.train.batch_size,
            config.model.activation_bits,
        )
    assert found == published


@pytest.mark.parametrize(
    ("name", "steps", "last_rate", "last_power"),
    [
        ("imagenet/resnet18_official", 1709, 3.948e-6, 2.98743),
        ("imagenet/resnet18_official_200ep_b512", 2503, 6.168e-6, 2.98429),
        ("cifar10/resnet20_1w1a_official", 196, 6.218e-6, 2.99686),
    ],
)
def test_official_schedules_end_where_the_official_code_ends(
    name: str, steps: int, last_rate: float, last_power: float
) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    last = config.train.epochs * steps - 1
    assert learning_rate(config, steps)(last) == pytest.approx(last_rate, rel=1e-3)
    assert power(config, steps)(last) == pytest.approx(last_power, abs=1e-5)


def test_every_official_choice_has_its_row_among_the_differences() -> None:
    official = flat_config(load_config(ROOT / "configs" / "reference.yaml"))
    default = flat_config(load_config(None))
    changed = {key for key in official if official[key] != default[key]}
    text = (ROOT / "docs" / "differences.md").read_text(encoding="utf-8")
    # The official schedule brings its granularity along; threshold and knee are what null stands for.
    same = {"optim.granularity", "estimator.threshold", "estimator.knee"}
    assert {key for key in changed if f"`{key}=" not in text} == same
    assert len(changed - same) >= 5


def test_every_option_of_the_official_command_line_has_its_row() -> None:
    options = [
        *(
            "results_dir",
            "save",
            "resume",
            "start_epoch",
            "evaluate",
            "seed",
            "model",
            "dataset",
            "data_path",
            "ts_type",
        ),
        *("gpus", "lr", "weight_decay", "momentum", "workers", "epochs", "batch_size", "batch_size_test", "print_freq"),
        *("time_estimate", "a32", "warm_up", "estimator", "o_end", "cal_ind"),
    ]
    text = (ROOT / "docs" / "from_the_reference.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--")]
    assert [row.split("`")[1].removeprefix("--") for row in rows] == options
    assert f"with {len(options)} options" in text
