"""Trainings of several stages in real processes: killed in any of them, stopped, changed, looked at from outside."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import pytest
import torch
from spawn import run_ranks
from trainings import QUICK, ROOT, SMALL, Life, metrics, records, reste, train_here
from typer.testing import CliRunner

from launch.cli import app
from trainer.checkpoints import resolve
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.signals import Requests
from trainer.staged import train_stages
from trainer.stages import load_training
from trainer.study.methods import find_methods

CONFIG = ROOT / "configs" / "digits_two_stage.yaml"
STEPS = 12
BASE = (
    *SMALL,
    "log.indicators_every=0",
    f"train.max_steps={STEPS}",
    "train.batch_size=16",
    "checkpoint.every=3",
    "eval.every=0",
)
STAGES = ("real_weights", "binary")
METHODS = {case.name: case.overrides for case in find_methods(ROOT / "configs" / "methods")}
TRAININGS: dict[str, tuple[Path, tuple[str, ...], tuple[str, ...]]] = {
    "digits_two_stage": (CONFIG, ("distill.attention=3",), STAGES),
    "binaryduo": (QUICK, METHODS["binaryduo"], ("coupled", "decoupled")),
    "reactnet": (QUICK, METHODS["reactnet"], STAGES),
    "real_to_binary": (QUICK, METHODS["real_to_binary"], ("real", "activations", "binary")),
}
"""Name -> its file, what more it sets, the names of its stages."""


def arguments(runs: Path, name: str, digits: Path, *extra: str, training: str = "digits_two_stage") -> list[str]:
    config, own, _ = TRAININGS[training]
    return [str(config), *BASE, *own, f"data.root={digits}", f"run.dir={runs}", f"run.name={name}", *extra]


def events(journal: Path, name: str) -> list[dict[str, object]]:
    paths = [*sorted(journal.parent.glob("journal.lost-*.jsonl")), journal]
    return [record for path in paths for record in records(path) if record.get("event") == name]


def kill_in(stage: str, command: list[str], whole: Path, log: Path) -> None:
    """Kill a start after its stage's fourth step, once the checkpoint of the third is there."""
    # Its last steps are slow, so that it is not over before it is killed.
    with Life(*command, log=log, faults="slow@0:5-99=0.5") as life:
        run = whole / stage
        life.wait_for(run / "checkpoints" / "step_00000003" / "manifest.json")
        life.wait_for_step(run / "journal.jsonl", 4)
        life.kill()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("training", TRAININGS)
def test_a_training_killed_in_every_stage_equals_the_uninterrupted_one(
    tmp_path: Path, digits: Path, training: str
) -> None:
    stages = TRAININGS[training][2]
    whole = reste("train", *arguments(tmp_path, "whole", digits, training=training))
    assert whole.returncode == 0, whole.stderr

    command = arguments(tmp_path, "killed", digits, training=training)
    folder, log = tmp_path / "killed", tmp_path / "log.txt"
    for stage, later in zip(stages, (*stages[1:], None), strict=True):
        kill_in(stage, command, folder, log)
        assert later is None or not (folder / later).exists()
    assert not (folder / "result.json").exists()
    seen = (folder / stages[0] / "journal.jsonl").read_bytes()
    last = reste("train", *command)
    assert last.returncode == 0, last.stderr

    # Each stage went on in the middle, once; the finished one was left alone.
    for stage in stages:
        resumed = events(folder / stage / "journal.jsonl", "resumed")
        assert [event["step"] in (3, 6, 9) for event in resumed] == [True], stage
    assert (folder / stages[0] / "journal.jsonl").read_bytes() == seen
    for stage in stages:
        assert metrics(folder / stage / "journal.jsonl") == metrics(tmp_path / "whole" / stage / "journal.jsonl")
        left, right = (
            torch.load(tmp_path / name / stage / f"checkpoints/step_{STEPS:08d}/model.pt", weights_only=True)
            for name in ("whole", "killed")
        )
        assert all(torch.equal(left[name], right[name]) for name in left)

    # Each later one began with every tensor of the best checkpoint before, unless it is to begin anew.
    inherits = {config.name: config.config.model.init for config in load_training(Path(command[0]), command[1:]).stages}
    for before, stage in itertools.pairwise(stages):
        found = events(tmp_path / "whole" / stage / "journal.jsonl", "inherited")
        if inherits[stage] is None:
            assert found == []
            continue
        best = torch.load(tmp_path / "whole" / before / "checkpoints/best/model.pt", weights_only=True)
        last_step = tmp_path / "whole" / stage / f"checkpoints/step_{STEPS:08d}/model.pt"
        own = torch.load(last_step, weights_only=True)
        assert [(event["tensors"], event["fresh"]) for event in found] == [(len(best), [])]
        assert found[0]["numbers"] == sum(tensor.numel() for tensor in own.values())

    result = json.loads((folder / "result.json").read_text())
    assert list(result["stages"]) == list(stages)
    assert result["steps"] == STEPS
    told = CliRunner().invoke(app, ["status", str(folder)])
    assert f"{stages[-1]}, {len(stages)} of {len(stages)}" in told.output
    assert resolve(folder) == (folder / stages[-1] / "checkpoints" / "best").resolve()

    # Started again it trains nothing, and not under another configuration.
    def never(config: Config, requests: Requests) -> int:
        raise AssertionError(config.run_dir)

    path, *overrides = command
    assert train_stages(load_training(Path(path), overrides), Requests(), never) == 0
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.\d+ -> 0\.2"):
        train_stages(load_training(Path(path), [*overrides, "optim.lr=0.2"]), Requests(), never)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stop_in_the_first_stage_is_a_stop_of_the_whole(tmp_path: Path, digits: Path) -> None:
    command = arguments(tmp_path, "run", digits, "train.max_steps=400")
    folder, stopped = tmp_path / "run", 0
    for ask in ("signal", "file"):
        with Life(*command, log=tmp_path / "log.txt") as life:
            life.wait_for_step(folder / "real_weights" / "journal.jsonl", stopped + 4)
            if ask == "signal":
                life.process.send_signal(signal.SIGTERM)
            else:
                (folder / "STOP").touch()
            assert life.process.wait(timeout=120) == 85, (tmp_path / "log.txt").read_text()
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["exit_code"], status["stage"]) == ("stopped", 85, "real_weights")
        stopped = status["step"]
        assert not (folder / "binary").exists()
        assert not (folder / "STOP").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mlflow_has_one_run_above_those_of_the_stages(tmp_path: Path, digits: Path, empty_store: Path) -> None:
    from mlflow.tracking import MlflowClient

    store = tmp_path / "mlflow.db"
    store.write_bytes(empty_store.read_bytes())
    done = reste("train", *arguments(tmp_path, "run", digits, "train.max_steps=2", "tracking.enabled=true"))
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("reste")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(found) == ["run", "run/binary", "run/real_weights"]
    for stage in STAGES:
        assert found[f"run/{stage}"].data.tags["mlflow.parentRunId"] == found["run"].info.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}


@pytest.mark.timeout(300)
def test_ranks_of_another_launcher_train_all_stages_in_one_life(tmp_path: Path) -> None:
    # No agent keeps a store for them, as under srun: they meet once for every stage.
    made = ("data.loader=synthetic", "data.synthetic={samples: 96, classes: 10}", "train.max_steps=2", "eval.every=0")
    command = [*BASE, *made, "distill.attention=3", "checkpoint.every=0", f"run.dir={tmp_path}", "run.name=run"]
    assert run_ranks(train_here, 2, str(CONFIG), command, timeout_s=280, join=False) == [[0], [0]]
    for stage in STAGES:
        assert json.loads((tmp_path / "run" / stage / "result.json").read_text())["steps"] == 2
    [told] = [r for r in records(tmp_path / "run/binary/journal.jsonl") if r.get("event") == "inherited"]
    assert told["source"] == "stage:real_weights"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
