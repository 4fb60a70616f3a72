"""The equilibrium study without its trainings: which runs a sweep has, and what is read from finished ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from trainings import QUICK

from trainer.config import Config, load_config
from trainer.errors import ConfigError, DataError
from trainer.study.equilibrium import Sweep, parse_powers, plan_sweep, read, write_table
from trainer.study.figure import draw
from trainer.study.sweep import is_finished

STEPS_PER_EPOCH = 10


def sweep(folder: Path, *overrides: str, o_end: str = "1,1.5,3", seeds: int = 1) -> Sweep:
    return plan_sweep(QUICK, [f"run.dir={folder}", *overrides], parse_powers(o_end), seeds, None)


def finish(plan: Sweep, which: int, *, every: int = 5) -> None:
    """Leave what a finished run of 30 steps leaves: probe s of power o has error 100 s + o and instability s / 1000."""
    point = plan.points[which]
    folder = plan.folder(point)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(plan.configuration(point).to_yaml())
    lines = [{"type": "event", "step": 0, "time": 1.0, "event": "started"}]
    for step in range(1, 31):
        lines.append({"type": "metrics", "step": step, "time": 1.0, "metrics": {"train/loss": 1.0}})
        if step % every == 0:
            probe = {"estimating_error": 100 * step + point.o_end, "estimating_error/layer1": 7.0}
            probe |= {"gradient_instability": step / 1000, "activation_error_current": 0.5}
            metrics = {f"indicator/{name}": value for name, value in probe.items()}
            lines.append({"type": "metrics", "step": step, "time": 1.0, "metrics": metrics})
    (folder / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {"top1": 90 - point.o_end, "top5": 99.0, "loss": 0.3}
    result = {"exit_code": 0, "final": scores, "best": scores | {"top1": 95.0}, "steps": 30, "seconds": 1.0}
    (folder / "result.json").write_text(json.dumps(result | {"steps_per_epoch": STEPS_PER_EPOCH}))


@pytest.mark.parametrize("text", ["", "1,x", "0.5,1", "1,,2", "1,1", "nan", "inf"])
def test_powers_that_make_no_sweep_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--o-end"):
        parse_powers(text)


def test_a_sweep_has_a_run_for_every_power_and_seed_that_differs_in_nothing_else(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "seed=7", "optim.lr=0.05", o_end="1,1.5", seeds=2)
    assert plan.directory == tmp_path / "digits-equilibrium"
    found = [plan.configuration(point) for point in plan.points]
    assert [(c.estimator.o_end, c.seed) for c in found] == [(1.0, 7), (1.0, 8), (1.5, 7), (1.5, 8)]
    assert [c.run.name for c in found] == ["o1-seed7", "o1-seed8", "o1.5-seed7", "o1.5-seed8"]
    # The store of ordinary runs, not one of the study's own.
    assert {c.tracking.uri for c in found} == {f"sqlite:///{tmp_path / 'mlflow.db'}"}
    assert {c.log.indicators_every for c in found} == {"0.1ep"}
    assert {c.run_dir for c in found} == {plan.folder(point) for point in plan.points}

    def rest(config: Config) -> dict[str, object]:
        values = config.model_dump()
        for group, key in (("estimator", "o_end"), ("run", "name"), ("run", "dir"), ("tracking", "uri")):
            del values[group][key]
        return values | {"seed": 0, "log": None}

    assert all(rest(config) == rest(load_config(QUICK, ["optim.lr=0.05"])) for config in found)


def test_the_study_may_be_put_elsewhere_and_probed_at_another_pace(tmp_path: Path) -> None:
    out = tmp_path / "a folder: with # signs"
    plan = plan_sweep(QUICK, ["log.indicators_every=3"], [2.0], 1, out)
    config = plan.configuration(plan.points[0])
    assert config.run_dir == out / "o2-seed1234"
    assert config.log.indicators_every == "3"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("estimator.o_end=2", r"estimator\.o_end"),
        ("resume=never", "resume"),
        ("estimator.name=ste", "no power"),
        ("estimator.name=rest", "estimator.name"),
        ("model.weight_bits=32", r"model\.weight_bits=1"),
        ("train.epochs=x", r"train\.epochs"),
    ],
)
def test_what_makes_no_sense_in_a_study_is_refused_in_one_line(tmp_path: Path, override: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        sweep(tmp_path, override)
    assert "\n" not in str(caught.value)


def test_only_runs_that_came_to_their_end_are_finished(tmp_path: Path) -> None:
    plan = sweep(tmp_path)
    finish(plan, 0)
    finish(plan, 1)
    (plan.folder(plan.points[1]) / "result.json").unlink()
    assert [is_finished(plan, point) for point in plan.points] == [True, False, False]
    longer = sweep(tmp_path, "train.max_steps=40")
    assert not is_finished(longer, longer.points[0])


def test_a_run_of_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    finish(sweep(tmp_path), 0)
    other = sweep(tmp_path, "optim.lr=0.05")
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 -> 0\.05.*--out"):
        is_finished(other, other.points[0])


def test_a_reading_is_the_mean_over_the_last_epochs_probes(tmp_path: Path) -> None:
    plan = sweep(tmp_path)
    finish(plan, 2)
    found = read(plan, plan.points[2])
    # Probed at 25 and 30 of steps 21 to 30.
    assert found.indicators == {
        "estimating_error": (2503 + 3003) / 2,
        "gradient_instability": 0.0275,
        "activation_error_current": 0.5,
    }
    assert (found.probes, found.top1, found.best_top1, found.loss) == (2, 87.0, 95.0, 0.3)


def test_a_last_epoch_without_a_probe_is_an_error(tmp_path: Path) -> None:
    plan = sweep(tmp_path)
    finish(plan, 0, every=16)
    with pytest.raises(DataError, match=r"log\.indicators_every=1ep"):
        read(plan, plan.points[0])


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    plan = sweep(tmp_path)
    finish(plan, 0)
    (plan.folder(plan.points[0]) / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result\.json is damaged"):
        read(plan, plan.points[0])


def test_table_and_figure_hold_every_run(tmp_path: Path) -> None:
    from PIL import Image

    plan = sweep(tmp_path, seeds=2)
    for which in range(6):
        finish(plan, which)
    readings = [read(plan, point) for point in plan.points]
    write_table(readings, plan.table)
    with plan.table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(o_end, seed) for o_end in ("1", "1.5", "3") for seed in ("1234", "1235")]
    assert [(row["o_end"], row["seed"]) for row in rows] == pairs
    assert [float(row["estimating_error"]) for row in rows] == [r.indicators["estimating_error"] for r in readings]
    assert rows[-1]["run"] == "o3-seed1235"
    assert rows[-1]["top1"] == "87.0"
    draw(readings, plan.figure, title="a title")
    first = plan.figure.read_bytes()
    draw(readings, plan.figure, title="a title")
    assert plan.figure.read_bytes() == first
    with Image.open(plan.figure) as image:
        assert image.format == "PNG"
        assert min(image.size) >= 400
        assert len(image.getcolors(1_000_000)) > 20
    assert not list(plan.directory.glob(".*.tmp"))
