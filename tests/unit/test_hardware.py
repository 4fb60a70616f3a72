"""Torch's global switches follow the configuration in both directions: a stage may follow another in one process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config as inductor

from trainer.config_schema import TrainConfig
from trainer.distributed.environment import Environment
from trainer.hardware import apply_switches

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    apply_switches(TrainConfig(), Environment(), CPU)
    torch.set_num_threads(threads)


def test_what_one_stage_switches_on_the_next_switches_off() -> None:
    inductor.triton.cudagraphs = True
    apply_switches(TrainConfig(deterministic=True), Environment(), CPU)
    assert torch.are_deterministic_algorithms_enabled()
    assert not inductor.triton.cudagraphs, "graphs are of GPUs"
    apply_switches(TrainConfig(), Environment(), CPU)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("told", "launcher", "threads"),
    [(None, "none", 2), ("", "none", 2), ("1", "torchrun", 2), ("1", "none", 7), ("3", "torchrun", 7)],
)
def test_ranks_share_the_cores_unless_somebody_said_how_many(
    monkeypatch: pytest.MonkeyPatch, told: str | None, launcher: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    torch.set_num_threads(7)
    apply_switches(TrainConfig(), Environment(world_size=4, local_world_size=4, launcher=launcher), CPU)
    assert torch.get_num_threads() == threads
