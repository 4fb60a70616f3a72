"""Whether `reste plan` is right about two ranks: rates of one, the link between two, a prediction, a measurement.

python benchmarks/plan_check.py [--repeats 3] [--steps 60] [--quick] [--record FILE]

ResNet-20 on made-up images of 32 pixels, one thread a rank, so that one and two ranks compute alike as long as there
are two cores. Run it on quiet ones. The record is one of rates, too: `reste plan CONFIG --record FILE` takes it.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from trainer.config import load_config
from trainer.distributed import collectives
from trainer.distributed.elastic import start_ranks
from trainer.distributed.environment import resolve_environment
from trainer.plan.network import Fabric, Link
from trainer.plan.predict import Assumptions, predict
from trainer.plan.rate import Point, Rate
from trainer.plan.workload import describe_data, workload
from trainer.tracking.manifest import build_manifest

ROOT = Path(__file__).resolve().parent.parent
QUICK = ROOT / "configs" / "quickstart.yaml"
BATCH = 128
FIXED = ("data.loader=synthetic", "data.image_size=32", "tracking.enabled=false", "train.epochs=1000", "log.every=1")
SILENT = ("eval.every=0", "log.indicators_every=0", "log.print_s=1000", "checkpoint.every=0")
SMALL_BYTES, LARGE_BYTES = 8, 16 * 2**20


def images_per_s(ranks: int, batch: int, steps: int, *overrides: str) -> float:
    """Rate of a training of the real program: the median step of its journal, the first third left out."""
    with tempfile.TemporaryDirectory() as folder:
        values = [*FIXED, *SILENT, f"run.dir={folder}", "run.name=x", f"train.batch_size={batch}"]
        command = [sys.executable, "-m", "launch", "train", str(QUICK), *values, f"train.max_steps={steps}", *overrides]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        subprocess.run([*command, f"--nproc={ranks}"], env=environment, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (Path(folder) / "x" / "journal.jsonl").read_text().splitlines()]
    times = [line["metrics"]["perf/step_time_s"] for line in lines if "perf/step_time_s" in line.get("metrics", {})]
    return batch / statistics.median(times[len(times) // 3 :])


def be_rank(out: Path, repeats: int) -> None:
    """Time all-reduces between two ranks; the first writes the medians."""
    torch.set_num_threads(1)
    collectives.init_process_group(resolve_environment(os.environ), torch.device("cpu"))
    seconds = {}
    for size in (SMALL_BYTES, LARGE_BYTES):
        buffer = torch.zeros(size // 4)
        times = []
        for _ in range(repeats + 3):
            collectives.barrier()
            began = time.perf_counter()
            collectives.all_reduce_(buffer)
            times.append(time.perf_counter() - began)
        seconds[size] = statistics.median(times[3:])
    if collectives.is_main():
        out.write_text(json.dumps([seconds[SMALL_BYTES], seconds[LARGE_BYTES]]))
    collectives.barrier()
    collectives.shutdown()


def measure_link(repeats: int) -> Link:
    """Latency and bandwidth between two ranks here: an all-reduce is 2 messages, and moves S bytes each way."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        ended = start_ranks(
            [sys.executable, str(Path(__file__).resolve()), "--rank", str(out), f"--repeats={repeats}"], 2
        )
        assert not ended.codes, ended
        small, large = json.loads(out.read_text())
    return Link(latency_s=small / 2, bytes_per_s=LARGE_BYTES / max(large - small, 1e-9))


def check(repeats: int, steps: int) -> dict[str, Any]:
    """Measure, predict, measure; repeats of each rate in turn, medians of them."""
    found: dict[str, list[float]] = {}
    cases: dict[str, tuple[int, int, list[str]]] = {
        "one rank, half the batch": (1, BATCH // 2, []),
        "one rank, the batch": (1, BATCH, []),
        "two ranks, batch norm of their own": (2, BATCH, ["batchnorm.sync=off"]),
        "two ranks, batch norm in common": (2, BATCH, ["batchnorm.sync=world"]),
    }
    for _ in range(repeats):
        for name, (ranks, batch, overrides) in cases.items():
            found.setdefault(name, []).append(images_per_s(ranks, batch, steps, *overrides))
    half, whole, off, world = (statistics.median(rates) for rates in found.values())
    points = [Point(images=BATCH // 2, images_per_s=half), Point(images=BATCH, images_per_s=whole)]
    link = measure_link(10 * repeats)
    config = load_config(QUICK, [*FIXED, f"train.batch_size={BATCH}"])
    work = workload(config, describe_data(config, None))
    rows = []
    for overlap in (0.7, 0.0):
        given = Assumptions(Fabric(link, link, per_node=2), overlap=overlap)
        for group, measured in ((1, off), (2, world)):
            made = predict(work, Rate.of(points, 0.0), given, 2, group)
            rows.append(
                {
                    "batchnorm_group": group,
                    "overlap": overlap,
                    "predicted_images_per_s": made.images_per_s,
                    "measured_images_per_s": measured,
                    "predicted_over_measured": made.images_per_s / measured,
                    "prediction": asdict(made),
                }
            )
    return {
        "model": config.model.name,
        "image_size": config.data.image_size,
        "precision": config.train.precision,
        "points": [point.model_dump() for point in points],
        "link": {"latency_us": 1e6 * link.latency_s, "gb_per_s": link.bytes_per_s / 1e9},
        "repeats": found,
        "two_ranks": rows,
    }


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    steps: Annotated[int, typer.Option(min=3, help="Of each measured training.")] = 60,
    quick: Annotated[bool, typer.Option("--quick", help="A few steps: to see that it runs.")] = False,
    record: Annotated[Path | None, typer.Option(help="Write the figures here as JSON.")] = None,
    rank: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure, predict and print."""
    if rank is not None:
        be_rank(rank, repeats)
        return
    repeats, steps = (1, 3) if quick else (repeats, steps)
    found = check(repeats, steps)
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=2)
    machine = {key: manifest["machine"][key] for key in ("cpu", "cpus", "gpus")}
    facts = {
        "what": "images/s of one rank and of two, and what reste plan predicts of two from one and the link",
        "command": shlex.join(["python", "benchmarks/plan_check.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"one thread of {machine['cpu']}",
        "machine": machine,
        "versions": manifest["versions"],
        "code": manifest["code"],
        "quick": quick,
        **found,
    }
    print(json.dumps({key: found[key] for key in ("points", "link")}, indent=1))
    for row in found["two_ranks"]:
        print(
            f"batch norm over {row['batchnorm_group']}, overlap {row['overlap']}: predicted "
            f"{row['predicted_images_per_s']:.1f} images/s, measured {row['measured_images_per_s']:.1f}, ratio "
            f"{row['predicted_over_measured']:.2f}"
        )
    if record is not None:
        record.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
