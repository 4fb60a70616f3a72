"""The DeepSpeed engine: gradients averaged by DeepSpeed, its optimizer state whole (ZeRO 0) or split (ZeRO 1).

DeepSpeed computes in float32; autocast, loss scaling, clipping and the weights of micro-batches are the trainer's, as
with DDP. Its own mixed precision would cast batch norm's parameters, and its loss scaler under ZeRO 1 decides on each
rank and for each parameter group alone. Its checkpoints are not used.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from reste.buffers import buffers_kept
from trainer.distributed import collectives
from trainer.distributed.forward import Forward, some_loss
from trainer.distributed.update import answered_by_scaler, load_optimizer, update
from trainer.distributed.zero import ELEMENTWISE, Partitions
from trainer.errors import ConfigError


def prepare(device: torch.device, local_rank: int, settings: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Import DeepSpeed, told what it would otherwise look for and speaking through the program's log.

    Args:
        device: the rank's device.
        local_rank: this process's number on its node.
        settings: what DeepSpeed will be told.
        optimizer: the one to be wrapped.

    Raises:
        ConfigError: DeepSpeed is not installed, or ZeRO 1 cannot split this optimizer's work.
    """
    if is_split(settings) and not isinstance(optimizer, ELEMENTWISE):
        raise ConfigError(
            f"deepspeed.zero=1 splits tensors, over which {type(optimizer).__name__} computes: set deepspeed.zero=0"
        )
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # DeepSpeed insists on it, and srun does not set it.
    os.environ.setdefault("LOCAL_RANK", str(local_rank))
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"engine=deepspeed needs the deepspeed package ({error}): install it, or engine=ddp"
        ) from None
    # Else every rank would wait for a C++ compiler, to build a collective that only inference uses.
    deepspeed.ops.__compatible_ops__ = {}
    log = logging.getLogger("DeepSpeed")
    log.handlers.clear()
    log.propagate = True
    log.setLevel(logging.ERROR)


def is_split(settings: dict[str, Any]) -> bool:
    """Whether these settings split the optimizer's state over the ranks."""
    return bool(settings["zero_optimization"]["stage"] > 0)


class _Step:
    """What the loss scaler takes for an optimizer: the basic one's gradients, DeepSpeed's step."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.step = engine.step

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._optimizer.param_groups


class DeepSpeedEngine:
    """Forward, backward and update through DeepSpeed.

    Args:
        model: on its device, batch norms already converted.
        optimizer: over all trainable parameters of `model`.
        precision: fp32, bf16 or fp16, the latter two under autocast with float32 weights; fp16 scales the loss.
        clip_norm: largest gradient norm, or None.
        compile: compile the model for the micro-batches of whole batches.
        device: the rank's device.
        settings: what DeepSpeed is told (`deepspeed_settings`); `prepare` has found them good.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: str,
        clip_norm: float | None,
        compile: bool,
        device: torch.device,
        settings: dict[str, Any],
    ) -> None:
        import deepspeed

        collectives.init_alone()
        for buffer in model.buffers():
            collectives.broadcast_(buffer)
        groups = [list(group["params"]) for group in optimizer.param_groups]
        strides = [[parameter.stride() for parameter in members] for members in groups]
        # ZeRO 1 lays weights out flat. The order in which a binary weight's scale is summed up follows its layout.
        laid = [n for n, p in model.named_parameters() if p.ndim == 4 and not p.is_contiguous()]
        self.module = model
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._compiled = compile
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._scaler = ShardedGradScaler(device.type, enabled=precision == "fp16")
        forward = Forward(
            model, precision=precision, compile=compile, device=device, channels_last=laid if is_split(settings) else ()
        )
        # DeepSpeed sends weights to the other ranks byte by byte, which it can do in one layout alone.
        for parameter in model.parameters():
            # Not contiguous(): a 1x1 convolution's weight is that in either layout, and keeps the other one's strides.
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
        self._engine = deepspeed.initialize(model=forward, optimizer=optimizer, config=settings)[0]
        self._partitions: Partitions | None = None
        if is_split(settings):
            self._partitions = Partitions(self._engine.optimizer, optimizer, groups, strides)
        else:
            for parameter, stride in zip(chain(*groups), chain(*strides), strict=True):
                again = torch.empty_strided(parameter.shape, stride, dtype=parameter.dtype, device=device)
                parameter.data = again.copy_(parameter.data)
        self._step = _Step(self._engine, optimizer)

    def settle(self, images: torch.Tensor) -> None:
        """See `Engine.settle`: compile. DeepSpeed itself decides nothing at its first step."""
        if not self._compiled:
            return
        with buffers_kept(self.module), self.accumulate(last=True):
            self._engine.backward(some_loss(self.forward(images, whole=True)), scale_wrt_gas=False)
        self._discard_gradients()

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """See `Engine.accumulate`."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, images: torch.Tensor, *, whole: bool) -> Any:
        """See `Engine.forward`."""
        return self._engine(images, whole)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine.backward`. The loss is weighted already; DeepSpeed is not to divide it by the micro-batches."""
        self._engine.backward(self._scaler.scale(loss), scale_wrt_gas=False)

    def finish_gradients(self) -> torch.Tensor:
        """See `Engine.finish_gradients`. With fp16, an overflow that the scaler will answer gives norm 0."""
        if self._partitions is None:
            self._scaler.unscale_(self._step)
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        else:
            self._partitions.take_gradients()
            self._scaler.unscale_(self._step)
            norm = self._partitions.norm()
        if self._clip_norm is not None:
            updated = self._parameters if self._partitions is None else self._partitions.parts
            torch.nn.utils.clip_grads_with_norm_(updated, self._clip_norm, norm)
        return answered_by_scaler(norm, self._scaler)

    def gather_gradients(self) -> None:
        """See `Engine.gather_gradients`."""
        if self._partitions is not None:
            self._partitions.gather_gradients()

    def step(self, *, lr: float, blocked: torch.Tensor) -> None:
        """See `Engine.step`."""
        update(self._step, self._optimizer, self._scaler, lr=lr, blocked=blocked)
        self._discard_gradients()

    def _discard_gradients(self) -> None:
        if self._partitions is not None:
            self._partitions.discard_gradients()
        self._engine.zero_grad()

    def state(self) -> dict[str, Any]:
        """See `Engine.state`; a collective."""
        source = self._optimizer if self._partitions is None else self._partitions
        return {"optimizer": source.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state`. The model's weights are loaded before."""
        if self._partitions is None:
            load_optimizer(self._optimizer, state["optimizer"])
        else:
            self._partitions.refresh()
            self._partitions.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """See `Engine.close`: DeepSpeed keeps communicators beyond the group that they belong to."""
        if not collectives.leaves_in_turn():
            return
        import deepspeed.comm

        self._engine.destroy()
        del self._engine, self._step, self._partitions
        deepspeed.comm.destroy_process_group()
        gc.collect()
