"""What is typed after `reste plan`, as the rates, assumptions and numbers that predictions are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from trainer.bench.suite import records
from trainer.config import Config
from trainer.errors import ConfigError
from trainer.plan.network import Algorithm, Fabric, Link
from trainer.plan.predict import Assumptions
from trainer.plan.rate import Point, Rate, RateRecord, read_record
from trainer.plan.workload import Data
from trainer.tracking.manifest import build_manifest

SECOND_BATCH = 2048
"""Beside the configuration's own batch, where an epoch has a hundred of them."""
_MOST = 1 << 20


@dataclass(frozen=True)
class Measured:
    """The rate of one device and the words for it."""

    rate: Rate
    source: str
    record: RateRecord | None


def measured_rate(record: Path | None, images_per_s: float | None, at_images: int, fixed_ms: float) -> Measured:
    """The rate of one device: as given, from the record that is named, or from this machine's newest.

    Raises:
        ConfigError: both are given, there is none, or the record is none.
    """
    if record is not None and images_per_s is not None:
        raise ConfigError("--images-per-s and --record both give the rate of one device: leave one of them out")
    if images_per_s is None:
        record = record or newest_rates()
    if record is None:
        points = [Point(images=at_images, images_per_s=cast(float, images_per_s))]
        return Measured(Rate.of(points, fixed_ms / 1000), f"{images_per_s:g} images/s at {at_images} images", None)
    found = read_record(record)
    points = found.points
    told = ", ".join(f"{p.images_per_s:,.0f} images/s at {p.images}" for p in sorted(points, key=lambda p: p.images))
    return Measured(Rate.of(points, fixed_ms / 1000), f"{told} ({found.device}, {record})", found)


def newest_rates() -> Path:
    """The newest record of `reste bench step` that was made on such a machine as this one.

    Raises:
        ConfigError: there is none.
    """
    here = _hardware(build_manifest(seed=0, config_digest="", data_digest="", world_size=1)["machine"])
    folder = records()
    for path in sorted(folder.glob("*/step.json"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "points" in found and _hardware(found["machine"]) == here:
            return path
    raise ConfigError(
        f"no record in {folder}/ says how fast such a machine as this one trains: give --images-per-s X, or --record "
        "FILE, or measure it by reste bench step"
    )


def _hardware(machine: dict[str, Any]) -> tuple[Any, ...]:
    return machine["cpu"], machine["cpus"], tuple(machine["gpus"])


def assumptions(
    *,
    per_node: int,
    inside: tuple[float, float],
    between: tuple[float, float],
    start_us: float,
    algorithm: str,
    overlap: float,
    loader: float | None,
    price: float | None,
) -> Assumptions:
    """What is believed of the machine; links as pairs of microseconds and GB/s.

    Raises:
        ConfigError: there is no such all-reduce.
    """
    if algorithm not in get_args(Algorithm):
        raise ConfigError(f"--algorithm {algorithm} is none of {', '.join(get_args(Algorithm))}: choose one of them")
    links = [Link(latency * 1e-6, bandwidth * 1e9) for latency, bandwidth in (inside, between)]
    return Assumptions(
        fabric=Fabric(links[0], links[1], per_node, start_us * 1e-6),
        algorithm=cast(Algorithm, algorithm),
        overlap=overlap,
        loader_images_per_s=loader,
        price_per_hour=price,
    )


def counts(text: str) -> list[int]:
    """Numbers of devices: `8,16` or `8..4096`, which doubles.

    Raises:
        ConfigError: it cannot be read.
    """
    found: list[int] = []
    for word in text.split(","):
        first, dots, last = word.strip().partition("..")
        ends = (first, last) if dots else (first, first)
        if not all(end.isascii() and end.isdigit() and 1 <= int(end) <= _MOST for end in ends):
            raise ConfigError(f"--gpus {text}: write numbers from 1 on, as 8, 8,16,24 or 8..4096")
        start, stop = map(int, ends)
        if start > stop:
            raise ConfigError(f"--gpus {text}: {word} ends before it begins")
        while start <= stop:
            found.append(start)
            start *= 2
    return sorted(set(found))


def batch_sizes(text: str | None, config: Config, data: Data) -> list[int]:
    """Global batches to predict for.

    Raises:
        ConfigError: they cannot be read.
    """
    own = config.train.batch_size
    if text is None:
        return [own, SECOND_BATCH] if data.train >= 100 * SECOND_BATCH and own != SECOND_BATCH else [own]
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise ConfigError(f"--batches {text}: write numbers of images, as 750,2048")
    return [int(word) for word in words]
