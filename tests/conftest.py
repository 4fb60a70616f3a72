"""What many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A machine that stands still for a moment is no fault of what is tested.
settings.register_profile("reste", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("reste")
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
