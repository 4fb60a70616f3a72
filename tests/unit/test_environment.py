"""Whom a process believes about its place, from plain mappings."""

from __future__ import annotations

import pytest

from trainer.distributed.environment import Environment, announced_world, is_rank, resolve_environment
from trainer.errors import ConfigError

MASTER = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
TORCHRUN = MASTER | {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "x",
}
SRUN = MASTER | {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
DEEPSPEED = MASTER | {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "4",
    "CROSS_RANK": "1",
    "CROSS_SIZE": "2",
}


BY_HAND = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} | MASTER


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def place(found: Environment) -> tuple[int, int, int, int, int]:
    return found.rank, found.world_size, found.local_rank, found.local_world_size, found.node_rank


@pytest.mark.parametrize(
    ("environ", "launcher"),
    [(TORCHRUN, "torchrun"), (SRUN, "slurm"), (DEEPSPEED, "deepspeed")],
    ids=["torchrun", "srun", "deepspeed"],
)
def test_each_launcher_is_recognised(environ: dict[str, str], launcher: str) -> None:
    found = resolve_environment(environ)
    assert found.launcher == launcher
    assert place(found) == (5, 8, 1, 4, 1)
    assert is_rank(environ)
    assert announced_world(environ) == 8


def test_nothing_set_is_one_process() -> None:
    assert resolve_environment({"HOME": "/root"}) == Environment()
    assert place(Environment()) == (0, 1, 0, 1, 0)


def test_a_world_of_one_needs_no_master() -> None:
    assert place(resolve_environment({"RANK": "0", "WORLD_SIZE": "1"})) == (0, 1, 0, 1, 0)


def test_variables_set_by_hand_are_believed() -> None:
    found = resolve_environment(BY_HAND)
    assert found.launcher == "none"
    assert place(found) == (5, 8, 1, 4, 1)
    assert "RANK" in found.reason


@pytest.mark.parametrize("tasks", ["2", "8"], ids=["one task a node", "as many tasks as ranks"])
def test_torchrun_under_srun_wins_though_the_numbers_differ(tasks: str) -> None:
    slurm = SRUN | {
        "SLURM_PROCID": "0",
        "SLURM_NTASKS": tasks,
        "SLURM_STEP_NUM_TASKS": tasks,
        "SLURM_NODEID": "0",
    }
    slurm["SLURM_STEP_TASKS_PER_NODE"] = f"{int(tasks) // 2}(x2)"
    found = resolve_environment(slurm | TORCHRUN)
    assert found.launcher == "torchrun"
    assert found.rank == 5
    assert "job 77" in found.reason


def test_uneven_nodes_are_read_from_slurms_run_length_form() -> None:
    environ = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2", "SLURM_PROCID": "7"}
    assert place(resolve_environment(environ)) == (7, 8, 1, 2, 2)


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8"},
        {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_ID": "4294967290"},
    ],
    ids=["salloc shell", "batch script", "interactive step"],
)
def test_a_slurm_shell_without_srun_is_one_process(environ: dict[str, str]) -> None:
    assert resolve_environment(environ) == Environment()
    assert not is_rank(environ)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        (SRUN | BY_HAND | {"RANK": "4"}, "SLURM_PROCID=5"),
        (TORCHRUN | {"RANK": "8"}, "rank 8"),
        (TORCHRUN | {"LOCAL_RANK": "4"}, "local rank 4"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16"}, "local world size"),
        (TORCHRUN | {"RANK": "five"}, "RANK='five'"),
        (TORCHRUN | {"RANK": "-1"}, "RANK='-1'"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0"),
        (TORCHRUN | {"MASTER_PORT": "70000"}, "MASTER_PORT=70000"),
        (without(TORCHRUN, "MASTER_ADDR"), "MASTER_ADDR"),
        (without(SRUN, "MASTER_PORT"), "MASTER_PORT"),
        (without(TORCHRUN, "WORLD_SIZE"), "WORLD_SIZE is missing"),
        (without(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK is missing"),
        (without(TORCHRUN, "RANK"), "RANK is not"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4"}, "SLURM_NODEID=1"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "4(x3)"}, "8 tasks"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "four"}, "cannot be read"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}, "torchrun"),
    ],
)
def test_a_contradiction_is_one_line_that_names_it(environ: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_environment(environ)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_mapping_is_all_that_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert resolve_environment({}) == Environment()
