"""A rank of the rows `scaling` and `buckets`: `python -m trainer.bench.ranks OPTIONS`, by torchrun's launcher."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
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
    """Time the ways of the row in turn; rank 0 writes what it found."""
    end_with_launcher()
    environment = resolve_environment(os.environ)
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // environment.local_world_size))
    collectives.init_process_group(environment, CPU)
    found = ROWS[options["row"]](options)
    if collectives.is_main():
        Path(options["out"]).write_text(json.dumps(found), encoding="utf-8")
    collectives.shutdown()


def scaling(options: dict[str, Any]) -> dict[str, Any]:
    """A rank alone, ranks apart, ranks that exchange gradients; eager."""
    name, images, where = what_is_trained(options)
    engine = engine_of(name, images, compile=False)
    step = plain_step(name, images)
    ways: dict[str, Work] = {
        "alone": step if collectives.is_main() else lambda: None,
        "apart": step,
        "exchanging": lambda: exchanging_step(engine, images),
    }
    times, sent = race(ways, options["repeats"])
    counts = sent["exchanging"]
    gradient_bytes = sum(4 * p.numel() for p in engine.module.parameters() if p.requires_grad)
    engine.close()
    return {
        "where": f"{where}, float32",
        "times": times,
        "sent": None if None in counts else counts,
        "gradient_bytes": gradient_bytes,
    }


def buckets(options: dict[str, Any]) -> dict[str, Any]:
    """A compiled graph that ends where a bucket of gradients is full, and a whole one."""
    if options["quick"]:
        torch.compiler.set_stance("force_eager")
    name, images, where = what_is_trained(options)
    engines = {}
    for way, split in (("split", True), ("whole", False)):
        with torch._dynamo.config.patch(optimize_ddp=split):
            engines[way] = engine_of(name, images, compile=True)
    times, _ = race(
        {way: partial(exchanging_step, engine, images) for way, engine in engines.items()}, options["repeats"]
    )
    for engine in engines.values():
        engine.close()
    return {"where": f"{where}, float32, compiled", "times": times}


ROWS = {"scaling": scaling, "buckets": buckets}


def race(ways: dict[str, Work], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[int | None]]]:
    """Milliseconds of every way in every round, all ranks together, and the bytes that this rank sent meanwhile."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    sent: dict[str, list[int | None]] = {way: [] for way in ways}
    for repeat in range(WARM_UP + repeats):
        for way, work in ways.items():
            collectives.barrier()
            before, begun = bytes_sent(), time.perf_counter()
            work()
            after = bytes_sent()
            collectives.barrier()
            if repeat >= WARM_UP:
                times[way].append(1e3 * (time.perf_counter() - begun))
                sent[way].append(None if before is None or after is None else after - before)
    return times, sent


def what_is_trained(options: dict[str, Any]) -> tuple[str, torch.Tensor, str]:
    """Name of the network, this rank's images, and both in words."""
    name, size, batch = ("resnet20_1w1a", 16, 2) if options["quick"] else ("resnet18_1w1a", 224, 8)
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    return name, images, f"{name}, {size} px, batch {batch} a rank"


def engine_of(name: str, images: torch.Tensor, *, compile: bool) -> DdpEngine:
    """The trainer's engine, settled."""
    engine = DdpEngine(*network(name), precision="fp32", clip_norm=None, compile=compile, device=CPU)
    engine.settle(images)
    return engine


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
