"""Real processes for tests of anything distributed: `run_ranks(function, world)`."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class RankFailed(AssertionError):  # noqa: N818
    """A rank raised, died or ran out of time; the message holds its standard error."""


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 150, join: bool = True
) -> list[Any]:
    """Call `function(*args)` in `world` new processes that are joined by gloo; their results by rank.

    No process outlives the call. Each computes on one thread.

    Args:
        function: a function at the top level of a test file; there `collectives.rank()` says who one is.
        world: number of processes.
        *args: anything that can be pickled.
        timeout_s: after which the processes are killed; a collective gives up a little earlier.
        join: whether to join the process group before the call and to leave it after.

    Raises:
        RankFailed: naming the rank that ended first with an error.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        work = Path(folder)
        source = inspect.getsourcefile(function)
        (work / "task").write_bytes(pickle.dumps((source, function.__name__, args, join, timeout_s)))
        with reserved_ports(1) as [port]:
            ranks = [_start(work, rank, world, port, timeout_s) for rank in range(world)]
            try:
                _wait(ranks, time.monotonic() + timeout_s, work)
            finally:
                for process in ranks:
                    _kill(process)
        return [pickle.loads((work / f"result_{rank}").read_bytes()) for rank in range(world)]


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[list[int]]:
    """Ports of this machine, all different, that nobody is given by chance before the ranks listen at them.

    A socket that is bound and never listens keeps each: who asks for that very port, and reuses addresses as torch
    does, may listen there all the same.
    """
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", 0))
        yield [int(probe.getsockname()[1]) for probe in probes]


def _start(work: Path, rank: int, world: int, port: int, timeout_s: float) -> subprocess.Popen[bytes]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_"))}
    environment = inherited | {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RESTE_JOIN_S": str(int(timeout_s)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
    }
    with (work / f"errors_{rank}").open("wb") as errors:
        command = [sys.executable, str(Path(__file__).resolve()), str(work)]
        # A session of its own, so that what a rank has started dies with it.
        return subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True)


def _wait(ranks: list[subprocess.Popen[bytes]], deadline: float, work: Path) -> None:
    running = set(range(len(ranks)))
    while running:
        for rank in sorted(running):
            code = ranks[rank].poll()
            if code:
                raise RankFailed(f"rank {rank} ended with {code}\n{_errors(work, rank)}")
            if code == 0:
                running.remove(rank)
        if time.monotonic() > deadline:
            told = "\n".join(f"rank {rank} did not end\n{_errors(work, rank)}" for rank in sorted(running))
            raise RankFailed(told)
        time.sleep(0.02)


def _errors(work: Path, rank: int) -> str:
    return (work / f"errors_{rank}").read_text(errors="replace")[-8000:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _be_rank(work: Path) -> None:
    import torch

    from trainer.distributed import collectives
    from trainer.distributed.environment import resolve_environment

    torch.set_num_threads(1)
    source, name, args, join, timeout_s = pickle.loads((work / "task").read_bytes())
    spec = importlib.util.spec_from_file_location("test_in_rank", source)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Known by name, so that the module's own classes and functions can be pickled.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    environment = resolve_environment(os.environ)
    if join:
        collectives.init_process_group(environment, torch.device("cpu"), timeout_s=max(timeout_s - 5, 5))
    result = getattr(module, name)(*args)
    if join:
        collectives.barrier()
        collectives.shutdown()
    (work / f"result_{environment.rank}").write_bytes(pickle.dumps(result))
    # Python's end destroys what is left of the group in any order, and once in thousands of times gloo ends in SIGABRT.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    _be_rank(Path(sys.argv[1]))
