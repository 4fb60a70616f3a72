"""From a run to a registered model that others use: every number is the training run's."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import write_checkpoint
from mlflow_serve import served
from mlflow_server import Server
from trainings import QUICK, SMALL, reste

from trainer.data.index import load_index
from trainer.errors import UserError
from trainer.promotion import promote
from trainer.registration import register
from trainer.tracking.sent import mlflow_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("default::ResourceWarning")]
SHORT = [*SMALL[:-1], "data.loader=torchvision", "train.max_steps=8", "eval.every=8", "log.indicators_every=0"]


def train(runs: Path, digits: Path, name: str, *overrides: str) -> dict[str, Any]:
    """A short run; its result, and what it printed."""
    common = [str(QUICK), *SHORT, f"data.root={digits}", f"run.dir={runs}", f"run.name={name}", *overrides]
    done = reste("train", *common)
    assert done.returncode == 0, done.stderr
    return {**json.loads((runs / name / "result.json").read_text()), "printed": done.stdout + done.stderr}


def said(*words: object) -> Any:
    """What a command prints as JSON."""
    done = reste(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_register_promote_evaluate_and_serve_give_the_runs_number(
    tmp_path: Path, digits: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(empty_store, runs / "mlflow.db")
    result = train(runs, digits, "first", "registry.name=digits")
    assert "registered:  models:/digits/1" in result["printed"]
    uri, run_id = mlflow_run(runs / "first")
    again = said("register", runs / "first", "--name", "digits")
    assert (again["version"], again["known"]) == ("1", True)
    done = reste("promote", "digits", 1, "--alias", "champion", "--if-better", "top1", "--uri", uri)
    assert done.returncode == 0, done.stderr
    assert "models:/digits@champion is version 1 (new" in done.stdout
    found = said("evaluate", "models:/digits@champion", "--data", digits, "--uri", uri)
    assert {name: found[name] for name in ("top1", "top5", "loss")} == result["best"]
    assert found["checkpoint"] == "digits version 1"

    check_origin(client(uri), runs / "first", run_id, result)
    with served("models:/digits@champion", uri, tmp_path / "serve.log") as scorer:
        index = load_index(digits, "val")
        files = [base64.b64encode((digits / path).read_bytes()).decode() for path in index.paths]
        answers = scorer.ask({"dataframe_split": {"columns": ["image"], "data": [[file] for file in files]}})
        right = [index.classes[label] for label in index.labels.tolist()]
        correct = sum(answer["label"] == label for answer, label in zip(answers, right, strict=True))
        assert (correct, len(files)) == (found["correct1"], found["samples"])
        assert sum(answers[0]["probabilities"]) == pytest.approx(1)
        nll = -np.log([a["probabilities"][index.classes.index(label)] for a, label in zip(answers, right, strict=True)])
        assert nll.mean() == pytest.approx(found["loss"], rel=1e-12)
        # One image alone, and as pixels: the same answer.
        assert scorer.ask({"dataframe_records": [{"image": files[7]}]}) == [answers[7]]
        from PIL import Image

        pixels = np.asarray(Image.open(digits / index.paths[7]).convert("RGB"))
        assert scorer.ask({"dataframe_records": [{"image": pixels.tolist()}]}) == [answers[7]]
        assert scorer.ask({"inputs": {"image": files[:2]}}) == answers[:2]


def check_origin(store: Any, run: Path, run_id: str, result: dict[str, Any]) -> None:
    """The registered model says where it comes from, and its metrics are those points of the run."""
    version = store.get_model_version_by_alias("digits", "champion")
    model = store.get_logged_model(version.source.removeprefix("models:/"))
    manifest = json.loads((run / "manifest.json").read_text())
    assert model.status == "READY"
    assert model.source_run_id == version.run_id == run_id
    for name in ("config_digest", "data_digest", "world_size"):
        assert model.tags[name] == version.tags[name] == str(manifest[name])
    assert model.tags["step"] == str(result["best_step"])
    assert model.tags["mlflow.source.git.commit"] == str(manifest["code"]["commit"])
    assert model.tags["dirty"] == str(manifest["code"]["dirty"])
    linked = {metric.key: (metric.value, metric.step, metric.dataset_digest) for metric in model.metrics}
    assert linked["val/top1"] == (result["best"]["top1"], result["best_step"], manifest["data_digest"][:32])
    points = [point for point in store.get_metric_history(run_id, "val/top1") if point.step == result["best_step"]]
    assert len(points) == 1, "the run's own point is not there twice"
    assert store.get_run(run_id).info.status == "FINISHED"


def test_on_a_server_that_asks_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = ("ann", "correct-horse-battery")
    server = Server(tmp_path, login=login)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    try:
        first = write_checkpoint(tmp_path / "first")
        with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD"):
            register(first, "digits")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", login[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", login[1])
        assert register(first, "digits").version.number == "1"
        other = write_checkpoint(tmp_path / "other", about={"data_digest": "f00d"}, weights_seed=3)
        assert register(other, "digits").version.number == "2"
        done = promote("digits", "1", "champion", uri=server.uri, if_better="top1")
        assert (done.before, done.score) == (None, 90.0)
        refusal = reste("promote", "digits", 2, "--alias", "champion", "--if-better", "top1")
        assert (refusal.returncode, refusal.stdout) == (2, "")
        assert refusal.stderr == (
            "error: digits version 2 was evaluated on other data (f00d) than champion, digits version 1 (da7a): "
            "evaluate both on the same, or promote without --if-better\n"
        )
        assert client(server.uri).get_model_version_by_alias("digits", "champion").version == "1"
        with served("models:/digits@champion", server.uri, tmp_path / "serve.log") as scorer:
            grey = np.full((20, 30, 3), 128).tolist()
            assert len(scorer.ask({"dataframe_records": [{"image": grey}]})) == 1
        assert list((tmp_path / "files").rglob("model.pt2")), "the server keeps the files"
        kept = [path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file()]
        assert not [content for content in kept if login[1].encode() in content]
    finally:
        server.kill()


def test_outputs_without_a_class_do_not_stand_between_a_registered_model_and_its_data(
    tmp_path: Path, digits: Path, empty_store: Path
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"
    about = {"classes": [str(digit) for digit in range(10)]}
    register(write_checkpoint(tmp_path / "more", "model.num_classes=12", about=about), "digits", uri=uri)
    found = said("evaluate", "models:/digits/1", "--data", digits, "--uri", uri)
    assert found["samples"] == 355
