"""The manifest: enough to repeat a run, nothing that should stay private."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest

from trainer.secrets import redact, redact_argv
from trainer.tracking.manifest import build_manifest, git_state, versions, write_manifest

pytestmark = pytest.mark.timeout(60)


def make(argv: list[str], code_dir: Path | None = None) -> dict:
    return build_manifest(
        seed=7, config_digest="c0ffee", data_digest="beef", world_size=2, argv=argv, code_dir=code_dir
    )


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_the_manifest_names_versions_machine_code_and_inputs() -> None:
    manifest = make(["reste", "train", "a config.yaml"])
    assert manifest["command"] == "reste train 'a config.yaml'"
    assert (manifest["seed"], manifest["config_digest"], manifest["data_digest"]) == (7, "c0ffee", "beef")
    assert manifest["world_size"] == 2
    assert manifest["versions"]["torch"] == importlib.metadata.version("torch")
    assert manifest["machine"]["cpus"] >= 1
    assert manifest["machine"]["hostname"]
    assert set(manifest["code"]) == {"commit", "dirty"}
    json.dumps(manifest, allow_nan=False)


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert list(versions()) == ["python"]


def test_the_commit_and_whether_files_differ_from_it(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert git_state(repository) == {"commit": head, "dirty": False}
    (repository / "scratch.txt").write_text("not tracked")
    assert git_state(repository) == {"commit": head, "dirty": False}
    (repository / "code.py").write_text("x = 2\n")
    assert git_state(repository) == {"commit": head, "dirty": True}


def test_installed_code_does_not_borrow_the_commit_around_it(repository: Path) -> None:
    installed = repository / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("")
    assert git_state(installed) == {"commit": None, "dirty": None}


def test_outside_version_control_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_no_environment_variable_gets_into_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_VARIABLE", "do-not-tell-anyone")
    assert "do-not-tell-anyone" not in json.dumps(make(["reste"]))


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["tracking.uri=https://ann:hunter2@host:5000/x"], "tracking.uri=https://***@host:5000/x"),
        (["--api-token", "hunter2", "train"], "--api-token *** train"),
        (["tracking.password=hunter2"], "tracking.password=***"),
        (["--secret=hunter2"], "--secret=***"),
        (["model.token_mixer=pool", "data.root=a@b"], "model.token_mixer=pool data.root=a@b"),
    ],
)
def test_secrets_on_the_command_line_are_masked(argv: list[str], kept: str) -> None:
    assert " ".join(redact_argv(argv)) == kept
    assert "hunter2" not in json.dumps(make(argv))


def test_an_address_without_a_password_is_left_alone() -> None:
    assert redact("sqlite:////a/b@c/mlflow.db http://host:1/x") == "sqlite:////a/b@c/mlflow.db http://host:1/x"


def test_earlier_starts_are_kept_in_order(tmp_path: Path) -> None:
    for number in range(3):
        write_manifest(tmp_path, {"seed": number})
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content == {"seed": 2, "earlier": [{"seed": 0}, {"seed": 1}]}


def test_a_damaged_manifest_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    write_manifest(tmp_path, {"seed": 1})
    assert json.loads((tmp_path / "manifest.json").read_text()) == {"seed": 1, "earlier": []}
    assert (tmp_path / "manifest.damaged.json").read_text() == "{"
