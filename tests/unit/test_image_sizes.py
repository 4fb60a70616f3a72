"""Progressive resizing: which size each epoch has, what stays as it is, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from typer.testing import CliRunner

import trainer
from launch.cli import app
from launch.dry_run import plan_rows
from trainer.assembly import create_orders
from trainer.config import Config, load_config
from trainer.data import datasets
from trainer.data.geometry import Augment
from trainer.data.order import Plan, TrainOrder
from trainer.data.sizes import MOST, ImageSizes
from trainer.data.synthetic import SyntheticLoader, synthetic_index
from trainer.distributed.environment import Environment
from trainer.distributed.forward import Forward
from trainer.errors import ConfigError
from trainer.hardware import apply_switches

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4  # of an epoch of 20 samples, 5 at a time


def configured(schedule: str, *overrides: str, epochs: int = 20) -> Config:
    return load_config(None, [f"data.image_size_schedule={schedule}", f"train.epochs={epochs}", *overrides])


def order(sizes: ImageSizes | None, crop: str = "rrc") -> TrainOrder:
    index = synthetic_index(20, classes=2, size=64)
    return TrainOrder(index, Augment(48, crop=crop), seed=3, batch_size=5, image_sizes=sizes)


def sizes_of(config: Config) -> list[int]:
    return [config.image_sizes.at(epoch) for epoch in range(config.train.epochs)]


def test_every_epoch_has_the_size_that_began_last() -> None:
    found = sizes_of(configured("[[0ep, 128], [65%, 160], [17ep, 192]]"))
    assert found == [128] * 13 + [160] * 4 + [192] * 3


def test_a_size_that_would_begin_within_an_epoch_waits_for_the_next() -> None:
    assert sizes_of(configured("[[0%, 96], [65%, 128]]", epochs=18)) == [96] * 12 + [128] * 6
    assert sizes_of(configured("[[0, 96], [2.5ep, 64], [3.2ep, 32]]", epochs=5)) == [96, 96, 96, 64, 32]


def test_without_a_schedule_every_epoch_has_the_one_size() -> None:
    config = load_config(None, ["data.image_size=96", "train.epochs=3"])
    assert sizes_of(config) == [96] * 3
    assert config.image_sizes.distinct == (96,)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("[[1ep, 128], [5ep, 160]]", "must begin at 0ep, not at 1ep"),
        ("[[0ep, 128], [5ep, 160], [5ep, 192]]", "5ep must begin in a later epoch"),
        ("[[0ep, 128], [9ep, 160], [40%, 192]]", "40% must begin in a later epoch"),
        ("[[0ep, 128], [4.2ep, 160], [4.9ep, 192]]", "4.9ep must begin in a later epoch"),
        ("[[0ep, 128], [20ep, 160]]", "20ep begins after the last of 20 epochs"),
        ("[[0ep, 128], [500, 160]]", "must be epochs as 5ep, or a share of training as 65%, not 500 steps"),
        (str([[f"{i}ep", 32 + i] for i in range(MOST + 1)]), f"has {MOST + 1} different sizes, at most {MOST}"),
        ("[[0ep, 0]]", "data.image_size_schedule"),
        ("[[0ep, 1.5]]", "data.image_size_schedule"),
        ("[[soon, 128]]", "must be a duration"),
        ("[0ep, 128]", "data.image_size_schedule"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_by_name(schedule: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(schedule)
    assert said in str(caught.value)
    assert "data.image_size_schedule" in str(caught.value)


def test_the_resolved_schedule_reads_back_equal(tmp_path: Path) -> None:
    config = configured("[[0ep, 128], [65%, 160]]")
    (tmp_path / "a.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "a.yaml") == config


def shown(plan: Plan) -> list[list[int]]:
    """What is shown of which sample, whatever its size."""
    where = plan.geometry.windows if plan.geometry.kind == "window" else plan.geometry.offsets
    return [plan.ids.tolist(), plan.labels.tolist(), plan.flips.tolist(), where.tolist()]


@pytest.mark.parametrize("crop", ["rrc", "pad", "none"])
def test_samples_windows_and_flips_do_not_depend_on_the_size(crop: str) -> None:
    plain = list(order(None, crop).plans(0, 3 * STEPS))
    resized = list(order(ImageSizes((0, 1), (16, 48)), crop).plans(0, 3 * STEPS))
    assert [plan.geometry.size for plan in resized] == [16] * STEPS + [48] * 2 * STEPS
    assert [shown(plan) for plan in resized] == [shown(plan) for plan in plain]
    if crop == "pad":
        assert {tuple(size) for plan in resized[:STEPS] for size in plan.geometry.sizes.tolist()} == {(16, 16)}


def test_plans_from_any_step_are_those_of_the_whole_training() -> None:
    resizing = order(ImageSizes((0, 1, 2), (16, 32, 24)))
    whole = list(resizing.plans(0, 3 * STEPS))
    for start in (STEPS - 1, STEPS, STEPS + 1):
        rest = list(resizing.plans(start, 3 * STEPS))
        assert [plan.geometry.size for plan in rest] == [plan.geometry.size for plan in whole[start:]]
        assert [shown(plan) for plan in rest] == [shown(plan) for plan in whole[start:]]
        again = resizing.again(whole[start])
        np.testing.assert_array_equal(again.geometry.windows, whole[start].geometry.windows)
        assert again.geometry.size == whole[start].geometry.size


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_made_up_images_of_a_size_are_those_of_a_loader_for_that_size(device: torch.device | None) -> None:
    resizing = order(ImageSizes((0, 1), (16, 32)))
    batches = list(SyntheticLoader(resizing.image_size, device=device).load(resizing.plans(0, 2 * STEPS)))
    assert [tuple(batch.images.shape) for batch in batches] == [(5, 16, 16, 3)] * STEPS + [(5, 32, 32, 3)] * STEPS
    for batch in batches:
        (alone,) = SyntheticLoader(batch.plan.geometry.size, device=device).load([batch.plan])
        assert torch.equal(batch.images, alone.images)


def test_evaluation_keeps_the_one_size() -> None:
    given = configured("[[0ep, 16], [50%, 24]]", "data.loader=synthetic", "data.image_size=32", "train.batch_size=8")
    train, val = create_orders(given, datasets.open_datasets(given), Environment())
    assert (train.image_size, val.image_size) == (24, 32)
    assert {plan.geometry.size for plan in val.plans()} == {32}


def plan_of(*overrides: str) -> str:
    given = ["data.loader=synthetic", "data.image_size=32", "train.batch_size=8", "train.epochs=20", *overrides]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(
        app, ["train", str(ROOT / "configs/base.yaml"), *given, "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    return done.output


def test_the_plan_shows_the_schedule_and_its_cost() -> None:
    printed = plan_of("model.name=resnet20_1w1a", "data.image_size_schedule=[[0ep, 16], [75%, 24]]")
    # (0.75 * 16^2 + 0.25 * 24^2) / 32^2 = 0.328
    assert "16 px in epochs 1 to 15, 24 px in epochs 16 to 20; evaluated at 32 px" in printed
    assert "training sees 33 %" in printed
    assert "image sizes" not in plan_of("model.name=resnet20_1w1a")


def test_a_size_that_the_network_cannot_compute_is_refused_by_name() -> None:
    # Three poolings leave nothing of 4 pixels.
    config = configured("[[0ep, 4], [75%, 24]]", "data.loader=synthetic", "model.name=vgg_small_1w1a")
    with pytest.raises(ConfigError, match=r"^data.image_size_schedule: vgg_small_1w1a cannot take images of 4 pixels"):
        plan_rows(config, 1)


def test_the_compiler_makes_one_graph_for_every_size_and_gives_up_on_none() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1))
    with torch.compiler.set_stance("default", force_backend=counter):
        forward = Forward(net, precision="fp32", compile=True, device=torch.device("cpu"))
        for side in [*range(8, 8 + MOST), *range(8, 8 + MOST)]:
            forward(torch.zeros(2, 3, side, side), whole=True)
    assert counter.frame_count == MOST
    torch._dynamo.reset()


def test_kernels_for_a_gpu_are_refused_on_a_cpu() -> None:
    train = load_config(None, ["train.kernels=triton"]).train
    with pytest.raises(ConfigError, match=r"^train.kernels=triton needs a GPU: set train.kernels=compiled$"):
        apply_switches(train, Environment(), torch.device("cpu"))


def test_both_sizes_of_uneven_micro_batches_are_compiled(tmp_path: Path) -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    made = ("data.loader=synthetic", "data.synthetic={samples: 28, classes: 4}", "tracking.enabled=false")
    size = ("train.batch_size=14", "train.accumulation=4", "train.compile=true", "train.max_steps=1", "eval.every=0")
    place = (f"run.dir={tmp_path}", "run.name=x", "log.indicators_every=0", "data.image_size=16")
    config = load_config(Path(__file__).parents[2] / "configs" / "quickstart.yaml", [*made, *size, *place])
    with torch.compiler.set_stance("default", force_backend=counter):
        run = trainer.build(config)
        try:
            settled = counter.frame_count
            assert trainer.train(run).steps == 1
        finally:
            run.close()
    assert (settled, counter.frame_count) == (2, 2)
    torch._dynamo.reset()
