"""`reste study runs` with real trainings: what it compares, what a failed run leaves, how it is taken up again."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import fmean, stdev

import pytest
from trainings import QUICK, reste

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
TINY = (
    "data.loader=synthetic",
    "data.synthetic={samples: 64, classes: 10}",
    "data.image_size=16",
    "train.batch_size=16",
    "train.epochs=1",
    "train.compile=false",
    "optim.warmup=0ep",
    "eval.every=0",
    "log.indicators_every=100",
)


def study(folder: Path, *words: str) -> list[str]:
    return ["study", "runs", str(QUICK), *TINY, f"run.dir={folder}", *words]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_failed_run_is_named_and_the_others_are_trained_and_compared(tmp_path: Path) -> None:
    command = study(tmp_path, "tracking.enabled=false", "--case", "wild: optim.lr=1e37", "--case", "plain:")
    done = reste(*command, threads=1)
    assert done.returncode == 4, done.stderr
    [error] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "1 run failed: wild-seed1234; start the same command again" in error
    assert "not finite at step" in error
    assert "alone: reste train" in done.stdout
    assert "optim.lr=1e37" in done.stdout
    assert "not finished: 1 run (wild-seed1234)" in done.stdout
    folder = tmp_path / "digits-study"
    result = json.loads((folder / "plain-seed1234" / "result.json").read_text())
    [case] = rows(folder / "cases.csv")
    assert (case["case"], case["n"], float(case["top1_mean"])) == ("plain", "1", result["final"]["top1"])


def test_a_study_grows_by_seeds_and_runs_trained_apart_come_below_its_mlflow_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    case = ("--case", "steep: estimator.o_end=5")
    done = reste(*study(tmp_path, *case), threads=1)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "digits-study"
    first = (folder / "steep-seed1234" / "journal.jsonl").read_bytes()
    # As a task of an array does: the same training, started by itself.
    apart = [f"run.dir={folder}", "run.name=steep-seed1235", f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"]
    alone = reste("train", QUICK, *TINY, *apart, "seed=1235", "estimator.o_end=5", threads=1)
    assert alone.returncode == 0, alone.stderr
    grown = reste(*study(tmp_path, *case, "--seeds", "3"), threads=1)
    assert grown.returncode == 0, grown.stderr
    assert "3 runs, 1 to train" in grown.stdout
    assert (folder / "steep-seed1234" / "journal.jsonl").read_bytes() == first

    results = [json.loads((folder / f"steep-seed{seed}" / "result.json").read_text()) for seed in (1234, 1235, 1236)]
    losses = [result["final"]["loss"] for result in results]
    [row] = rows(folder / "cases.csv")
    assert (row["n"], float(row["loss_mean"])) == ("3", pytest.approx(fmean(losses)))
    assert float(row["loss_sd"]) == pytest.approx(stdev(losses))
    assert f"{fmean(losses):.4f} +- {stdev(losses):.4f}" in grown.stdout

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'reste'")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(found) == 4
    parent = found.pop("digits-study")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.params["study.cases.steep"] == "estimator.o_end=5"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"cases.csv", "runs.csv"}
