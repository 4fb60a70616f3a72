"""What a report says in rows: outcomes, published numbers, configuration, hardware. All cells are text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from trainer.config import Config, flat_config
from trainer.published import Published, data_set, published_for, same_schedule
from trainer.report.reading import RunReading
from trainer.tracking.progress import format_duration

NOTHING = "–"  # noqa: RUF001 - the dash of a table's empty cell
NO_MATTER = ("run.", "tracking.", "resume", "started", "command")
"""Keys and facts that differ between any two runs and say nothing about them."""


@dataclass(frozen=True)
class Row:
    """A name and one cell for each column.

    Attributes:
        name: first column.
        cells: the others.
        marked: which of the cells stand out.
    """

    name: str
    cells: list[str]
    marked: list[bool]

    @property
    def differs(self) -> bool:
        """Whether any cell stands out."""
        return any(self.marked)


def outcomes(runs: Sequence[RunReading]) -> list[Row]:
    """How each run went, a column for each run; the best accuracies stand out if there are several runs."""
    facts: list[tuple[str, Callable[[RunReading], str]]] = [
        ("state", _state),
        ("top-1, final %", lambda run: _number(_final(run, "top1"), 2)),
        ("top-5, final %", lambda run: _number(_final(run, "top5"), 2)),
        ("loss, final", lambda run: _number(_final(run, "loss"), 4)),
        ("top-1, best %", lambda run: _number(best_top1(run), 2)),
        ("at step", lambda run: _text((run.result or {}).get("best_step"))),
        ("steps", _steps),
        ("images seen", lambda run: _number((run.result or {}).get("samples"), 0)),
        ("time", _time),
        ("images/s", lambda run: _number((run.result or {}).get("images_per_s"), 0)),
        ("waiting for data %", _data_wait),
    ]
    rows = []
    for name, fact in facts:
        cells = [fact(run) for run in runs]
        rows.append(Row(name, cells, _leading(cells) if "top-" in name else [False] * len(cells)))
    return rows


def best_top1(run: RunReading) -> float | None:
    """The highest validation accuracy of a run in percent."""
    values = run.course("val/top1")[1]
    return max(values) if values else None


def published(runs: Sequence[RunReading]) -> list[tuple[str, str, str, str, str, bool]]:
    """Rows of run or source, network, schedule, top-1, top-5, whether it is a run of ours; nothing unpublished."""
    rows: list[tuple[str, str, str, str, str, bool]] = []
    for run in runs:
        known = published_for(run.config)
        if not known:
            continue
        found = [_published(row, same=same_schedule(row, run.config)) for row in known]
        rows += [*(row for row in found if row not in rows), _ours(run)]
    return rows


def configuration(runs: Sequence[RunReading]) -> list[Row]:
    """Every key; what stands out differs from the first run, or from the program's defaults if there is one run."""
    base = runs[0].config if len(runs) > 1 else flat_config(Config())
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    return [_compare(key, [_value(run.config, key) for run in runs], _value(base, key)) for key in keys]


def machines(runs: Sequence[RunReading]) -> list[Row]:
    """Hardware, software and provenance; what stands out differs from the first run."""
    columns = [_machine(run.manifest) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [
        _compare(name, [column.get(name, NOTHING) for column in columns], columns[0].get(name, NOTHING))
        for name in names
    ]


def _compare(name: str, cells: list[str], base: str) -> Row:
    told = not name.startswith(NO_MATTER)
    return Row(name, cells, [told and cell != base for cell in cells])


def _published(row: Published, *, same: bool) -> tuple[str, str, str, str, str, bool]:
    return (
        row.whose + (", the same schedule" if same else ""),
        f"{row.model}, {row.weight_bits}W{row.activation_bits}A",
        row.schedule,
        f"{row.top1:.2f}",
        _number(row.top5, 2),
        False,
    )


def _ours(run: RunReading) -> tuple[str, str, str, str, str, bool]:
    config = run.config
    return (
        run.label,
        f"{config['model.name']}, {config['model.weight_bits']}W{config['model.activation_bits']}A",
        f"{config['train.epochs']} epochs of {config['train.batch_size']}",
        _number(_final(run, "top1"), 2),
        _number(_final(run, "top5"), 2),
        True,
    )


def data_name(run: RunReading) -> str:
    """What the run was trained on: a known data set, or the name of the folder where it lay."""
    return data_set(run.config) or Path(str(run.config.get("data.root", NOTHING))).name


def network_and_data(run: RunReading) -> str:
    """What was trained on what, in words."""
    bits = f"{run.config.get('model.weight_bits', '?')}W{run.config.get('model.activation_bits', '?')}A"
    return f"{run.config.get('model.name', 'a network')} ({bits}) on {data_name(run)}"


def _leading(cells: list[str]) -> list[bool]:
    """Which percentages are the highest, unless all are."""
    values = [-1.0 if cell == NOTHING else float(cell) for cell in cells]
    return [value == max(values) > min(values) for value in values]


def _final(run: RunReading, name: str) -> float | None:
    return run.last(f"val/{name}")


def _state(run: RunReading) -> str:
    if run.status is None:
        return NOTHING
    gone = run.status.state == "running" and not run.status.alive()
    return "gone without a word" if gone else run.status.state


def _steps(run: RunReading) -> str:
    if run.status is None:
        return NOTHING
    return f"{run.status.step:,} of {run.status.total_steps:,}"


def _time(run: RunReading) -> str:
    seconds = (run.result or {}).get("seconds")
    return NOTHING if seconds is None else format_duration(seconds)


def _data_wait(run: RunReading) -> str:
    values = run.course("perf/data_wait")[1]
    return _number(100 * fmean(values), 1) if values else NOTHING


def _machine(manifest: dict[str, Any]) -> dict[str, str]:
    machine, code = manifest.get("machine") or {}, manifest.get("code") or {}
    commit = code.get("commit")
    gpus = machine.get("gpus") or []
    facts = {
        "started": manifest.get("started"),
        "command": manifest.get("command"),
        "ranks": manifest.get("world_size"),
        "GPUs of rank 0's machine": f"{len(gpus)} × {gpus[0]}" if gpus else "none",  # noqa: RUF001 - times
        "processor": f"{machine.get('cpu', NOTHING)}, {machine.get('cpus', NOTHING)} cores",
        "system": machine.get("platform"),
        "code": None if commit is None else commit[:12] + (", changed" if code.get("dirty") else ""),
        "data": str(manifest.get("data_digest", NOTHING))[:12],
    }
    starts = len(manifest.get("earlier") or []) + 1
    facts |= {"starts": starts} if starts > 1 else {}
    facts |= {name: version for name, version in (manifest.get("versions") or {}).items() if name != "reste-trainer"}
    return {name: _text(value) for name, value in facts.items()}


def _value(config: dict[str, Any], key: str) -> str:
    if key not in config:
        return NOTHING
    value = config[key]
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _text(value: object) -> str:
    return NOTHING if value is None else str(value)


def _number(value: float | None, places: int) -> str:
    return NOTHING if value is None else f"{value:,.{places}f}"
