"""An alias moves only to what is better on the same data."""

from __future__ import annotations

import contextlib
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from made_checkpoints import configuration, write_checkpoint

from trainer.config import config_digest
from trainer.errors import ConfigError, UserError
from trainer.promotion import _check_better, promote
from trainer.registration import register, register_at_end
from trainer.tracking.registry import Registry, Score, Version, registry_uri

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")
DATA, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def registry(tmp_path: Path, empty_store: Path) -> Registry:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}")


def add(registry: Registry, metrics: dict[str, float], digest: str | None = DATA) -> str:
    """A version with these scores; its number."""
    run = registry.run_named("reste", "run", key="run")
    with registry.logged_model(run, "digits", params={}, tags={}) as model:
        registry.link(run, model, metrics, step=5, data="digits", digest=digest)
    return registry.register("digits", model, run, {"weights_sha256": model}).number


def champion(registry: Registry) -> str | None:
    found = registry.aliased("digits", "champion")
    return None if found is None else found.number


def test_only_a_better_version_on_the_same_data_takes_the_alias(registry: Registry) -> None:
    first = add(registry, {"val/top1": 50.0, "val/loss": 1.0})
    equal = add(registry, {"val/top1": 50.0, "val/loss": 0.9})
    better = add(registry, {"val/top1": 50.1, "val/loss": 1.1})
    other = add(registry, {"val/top1": 99.0}, OTHER)
    unknown = add(registry, {"val/top1": 99.0}, None)
    never = add(registry, {})

    def move(number: str, metric: str | None = "top1"):
        return promote("digits", number, "champion", uri=registry.uri, if_better=metric)

    assert champion(registry) is None
    done = move(first)
    assert (done.before, done.score, done.score_before) == (None, 50.0, None)
    for number, why in (
        (equal, "is not better than champion, digits version 1 \\(top1 50 against 50\\)"),
        (other, f"other data \\({OTHER[:32]}\\) than champion, digits version 1 \\({DATA[:32]}\\)"),
        (unknown, "other data"),
        (never, "was not evaluated"),
        ("77", "models:/digits/77 is not in the registry"),
    ):
        with pytest.raises(ConfigError, match=why):
            move(number)
        assert champion(registry) == first
    done = move(better)
    assert (done.before.number, done.score, done.score_before) == (first, 50.1, 50.0)
    assert champion(registry) == better
    with pytest.raises(ConfigError, match="not better"):
        move(first, "top1")
    # A loss is better if it is less.
    assert move(equal, "loss").score == 0.9
    assert champion(registry) == equal
    with pytest.raises(ConfigError, match="choose one of top1, top5, loss"):
        move(better, "accuracy")
    assert move(other, None).before.number == equal, "without --if-better nothing is compared"
    assert move(other).score_before is None, "again: it has the alias already"


def test_nan_is_never_better() -> None:
    version = Version("digits", "1", "m")
    for new, old in ((math.nan, 1.0), (1.0, math.nan)):
        for metric in ("loss", "top1"):
            with pytest.raises(ConfigError, match="is not better"):
                _check_better(version, Score(new, DATA), version, Score(old, DATA), metric, "champion")


def test_of_several_promotions_at_the_same_moment_the_best_stands(registry: Registry) -> None:
    versions = [add(registry, {"val/top1": top1}) for top1 in (70.0, 80.0, 90.0, 85.0)]
    for _ in range(5):
        registry.set_alias(registry.version(f"models:/digits/{versions[0]}"), "champion")
        together = Barrier(3)

        def move(number: str, together: Barrier = together) -> None:
            together.wait()
            with contextlib.suppress(ConfigError):  # it came after a better one
                promote("digits", number, "champion", uri=registry.uri, if_better="top1")

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(move, versions[1:]))
        assert champion(registry) == versions[2]


def test_a_version_is_found_by_number_alias_and_tag(registry: Registry) -> None:
    number = add(registry, {"val/top1": 1.0})
    version = registry.version(f"models:/digits/{number}")
    registry.set_alias(version, "champion")
    assert registry.version("models:/digits@champion") == version
    assert registry.find("digits", "weights_sha256", version.model_id) == version
    assert registry.find("digits", "weights_sha256", "another") is None
    for address in ("models:/digits@challenger", "models:/letters/1"):
        with pytest.raises(ConfigError, match=f"{address} is not in the registry"):
            registry.version(address)
    for address in ("models:/digits", "models:/digits/", "models:/@champion", "models:/digits/x"):
        with pytest.raises(ConfigError, match="models:/NAME@ALIAS or models:/NAME/VERSION"):
            registry.version(address)


def test_where_no_store_is_none_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"no MLflow store at .*runs/mlflow.db: name it with --uri"):
        registry_uri(None)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert registry_uri(None) == "http://127.0.0.1:9"
    with pytest.raises(UserError, match=r"cannot be reached: .*; start it or name another store with --uri"):
        Registry("http://127.0.0.1:9").aliased("digits", "champion")


def test_a_registry_that_is_away_costs_a_line_and_never_the_run(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    checkpoint = write_checkpoint(run, "tracking.uri=http://127.0.0.1:9")
    shutil.copy(checkpoint / "config.yaml", run)
    (run / "journal.jsonl").touch()
    line = register_at_end(run, "digits", None)
    assert line.startswith("warning: not registered (MLflow at http://127.0.0.1:9 cannot be reached")
    assert line.endswith(f"; later: reste register '{run}' --name digits")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml", "journal.jsonl"]


def test_names_that_an_address_cannot_hold_are_refused(tmp_path: Path) -> None:
    for name in ("a/b", "a@b", "models:", "it's", " "):
        with pytest.raises(ConfigError, match="cannot name a registered model"):
            register(tmp_path, name)
    with pytest.raises(ConfigError, match=r"registry\.name"):
        configuration("registry.name=a/b")
    with pytest.raises(ConfigError, match=r"registry\.name needs tracking\.enabled=true"):
        configuration("registry.name=digits", "tracking.enabled=false")
    assert config_digest(configuration("registry.name=digits")) == config_digest(configuration())
