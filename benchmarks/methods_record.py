"""Keeps what `reste study methods` came to: its table and single runs as a record, its table as Markdown.

reste study methods configs/icons/study.yaml --seeds 3 --nproc 1 --out runs/icons-methods
python benchmarks/methods_record.py runs/icons-methods --command "reste study methods ..." --record FILE.json
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer
from studies import about, write_record

SHOWN = {
    "top1": ("top-1 %", ".2f"),
    "estimating_error": ("estimating error", ".0f"),
    "gradient_instability": ("gradient instability", ".1e"),
    "step_ms": ("step, ms", ".0f"),
    "memory_mib": ("memory, MiB", ".0f"),
}


def main(
    study: Annotated[Path, typer.Argument(help="The study's folder.")],
    command: Annotated[str, typer.Option(help="How it was made.")],
    record: Annotated[Path, typer.Option(help="The JSON file to write.")],
) -> None:
    """Write the record, print the table."""
    table, runs = (list(csv.DictReader((study / name).open(encoding="utf-8"))) for name in ("methods.csv", "runs.csv"))
    first = min(path.parent.name for path in study.glob("*/manifest.json"))
    facts = about(study, first) | {"command": command}
    write_record(
        record, {"what": "methods under one budget, means and deviations", **facts, "rows": table, "runs": runs}
    )
    typer.echo("| method | n | " + " | ".join(heading for heading, _ in SHOWN.values()) + " |")
    typer.echo("|---" * (len(SHOWN) + 2) + "|")
    for line in table:
        cells = [cell(line, name, form) for name, (_, form) in SHOWN.items()]
        typer.echo(f"| `{line['method']}` | {line['n']} | " + " | ".join(cells) + " |")


def cell(line: dict[str, str], name: str, form: str) -> str:
    """Mean, of top-1 with its deviation; a dash where there is none."""
    mean, deviation = line[f"{name}_mean"], line[f"{name}_sd"]
    if mean in ("", "nan"):
        return "-"
    return f"{float(mean):{form}}" + (f" ± {float(deviation):{form}}" if name == "top1" and deviation else "")


if __name__ == "__main__":
    typer.run(main)
