"""Run folders written by hand, as a training leaves them, for tests of reports and cards; no training is needed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch

from trainer import checkpoint, checkpoints
from trainer.config import Config, load_config
from trainer.network import create_network
from trainer.tracking.journal import Journal
from trainer.tracking.manifest import build_manifest, write_manifest
from trainer.tracking.status import write_status

QUICK = Path(__file__).resolve().parent.parent / "configs" / "quickstart.yaml"
CLASSES = [f"class {number}" for number in range(10)]
STEPS = 60


def write_run(folder: Path, *overrides: str, top1: Sequence[float] = (40.0, 80.0, 70.0), kept: int = 2) -> Config:
    """A finished run of 60 steps that evaluated and saved every 20, and keeps its last `kept` checkpoints.

    From one checkpoint to the next the first 144 weights of the first binary layer change their signs.
    """
    config = load_config(QUICK, [f"run.name={folder.name}", f"run.dir={folder.parent}", *overrides])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    model = create_network(config, CLASSES, torch.device("cpu"))
    layers = [name.removesuffix(".weight") for name in model.state_dict() if ".conv" in name]
    ticks = count()
    journal = Journal(folder / "journal.jsonl", clock=lambda: 1_700_000_000.0 + next(ticks))
    journal.event("started", step=0)
    for step in range(10, STEPS + 1, 10):
        falling = math.exp(-step / 30)
        journal.write({"train/loss": 2.3 * falling, "train/top1": 100 * (1 - falling), "train/top5": 99.0}, step=step)
        journal.write({"optim/lr": 0.1 * falling, "estimator/power": 1 + step / STEPS}, step=step)
        journal.write({"perf/images_per_s": 200.0 + step, "perf/data_wait": 0.25}, step=step)
    best: dict[str, float] = {}
    best_step = None
    for step, accuracy in zip(range(20, STEPS + 1, 20), top1, strict=True):
        for place, kind in enumerate(("estimating_error", "estimating_error_current", "gradient_instability")):
            values = {f"indicator/{kind}/{layer}": (1 + place) / step for layer in layers}
            journal.write(values | {f"indicator/{kind}": sum(values.values())}, step=step)
        last = {"val/loss": 1 / accuracy, "val/top1": accuracy, "val/top5": 99.5}
        journal.write(last, step=step)
        if accuracy > best.get("val/top1", -1):
            best, best_step = last, step
        model.state_dict()[f"{layers[0]}.weight"][:1].neg_()  # one of 16 filters
        model.state_dict()["bn1.bias"].fill_(step / 100)
        progress = checkpoint.Progress(step, 64 * step, 1.5 * step, last, best, best_step, journal.offset(), [0.0] * 4)
        checkpoint.save(
            folder / "checkpoints",
            {"model": model.state_dict()},
            progress=progress,
            config_yaml=config.to_yaml(),
            about={"classes": CLASSES, "steps_per_epoch": 20},
        )
        if best_step == step:
            checkpoints.mark_best(folder / "checkpoints", folder / "checkpoints" / f"step_{step:08d}")
    journal.close()
    checkpoints.prune(folder / "checkpoints", kept)
    manifest = build_manifest(seed=1234, config_digest="c" * 64, data_digest="d" * 64, world_size=2, argv=["train"])
    write_manifest(folder, manifest)
    write_status(folder, "finished", step=STEPS, total_steps=STEPS, epoch=3, exit_code=0)
    told = {key: {name[4:]: value for name, value in facts.items()} for key, facts in (("final", last), ("best", best))}
    state = asdict(progress)
    result = told | {"best_step": best_step, "steps": STEPS, "samples": state["samples_seen"], "seconds": 90.0}
    (folder / "result.json").write_text(json.dumps(result | {"images_per_s": 42.7, "steps_per_epoch": 20}))
    return config
