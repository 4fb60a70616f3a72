"""A rank of the `scaling` row: `python -m trainer.bench.ranks OPTIONS`, started by torchrun's launcher."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks

import timm
import torch
import torch.nn.functional as F
from torch import nn

import models  # noqa: F401  (registers the names)
from reste import set_power
from trainer.bench.core import WARM_UP, Work
from trainer.bench.wire import bytes_sent
from trainer.distributed import collectives
from trainer.distributed.ddp import DdpEngine
from trainer.distributed.environment import resolve_environment
from trainer.distributed.lifeline import end_with_launcher

CPU = torch.device("cpu")


def main(options: dict[str, Any]) -> None:
    """Time the three ways in turn; rank 0 writes what it found."""
    end_with_launcher()
    environment = resolve_environment(os.environ)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // environment.local_world_size))
    collectives.init_process_group(environment, CPU)
    name, size, batch = ("resnet20_1w1a", 16, 2) if options["quick"] else ("resnet18_1w1a", 224, 8)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    engine = DdpEngine(*network(name), precision="fp32", clip_norm=None, compile=False, device=CPU)
    engine.settle(images)
    step = plain_step(name, images)
    ways: dict[str, Work] = {
        "alone": step if collectives.is_main() else lambda: None,
        "apart": step,
        "exchanging": lambda: exchanging_step(engine, images),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    sent: list[int | None] = []
    for repeat in range(WARM_UP + options["repeats"]):
        for way, work in ways.items():
            collectives.barrier()
            before, begun = bytes_sent(), time.perf_counter()
            work()
            after = bytes_sent()
            collectives.barrier()
            if repeat >= WARM_UP:
                times[way].append(1e3 * (time.perf_counter() - begun))
                if way == "exchanging":
                    sent.append(None if before is None or after is None else after - before)
    if collectives.is_main():
        found = {
            "where": f"{name}, {size} px, batch {batch} a rank, float32",
            "times": times,
            "sent": None if None in sent else sent,
            "gradient_bytes": sum(4 * p.numel() for p in engine.module.parameters() if p.requires_grad),
        }
        Path(options["out"]).write_text(json.dumps(found), encoding="utf-8")
    engine.close()
    collectives.shutdown()


def network(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same on all ranks, at power 2, with its optimizer."""
    torch.manual_seed(0)
    model = timm.create_model(name, estimator="reste").to(memory_format=torch.channels_last)
    set_power(model, 2.0)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)


def plain_step(name: str, images: torch.Tensor) -> Work:
    """A step of a network that shares nothing."""
    model, optimizer = network(name)
    labels = torch.zeros(len(images), dtype=torch.int64)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def exchanging_step(engine: DdpEngine, images: torch.Tensor) -> None:
    """A step of the trainer's engine, nothing logged."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    with engine.accumulate(last=True):
        engine.backward(F.cross_entropy(engine.forward(images, whole=True), labels))
    engine.step(lr=1e-3, blocked=torch.zeros(()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
