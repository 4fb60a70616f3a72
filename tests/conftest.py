"""What many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# No test reads the defaults that its user keeps for this machine.
os.environ["RESTE_SITE"] = ""


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real handwritten digits, prepared."""
    from trainer.data.prepare.digits import prepare_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(root)
    return root


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty MLflow database: making one takes seconds."""
    from trainer.tracking.store import MlflowStore

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowStore(f"sqlite:///{path}", "another").open()
    return path
