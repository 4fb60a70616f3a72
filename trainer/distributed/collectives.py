"""Collectives of the trainer. In a world of one each is the identity and needs no process group."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist

from trainer.distributed.environment import Environment
from trainer.distributed.meeting import meet
from trainer.errors import ConfigError, UserError

T = TypeVar("T")
_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
_SHOWN = 200


def init_process_group(env: Environment, device: torch.device, *, timeout_s: float = 600.0) -> None:
    """Join the other ranks; nothing to do in a world of one.

    With GPUs, tensors there travel through NCCL, tensors on the host through gloo, so that an agreement on a
    flag does not wait for the GPU.

    Args:
        env: this process's place; MASTER_ADDR and MASTER_PORT are taken from the process environment.
        device: the rank's device.
        timeout_s: seconds after which a collective that a rank does not join becomes an error.

    Raises:
        ConfigError: ranks are missing, or contradict each other about who they are.
    """
    global _broken
    _broken = False
    if env.world_size == 1:
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    # The flight recorder: the last so many collectives of each rank, for `recorded`.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=meet(env, device.type),
        rank=env.rank,
        world_size=env.world_size,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if cuda else None,
    )


def recorded(*, of_device: bool = True) -> str:
    """The collectives that this rank began last, with shapes, times and states: what torch's flight recorder holds.

    JSON, an object with `gloo` and `nccl`; either is null where this torch does not record it.

    Args:
        of_device: NCCL's too, for whose states the device is asked: one that hangs may not answer.
    """
    recorders = {"gloo": "_dump_fr_trace_json", "nccl": "_dump_nccl_trace_json" if of_device else ""}
    dumps = {name: getattr(torch._C._distributed_c10d, function, None) for name, function in recorders.items()}
    return json.dumps({name: None if dump is None else json.loads(dump()) for name, dump in dumps.items()})


def init_alone() -> None:
    """Make a process group of this process alone, unless there is a group, for a library that insists on one."""
    if not _active():
        store = dist.HashStore()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=store, rank=0, world_size=1
        )


_broken = False


def give_up() -> None:
    """Tell that this rank leaves out of turn, because of an error or a request of its own: others may be anywhere.

    NCCL's communicators wait for their peers when they are destroyed, for ever if these are in the middle of something.
    From here on they are left to the end of the process, so that an error is told and ends it.
    """
    global _broken
    _broken = True


def leaves_in_turn() -> bool:
    """Whether communicators may be destroyed; see `give_up`."""
    return not (_broken and on_device())


def on_device() -> bool:
    """Whether there is a group whose tensors travel through NCCL."""
    return _active() and "nccl" in dist.get_backend_config()


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if _active() and leaves_in_turn():
        dist.destroy_process_group()


def _active() -> bool:
    return dist.is_initialized()


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if _active() else 1


def rank() -> int:
    """This rank's number."""
    return dist.get_rank() if _active() else 0


def is_main() -> bool:
    """Whether this is rank 0, the one that prints and writes."""
    return rank() == 0


def all_reduce_(tensor: torch.Tensor, op: Literal["sum", "max", "min"] = "sum") -> torch.Tensor:
    """Reduce a tensor over all ranks in place; returns it, equal on all ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor, op=_OPS[op])
    return tensor


def broadcast_(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite a tensor with rank 0's in place; returns it."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather_parts(part: torch.Tensor) -> torch.Tensor:
    """The flat parts of all ranks, of one size each, put together in their order; on every rank."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part) for _ in range(world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts)


def broadcast_object(value: T) -> T:
    """Rank 0's value (anything that can be pickled), on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: T) -> list[T]:
    """The values of all ranks in their order, on every rank."""
    if world_size() == 1:
        return [value]
    box: list[T | None] = [None] * world_size()
    dist.all_gather_object(box, value)
    return box  # type: ignore[return-value]


def gather_numbers(values: list[float]) -> list[list[float]]:
    """Equally many numbers of every rank, in the ranks' order, on every rank. Does not wait for a GPU."""
    if world_size() == 1:
        return [values]
    mine = torch.tensor(values, dtype=torch.float64)
    everyone = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(everyone, mine)
    return [row.tolist() for row in everyone]


def agree_any(flag: bool) -> bool:
    """Whether the flag is set on at least one rank; the same answer on all. Does not wait for a GPU."""
    return bool(all_reduce_(torch.tensor(int(flag)), "max").item())


def barrier() -> None:
    """Wait for all ranks. Does not wait for a GPU."""
    all_reduce_(torch.zeros(()))


def check_equal(what: str, value: str) -> None:
    """Make sure that all ranks hold the same text, such as the digest of their configuration.

    Raises:
        ConfigError: they do not; raised on every rank, and names the ranks that differ from rank 0.
    """
    values = gather_objects(value)
    others = [number for number, other in enumerate(values) if other != values[0]]
    if not others:
        return
    named = f"rank {others[0]} has" if len(others) == 1 else f"ranks {', '.join(map(str, others))} have"
    error = ConfigError(
        f"{named} another {what} than rank 0: {_short(values[others[0]])} instead of {_short(values[0])}; "
        "start all ranks with the same command, code and files"
    )
    error.everywhere = True
    raise error


@contextmanager
def agreed_errors() -> Iterator[None]:
    """Around work that may find fault with the user's input on some ranks: the first fault is raised on all.

    The work itself must hold no collective.

    Raises:
        UserError: of the type that the lowest failing rank raised.
    """
    error: UserError | None = None
    try:
        yield
    except UserError as found:
        error = found
    faults = gather_objects(None if error is None else (type(error), str(error)))
    failing = [number for number, fault in enumerate(faults) if fault is not None]
    if not failing:
        return
    kind, text = faults[failing[0]] or (UserError, "")
    alone = "" if len(failing) == len(faults) else f" (on rank {', '.join(map(str, failing))})"
    shared = kind(text + alone)
    shared.everywhere = True
    raise shared from None


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def new_subgroup(partition: Sequence[Sequence[int]]) -> dist.ProcessGroup:
    """A communicator of its own for each set of ranks; returns the one that this rank is in.

    Args:
        partition: every rank in exactly one set; the same on all ranks.
    """
    everyone = sorted(number for ranks in partition for number in ranks)
    assert everyone == list(range(world_size())), f"no partition: {partition}"
    mine = None
    for ranks in partition:
        group = dist.new_group(list(ranks))
        if rank() in ranks:
            mine = group
    assert mine is not None
    return mine
