"""A power that probes steer: moved by what is measured, equal after a resume and on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from spawn import run_ranks
from trainings import QUICK, SMALL, losses, metrics, train_here

pytestmark = pytest.mark.slow
STEERED = (
    *SMALL,
    "data.loader=synthetic",
    "data.synthetic={samples: 32, classes: 10}",
    "train.batch_size=16",
    "train.epochs=4",
    "train.precision=fp64",
    "eval.every=0",
    "log.every=1",
    "log.indicators_every=2",
    "estimator.o_end=3",
)


def powers(journal: Path) -> list[float]:
    return [values["estimator/power"] for _, values in metrics(journal) if "estimator/power" in values]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, *more: str) -> list[str]:
        return [*STEERED, "estimator.hold_instability=1.0e3", *more, f"run.dir={folder}", f"run.name={name}"]

    for world in (1, 2):
        commands = [run(f"whole{world}")]
        if world == 1:
            commands += [
                run("halves", "train.max_steps=5"),
                run("halves"),
                run("low", "estimator.hold_instability=1e-30"),
            ]
        codes = run_ranks(train_here, world, str(QUICK), *commands, timeout_s=280, join=False)
        assert codes == [[0] * len(commands)] * world
    return folder


def test_the_power_rises_after_each_probe_while_less_than_wanted_is_measured(folder: Path) -> None:
    found = powers(folder / "whole1" / "journal.jsonl")
    assert found == pytest.approx([1, 1, *[1.25] * 2, *[1.25**2] * 2, *[1.25**3] * 2])
    assert powers(folder / "low" / "journal.jsonl") == [1.0] * 8


def test_a_resumed_run_goes_on_with_the_power_it_had(folder: Path) -> None:
    whole, halves = (folder / name / "journal.jsonl" for name in ("whole1", "halves"))
    assert powers(halves) == powers(whole)
    assert losses(halves) == losses(whole)


def test_two_ranks_steer_alike(folder: Path) -> None:
    one, two = (folder / name / "journal.jsonl" for name in ("whole1", "whole2"))
    assert powers(two) == pytest.approx(powers(one))
    assert losses(two) == pytest.approx(losses(one), rel=1e-9)
