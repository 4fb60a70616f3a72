"""A study of methods without its trainings: which files are methods, what table and page say of finished runs."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from statistics import fmean, median, stdev

import pytest
from trainings import QUICK, ROOT
from typer.testing import CliRunner

from launch.cli import app
from trainer.errors import ConfigError
from trainer.study.cases import Sweep, plan_cases
from trainer.study.methods import find_methods, read, rows, title

TOP1 = {"a-seed7": 90.0, "a-seed8": 91.0, "b-seed7": 95.0, "b-seed8": 92.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "methods"
    made.mkdir()
    (made / "a.yaml").write_text("# The first <method>\nestimator: {name: ste, options: {threshold: 0.5}}\n")
    (made / "b.yaml").write_text("# The second\nquantizer: {scaling: layer}\n")
    return made


def plan(tmp_path: Path, folder: Path) -> Sweep:
    return plan_cases(QUICK, [f"run.dir={tmp_path}", "seed=7"], find_methods(folder), 2, None)


def finish(sweep: Sweep) -> None:
    """Leave of every run what its end is read from: epochs of ten steps, three of them."""
    for point in sweep.points:
        run = sweep.folder(point)
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(sweep.configuration(point).to_yaml())
        result = {"final": {"top1": TOP1[point.name], "loss": 0.5}, "best": {"top1": 99.0}, "seconds": 3.0}
        (run / "result.json").write_text(json.dumps(result | {"steps": 30, "steps_per_epoch": 10}))
        lines = []
        for step in range(1, 31):
            metrics = {"perf/step_time_s": step / 1000, "perf/peak_memory_mib": 100.0 + step}
            if step % 10 == 0:
                metrics["indicator/estimating_error"] = float(step)
                metrics["indicator/estimating_error/layer1"] = -1.0
            lines.append(json.dumps({"type": "metrics", "step": step, "time": 0.0, "metrics": metrics}))
        (run / "journal.jsonl").write_text("\n".join(lines) + "\n")


def test_a_method_is_a_file_and_what_it_sets_becomes_overrides(folder: Path) -> None:
    first, second = find_methods(folder)
    assert (first.name, second.name) == ("a", "b")
    assert first.overrides == ('estimator.name="ste"', "estimator.options.threshold=0.5")
    assert [case.name for case in find_methods(folder, ["b"])] == ["b"]
    assert title(folder / "a.yaml") == "The first <method>"


def test_what_is_no_method_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'c'"):
        find_methods(folder, ["c"])
    with pytest.raises(ConfigError, match="there are no methods in"):
        find_methods(tmp_path)
    (folder / "c.yaml").write_text("# Cheats\ntrain: {epochs: 1000}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml sets train: a method sets model, estimator"):
        find_methods(folder)


def test_rows_are_means_and_deviations_of_the_last_epoch_with_the_best_first(folder: Path, tmp_path: Path) -> None:
    sweep = plan(tmp_path, folder)
    finish(sweep)
    best, other = rows([read(sweep, point) for point in sweep.points])
    assert (best.method, best.runs, other.method) == ("b", 2, "a")
    assert best.means["top1"] == fmean([95, 92])
    assert best.deviations["top1"] == pytest.approx(stdev([95, 92]))
    assert best.means["estimating_error"] == 30.0, "the sum, of the last epoch"
    assert best.means["step_ms"] == pytest.approx(median(range(21, 31)))
    assert best.means["memory_mib"] == 130.0
    assert math.isnan(best.means["gradient_instability"]), "never probed"


def test_the_command_writes_table_picture_and_page_of_what_is_finished(folder: Path, tmp_path: Path) -> None:
    sweep = plan(tmp_path, folder)
    finish(sweep)
    arguments = ["study", "methods", str(QUICK), f"run.dir={tmp_path}", "seed=7", "tracking.enabled=false"]
    arguments += ["--methods", str(folder), "--seeds", "2", "--report"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert re.search(r"b +│ 2 +│ 93\.50 ± 2\.12", done.output)
    with (sweep.directory / "methods.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["method"], row["n"], float(row["top1_mean"])) for row in table] == [("b", "2", 93.5), ("a", "2", 90.5)]
    page = (sweep.directory / "methods.html").read_text(encoding="utf-8")
    assert "The first &lt;method&gt;" in page
    assert "<svg" in page
    assert "http://" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", page)
    assert (sweep.directory / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_every_shipped_method_says_what_it_is_and_can_be_planned() -> None:
    found = find_methods(ROOT / "configs" / "methods")
    assert {"reste", "ste", "identity", "approx_sign"} <= {case.name for case in found}
    for case in found:
        path = ROOT / "configs" / "methods" / f"{case.name}.yaml"
        assert path.read_text(encoding="utf-8").startswith("# "), path
    assert plan_cases(QUICK, [], found, 1, None).points
