"""How ranks find each other: they tell who they are before anything is computed, and contradictions end the start.

A launcher's variables can each look right and still contradict another machine's: two processes that both believe to
be rank 0, an address that means another machine on each node, world sizes that differ. The usual symptom is a start
that hangs. Here every rank signs in at rank 0's store with its number, the size it was told, its host and its device;
whoever finds a contradiction writes it to the store, and all that wait there end with that line.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from trainer.distributed.environment import Environment
from trainer.errors import ConfigError

_STORES: dict[tuple[str, int], dist.Store] = {}
"""Of this process, by host and port. They live as long as it does: a rank that is early for the next stage would
otherwise come to a store that is about to close."""
LOOK_EVERY_S = 0.05
_meetings = itertools.count()
_LINGER_S = 2.0
"""How long the holder of the store stays after a fault, so that the others can read it."""


def meet(env: Environment, device: str) -> dist.Store:
    """Wait until all ranks are here; the store of the process group.

    The address is MASTER_ADDR and MASTER_PORT of the process environment, where rank 0 listens, or torchrun's agent.

    Args:
        env: this process's place.
        device: what it computes on, `cpu` or `cuda`. Ranks on different ones would wait for each other in different
            libraries: one machine whose driver is broken is enough.

    Raises:
        ConfigError: a rank is there twice, sizes or devices differ, or some rank has not come within `env.join_s`
            seconds.
    """
    me = f"{socket.gethostname()} (process {os.getpid()})"
    store = _open(env, me)
    _STORES[os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])] = store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    job = os.environ.get("SLURM_JOB_ID", "") + os.environ.get("SLURM_STEP_ID", "")
    # A store outlives the group, so that stages that follow each other meet at the same one. Ranks meet equally often.
    number = next(_meetings)
    book = dist.PrefixStore(f"meeting/{job}/{attempt}/{number}", store)
    _sign_in(book, env, me, device)
    _wait_for_all(book, env)
    return dist.PrefixStore(f"group/{attempt}/{number}", store)


def _open(env: Environment, me: str) -> dist.Store:
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    place = f"MASTER_ADDR={host}, MASTER_PORT={port}"
    if (host, port) in _STORES:
        return _STORES[host, port]
    agent_listens = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def connect(listen: bool, wait_s: float) -> dist.Store:
        return dist.TCPStore(host, port, is_master=listen, timeout=timedelta(seconds=wait_s), wait_for_workers=False)

    if env.rank == 0 and not agent_listens:
        try:
            return connect(True, env.join_s)
        except RuntimeError as error:
            # Perhaps it is another rank 0 that listens; then it can be told so.
            return _or(lambda: connect(False, 5.0), f"rank 0 on {me} cannot listen at {place}: {_line(error)}; free it")
    return _or(
        lambda: connect(False, env.join_s),
        f"rank {env.rank} of {env.world_size} on {me} finds no rank 0 at {place} within {env.join_s} s: these must "
        "name the machine of rank 0, on all nodes alike (RESTE_JOIN_S=300 waits longer)",
    )


def _or(connect: Callable[[], dist.Store], complaint: str) -> dist.Store:
    try:
        return connect()
    except RuntimeError:
        raise ConfigError(complaint) from None


def _sign_in(book: dist.Store, env: Environment, me: str, device: str) -> None:
    sign = f"{me}, rank {env.rank} of {env.world_size} by {env.reason}"
    earlier = book.compare_set("size", "", f"{env.world_size} {sign}").decode()
    size, _, other = earlier.partition(" ")
    if int(size) != env.world_size:
        _fault(book, f"world sizes contradict each other: {other}; but {sign}: start all with the same WORLD_SIZE")
    kind, _, other = book.compare_set("device", "", f"{device} {sign}").decode().partition(" ")
    if kind != device:
        _fault(
            book,
            f"devices contradict each other: {other}, computes on {kind}; but {sign}, on {device}: torch sees GPUs on "
            "one machine alone; look at the other with reste doctor",
        )
    count = book.add(f"ranks/{env.rank}", 1)
    book.set(f"signs/{env.rank}/{count}", sign)
    if count > 1:
        other = book.get(f"signs/{env.rank}/1").decode()
        _fault(book, f"rank {env.rank} is there twice: {other}; and {sign}: each process needs a RANK of its own")
    book.add("present", 1)


def _wait_for_all(book: dist.Store, env: Environment) -> None:
    deadline = time.monotonic() + env.join_s + (0 if env.rank == 0 else _LINGER_S)
    try:
        while book.add("present", 0) < env.world_size:
            if book.check(["fault"]):
                _end(book, env)
            if time.monotonic() > deadline:
                missing = [str(rank) for rank in range(env.world_size) if not book.check([f"ranks/{rank}"])]
                _fault(
                    book,
                    f"{_ranks(missing)} of {env.world_size} did not come to {os.environ['MASTER_ADDR']}:"
                    f"{os.environ['MASTER_PORT']} on {socket.gethostname()} within {env.join_s} s: is MASTER_ADDR the "
                    "machine of rank 0 on all nodes, and only one process rank 0? (RESTE_JOIN_S=300 waits longer)",
                )
            time.sleep(LOOK_EVERY_S)
    except RuntimeError:
        raise ConfigError(f"rank {env.rank} lost rank 0 before all ranks had come: read what rank 0 says") from None


def _end(book: dist.Store, env: Environment) -> None:
    error = ConfigError(book.get("fault").decode())
    error.everywhere = True  # whoever found it says it
    if env.rank == 0:
        time.sleep(_LINGER_S)
    raise error


def _fault(book: dist.Store, text: str) -> None:
    book.set("fault", text)
    time.sleep(_LINGER_S)
    raise ConfigError(text)


def _ranks(missing: list[str]) -> str:
    return f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(missing)}"


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]
