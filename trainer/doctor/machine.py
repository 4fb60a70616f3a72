"""Checks of each machine: software, devices, threads, limits."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import resource
import shutil
import socket
from pathlib import Path

import torch

from trainer.config import Config
from trainer.doctor.check import ByRank, Check, Context, Facts, Problem, unlike_the_first
from trainer.hardware import apply_switches
from trainer.tracking.manifest import versions

GIB = 2**30
MIB = 2**20
LEAST_FILES = 1024
LEAST_SHARED_MEMORY = 64 * MIB
"""What NCCL wants of /dev/shm for every rank of a machine, about."""
_PACKAGES = ("reste", "models", "trainer", "launch")


def look_at_software(context: Context) -> Facts:
    """Versions of everything that decides the numbers, of the GPU's software, and of this project's own code."""
    return {**versions(), "cuda": torch.version.cuda, "driver": _driver(), "code": _code_digest()}


def _driver() -> str | None:
    try:
        line = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None
    found = re.search(r"\d+\.\d+(\.\d+)?", line)
    return found.group() if found else None


def _code_digest() -> str:
    """SHA-256 over this project's source files."""
    root = Path(__file__).resolve().parents[2]
    digest = hashlib.sha256()
    for path in sorted(file for name in _PACKAGES for file in (root / name).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def judge_software(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Equal on all ranks; torch and this project's code must be."""
    first = facts[min(facts)]
    problems = []
    for key in first:
        if unlike := unlike_the_first(facts, key):
            what = f"{key} {facts[unlike[0]].get(key)} instead of rank {min(facts)}'s {first[key]}"
            problems.append(
                Problem(unlike, what, f"install the same {key} on all machines", sure=key in ("torch", "code"))
            )
    gpu = f", CUDA {first['cuda']}, driver {first['driver']}" if first.get("driver") else ""
    return f"Python {first['python']}, torch {first['torch']}{gpu}, code {first['code']}", problems


def look_at_device(context: Context) -> Facts:
    """The device's name and memory in bytes."""
    device = context.device
    facts: Facts = {"host": socket.gethostname(), "kind": device.type}
    if device.type == "cpu":
        return {**facts, "name": platform.machine(), "cores": len(os.sched_getaffinity(0)), "memory": _memory()}
    free, total = torch.cuda.mem_get_info(device)
    properties = torch.cuda.get_device_properties(device)
    unit = str(getattr(properties, "uuid", device.index))
    return {**facts, "name": properties.name, "memory": total, "free": free, "unit": unit}


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def judge_device(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Equal devices, one for each rank, nobody else's."""
    first = facts[min(facts)]
    problems = []
    if unlike := unlike_the_first(facts, "name"):
        what = f"{facts[unlike[0]]['name']} instead of rank {min(facts)}'s {first['name']}"
        fix = "start on machines of one kind: the slowest rank sets the pace"
        mixed = any(facts[rank]["kind"] != first["kind"] for rank in unlike)
        problems.append(Problem(unlike, what, fix, sure=mixed))
    seen: dict[tuple[str, str], int] = {}
    for rank, fact in sorted(facts.items()):
        if fact["kind"] != "cuda":
            continue
        if (other := seen.setdefault((fact["host"], fact["unit"]), rank)) != rank:
            fix = "start at most one rank for each GPU, all GPUs visible to all ranks of a machine"
            problems.append(Problem([rank], f"shares its GPU with rank {other}", fix))
        elif fact["free"] < 0.9 * fact["memory"]:
            taken = (fact["memory"] - fact["free"]) / GIB
            fix = "see nvidia-smi; end what else runs there"
            problems.append(Problem([rank], f"{taken:.1f} GiB of its GPU's memory are taken", fix, sure=False))
    hosts = len({fact["host"] for fact in facts.values()})
    where = f"{hosts} machine{'s' if hosts > 1 else ''}"
    size = f"{first['memory'] / GIB:.0f} GiB"
    cores = f", {first['cores']} cores" if "cores" in first else ""
    return f"{len(facts)} x {first['kind']} ({first['name']}{cores}, {size}) on {where}", problems


def look_at_threads(context: Context) -> Facts:
    """Threads of torch on this rank, and cores that the ranks of this machine share."""
    apply_switches(context.config.train, context.environment, context.device)
    return {
        "kind": context.device.type,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "ranks": context.environment.local_world_size,
    }


def judge_threads(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """On a CPU no rank should compute on more threads than its share of the cores."""
    problems = []
    for rank, fact in sorted(facts.items()):
        share = max(1, fact["cores"] // fact["ranks"])
        if fact["kind"] == "cpu" and fact["threads"] > share:
            what = f"{fact['threads']} threads, but {fact['cores']} cores are shared by {fact['ranks']} ranks"
            problems.append(Problem([rank], what, f"unset OMP_NUM_THREADS, or set it to {share}", sure=False))
    counts = sorted({fact["threads"] for fact in facts.values()})
    return (
        f"{' or '.join(map(str, counts))} a rank; the loader's come on top (data.workers={config.data.workers})",
        problems,
    )


def look_at_limits(context: Context) -> Facts:
    """Open files allowed, and room in shared memory in bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        free = None
    return {
        "files": soft,
        "most_files": hard,
        "shared_memory": free,
        "nccl_ranks": context.environment.local_world_size if torch.cuda.is_available() else 1,
    }


def judge_limits(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Enough open files; enough shared memory where NCCL uses it."""
    problems = []
    for rank, fact in sorted(facts.items()):
        if 0 <= fact["files"] < LEAST_FILES:
            fix = f"ulimit -n {LEAST_FILES} before the start"
            problems.append(Problem([rank], f"may open {fact['files']} files only", fix, sure=False))
        wanted = fact["nccl_ranks"] * LEAST_SHARED_MEMORY
        if fact["nccl_ranks"] > 1 and fact["shared_memory"] is not None and fact["shared_memory"] < wanted:
            what = f"/dev/shm has {fact['shared_memory'] / MIB:.0f} MiB free, NCCL may want {wanted / MIB:.0f}"
            problems.append(
                Problem([rank], what, "start the container with --ipc=host or a larger --shm-size", sure=False)
            )
    least = min(facts.values(), key=lambda fact: fact["files"])
    shared = [fact["shared_memory"] for fact in facts.values() if fact["shared_memory"] is not None]
    room = f", /dev/shm {min(shared) / GIB:.1f} GiB" if shared else ""
    return f"{least['files']} open files{room}", problems


SOFTWARE = Check("software", look_at_software, judge_software, "can the project's files be read on this machine?")
DEVICE = Check(
    "devices", look_at_device, judge_device, "does nvidia-smi answer on this machine? If not, its driver hangs", 60.0
)
THREADS = Check("threads", look_at_threads, judge_threads, "try with OMP_NUM_THREADS=1", needs=("devices",))
LIMITS = Check("limits", look_at_limits, judge_limits, "does df /dev/shm answer on this machine?")
