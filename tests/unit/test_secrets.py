"""Passwords and keys: hidden in every form in which a text may hold them, and nothing else is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trainer.config import load_config
from trainer.errors import ConfigError
from trainer.logs import speak_plainly
from trainer.main import guarded
from trainer.secrets import redact, without_credentials
from trainer.study.equilibrium import plan_sweep
from trainer.tracking.address import contactable, mlflow_command
from trainer.tracking.status import read_status, write_status
from trainer.tracking.store import reason

ROOT = Path(__file__).resolve().parents[2]
URI = "https://ann:hunter2@host:5000/x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://ann:hunter2@host:5000/x now", "to https://***@host:5000/x now"),
        ("https://ann:hun@ter2@host", "https://***@host"),
        ("postgresql+psycopg://ann:hunter2@host/db?ssl=1", "postgresql+psycopg://***@host/db?ssl=1"),
        ("postgresql://host/db?user=ann&password=hunter2", "postgresql://host/db?user=ann&password=***"),
        ("MLFLOW_TRACKING_PASSWORD=hunter2", "MLFLOW_TRACKING_PASSWORD=***"),
        ("AWS_SECRET_ACCESS_KEY: hunter2", "AWS_SECRET_ACCESS_KEY: ***"),
        ("{'aws_session_token': 'hunter2'}", "{'aws_session_token': '***"),
        ('"api-key":"hunter2"', '"api-key":"***'),
        ("Authorization: Basic YW5uOmh1bnRlcjI=", "Authorization: Basic ***"),
        ("Invalid header value b'Bearer hunter2hunter2\\n'", "Invalid header value b'Bearer ***\\n'"),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown).count("***") == shown.count("***"), "twice is once"


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////a/b@c/mlflow.db",
        "http://host:5000/a@b",
        "token_mixer=pool",
        "12 tokens, 3 secrets",
        "password=None",
        '{"token": null, "password": ""}',
        "found character that cannot start any token",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact(text) == text


def test_what_the_environment_keeps_secret_is_hidden_wherever_it_turns_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "eyJhbGciOi")
    monkeypatch.setenv("SHORT_PASSWORD", "at")
    assert redact("sent wJalrXUtnFEMI/K7 and eyJhbGciOi at once") == "sent *** and *** at once"


def test_a_stored_address_has_no_password_and_reads_back(tmp_path: Path) -> None:
    config = load_config(None, [f"tracking.uri={URI}"])
    assert "hunter2" not in config.to_yaml()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    stored = load_config(tmp_path / "config.yaml").tracking.uri
    assert stored == "https://***@host:5000/x"
    assert contactable(stored) == without_credentials(URI) == "https://host:5000/x"
    assert mlflow_command(URI) == "https://host:5000/x"


def test_an_address_that_needs_its_password_asks_for_it() -> None:
    with pytest.raises(ConfigError, match="--uri"):
        contactable(redact("postgresql://ann:hunter2@host/db"))


@pytest.mark.parametrize(
    "override", [f"tracking.enabled={URI}", f"tracking={{uri: '{URI}', x", f"seed={URI}", f"tracking.uri{URI}"]
)
def test_an_error_about_an_address_does_not_tell_its_password(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert "hunter2" not in str(caught.value)


def test_status_errors_and_reasons_hide_it(tmp_path: Path) -> None:
    write_status(tmp_path, "failed", step=1, total_steps=2, epoch=1, error=f"cannot reach {URI}")
    status = read_status(tmp_path)
    assert status is not None
    assert status.error == "cannot reach https://***@host:5000/x"
    assert reason(ValueError(f"cannot reach {URI}\nmore")) == "cannot reach https://***@host:5000/x"


def test_tracebacks_and_records_hide_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        logging.getLogger("a").warning("trying %s", URI)
        raise KeyError(URI)

    before = logging.getLogger().handlers[:]
    try:
        assert guarded(work) == 1
    finally:
        logging.captureWarnings(False)
        speak_plainly(0)
        logging.getLogger().handlers[:] = before
    shown = capsys.readouterr().err
    assert "trying https://***@host:5000/x" in shown
    assert "KeyError" in shown
    assert "hunter2" not in shown


def test_a_study_does_not_put_a_password_of_its_configuration_on_a_command_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {ROOT / 'configs' / 'quickstart.yaml'}\ntracking: {{uri: '{URI}'}}\n")
    sweep = plan_sweep(path, [], [2.0], 1, tmp_path / "study")
    assert not [word for word in sweep.points[0].overrides if "hunter2" in word]
    assert sweep.configuration(sweep.points[0]).tracking.uri == URI
