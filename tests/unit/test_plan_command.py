"""`reste plan` as it is typed: what it prints, what it refuses, and that its figures agree with the trainer's rules."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.plan_options import counts
from trainer.distributed.batchnorm import choose_group_size
from trainer.errors import ConfigError
from trainer.tracking.manifest import build_manifest

ROOT = Path(__file__).resolve().parents[2]
RESNET18 = str(ROOT / "configs" / "imagenet" / "resnet18_reste.yaml")


def plan(*arguments: str, config: str = RESNET18) -> str:
    done = CliRunner().invoke(app, ["plan", config, *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def values(*arguments: str) -> dict[str, Any]:
    return json.loads(plan(*arguments, "--json"))


def test_the_paper_in_an_hour_is_told_for_both_batches_with_every_assumption() -> None:
    text = plan("--gpus", "8..1024", "--images-per-s", "12000", "--price", "2.5")
    assert "global batch 750" in text
    assert "global batch 2048" in text
    links = ("400 GB/s and 2 us", "50 GB/s and 5 us", "6 us more for every collective")
    for told in ("12000 images/s at 128", *links, "70 % of the backward", "115,000"):
        assert told in text, told
    # More devices than 64 take longer with 750 images; all of these that there are end in time with 2048.
    assert re.search(r"within 1 h: 16 \(\S+ min\), 32 \(\S+ min\), 64 \(\S+ min\)\n", text)
    assert re.search(r"within 1 h: 8 \(.* 1024 \(\S+ min\)\n", text)
    assert "1024: refused: more ranks than a micro-batch has images (750)" in text
    assert "8, 16, 32, 64, 128, 256, 512: 750 images do not divide evenly" in text


def test_the_network_and_its_groups_are_those_of_the_trainer() -> None:
    found = values("--gpus", "8,64", "--batches", "2048", "--images-per-s", "9000", "data.root=nowhere")
    [batch] = found["batches"]
    work = batch["workload"]
    # torchvision's ResNet-18 has 11,689,512 parameters.
    assert work["gradient_bytes"] == pytest.approx(4 * 11.69e6, rel=0.01)
    assert (work["train_images"], work["epochs"], work["evaluations"]) == (1_281_167, 250, 250)
    # The stem's, 16 of binary convolutions, 3 of shortcuts, and one of vectors before the classifier.
    assert len(work["channels"]) == 1 + 16 + 3 + 1
    for row in batch["predictions"]:
        each = 2048 // row["gpus"]
        assert row["images"] == each
        assert row["group"] == choose_group_size(256, images_per_rank=each, world=row["gpus"], local_world=8)
        assert row["bytes_per_s"] == pytest.approx(115_000 * row["images_per_s"])


def test_gradients_of_16_bits_are_half_as_long() -> None:
    options = ("--gpus", "8", "--batches", "2048", "--images-per-s", "9000")
    whole, half = (values(*options, *more)["batches"][0]["workload"] for more in ((), ("train.reduce_dtype=bf16",)))
    assert half["gradient_bytes"] == whole["gradient_bytes"] / 2


def test_options_are_what_is_computed_with() -> None:
    base = ("--gpus", "16", "--batches", "512", "--images-per-s", "5000")
    [usual] = values(*base)["batches"][0]["predictions"]
    for option, worse in (("--between-gb", "1"), ("--between-us", "100"), ("--overlap", "0"), ("--loader", "500")):
        [other] = values(*base, option, worse)["batches"][0]["predictions"]
        assert other["step_s"] > usual["step_s"], option
    [alone] = values(*base, "batchnorm.sync=off")["batches"][0]["predictions"]
    assert alone["batchnorm_s"] == 0
    assert usual["batchnorm_s"] > 0


def test_a_record_gives_the_rates_and_another_network_in_it_is_named(tmp_path: Path) -> None:
    record = tmp_path / "rates.json"
    points = [{"images": 32, "images_per_s": 40.0}, {"images": 64, "images_per_s": 50.0}]
    content = {"device": "2 cores", "model": "resnet20_1w1a", "image_size": 16, "precision": "fp32", "points": points}
    record.write_text(json.dumps(content | {"command": "any further key"}))
    text = plan("--gpus", "1", "--record", str(record), "--batches", "64")
    assert "40 images/s at 32, 50 images/s at 64 (2 cores" in text
    assert "beware: measured was" in text
    found = values("--gpus", "1", "--record", str(record), "--batches", "64")
    assert found["batches"][0]["predictions"][0]["images_per_s"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--images-per-s", "1", "--record", "x.json"], "leave one of them out"),
        (["--record", "x.json"], "x.json cannot be read"),
        (["--images-per-s", "1", "--gpus", "8..4"], "ends before it begins"),
        (["--images-per-s", "1", "--gpus", "0"], "write numbers from 1 on"),
        (["--images-per-s", "1", "--gpus", "many"], "write numbers from 1 on"),
        (["--images-per-s", "1", "--batches", "x"], "write numbers of images"),
        (["--images-per-s", "1", "--batches", "2000000"], "larger than the training set"),
        (["--images-per-s", "1", "--algorithm", "star"], "none of best, ring, tree"),
        (["--images-per-s", "1000000"], "lower --fixed-ms"),
        (["--images-per-s", "1", "data.expect.train=null"], "sizes of data/imagenet are unknown"),
    ],
)
def test_what_cannot_be_predicted_is_one_line_that_names_the_fix(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(*arguments)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", '{"device": "x"}', '{"points": [{"images": 0}]}'])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, content: str) -> None:
    record = tmp_path / "rates.json"
    record.write_text(content)
    with pytest.raises(ConfigError, match=r"rates\.json is no record of rates") as caught:
        plan("--record", str(record))
    assert "\n" not in str(caught.value)


def test_numbers_of_devices_are_listed_or_doubled() -> None:
    assert counts("8..64") == [8, 16, 32, 64]
    assert counts("6..20") == [6, 12]
    assert counts("24, 8,8..16") == [8, 16, 24]


def test_a_last_batch_that_leaves_a_group_without_images_is_refused() -> None:
    # 1,281,167 images are 1,708 batches of 750 and 167 more.
    found = values("--gpus", "64,128", "--batches", "750", "--images-per-s", "1000", "batchnorm.sync=off")
    fine, refused = (row["refused"] for row in found["batches"][0]["predictions"])
    assert fine is None, "2 images each are enough for batch norm of vectors"
    assert "a batch of 167 images leaves some of 128 groups of batch norm 1, it needs 2" in refused
    kept = values("--gpus", "256", "--batches", "750", "--images-per-s", "1000", "batchnorm.sync=world")
    assert kept["batches"][0]["predictions"][0]["refused"] is None


def test_smaller_images_shorten_the_run_by_their_pixels_and_nothing_else() -> None:
    schedule = "data.image_size_schedule=[[0ep,112],[50%,168]]"
    base = ("--gpus", "1", "--batches", "500", "--images-per-s", "1000", "--fixed-ms", "0", "eval.every=250ep")
    [[usual], [smaller]] = (values(*base, *more)["batches"][0]["predictions"] for more in ((), (schedule,)))
    assert smaller["epoch_s"] == usual["epoch_s"]
    training, evaluation = 250 * usual["epoch_s"], 50_000 / 1000 / 3
    assert usual["run_s"] == pytest.approx(training + evaluation)
    assert smaller["run_s"] == pytest.approx((0.25 + 0.5625) / 2 * training + evaluation)
    # A loader that is slower than the device is as slow for small images, and for images that are evaluated.
    [bound] = values(*base, schedule, "--loader", "500")["batches"][0]["predictions"]
    assert bound["run_s"] == pytest.approx(2 * training + 50_000 / 500)
    cut = values(*base, schedule, "train.max_steps=100000")["batches"][0]["workload"]["sizes"]
    assert [share for share, _ in cut] == [0.25]
    assert cut[0][1] == pytest.approx(100_000 / 2563)
    assert "112 px in epochs 1 to 125" in plan(*base, schedule)


def test_every_stage_of_a_training_is_planned_and_their_times_are_added() -> None:
    # Martinez et al.: a network of full precision first, then three stages at half the batch.
    staged = str(ROOT / "configs" / "imagenet" / "real_to_binary18_stages.yaml")
    options = ("--gpus", "8,600", "--images-per-s", "12000", "--price", "2")
    found = json.loads(plan(*options, "--json", config=staged))
    assert [stage["name"] for stage in found["stages"]] == ["resnet", "real", "binary_activations", "binary"]
    [batches] = zip(*(stage["batches"] for stage in found["stages"]), strict=True)
    assert [(batch["batch_size"], batch["workload"]["epochs"]) for batch in batches] == [
        (512, 100), (256, 75), (256, 75), (256, 100),
    ]  # fmt: skip
    eight, many = found["whole"][0]
    assert eight["run_s"] == pytest.approx(sum(batch["predictions"][0]["run_s"] for batch in batches))
    assert eight["cost"] == pytest.approx(2 * 8 * eight["run_s"] / 3600)
    assert "stage resnet: more ranks than a micro-batch has images (512)" in many["refused"]
    text = plan(*options, config=staged)
    assert "stage 4 of 4, binary: real_to_binary18_1w1a" in text
    assert text.count("400 GB/s and 2 us") == 1, "what is assumed is told once"
    assert "none of these ends within 1 h" in text
    assert text.count("within 1 h") == 1, "of the whole alone"


@pytest.mark.parametrize("place", ["benchmarks/records", "records"])
def test_without_a_rate_it_takes_the_newest_that_was_measured_on_such_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"give --images-per-s X, or --record FILE, or measure it by reste bench step"
    ):
        plan("--gpus", "8")
    machine = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)["machine"]
    what = {"device": "cpu", "model": "resnet18_1w1a", "image_size": 224, "precision": "bf16"}
    for day, each, rate in ((1, machine, 30.0), (2, machine, 40.0), (3, machine | {"cpu": "another"}, 50.0)):
        folder = tmp_path / place / f"2026-01-0{day}_x"
        folder.mkdir(parents=True)
        points = [{"images": 32, "images_per_s": rate}]
        (folder / "step.json").write_text(json.dumps({"machine": each, "points": points} | what))
    (tmp_path / place / "2026-01-04_x").mkdir()
    (tmp_path / place / "2026-01-04_x" / "step.json").write_text('{"rows": []}')
    assert f"40 images/s at 32 (cpu, {place}/2026-01-02_x/step.json)" in plan("--gpus", "8")
