"""Checks between ranks: ports, clocks, collectives."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from trainer.config import Config, config_digest
from trainer.distributed.board import Board
from trainer.distributed.trial import all_reduce_trial
from trainer.doctor.check import ByRank, Check, Context, Facts, Problem, unlike_the_first
from trainer.errors import ConfigError

LEAST_PORTS = 1000
MOST_SKEW_S = 1.0
TRIAL_BYTES = (64 * 2**10, 16 * 2**20)
_ROUNDS = 5
_CONNECT_S = 5.0
_FIREWALL = (
    "open the ports between these machines, or name the network that joins them in GLOO_SOCKET_IFNAME and "
    "NCCL_SOCKET_IFNAME"
)


def look_at_configuration(context: Context) -> Facts:
    """The digest of what decides the numbers, and the run's folder."""
    return {"digest": config_digest(context.config), "run folder": str(context.config.run_dir.absolute())}


def judge_configuration(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Equal on all ranks."""
    first = facts[min(facts)]
    problems = []
    for key in first:
        if unlike := unlike_the_first(facts, key):
            what = f"{key} {facts[unlike[0]][key]} instead of rank {min(facts)}'s {first[key]}"
            fix = "start all ranks with the same command, in the same folder, on the same files"
            problems.append(Problem(unlike, what, fix))
    return f"{config.model.name} in {config.run_dir}, digest {first['digest'][:12]}", problems


def look_at_ports(context: Context) -> Facts:
    """Connect to the next rank at a port of the system's choice; also what this host's name leads to."""
    host = socket.gethostname()
    facts: Facts = {"host": host, "address": _address_of(host), "ports": _port_range(), "unreached": None}
    if context.environment.world_size == 1:
        return facts
    with socket.create_server((_address_here(), 0)) as server:
        server.settimeout(_CONNECT_S)
        addresses = context.board.exchange("ports/address", server.getsockname()[:2], 10.0)
        nearby = addresses[(context.rank + 1) % len(addresses)]
        try:
            socket.create_connection(tuple(nearby), _CONNECT_S).close()
        except OSError as error:
            facts["unreached"] = f"{nearby[0]}:{nearby[1]} ({error})"
        context.board.exchange("ports/done", True, 3 * _CONNECT_S)
    return facts


def _address_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return "none"


def _address_here() -> str:
    """The address from which this machine speaks to rank 0's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        return str(probe.getsockname()[0])


def _port_range() -> int:
    try:
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return LEAST_PORTS
    return int(last) - int(first) + 1


def judge_ports(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Each rank reaches the next one; on several machines no name leads to the machine itself."""
    problems = []
    hosts = {fact["host"] for fact in facts.values()}
    for rank, fact in sorted(facts.items()):
        if fact["unreached"] is not None:
            following = (rank + 1) % len(facts)
            problems.append(Problem([rank], f"cannot reach rank {following} at {fact['unreached']}", _FIREWALL))
        if len(hosts) > 1 and (fact["address"] == "none" or fact["address"].startswith("127.")):
            what = f"its host name {fact['host']} leads to {fact['address']}, where other machines do not find it"
            fix = "mend /etc/hosts there, or name the network in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            problems.append(Problem([rank], what, fix))
        if fact["ports"] < LEAST_PORTS:
            what = f"only {fact['ports']} ports are given out"
            fix = "widen net.ipv4.ip_local_port_range"
            problems.append(Problem([rank], what, fix, sure=False))
    master = (
        f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} open" if len(facts) > 1 else "one rank, none used"
    )
    return f"{master}, {min(fact['ports'] for fact in facts.values())} ports to give out", problems


def look_at_clocks(context: Context) -> Facts:
    """How far this rank's clock is ahead of rank 0's, in seconds, give or take half of the shortest round trip."""
    if context.rank == 0:
        for rank in range(1, context.environment.world_size):
            _tell_time(context.board, rank)
        return {"ahead_s": 0.0, "within_s": 0.0}
    return min((_ask_time(context.board, number) for number in range(_ROUNDS)), key=lambda found: found["within_s"])


def _tell_time(board: Board, rank: int) -> None:
    for number in range(_ROUNDS):
        board.read(f"clock/{rank}/{number}/asked", 10.0, pause_s=0.0)
        board.post(f"clock/{rank}/{number}/told", time.time())


def _ask_time(board: Board, number: int) -> Facts:
    name = f"clock/{board.rank}/{number}"
    sent = time.time()
    board.post(f"{name}/asked", True)
    told = board.read(f"{name}/told", 15.0, pause_s=0.0005)
    received = time.time()
    return {"ahead_s": (sent + received) / 2 - told, "within_s": (received - sent) / 2}


def judge_clocks(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """No clock is off by more than a second beyond what could be measured."""
    problems = []
    for rank, fact in sorted(facts.items()):
        if abs(fact["ahead_s"]) - fact["within_s"] > MOST_SKEW_S:
            way = "ahead of" if fact["ahead_s"] > 0 else "behind"
            what = f"its clock is {abs(fact['ahead_s']):.1f} s {way} rank 0's"
            problems.append(Problem([rank], what, "set the clock of that machine by NTP or chrony", sure=False))
    worst = max(facts.values(), key=lambda fact: abs(fact["ahead_s"]))
    return f"{1000 * abs(worst['ahead_s']):.1f} ms apart, +- {1000 * worst['within_s']:.1f} ms", problems


def look_at_all_reduce(context: Context) -> Facts:
    """Sums of a known pattern over all ranks, and bytes/s for a small and a large one."""
    if context.environment.world_size == 1:
        return {"through": None, "bandwidth": []}
    device = context.device
    try:
        found = all_reduce_trial(context.board, device, TRIAL_BYTES, timeout_s=ALL_REDUCE.limit_s)
    except RuntimeError as error:
        raise ConfigError(f"the sum failed ({str(error).strip().splitlines()[0]}): {_FIREWALL}") from None
    return {"through": "NCCL" if device.type == "cuda" else "gloo", "bandwidth": found}


def judge_all_reduce(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """Wrong sums have raised; here is only something to report."""
    first = facts[min(facts)]
    if first["through"] is None:
        return "one rank, nothing to add up", []
    speeds = [min(fact["bandwidth"][n] for fact in facts.values()) for n in range(len(TRIAL_BYTES))]
    small, large = (f"{speed / 1e9:.2g} GB/s" for speed in speeds)
    return f"{first['through']}, sums right; {small} at 64 KiB, {large} at 16 MiB", []


CONFIGURATION = Check("configuration", look_at_configuration, judge_configuration, "start all ranks alike")
PORTS = Check("ports", look_at_ports, judge_ports, _FIREWALL, 40.0, together=True)
CLOCKS = Check("clocks", look_at_clocks, judge_clocks, "is a machine overloaded?", 40.0, together=True)
ALL_REDUCE = Check(
    "all-reduce", look_at_all_reduce, judge_all_reduce, _FIREWALL, 60.0, together=True, needs=("devices", "ports")
)
