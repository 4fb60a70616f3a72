"""A run folder as a report needs it: journal, configuration, manifest and result. Nothing is validated but its form,
so that runs of older versions can be shown beside new ones."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import flatten
from trainer.config_source import read_source
from trainer.errors import ConfigError, DataError
from trainer.secrets import redact
from trainer.tracking.journal import read_journal
from trainer.tracking.status import Status, read_status

Series = tuple[list[int], list[float]]
"""Steps and the values there."""


@dataclass(frozen=True)
class RunReading:
    """One run.

    Attributes:
        folder: the run's folder.
        label: what it is called beside the others.
        config: dotted keys to values, secrets masked.
        manifest: of the last start; empty if there is none.
        result: of a finished run.
        status: where it stands, None if it never said.
        series: metric -> its course.
    """

    folder: Path
    label: str
    config: dict[str, Any]
    manifest: dict[str, Any]
    result: dict[str, Any] | None
    status: Status | None
    series: dict[str, Series]

    def course(self, name: str) -> Series:
        """The course of a metric, empty if there is none."""
        return self.series.get(name, ([], []))

    def last(self, name: str) -> float | None:
        """The last value of a metric."""
        values = self.course(name)[1]
        return values[-1] if values else None

    def layers(self, indicator: str) -> list[str]:
        """The layers of an indicator, in the network's order."""
        prefix = f"indicator/{indicator}/"
        return [name.removeprefix(prefix) for name in self.series if name.startswith(prefix)]


def read_runs(folders: Sequence[Path]) -> list[RunReading]:
    """All runs, each under a label of its own.

    Raises:
        DataError: one is no run folder or its journal is damaged.
        ConfigError: one is named twice.
    """
    whole = [Path(os.path.abspath(folder)) for folder in folders]
    if len(set(whole)) < len(whole):
        raise ConfigError("a run is named twice: name each once")
    return [read_run(folder, label) for folder, label in zip(whole, labels(whole), strict=True)]


def labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, all of one length."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def read_run(folder: Path, label: str) -> RunReading:
    """One run under a label.

    Raises:
        DataError: `folder` is no run folder, or its journal is damaged.
    """
    series: dict[str, Series] = defaultdict(lambda: ([], []))
    for _, record in read_journal(folder / "journal.jsonl"):
        if record["type"] == "metrics":
            for name, value in record["metrics"].items():
                series[name][0].append(int(record["step"]))
                series[name][1].append(value)
    try:
        config = flatten(read_source(folder / "config.yaml", []).values)
    except ConfigError:
        raise DataError(f"{folder / 'config.yaml'} is not a run's configuration: name the folder of a run") from None
    return RunReading(
        folder=folder,
        label=label,
        config={key: redact(value) if isinstance(value, str) else value for key, value in config.items()},
        manifest=_json(folder / "manifest.json") or {},
        result=_json(folder / "result.json"),
        status=read_status(folder),
        series=dict(series),
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): mend it or move it away") from None
    return content if isinstance(content, dict) else None
