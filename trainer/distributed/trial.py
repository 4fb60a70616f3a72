"""A process group on trial: does a sum over the ranks come out right, and how fast?"""

from __future__ import annotations

import time
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer.distributed.board import Board
from trainer.errors import ConfigError

_ROUNDS = 3


def all_reduce_trial(board: Board, device: torch.device, sizes: tuple[int, ...], *, timeout_s: float) -> list[float]:
    """Sum a known pattern over all ranks; the bandwidth in bytes/s for each size, the median of three.

    Counted is the size of the tensor over the time until its sum is there. On a GPU through NCCL, else through gloo.

    Args:
        board: of all ranks.
        device: where the tensors lie.
        sizes: in bytes, multiples of 4.
        timeout_s: after which a rank that does not join makes this an error.

    Raises:
        ConfigError: a sum is wrong.
    """
    cuda = device.type == "cuda"
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("trial", board.store),
        rank=board.rank,
        world_size=board.world,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if cuda else None,
    )
    try:
        return [_bandwidth(size, board, device) for size in sizes]
    finally:
        dist.destroy_process_group()


def _bandwidth(size: int, board: Board, device: torch.device) -> float:
    pattern = torch.arange(size // 4, device=device, dtype=torch.float32) % 1021
    seconds = []
    for _ in range(_ROUNDS):
        tensor = pattern * (board.rank + 1)
        dist.all_reduce(tensor[:1].clone())  # begin together
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
        # Whole numbers below 2^24, exact in any order of additions for up to 180 ranks; beyond, to rounding.
        torch_sum = pattern * (board.world * (board.world + 1) // 2)
        if not torch.allclose(tensor, torch_sum, rtol=1e-5, atol=0):
            wrong = int((tensor != torch_sum).sum())
            raise ConfigError(
                f"a sum over the ranks is wrong in {wrong} of {tensor.numel()} numbers: a faulty device or network; "
                "try each machine alone"
            )
    return size / sorted(seconds)[_ROUNDS // 2]
