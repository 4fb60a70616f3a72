"""The command line as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainings import ROOT, reste


def test_a_recipe_can_be_planned_without_its_data(tmp_path: Path) -> None:
    path = ROOT / "configs" / "cifar10" / "resnet20_1w1a.yaml"
    done = reste("train", path, "--dry-run", "--nproc=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for row in ("data", "model", "batch norm", "evaluation", "files"):
        assert f"│ {row} " in done.stdout, row
    assert "over 3 ranks: 1 of 86 and 2 of 85" in done.stdout
    assert not list(tmp_path.iterdir())


def test_summary_shows_bits_memory_and_operations() -> None:
    done = reste("summary", "resnet20_1w1a")
    assert done.returncode == 0, done.stderr
    assert "269,850, of which 267,264 of one bit" in done.stdout
    assert "layer1.0.conv1" in done.stdout
    assert "resnet34_1w1a" in reste("summary", "--list").stdout


@pytest.mark.parametrize("command", ["", "train", "evaluate", "prepare", "summary", "status", "study", "track"])
def test_help_teaches(command: str) -> None:
    done = reste(*([command] if command else []), "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
