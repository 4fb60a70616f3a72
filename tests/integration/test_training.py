"""Whole trainings of the real program on real digits: what a run leaves behind, how it stops, what it scores."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainings import QUICK, SMALL, Life, environment, records, reste

pytestmark = pytest.mark.timeout(400)
STEPS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A finished run of two ranks with MLflow on."""
    runs = tmp_path_factory.mktemp("runs")
    done = reste(
        *("train", QUICK, *SMALL, f"data.root={digits}", f"run.dir={runs}", "run.name=whole", "--nproc=2"),
        *(f"train.max_steps={STEPS}", "eval.every=4", "checkpoint.every=3", "tracking.enabled=true"),
    )
    assert done.returncode == 0, done.stderr
    assert "mlflow ui --backend-store-uri" in done.stdout
    assert str(runs / "whole" / "checkpoints") in done.stdout
    return runs / "whole"


def test_the_run_folder_holds_what_it_promises(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert (result["exit_code"], result["steps"], result["samples"]) == (0, STEPS, STEPS * 48)
    assert 0 <= result["final"]["top1"] <= result["best"]["top1"] <= 100
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    assert json.loads((run / "manifest.json").read_text())["world_size"] == 2
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["image_size"] == 16
    assert {path.name for path in (run / "logs").iterdir()} == {"rank_0.log", "rank_1.log"}
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    assert {"best", "step_00000006", "step_00000008"} <= kept
    assert (run / "checkpoints" / "best" / "manifest.json").is_file()


def test_mlflow_holds_every_metric_of_the_journal(run: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'reste'")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.1"
    assert {"config.yaml", "result.json"} <= {item.path for item in client.list_artifacts(found.info.run_id)}
    journal: dict[str, list[tuple[int, float]]] = {}
    for record in records(run / "journal.jsonl"):
        for name, value in record.get("metrics", {}).items():
            journal.setdefault(name, []).append((record["step"], value))
    promised = {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "optim/lr", "estimator/power"}
    promised |= {"perf/images_per_s", "perf/data_wait", "perf/step_time_s"}
    promised |= {"indicator/estimating_error", "indicator/gradient_instability"}
    assert promised <= journal.keys()
    assert "indicator/estimating_error/layer1.0.conv1" in journal
    for name, points in journal.items():
        sent = sorted((m.step, m.value) for m in client.get_metric_history(found.info.run_id, name))
        assert sent == sorted(points), name


def test_evaluation_gives_the_runs_own_numbers_on_any_number_of_ranks(run: Path, digits: Path) -> None:
    best = json.loads((run / "result.json").read_text())["best"]
    for ranks, batch_size in ((1, 50), (2, 7), (4, 33)):
        done = reste("evaluate", run, "--data", digits, "--json", f"--nproc={ranks}", f"--batch-size={batch_size}")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["samples"] == 355
        assert found["top1"] == best["top1"] == 100 * found["correct1"] / 355
        assert found["top5"] == best["top5"]
        assert found["loss"] == pytest.approx(best["loss"], rel=1e-9)


def test_a_finished_run_is_not_trained_again(run: Path, digits: Path) -> None:
    before = (run / "journal.jsonl").read_bytes()
    status = reste("status", run)
    assert "finished" in status.stdout
    done = reste(
        *("train", QUICK, *SMALL, f"data.root={digits}", f"run.dir={run.parent}", "run.name=whole"),
        *(f"train.max_steps={STEPS}", "eval.every=4"),
    )
    assert done.returncode == 0, done.stderr
    assert [r for r in records(run / "journal.jsonl") if r["type"] == "metrics"] == [
        r for r in map(json.loads, before.decode().splitlines()) if r["type"] == "metrics"
    ]


@pytest.mark.parametrize(
    "how", ["SIGTERM", *(pytest.param(how, marks=pytest.mark.slow) for how in ("SIGUSR1", "file"))]
)
def test_a_run_asked_to_stop_saves_and_ends_with_85(tmp_path: Path, digits: Path, how: str) -> None:
    command = [str(QUICK), *SMALL, f"data.root={digits}", f"run.dir={tmp_path}", "run.name=x", "checkpoint.every=0"]
    ranks = "--nproc=2" if how != "file" else "--nproc=1"
    with Life(*command, ranks, log=tmp_path / "log") as life:
        life.wait_for_step(tmp_path / "x" / "journal.jsonl", 3)
        if how == "file":
            (tmp_path / "x" / "STOP").touch()
        else:
            os.kill(life.process.pid, getattr(signal, how))
        assert life.process.wait(120) == 85, (tmp_path / "log").read_text()
    status = json.loads((tmp_path / "x" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 85)
    assert (tmp_path / "x" / status["checkpoint"] / "manifest.json").is_file()


def test_torchrun_starts_ranks_too(tmp_path: Path, digits: Path) -> None:
    overrides = [
        *SMALL,
        f"data.root={digits}",
        f"run.dir={tmp_path}",
        "run.name=x",
        "train.max_steps=2",
        "eval.every=0",
    ]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            "-m",
            "trainer",
            str(QUICK),
            *overrides,
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "2 ranks on cpu (RANK and WORLD_SIZE of torchrun)" in done.stdout
    assert json.loads((tmp_path / "x" / "result.json").read_text())["steps"] == 2


def test_a_non_finite_loss_ends_with_4_and_moves_no_weight(tmp_path: Path, digits: Path) -> None:
    done = reste(
        *("train", QUICK, *SMALL, f"data.root={digits}", f"run.dir={tmp_path}", "run.name=x"),
        *("optim.lr=1e30", "optim.warmup=0ep", "estimator.name=identity", "checkpoint.every=1", "eval.every=0"),
    )
    assert done.returncode == 4, done.stderr
    assert "not finite at step" in done.stderr
    assert done.stderr.count("error: ") == 1
