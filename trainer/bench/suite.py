"""All rows by the names that `reste bench` takes, and what is written of them."""

from __future__ import annotations

import importlib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainer.bench.core import Bench, Row
from trainer.errors import ConfigError
from trainer.tracking.manifest import build_manifest

ROWS = {
    "estimator": "estimator.estimator_rows",
    "layer": "estimator.layer_rows",
    "step": "networks.step_rows",
    "memory": "networks.memory_rows",
    "int8": "forward.int8_rows",
    "weights": "forward.weights_rows",
    "loader": "loaders.loader_rows",
    "loop": "loop.loop_rows",
    "trainer": "loop.trainer_rows",
    "input": "loop.input_rows",
    "indicators": "loop.indicator_rows",
    "scaling": "scaling.scaling_rows",
    "buckets": "scaling.bucket_rows",
}
RECORDS = Path("benchmarks/records")


def check_names(names: Iterable[str]) -> list[str]:
    """The rows that are meant, all of them if none is named.

    Raises:
        ConfigError: one of them is none.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in ROWS:
            raise ConfigError(f"there is no row {name}: choose of {', '.join(ROWS)}")
    return wanted or list(ROWS)


def measure(name: str, bench: Bench) -> Iterator[Row]:
    """The figures of one row as they are found, from the state that a new process would be in.

    Raises:
        ConfigError: what it needs is not installed.
    """
    cores = len(os.sched_getaffinity(0))
    # As training has it, unless it is to be deterministic.
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.reset()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or cores))
    module, _, function = ROWS[name].partition(".")
    rows: Callable[[Bench], Iterator[Row]] = getattr(importlib.import_module(f"trainer.bench.{module}"), function)
    yield from rows(bench)


def rates(name: str, bench: Bench, rows: list[Row]) -> dict[str, Any]:
    """What `reste plan` reads of a row's record, beside the ratios; nothing of most rows."""
    if name != "step" or bench.processor:
        return {}
    from trainer.bench.networks import step_rates

    return step_rates(bench, rows)


def native_dtype(device: torch.device) -> torch.dtype | None:
    """bf16 where the device computes in it; None, float32, elsewhere: emulated bf16 says nothing about a network."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None


def facts(bench: Bench, seconds: float) -> dict[str, Any]:
    """Command, date, machine, versions, code and settings of a measurement."""
    manifest = build_manifest(seed=0, config_digest="", data_digest="", world_size=1)
    program, *words = shlex.split(manifest["command"])
    return {
        "what": "ratios of interleaved rounds: median, lowest, highest; ours and other are medians",
        "command": shlex.join([Path(program).name, *words]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {key: manifest["machine"][key] for key in ("platform", "cpu", "cpus", "gpus")},
        "versions": manifest["versions"],
        "code": manifest["code"],
        "device": bench.device.type,
        "threads": torch.get_num_threads(),
        "precision": bench.precision,
        "clock": "processor" if bench.processor else "wall",
        "repeats": bench.repeats,
        "quick": bench.quick,
        "seconds": round(seconds, 1),
    }


def records() -> Path:
    """Where records lie: `benchmarks/records/` of the working directory if it is there, else `records/`."""
    return RECORDS if RECORDS.is_dir() else Path(RECORDS.name)


def record_folder() -> Path:
    """`DATE_HARDWARE` within `records`."""
    from torch.cuda import device_count, get_device_name

    count = device_count()
    names = {get_device_name(number) for number in range(count)}
    gpus = re.sub(r"[^a-z0-9]+", "-", "-".join(sorted(names)).lower()).strip("-")
    hardware = f"{gpus}-x{count}" if count else f"cpu{len(os.sched_getaffinity(0))}"
    return records() / f"{datetime.now(UTC).date().isoformat()}_{hardware}"
