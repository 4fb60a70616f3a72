"""What many tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real handwritten digits, prepared."""
    from trainer.data.prepare.digits import prepare_digits

    root = tmp_path_factory.mktemp("data") / "digits"
    prepare_digits(root)
    return root
