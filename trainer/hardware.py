"""The device of a rank and torch's global switches."""

from __future__ import annotations

import os
import resource
import sys

import torch
import torch._functorch.config as functorch

from reste import choose_kernels
from trainer.config_schema import TrainConfig
from trainer.distributed.environment import Environment
from trainer.errors import ConfigError


def choose_device(environment: Environment) -> torch.device:
    """The GPU with this rank's local number if the machine has GPUs, else the CPU.

    Raises:
        ConfigError: there are GPUs, but fewer than ranks on this machine.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    present = torch.cuda.device_count()
    if environment.local_rank >= present:
        raise ConfigError(
            f"local rank {environment.local_rank} has no GPU: this machine shows {present}; start at most "
            f"{present} ranks on it, and let every rank see all of its GPUs (--gpus-per-node, not --gpus-per-task)"
        )
    torch.cuda.set_device(environment.local_rank)
    return torch.device("cuda", environment.local_rank)


def apply_switches(train: TrainConfig, environment: Environment, device: torch.device) -> None:
    """Kernels, what compiled code keeps and replays, TF32, determinism, convolution search and threads.

    On a CPU the cores are shared between the ranks of the machine. OMP_NUM_THREADS is obeyed, unless it is the 1 that
    torchrun sets by itself.

    Raises:
        ConfigError: the kernels that are asked for cannot be had here.
    """
    _choose_kernels(train, device)
    # Else torch never computes again what has to lie in memory anyway, as the signs that a convolution reads.
    functorch.ban_recompute_materialized_backward = not train.recompute
    graphs = train.cuda_graphs and device.type == "cuda"
    # Importing the compiler takes seconds. A stage before this one may have done it, and replayed graphs.
    if graphs or "torch._inductor.config" in sys.modules:
        from torch._inductor import config as inductor

        inductor.triton.cudagraphs = graphs
    torch.backends.cuda.matmul.allow_tf32 = train.tf32
    torch.backends.cudnn.allow_tf32 = train.tf32
    torch.backends.cudnn.benchmark = not train.deterministic
    if train.deterministic:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if train.deterministic != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(train.deterministic)  # imports the compiler, too
    chosen = os.environ.get("OMP_NUM_THREADS")
    if device.type == "cpu" and (not chosen or (chosen == "1" and environment.launcher == "torchrun")):
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // environment.local_world_size))


def peak_memory_mib(device: torch.device) -> float:
    """The most memory in use since this process began, MiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def _choose_kernels(train: TrainConfig, device: torch.device) -> None:
    if train.kernels == "triton" and device.type != "cuda":
        raise ConfigError("train.kernels=triton needs a GPU: set train.kernels=compiled")
    try:
        choose_kernels(train.kernels)
    except ImportError as error:
        raise ConfigError(
            f"train.kernels=triton needs triton, which cannot be imported ({error}): install it or set "
            "train.kernels=compiled"
        ) from error


def compiler_cache() -> str:
    """The folder in which inductor keeps what it has compiled: TORCHINDUCTOR_CACHE_DIR, or one of torch's choice."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()
