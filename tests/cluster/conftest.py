"""A real SLURM of two nodes, its user, and what an uninterrupted training ends with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_daemons import Cluster
from slurm_user import SETTINGS, User, digest, train_on_one_machine


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes, both on this machine."""
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, digits: Path) -> Iterator[User]:
    """One with an empty folder and a site file, whose jobs end with the test."""
    yield User(cluster, tmp_path, digits)
    cluster.clear()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> str:
    """The digest of the uninterrupted training with two ranks on one machine."""
    folder = tmp_path_factory.mktemp("whole")
    train_on_one_machine(folder, digits, SETTINGS)
    return digest(folder / "runs" / "whole")
