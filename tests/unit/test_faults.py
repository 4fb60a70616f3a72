"""The fault schedule: what it reads, that each fault comes once and on its rank."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import checkpoint
from trainer.data.batch import Batch, empty_batch
from trainer.data.order import Augment, TrainOrder
from trainer.data.synthetic import synthetic_index
from trainer.errors import ConfigError
from trainer.faults import LEDGER, Faults, parse_faults


def batches(steps: int) -> list[Batch]:
    """One batch of two images a step, every pixel 7."""
    index = synthetic_index(64, classes=2, size=8, split="train")
    order = TrainOrder(index, Augment(image_size=8), seed=0, batch_size=2)
    images = torch.full((2, 8, 8, 3), 7, dtype=torch.uint8)
    return [dataclasses.replace(empty_batch(plan), images=images) for plan in order.plans(0, steps)]


def faults(text: str, folder: Path, rank: int = 0) -> Faults:
    return Faults.from_environment({"RESTE_FAULTS": text}, folder, rank)


def ledger(folder: Path) -> list[tuple[str, int]]:
    lines = (folder / LEDGER).read_text().splitlines()
    return [(json.loads(line)["fault"], json.loads(line)["rank"]) for line in lines]


def test_every_form_of_the_documentation_is_read() -> None:
    text = (
        "kill9@1:40 stop@0:55 exit0@1:60 raise@0:10 nan@1:33 slow@1:20-30 enospc@save:2 flip@ckpt:latest "
        "corrupt@sample:123 tracker_down@20-60 sigterm@*:70 slow@*:2-3=0.25 flip@ckpt:12"
    )
    found = {fault.text: fault for fault in parse_faults(text)}
    assert " ".join(found) == text
    assert (found["slow@1:20-30"].rank, found["slow@1:20-30"].first, found["slow@1:20-30"].last) == (1, 20, 30)
    assert (found["sigterm@*:70"].rank, found["slow@*:2-3=0.25"].seconds) == (None, 0.25)
    assert (found["corrupt@sample:123"].first, found["flip@ckpt:12"].first) == (123, 12)


def test_the_documentation_lists_every_kind_in_a_form_that_is_read() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+@[^`]+)`", text, re.MULTILINE)
    numbers = {"RANK": "0", "STEP": "3", "FIRST-LAST": "3-4", "ID": "7", "N": "2"}
    found = parse_faults(" ".join(re.sub("|".join(numbers), lambda name: numbers[name[0]], form) for form in listed))
    with pytest.raises(ConfigError) as refusal:
        parse_faults("?")
    offered = str(refusal.value).partition("write ")[2].replace(" or ", ", ").split(", ")
    assert {fault.kind for fault in found} == {kind for form in offered for kind in form.split("@")[0].split("|")}


@pytest.mark.parametrize(
    "word", ["kill9", "kill9@1", "kill9@1:0", "kill@1:4", "slow@1:9-3", "enospc@save:0", "nan@x:1"]
)
def test_what_is_no_fault_is_refused_by_name(word: str) -> None:
    with pytest.raises(ConfigError, match=f"RESTE_FAULTS: '{word}'"):
        parse_faults(word)


def test_without_a_schedule_nothing_is_in_the_way(tmp_path: Path) -> None:
    given = iter(batches(1))
    assert faults("", tmp_path).around(given) is given
    assert not list(tmp_path.iterdir())


def test_an_error_comes_at_its_step_and_not_in_the_next_life(tmp_path: Path) -> None:
    stream = faults("raise@0:3", tmp_path).around(iter(batches(5)))
    seen = [next(stream).plan.step, next(stream).plan.step]
    with pytest.raises(RuntimeError, match="injected"):
        next(stream)
    assert seen == [0, 1]
    assert ledger(tmp_path) == [("raise@0:3", 0)]
    assert len(list(faults("raise@0:3", tmp_path).around(iter(batches(5))))) == 5


def test_a_fault_for_every_rank_is_met_by_each(tmp_path: Path) -> None:
    for rank in (0, 1):
        with pytest.raises(RuntimeError):
            list(faults("raise@*:1", tmp_path, rank).around(iter(batches(1))))
    assert ledger(tmp_path) == [("raise@*:1", 0), ("raise@*:1", 1)]
    list(faults("raise@1:1", tmp_path / "other", rank=0).around(iter(batches(1))))


def test_images_of_one_step_become_nan(tmp_path: Path) -> None:
    given = [batch.images for batch in faults("nan@0:2", tmp_path).around(iter(batches(3)))]
    assert [bool(np.isnan(images.numpy()).all()) for images in given] == [False, True, False]
    assert given[0].dtype == torch.uint8


def test_a_range_is_one_fault_of_many_steps(tmp_path: Path) -> None:
    away = faults("tracker_down@2-4", tmp_path)
    down = [away.tracker_is_down(batch.plan.step + 1) for batch in away.around(iter(batches(5)))]
    assert down == [False, True, True, True, False]
    assert ledger(tmp_path) == [("tracker_down@2-4", 0)]
    again = faults("tracker_down@2-4", tmp_path)
    assert not any(again.tracker_is_down(batch.plan.step + 1) for batch in again.around(iter(batches(5))))


def test_an_outage_is_in_the_ledger_even_if_no_tracker_asks(tmp_path: Path) -> None:
    for rank in (0, 1):
        list(faults("tracker_down@2-4", tmp_path, rank).around(iter(batches(5))))
    assert ledger(tmp_path) == [("tracker_down@2-4", 0)]


def test_the_second_save_finds_the_disk_full(tmp_path: Path) -> None:
    schedule = faults("enospc@save:2", tmp_path)
    schedule.writing()
    with pytest.raises(OSError) as error:
        schedule.writing()
    assert error.value.errno == errno.ENOSPC
    schedule.writing()


@pytest.mark.parametrize("text", ["flip@ckpt:latest", "flip@ckpt:2"])
def test_a_flip_changes_one_bit_of_one_file(text: str, tmp_path: Path) -> None:
    progress = checkpoint.Progress(2, 2, 0.0, {}, {}, None, 0, [])
    path = checkpoint.save(
        tmp_path / "checkpoints", {"model": {"w": torch.ones(9)}}, progress=progress, config_yaml="", about={}
    )
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    schedule = faults(text, tmp_path)
    schedule.before_resuming(tmp_path / "checkpoints")
    schedule.written(path, 2)
    changed = [
        bin(old ^ new).count("1")
        for file in path.iterdir()
        for old, new in zip(before[file.name], file.read_bytes(), strict=True)
        if old != new
    ]
    assert changed == [1]
    assert checkpoint.problems(path)
