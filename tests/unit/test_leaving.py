"""How a rank leaves when something went wrong: which communicators it destroys, which exit code it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from trainer.distributed import collectives
from trainer.distributed.environment import Environment
from trainer.failures import note_exit_code


@pytest.fixture(autouse=True)
def _group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(collectives, "_broken", False)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_a_rank_that_gives_up_leaves_communicators_of_nccl_to_the_end_of_its_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        # No GPU is here; what matters is what torch says of the group.
        patch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
        assert collectives.leaves_in_turn()
        collectives.give_up()
        assert not collectives.leaves_in_turn()
        collectives.shutdown()
        assert dist.is_initialized()
    assert collectives.leaves_in_turn(), "gloo waits for nobody"
    collectives.shutdown()
    assert not dist.is_initialized()


def test_the_next_run_of_a_process_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cpu:gloo,cuda:nccl")
    collectives.give_up()
    collectives.init_process_group(Environment(), torch.device("cpu"))
    assert collectives.leaves_in_turn()
    collectives.shutdown()
    assert not dist.is_initialized()


def test_an_exit_code_is_left_for_the_launcher_and_a_reason_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collectives.shutdown()
    monkeypatch.delenv("RESTE_EXIT_FILE", raising=False)
    assert not note_exit_code(5)
    file = tmp_path / "code"
    monkeypatch.setenv("RESTE_EXIT_FILE", str(file))
    assert note_exit_code(5, unless_told=True)
    assert file.read_text() == "5\n"
    assert note_exit_code(4)
    assert note_exit_code(5, unless_told=True)
    assert file.read_text() == "4\n"
