"""A study of cases without its trainings: which runs it has, what it refuses, what its tables say of finished ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from trainings import QUICK
from typer.testing import CliRunner, Result

from launch.cli import app
from trainer.errors import ConfigError, DataError
from trainer.study.cases import Sweep, parse_case, plan_cases, read, write_tables
from trainer.study.sweep import is_finished

SCORES = {  # top-1, best top-1, loss, seconds
    "plain-seed7": (90.0, 91.0, 0.5, 10.0),
    "plain-seed8": (92.0, 92.0, 0.25, 14.0),
    "steep-seed7": (80.0, 85.0, 1.5, 12.0),
}


def sweep(folder: Path, *cases: str, seeds: int = 2, overrides: tuple[str, ...] = ()) -> Sweep:
    given = [f"run.dir={folder}", "seed=7", *overrides]
    return plan_cases(QUICK, given, [parse_case(case) for case in cases], seeds, None)


def finish(plan: Sweep, name: str) -> None:
    """Leave of a run what its end is read from."""
    [point] = [point for point in plan.points if point.name == name]
    top1, best, loss, seconds = SCORES[name]
    folder = plan.folder(point)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(plan.configuration(point).to_yaml())
    result = {"final": {"top1": top1, "loss": loss}, "best": {"top1": best}, "seconds": seconds}
    (folder / "result.json").write_text(json.dumps(result | {"steps": 30, "steps_per_epoch": 10}))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_case_is_a_name_and_words_as_a_shell_cuts_them() -> None:
    case = parse_case("a.b-1 : optim.lr=0.1 'data.synthetic={samples: 64, classes: 10}'")
    assert case.name == "a.b-1"
    assert case.overrides == ("optim.lr=0.1", "data.synthetic={samples: 64, classes: 10}")
    assert parse_case("published:").overrides == ()


@pytest.mark.parametrize("text", ["", "optim.lr=0.1", ":", "a b: seed=1", "../a:", "a: optim.lr", "a: x='1", "-a:"])
def test_what_is_no_case_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="write 'NAME: key=value key=value'") as caught:
        parse_case(text)
    assert "\n" not in str(caught.value)


def test_every_case_has_a_run_for_each_seed_with_its_overrides_over_those_of_all(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "plain:", "steep: estimator.o_end=5 optim.lr=0.2", overrides=("optim.lr=0.05",))
    assert plan.directory == tmp_path / "digits-study"
    found = [plan.configuration(point) for point in plan.points]
    assert [(c.run.name, c.seed, c.estimator.o_end, c.optim.lr) for c in found] == [
        ("plain-seed7", 7, 1.5, 0.05),
        ("plain-seed8", 8, 1.5, 0.05),
        ("steep-seed7", 7, 5.0, 0.2),
        ("steep-seed8", 8, 5.0, 0.2),
    ]
    assert [c.run_dir for c in found] == plan.folders
    assert {c.tracking.uri for c in found} == {f"sqlite:///{tmp_path / 'mlflow.db'}"}


def test_a_case_cannot_move_its_runs_out_of_the_study(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "moved: 'run={dir: elsewhere, name: other}' 'tracking={uri: sqlite:///other.db}'", seeds=1)
    config = plan.configuration(plan.points[0])
    assert config.run_dir == plan.folder(plan.points[0]) == tmp_path / "digits-study" / "moved-seed7"
    assert config.tracking.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("cases", "overrides", "word"),
    [
        (("a:", "a: optim.lr=1"), (), "two cases are named a"),
        (("a: seed=3",), (), "seed is the study's to set.*--seeds"),
        (("a: run.dir=x",), (), r"run\.dir"),
        (("a:",), ("resume=never",), "resume"),
        (("a:", "b: optim.lrr=1"), (), r"case b: .*optim\.lrr"),
        (("a:",), ("optim.lrr=1",), r"^(?!case).*optim\.lrr"),
    ],
)
def test_what_makes_no_study_is_refused_in_one_line(
    tmp_path: Path, cases: tuple[str, ...], overrides: tuple[str, ...], word: str
) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        sweep(tmp_path, *cases, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_tables_hold_every_finished_run_and_mean_spread_and_number_of_each_case(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "plain:", "steep: estimator.o_end=5")
    for name in SCORES:
        finish(plan, name)
    finished = [point for point in plan.points if is_finished(plan, point)]
    assert [point.name for point in finished] == list(SCORES)
    write_tables(plan, [read(plan, point) for point in finished])
    runs = rows(plan.runs_table)
    assert [row["run"] for row in runs] == list(SCORES)
    assert [(row["case"], row["seed"]) for row in runs] == [("plain", "7"), ("plain", "8"), ("steep", "7")]
    names = ("top1", "best_top1", "loss", "seconds")
    assert [tuple(float(row[name]) for name in names) for row in runs] == list(SCORES.values())
    plain, steep = rows(plan.cases_table)
    assert (plain["case"], plain["n"], steep["case"], steep["n"]) == ("plain", "2", "steep", "1")
    # Of two values the mean is their middle and a sample's deviation their distance over the root of 2.
    assert float(plain["top1_mean"]) == 91.0
    assert float(plain["top1_sd"]) == pytest.approx(2 / 2**0.5)
    assert float(plain["loss_sd"]) == pytest.approx(0.25 / 2**0.5)
    assert float(plain["seconds_mean"]) == 12.0
    assert (steep["best_top1_mean"], steep["best_top1_sd"]) == ("85.0", "")
    assert not list(plan.directory.glob(".*.tmp"))


def report(folder: Path, *words: str) -> Result:
    given = [str(QUICK), f"run.dir={folder}", "seed=7", "tracking.enabled=false", *words, "--report"]
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["study", "runs", *given])


def test_a_report_compares_what_is_finished_and_names_the_rest(tmp_path: Path) -> None:
    cases = ("plain:", "steep: estimator.o_end=5")
    plan = sweep(tmp_path, *cases)
    for name in SCORES:
        finish(plan, name)
    done = report(tmp_path, "--case", cases[0], "--case", cases[1], "--seeds", "2")
    assert done.exit_code == 0, done.output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.output.splitlines() if "│" in line]
    deviations = ("91.00 +- 1.41", "91.50 +- 0.71", "0.3750 +- 0.1768", "12.0 +- 2.8")
    assert ["plain", "2", *deviations] in lines
    assert ["steep", "1", "80.00", "85.00", "1.5000", "12.0"] in lines
    assert "not finished: 1 run (steep-seed8)" in done.output
    assert plan.cases_table.exists()


def test_a_report_of_nothing_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    done = report(tmp_path, "--case", "plain:")
    assert isinstance(done.exception, ConfigError)
    assert "no run in" in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    plan = sweep(tmp_path, "plain:", seeds=1)
    finish(plan, "plain-seed7")
    (plan.folder(plan.points[0]) / "result.json").write_text('{"final": {}}')
    with pytest.raises(DataError, match=r"result\.json is damaged"):
        read(plan, plan.points[0])


def test_a_case_whose_meaning_changed_is_refused_with_what_differs(tmp_path: Path) -> None:
    finish(sweep(tmp_path, "plain:"), "plain-seed7")
    other = sweep(tmp_path, "plain: optim.lr=0.05")
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 -> 0\.05"):
        is_finished(other, other.points[0])
