"""Two machines whose variables contradict each other end soon, with a line that says what contradicts what."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from spawn import reserved_ports
from trainings import ROOT, environment

JOIN_S = 8
"""Where ranks wait in vain; enough for two that start at once only if nothing holds one of them up."""
RANK = """
import os, time, torch
from trainer.distributed import collectives
from trainer.distributed.environment import resolve_environment
from trainer.main import guarded

def rank():
    began = time.monotonic()
    try:
        device = torch.device(os.environ.get("DEVICE", "cpu"))
        if device.type == "cuda":
            torch.cuda.set_device = lambda device: None  # a machine with GPUs, as far as the meeting goes
        collectives.init_process_group(resolve_environment(os.environ), device, timeout_s=60)
    finally:
        print("waited", time.monotonic() - began)
    print("sum", int(collectives.all_reduce_(torch.ones(()))))
    collectives.shutdown()
    return 0

raise SystemExit(guarded(rank))
"""


def place(rank: int, world: int, port: int, **others: str) -> dict[str, str]:
    """The variables of one process on a machine of its own."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RESTE_JOIN_S": "100",
    } | others


ALONE = {"RESTE_JOIN_S": str(JOIN_S)}


def start(*places: dict[str, str]) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of processes with these variables."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=environment() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in places
    ]
    try:
        told = ["".join(process.communicate(timeout=150)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], told


def lines(told: list[str]) -> list[str]:
    return [line for text in told for line in text.splitlines() if line.startswith("error: ")]


def test_ranks_that_agree_meet() -> None:
    with reserved_ports(1) as [port]:
        codes, told = start(place(1, 2, port), place(0, 2, port))
    assert codes == [0, 0], told
    assert all("sum 2" in text for text in told)


def test_two_processes_that_are_both_rank_0_are_told_so() -> None:
    with reserved_ports(1) as [port]:
        codes, told = start(place(0, 2, port), place(0, 2, port))
    assert codes == [2, 2], told
    assert all("rank 0 is there twice: " in line and line.count("(process ") == 2 for line in lines(told))
    assert lines(told)


def test_two_head_nodes_that_never_meet_end_by_themselves() -> None:
    # Each is its own MASTER_ADDR, as after `MASTER_ADDR=$(hostname)` on every node: there is no contact at all.
    with reserved_ports(2) as ports:
        codes, told = start(*(place(0, 2, port, **ALONE) for port in ports))
    assert codes == [2, 2], told
    for text, port in zip(told, ports, strict=True):
        assert f"rank 1 of 2 did not come to 127.0.0.1:{port}" in text
        assert "only one process rank 0" in text
        assert JOIN_S <= float(re.findall(r"waited (\S+)", text)[0]) < JOIN_S + 10


def test_world_sizes_that_differ_are_both_named() -> None:
    with reserved_ports(1) as [port]:
        codes, told = start(place(0, 2, port), place(1, 3, port))
    assert codes == [2, 2], told
    assert any("rank 0 of 2" in line and "rank 1 of 3" in line for line in lines(told)), told


def test_a_rank_that_finds_no_rank_0_names_the_address() -> None:
    with reserved_ports(1) as [port]:
        codes, told = start(place(1, 2, port, **ALONE))
    assert codes == [2]
    assert f"rank 1 of 2 on {os.uname().nodename}" in told[0]
    assert f"MASTER_PORT={port}" in told[0]


@pytest.mark.parametrize("absent", ["MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_address_is_named_before_anything_is_waited_for(absent: str) -> None:
    variables = place(0, 2, 29500)
    del variables[absent]
    codes, told = start(variables)
    assert codes == [2]
    assert f"{absent} is missing for 2 processes" in told[0]


def test_a_machine_on_which_torch_sees_no_gpu_is_named_to_those_that_have_some() -> None:
    """Else these would wait for it in NCCL, and it for them in gloo."""
    with reserved_ports(1) as [port]:
        codes, told = start(place(0, 2, port, DEVICE="cuda"), place(1, 2, port))
    assert codes == [2, 2], told
    assert any(
        all(words in line for words in ("devices contradict each other", "on cpu", "on cuda")) for line in lines(told)
    )
