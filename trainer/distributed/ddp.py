"""The DDP engine: one process per device, gradients averaged by torch's DistributedDataParallel."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook, fp16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from reste.buffers import buffers_kept
from trainer.distributed import collectives
from trainer.distributed.forward import Forward, some_loss
from trainer.distributed.update import answered_by_scaler, load_optimizer, update

Precision = Literal["fp64", "fp32", "bf16", "fp16"]
ReduceDtype = Literal["full", "bf16", "fp16"]
BUCKET_MB = 10
_HOOKS = {"bf16": bf16_compress_hook, "fp16": fp16_compress_hook}


def _no_buffer_broadcast() -> dict[str, bool]:
    """Leave batch statistics to batch norm; torch 2.14 has renamed the switch."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class DdpEngine:
    """Forward, backward and update through DistributedDataParallel; without it in a world of one.

    Args:
        model: on its device, batch norms already converted.
        optimizer: over all trainable parameters of `model`.
        precision: fp64 and fp32 compute as named, bf16 and fp16 under autocast with float32 weights; fp16 scales the
            loss.
        clip_norm: largest gradient norm, or None.
        compile: compile the model for the micro-batches of whole batches.
        device: the rank's device.
        reduce_dtype: what gradients are rounded to before they are divided by the number of ranks and summed; full
            leaves them as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        precision: Precision,
        clip_norm: float | None,
        compile: bool,
        device: torch.device,
        reduce_dtype: ReduceDtype = "full",
    ) -> None:
        self.module = model
        self._optimizer = optimizer
        self._clip_norm = clip_norm
        self._scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._forward: nn.Module = Forward(model, precision=precision, compile=compile, device=device)
        self._ddp: DistributedDataParallel | None = None
        if collectives.world_size() > 1:
            self._ddp = DistributedDataParallel(
                self._forward,
                device_ids=[device] if device.type == "cuda" else None,
                **_no_buffer_broadcast(),
                gradient_as_bucket_view=True,
                bucket_cap_mb=BUCKET_MB,
            )
            if reduce_dtype != "full":
                self._ddp.register_comm_hook(None, _HOOKS[reduce_dtype])
            self._forward = self._ddp

    def settle(self, images: torch.Tensor) -> None:
        """Run one forward and backward that leave no trace, so that what DDP and the compiler decide once is decided.

        DDP lays its gradient buckets out anew after the first backward. With three or more ranks the layout decides
        the order of additions, so a run resumed at step k would otherwise round its first step differently from the
        uninterrupted one.

        Args:
            images: this rank's share of a micro-batch of a whole batch, (B, C, H, W), any values.
        """
        for _ in range(2 if self._ddp else 1):
            with buffers_kept(self.module), self.accumulate(last=True):
                # Times zero would not do: a non-finite activation of random weights would leave NaN in fp16's scaler.
                some_loss(self.forward(images, whole=True)).backward()
            self._optimizer.zero_grad(set_to_none=True)

    @contextmanager
    def accumulate(self, *, last: bool) -> Iterator[None]:
        """See `Engine.accumulate`."""
        with nullcontext() if last or self._ddp is None else self._ddp.no_sync():
            yield

    def forward(self, images: torch.Tensor, *, whole: bool) -> Any:
        """See `Engine.forward`."""
        return self._forward(images, whole)

    def backward(self, loss: torch.Tensor) -> None:
        """See `Engine.backward`."""
        self._scaler.scale(loss).backward()

    def finish_gradients(self) -> torch.Tensor:
        """See `Engine.finish_gradients`. With fp16, an overflow that the scaler will answer gives norm 0."""
        self._scaler.unscale_(self._optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self._clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
        return answered_by_scaler(norm, self._scaler)

    def gather_gradients(self) -> None:
        """See `Engine.gather_gradients`; they are whole on every rank already."""

    def step(self, *, lr: float, blocked: torch.Tensor) -> None:
        """See `Engine.step`."""
        update(self._optimizer, self._optimizer, self._scaler, lr=lr, blocked=blocked)
        self._optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """See `Engine.state`."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """See `Engine.load_state`."""
        load_optimizer(self._optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """See `Engine.close`; there is nothing to give back."""
