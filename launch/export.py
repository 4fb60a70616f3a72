"""The screen of `reste export`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from trainer.export.export import Exported, export


def print_export(
    checkpoint: Path, to: str, *, out: Path | None, half: bool, weights: str, data: Path | None, as_json: bool
) -> None:
    """Export and say what was written, how large it is, and how it agrees with the trained network.

    Raises:
        ConfigError, DataError: as `trainer.export.export.export`.
    """
    done = export(checkpoint, to, out=out, half=half, weights=weights, data=data)
    if as_json:
        print(json.dumps(asdict(done), default=str))
        return
    console = Console(highlight=False, soft_wrap=True)
    facts = done.facts
    console.print(
        f"{done.path}: {facts.model}, {facts.weights} of step {facts.step}, {len(facts.labels)} classes, "
        f"{done.bytes:,} bytes",
        markup=False,
    )
    if done.binary_bytes is not None:
        console.print(f"binary layers: {_size(done)}", markup=False)
    console.print(f"against the trained network: {_agreement(done)}", markup=False)


def _size(done: Exported) -> str:
    assert done.binary_bytes is not None
    ratio = done.binary_bytes_float32 / done.binary_bytes
    rest = done.bytes - done.binary_bytes
    return (
        f"{done.binary_bytes:,} bytes for {done.binary_bytes_float32:,} as float32 (1/{ratio:.1f}); "
        f"all else {rest:,} bytes, weights in {16 if done.half else 32} bit"
    )


def _agreement(done: Exported) -> str:
    found = done.agreement
    images = f"{found.images} images of noise" if done.images_of is None else f"all {found.images} images validated"
    same = (
        "logits equal bit for bit"
        if found.largest_difference == 0
        else (f"largest difference of a logit {found.largest_difference:.3g} (they spread by {found.spread:.3g})")
    )
    parts = [f"on {images} {same}", f"the same class for {found.same_top1}"]
    if found.correct1 is not None and found.correct1_trained is not None:
        scores = [f"{100 * n / found.images:.3f} %" for n in (found.correct1, found.correct1_trained)]
        parts.append(f"top-1 {scores[0]}, trained {scores[1]}")
    return ", ".join(parts)
