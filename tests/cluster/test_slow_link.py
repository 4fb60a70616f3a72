"""A rank behind a slow link, on three network namespaces of this machine joined by a bridge."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
WORLD, SLOW = 3, 0
BRIDGE, NETWORK = "reste-br", "10.77.0"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """One namespace a rank with an interface `net0`; that of the slow rank passes 40 Mbit/s out."""
    names = [f"reste-{os.getpid()}-{rank}" for rank in range(WORLD)]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        for rank, name in enumerate(names):
            ip("netns", "add", name)
            ip("link", "add", f"reste-v{rank}", "type", "veth", "peer", "name", "net0", "netns", name)
            ip("link", "set", f"reste-v{rank}", "master", BRIDGE, "up")
            ip("-n", name, "address", "add", f"{NETWORK}.{rank + 1}/24", "dev", "net0")
            ip("-n", name, "link", "set", "net0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        slow = "tc qdisc add dev net0 root tbf rate 40mbit burst 64kbit latency 400ms"
        ip("netns", "exec", names[SLOW], *slow.split())
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)


def rank_main() -> None:
    """As one rank: three windows in which all ranks compute alike; prints what was said."""
    import torch

    from trainer.distributed import collectives
    from trainer.distributed.environment import resolve_environment
    from trainer.feed import Pace
    from trainer.stragglers import Stragglers

    collectives.init_process_group(resolve_environment(os.environ), torch.device("cpu"), timeout_s=60)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("trainer.stragglers").addHandler(handler)
    stragglers = Stragglers([f"node{rank}" for rank in range(WORLD)], gradient_bytes=4 << 20)
    metrics = [stragglers.observe(Pace(10.0, 0.1, 3.0, 480, 10)) for _ in range(4)]
    collectives.shutdown()
    print(json.dumps({"said": said, "link_s": metrics[-1]["perf/slowest_link_s"]}))


def test_a_rank_behind_a_slow_link_is_named_with_its_communication(namespaces: list[str]) -> None:
    ranks = []
    for rank, name in enumerate(namespaces):
        place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": WORLD, "LOCAL_WORLD_SIZE": 1}
        place |= {"MASTER_ADDR": f"{NETWORK}.1", "MASTER_PORT": 29511, "GLOO_SOCKET_IFNAME": "net0"}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", name, sys.executable, str(Path(__file__))]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    began = time.monotonic()
    found = [json.loads(rank.communicate(timeout=100)[0].splitlines()[-1]) for rank in ranks]
    assert time.monotonic() - began < 100
    for told in found:
        [line] = told["said"]
        assert line.startswith(f"rank {SLOW} on node{SLOW} holds the others up: communication takes it ")
        # 256 KiB at 40 Mbit/s take 52 ms, less what the bucket lets through at once.
        assert 0.03 < told["link_s"] < 0.5


if __name__ == "__main__":
    rank_main()
