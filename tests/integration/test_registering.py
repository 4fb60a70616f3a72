"""Checkpoints become versions whatever they are called, wherever they lie, and however far their run was sent."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from made_checkpoints import write_checkpoint
from spawn import run_ranks

from trainer.distributed import collectives
from trainer.errors import ConfigError
from trainer.evaluate_checkpoint import agreed_version
from trainer.promotion import promote
from trainer.registration import register
from trainer.tracking.journal import Journal
from trainer.tracking.registry import Registry
from trainer.tracking.sent import mlflow_run
from trainer.tracking.status import write_status
from trainer.tracking.sync import sync_run

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path) -> str:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def client(uri: str):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_names_with_dots_and_checkpoints_of_no_run_each_get_their_own(tmp_path: Path, uri: str) -> None:
    name = "resnet18.v2"
    first = register(write_checkpoint(tmp_path / "a"), name, uri=uri).version
    second = register(write_checkpoint(tmp_path / "b", weights_seed=3), name, uri=uri).version
    assert (str(first), str(second)) == ("resnet18.v2 version 1", "resnet18.v2 version 2")
    assert promote(name, "2", "champion", uri=uri).version.number == "2"
    # Both folders are called step_00000034.
    runs = {client(uri).get_model_version(name, number).run_id for number in ("1", "2")}
    assert len(runs) == 2


def test_a_run_that_was_sent_in_part_is_sent_whole_first(tmp_path: Path, uri: str) -> None:
    run = tmp_path / "run"
    folder = write_checkpoint(run, f"tracking.uri={uri}")
    shutil.copy(folder / "config.yaml", run)
    journal = Journal(run / "journal.jsonl", clock=lambda: 1700000000.0)
    journal.write({"train/loss": 1.0}, step=33)
    write_status(run, state="running", step=33, total_steps=34, epoch=2)
    assert sync_run(run).status is None
    journal.write({"val/top1": 90.0, "val/top5": 99.0, "val/loss": 0.5}, step=34)
    journal.close()
    write_status(run, state="finished", step=34, total_steps=34, epoch=2)

    register(run, "digits")
    sync_run(run)
    _, run_id = mlflow_run(run)
    assert client(uri).get_run(run_id).info.status == "FINISHED"
    points = client(uri).get_metric_history(run_id, "val/top1")
    assert [(point.step, point.value, point.timestamp) for point in points] == [(34, 90.0, 1700000000000)]


def version_with(registry: Registry, name: str, metrics: dict[str, float]) -> str:
    run = registry.run_named("reste", "run", key="run")
    with registry.logged_model(run, name, params={}, tags={}) as model:
        registry.link(run, model, metrics, step=5, data="digits", digest="d")
    return registry.register(name, model, run, {}).number


def test_a_loss_that_is_not_a_number_beats_none(uri: str) -> None:
    registry = Registry(uri)
    good = version_with(registry, "digits", {"val/loss": 1.0})
    broken = version_with(registry, "digits", {"val/loss": math.nan, "val/top1": 10.0})
    scores = registry.scores(registry.version(f"models:/digits/{broken}"))
    assert set(scores) == {"val/top1"}
    promote("digits", good, "champion", uri=uri)
    with pytest.raises(ConfigError, match="has no loss"):
        promote("digits", broken, "champion", uri=uri, if_better="loss")


def asked(uris: list[str]) -> str:
    return agreed_version("models:/digits@champion", uris[collectives.rank()])


@pytest.mark.slow
def test_ranks_that_see_an_alias_at_different_moments_evaluate_one_version(tmp_path: Path, uri: str) -> None:
    registry = Registry(uri)
    promote("digits", version_with(registry, "digits", {}), "champion", uri=uri)
    before = f"sqlite:///{shutil.copy(tmp_path / 'mlflow.db', tmp_path / 'before.db')}"
    promote("digits", version_with(registry, "digits", {}), "champion", uri=uri)
    assert run_ranks(asked, 2, [before, uri]) == ["models:/digits/1"] * 2
