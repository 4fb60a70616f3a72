"""Which rank of how many this process is, read from the variables of whoever started it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from trainer.errors import ConfigError

Launcher = Literal["torchrun", "slurm", "deepspeed", "none"]

# SLURM numbers the batch script, the interactive shell and their like from here; those are no tasks of srun.
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Environment:
    """One process among all that train together.

    Attributes:
        rank: 0-based number of this process.
        world_size: number of processes.
        local_rank: 0-based number among the processes of this node.
        local_world_size: number of processes on this node.
        node_rank: 0-based number of this node.
        launcher: who started the processes.
        reason: which variables were believed, for the log.
        join_s: seconds to wait for the other ranks at the start: RESTE_JOIN_S, or 50; after torchrun, whose agents
            have met already, 600.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0
    launcher: Launcher = "none"
    reason: str = "no launcher's variables are set: one process"
    join_s: int = 50


def is_rank(environ: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as one of its ranks; see `resolve_environment`.

    Raises:
        ConfigError: SLURM's variables cannot be read.
    """
    return "RANK" in environ or _slurm_task(environ) is not None


def announced_world(environ: Mapping[str, str]) -> int:
    """How many ranks the launcher of this one says that it has started, before that is checked."""
    names = ("WORLD_SIZE",) if "RANK" in environ else ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
    return next((_number(environ, name) for name in names if name in environ), 1)


def resolve_environment(environ: Mapping[str, str]) -> Environment:
    """Find this process's place; the mapping (usually `os.environ`) is all that is looked at.

    RANK and WORLD_SIZE (torchrun, deepspeed, by hand) win over the variables of srun, because `srun torchrun`
    sets both, and the inner launcher made this process. A SLURM shell without srun counts as no launcher.

    Raises:
        ConfigError: the variables are incomplete, out of range or contradict each other.
    """
    task = _slurm_task(environ)
    if "RANK" in environ:
        found = _from_rank(environ)
    elif task is not None:
        found = task
    elif "WORLD_SIZE" in environ:
        raise ConfigError("WORLD_SIZE is set but RANK is not: start through torchrun, or unset WORLD_SIZE")
    else:
        _refuse_mpi(environ)
        return Environment()
    _check_ranges(found)
    _check_agreement(environ, found, task)
    if found.world_size > 1:
        _check_master(environ, found.world_size)
    return replace(found, join_s=_number(environ, "RESTE_JOIN_S", 600 if found.launcher == "torchrun" else 50))


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environ and default is not None:
        return default
    if name not in environ:
        raise ConfigError(f"{name} is missing beside a launcher's other variables: start through torchrun")
    if not environ[name].strip().isdecimal():
        raise ConfigError(f"{name}={environ[name]!r} is not a whole number: start through torchrun")
    return int(environ[name])


def _from_rank(environ: Mapping[str, str]) -> Environment:
    launcher: Launcher
    if "TORCHELASTIC_RUN_ID" in environ:
        launcher, about = "torchrun", "RANK and WORLD_SIZE of torchrun"
    elif "CROSS_RANK" in environ and "LOCAL_SIZE" in environ:
        launcher, about = "deepspeed", "RANK and WORLD_SIZE of deepspeed"
    else:
        launcher, about = "none", "RANK and WORLD_SIZE, set without a known launcher"
    rank, world = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    alone = world == 1
    local_rank = _number(environ, "LOCAL_RANK", 0 if alone else None)
    size_name = "LOCAL_SIZE" if launcher == "deepspeed" else "LOCAL_WORLD_SIZE"
    local_world = _number(environ, size_name, 1 if alone else None)
    node_name = "CROSS_RANK" if launcher == "deepspeed" else "GROUP_RANK"
    node_rank = _number(environ, node_name, rank // max(local_world, 1))
    if "SLURM_JOB_ID" in environ:
        about += f" inside SLURM job {environ['SLURM_JOB_ID']}"
    return Environment(rank, world, local_rank, local_world, node_rank, launcher, about)


def _slurm_task(environ: Mapping[str, str]) -> Environment | None:
    """The task of srun that this process is, if it is one."""
    if "SLURM_PROCID" not in environ or "SLURM_STEP_ID" not in environ:
        return None
    if _number(environ, "SLURM_STEP_ID") >= _FIRST_SPECIAL_STEP:
        return None
    world = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", 1))
    node_rank = _number(environ, "SLURM_NODEID", 0)
    return Environment(
        rank=_number(environ, "SLURM_PROCID"),
        world_size=world,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_world_size=_tasks_on_node(environ, node_rank, world),
        node_rank=node_rank,
        launcher="slurm",
        reason=f"SLURM_PROCID and its like of srun, job {environ.get('SLURM_JOB_ID', '?')}",
    )


def _tasks_on_node(environ: Mapping[str, str], node_rank: int, world: int) -> int:
    """Tasks of this step on a node, from SLURM's run-length form such as `4(x2),1`."""
    form = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", str(world)))
    counts: list[int] = []
    for item in form.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item.strip())
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE={form!r} cannot be read: use `srun torchrun`")
        counts += [int(match[1])] * int(match[2] or 1)
    if node_rank >= len(counts) or sum(counts) != world:
        raise ConfigError(
            f"SLURM_NODEID={node_rank} and {world} tasks do not fit SLURM_STEP_TASKS_PER_NODE={form}: "
            "use `srun torchrun`"
        )
    return counts[node_rank]


def _refuse_mpi(environ: Mapping[str, str]) -> None:
    for name in _MPI_SIZES:
        if _number(environ, name, 1) > 1:
            raise ConfigError(f"{name}={environ[name]}: MPI launchers are not supported: use torchrun")


def _check_ranges(found: Environment) -> None:
    for name, value, size_name, size in (
        ("rank", found.rank, "world size", found.world_size),
        ("local rank", found.local_rank, "local world size", found.local_world_size),
        ("local world size - 1", found.local_world_size - 1, "world size", found.world_size),
    ):
        if not 0 <= value < size:
            raise ConfigError(f"{name} {value} does not fit {size_name} {size} ({found.reason}): mend or unset these")


def _check_agreement(environ: Mapping[str, str], found: Environment, task: Environment | None) -> None:
    # torchrun and deepspeed number processes themselves: rank 0 need not be task 0, whatever the sizes.
    if task is None or found.launcher != "none" or found.world_size != task.world_size:
        return
    if found.rank != task.rank:
        raise ConfigError(
            f"RANK={found.rank} but SLURM_PROCID={task.rank} in a world of {task.world_size}: "
            "unset RANK and WORLD_SIZE, or start through `srun torchrun`"
        )


def _check_master(environ: Mapping[str, str], world: int) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environ.get(name):
            raise ConfigError(f"{name} is missing for {world} processes: export it for all of them")
    if not 0 < _number(environ, "MASTER_PORT") < 65536:
        raise ConfigError(f"MASTER_PORT={environ['MASTER_PORT']} is not a port: use 1024 to 65535")
