"""A board where ranks leave notes for each other; unlike a collective it does not hang when one of them is gone."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from trainer.distributed.environment import Environment
from trainer.errors import ConfigError

_PAUSE_S = 0.005


class Board:
    """JSON values under names, seen by every rank; waiting for one always has an end.

    Args:
        store: torch's key-value store that the ranks share.
        rank: this rank's number.
        world: number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.store = store
        self.rank = rank
        self.world = world

    def post(self, name: str, value: Any) -> None:
        """Leave a value, once for each name."""
        self.store.set(name, json.dumps(value))

    def read(self, name: str, timeout_s: float, *, pause_s: float = _PAUSE_S) -> Any:
        """The value left under a name, as soon as it is there.

        Raises:
            TimeoutError: nothing was left within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        # Asking again instead of waiting in the store: a thread that waits there keeps all others of the process out.
        while not self.store.check([name]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {name} within {timeout_s:.0f} s")
            time.sleep(pause_s)
        return json.loads(self.store.get(name))

    def exchange(self, name: str, value: Any, timeout_s: float) -> list[Any]:
        """Leave this rank's value and wait for everybody's; they come in rank order.

        Raises:
            TimeoutError: naming the ranks that left none within `timeout_s` seconds.
        """
        self.post(f"{name}/{self.rank}", value)
        deadline = time.monotonic() + timeout_s
        found: list[Any] = []
        missing = []
        for rank in range(self.world):
            try:
                found.append(self.read(f"{name}/{rank}", max(deadline - time.monotonic(), 0.0)))
            except TimeoutError:
                missing.append(rank)
        if missing:
            raise TimeoutError(f"rank {', '.join(map(str, missing))} did not come within {timeout_s:.0f} s")
        return found


def lone_board() -> Board:
    """The board of a process by itself."""
    return Board(dist.HashStore(), 0, 1)


def open_board(environment: Environment, *, timeout_s: float) -> Board:
    """The board of these ranks, kept by rank 0, or by torchrun where that has a store already.

    Returns as soon as it can be reached; whether the other ranks are there is not asked.

    Raises:
        ConfigError: MASTER_ADDR:MASTER_PORT cannot be reached within `timeout_s` seconds, or is somebody else's.
    """
    if environment.world_size == 1:
        return lone_board()
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    keeps = environment.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = dist.TCPStore(
            host,
            port,
            None,
            is_master=keeps,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        what = "open" if keeps else "reach"
        raise ConfigError(
            f"rank {environment.rank} cannot {what} {host}:{port} within {timeout_s:.0f} s ({said}): is rank 0 "
            "running, and is MASTER_PORT free there and open to this machine?"
        ) from None
    # torchrun's store outlives its ranks: what an earlier start of them left is not ours.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Board(dist.PrefixStore(f"board-{attempt}", store), environment.rank, environment.world_size)
