"""Stand-ins for samples that cannot be read: which, for which steps, and on which ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data.index import Index, Paths
from trainer.data.order import Augment, Plan, TrainOrder
from trainer.data.quarantine import Finding, Quarantine
from trainer.errors import DataError
from trainer.quarantine import read_list

SAMPLES, SEED = 40, 9


def index(n: int = SAMPLES) -> Index:
    """Every sample has a label and a size that no other has."""
    count = np.arange(n)
    return Index(
        split="train",
        paths=Paths.of(f"train/c/{i}.JPEG" for i in range(n)),
        labels=count.astype(np.int64),
        heights=(count + 100).astype(np.int32),
        widths=(count + 200).astype(np.int32),
        bytes=np.full(n, 1000, np.int64),
        crc32=count.astype(np.uint32),
        classes=[str(i) for i in range(n)],
    )


def finding(sample: int, step: int = 0, rank: int = 0) -> Finding:
    return Finding(sample, f"train/c/{sample}.JPEG", "torn", step, rank)


def stand_in(sample: int, out: set[int]) -> int:
    """The documented stand-in, from NumPy's generator alone: stream 3, four attempts a block, one row a sample."""
    for attempt in range(1000):
        block, word = divmod(attempt, 4)
        philox = np.random.Philox(
            key=np.array([SEED, (3 << 32) + block], np.uint64), counter=np.array([sample, 0, 0, 0], np.uint64)
        )
        candidate = int(int(philox.random_raw(4)[word] >> np.uint64(11)) * 2.0**-53 * SAMPLES)
        if candidate not in out:
            return candidate
    raise AssertionError


def order(rank: int = 0, world: int = 1, accumulation: int = 1) -> TrainOrder:
    return TrainOrder(index(), Augment(32), seed=SEED, batch_size=10, accumulation=accumulation, rank=rank, world=world)


def joined(plans: list[Plan]) -> dict[str, np.ndarray]:
    """The slices of all ranks put together."""
    columns = {name: [getattr(p, name) for p in plans] for name in ("ids", "labels", "heights", "widths", "flips")}
    columns["windows"] = [plan.geometry.windows for plan in plans]
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def test_the_stand_in_is_the_first_sample_drawn_that_is_not_out() -> None:
    out = set(range(36))
    quarantine = Quarantine(SEED, SAMPLES)
    quarantine.add(finding(sample) for sample in out)
    found = quarantine.replaced(np.arange(SAMPLES), 0)
    assert found.tolist() == [stand_in(i, out) if i in out else i for i in range(SAMPLES)]
    assert len(set(found.tolist())) == 4


def test_a_stand_in_brings_its_own_label_and_size_and_takes_the_crop_words_of_the_position() -> None:
    plain, replacing = order(), order()
    replacing.quarantine.add([finding(7)])
    for before, after in zip(plain.plans(0, 4), replacing.plans(0, 4), strict=True):
        wanted = [stand_in(7, {7}) if sample == 7 else sample for sample in before.ids.tolist()]
        assert after.ids.tolist() == wanted
        assert after.labels.tolist() == wanted
        assert after.heights.tolist() == [sample + 100 for sample in wanted]
        assert after.widths.tolist() == [sample + 200 for sample in wanted]
        np.testing.assert_array_equal(after.flips, before.flips)
        same = before.ids != 7
        np.testing.assert_array_equal(after.geometry.windows[same], before.geometry.windows[same])
        bottom = after.geometry.windows[:, 0] + after.geometry.windows[:, 2]
        assert (bottom <= after.heights).all()


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (3, 1), (4, 2)])
def test_the_same_batch_arises_on_every_number_of_ranks(world: int, accumulation: int) -> None:
    out = [finding(3), finding(11), finding(stand_in(3, {3}))]
    alone, ranks = order(accumulation=accumulation), [order(rank, world, accumulation) for rank in range(world)]
    for each in (alone, *ranks):
        each.quarantine.add(out)
    for whole, *parts in zip(alone.plans(0, 8), *(each.plans(0, 8) for each in ranks), strict=True):
        wanted, found = joined([whole]), joined(parts)
        for name, column in wanted.items():
            np.testing.assert_array_equal(found[name], column, err_msg=name)


def test_a_sample_is_out_from_its_step_on_and_not_before() -> None:
    given = order()
    plain = list(order().plans(0, 8))
    held = [plan.step for plan in plain if 5 in plan.ids]
    assert len(held) == 2
    given.quarantine.add([finding(5, step=held[1])])
    for step in range(8):
        [plan] = given.plans(step, step + 1)
        assert (5 in plan.ids.tolist()) == (step == held[0])
        assert plan.ids.tolist() == given.again(plain[step]).ids.tolist()


def test_the_earliest_finding_counts_and_those_of_later_steps_are_not_told_yet() -> None:
    quarantine = Quarantine(SEED, SAMPLES)
    quarantine.add([finding(5, step=9), finding(1, step=4), finding(5, step=3, rank=1), finding(5, step=7)])
    assert quarantine.before(4) == [finding(5, step=3, rank=1)]
    assert quarantine.before(5) == [finding(5, step=3, rank=1), finding(1, step=4)]


def test_too_many_are_refused_with_the_last_one_and_the_key() -> None:
    quarantine = Quarantine(SEED, SAMPLES)
    quarantine.add([finding(5, step=9), finding(1, step=4)])
    quarantine.check(2)
    quarantine.check(1, before=9)
    with pytest.raises(DataError, match=r"2 training images .*max_quarantined=1 .*train/c/5.JPEG \(torn\)"):
        quarantine.check(1)
    quarantine.add(finding(sample) for sample in range(SAMPLES))
    quarantine.check(SAMPLES)
    with pytest.raises(DataError, match="no training image can be read"):
        quarantine.replaced(np.arange(3), 9)


def listed(folder: Path, *lines: object) -> Path:
    file = folder / "quarantine.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def line_of(sample: int, **other: object) -> dict[str, object]:
    return {"sample": sample, "path": f"train/c/{sample}.JPEG", "reason": "torn", "step": 4, "rank": 1, **other}


def test_a_list_comes_back_as_findings(tmp_path: Path) -> None:
    assert read_list(tmp_path / "quarantine.jsonl", index()) == []
    assert read_list(listed(tmp_path, line_of(3), line_of(8)), index()) == [finding(3, 4, 1), finding(8, 4, 1)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"sample": 3, "pa', "is damaged: mend the line, or remove it"),
        ("[]", "is damaged"),
        (line_of(3, step="4"), "is damaged"),
        (line_of(3, path="train/c/4.JPEG"), "of other data than data.root holds now: remove the file"),
        (line_of(SAMPLES), "of other data"),
        (line_of(-1, path=f"train/c/{SAMPLES - 1}.JPEG"), "of other data"),
    ],
)
def test_a_damaged_or_foreign_list_is_refused_with_its_line(line: object, says: str, tmp_path: Path) -> None:
    file = listed(tmp_path, line_of(1), line)
    with pytest.raises(DataError) as caught:
        read_list(file, index())
    assert f"{file}:2 " in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
