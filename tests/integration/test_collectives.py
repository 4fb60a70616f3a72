"""Collectives among real processes, and the helper that starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import RankFailed, run_ranks

from trainer.distributed import collectives
from trainer.distributed.batchnorm import make_bn_group
from trainer.errors import ConfigError, DataError


def everything() -> dict[str, Any]:
    rank = collectives.rank()
    found: dict[str, Any] = {"place": (rank, collectives.world_size(), collectives.is_main())}
    for op in ("sum", "max", "min"):
        tensor = torch.tensor([rank + 1.0, -rank])
        found[op] = collectives.all_reduce_(tensor, op).tolist()
        found[op + " in place"] = tensor.tolist()
    found["broadcast"] = collectives.broadcast_(torch.tensor([rank + 7])).tolist()
    found["object"] = collectives.broadcast_object({"from": rank})
    found["gathered"] = collectives.gather_objects(f"r{rank}")
    found["any"] = [collectives.agree_any(flag) for flag in (False, rank == 2, True)]
    found["barrier"] = collectives.barrier()
    collectives.check_equal("config", "same")
    for name, text in (("one", f"{rank == 1}"), ("two", f"{rank > 0}")):
        try:
            collectives.check_equal("config", text)
        except ConfigError as error:
            found[name] = str(error)
    group = collectives.new_subgroup([[0, 2], [1, 3]])
    found["subgroup"] = group.size()
    shared = make_bn_group(2)
    found["pair"] = shared and shared.size
    try:
        make_bn_group(2 if rank == 0 else 4)
    except ConfigError as error:
        found["sizes"] = str(error)
    with collectives.agreed_errors():
        pass
    try:
        with collectives.agreed_errors():
            if rank == 2:
                raise DataError("no such image")
    except DataError as error:
        found["fault"] = str(error)
    return found


def test_four_ranks_agree_on_everything() -> None:
    results = run_ranks(everything, 4)
    for rank, found in enumerate(results):
        assert found["place"] == (rank, 4, rank == 0)
        assert found["sum"] == found["sum in place"] == [10, -6]
        assert found["max"] == found["max in place"] == [4, 0]
        assert found["min"] == found["min in place"] == [1, -3]
        assert found["broadcast"] == [7]
        assert found["object"] == {"from": 0}
        assert found["gathered"] == ["r0", "r1", "r2", "r3"]
        assert found["any"] == [False, True, True]
        assert found["one"].startswith("rank 1 has another config than rank 0: 'True' instead of 'False'")
        assert found["two"].startswith("ranks 1, 2, 3 have another config than rank 0")
        assert "\n" not in found["one"]
        assert found["subgroup"] == found["pair"] == 2
        assert found["sizes"].startswith("ranks 1, 2, 3 have another number of ranks")
        assert "no such image" in found["fault"], "a fault on rank 2 is one on every rank"
        assert "rank 2" in found["fault"]


def test_a_world_of_one_needs_no_process_group() -> None:
    tensor = torch.tensor([3.0])
    assert collectives.all_reduce_(tensor, "max") is tensor
    assert collectives.broadcast_(tensor) is tensor
    assert tensor.tolist() == [3.0]
    assert (collectives.world_size(), collectives.rank(), collectives.is_main()) == (1, 0, True)
    assert collectives.broadcast_object("x") == "x"
    assert collectives.gather_objects("x") == ["x"]
    assert [collectives.agree_any(flag) for flag in (False, True)] == [False, True]
    collectives.barrier()
    collectives.check_equal("config", "x")
    collectives.shutdown()


def fail_on_rank_1() -> None:
    if collectives.rank() == 1:
        raise ValueError("this rank is ill")
    time.sleep(60)


def start_a_child_and_wait(folder: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (Path(folder) / str(os.getpid())).write_text(str(child.pid))
    time.sleep(600)


def test_a_failing_rank_ends_the_call_with_its_own_traceback() -> None:
    with pytest.raises(RankFailed, match=r"rank 1 ended with 1[\s\S]*ValueError: this rank is ill"):
        run_ranks(fail_on_rank_1, 2)


def test_no_process_outlives_a_call_that_ran_out_of_time(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="did not end"):
        run_ranks(start_a_child_and_wait, 1, str(tmp_path), timeout_s=12, join=False)
    started = [int(p) for file in tmp_path.iterdir() for p in (file.name, file.read_text())]
    assert len(started) == 2
    time.sleep(0.2)
    for pid in started:
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z"


def averaged() -> list[list[float]]:
    import torch
    from torch import nn

    from trainer.distributed.batchnorm import average_statistics, convert_batchnorm, make_bn_group

    rank = collectives.rank()
    plain = nn.BatchNorm2d(1)
    plain.running_mean.fill_(rank)
    plain.running_var.fill_(2 + 2 * rank)
    shared = convert_batchnorm(nn.BatchNorm2d(1), make_bn_group(collectives.world_size()))
    shared.running_mean.fill_(0.1)
    average_statistics(nn.Sequential(plain, shared))
    return [
        plain.running_mean.tolist(),
        plain.running_var.tolist(),
        (shared.running_mean == torch.tensor(0.1)).tolist(),
    ]


def test_statistics_are_averaged_only_where_ranks_had_their_own() -> None:
    assert run_ranks(averaged, 3) == [[[1.0], [4.0], [True]]] * 3
