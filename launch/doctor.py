"""`reste doctor`: one table, or one JSON object, of what holds and what does not, each failure with its fix."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trainer.config import load_config
from trainer.distributed.environment import resolve_environment
from trainer.doctor.examine import Finding, Report, examine
from trainer.main import guarded

_MARKS = {"ok": "[green]ok[/]", "failed": "[red]FAILED[/]", "skipped": "[yellow]not tried[/]"}


def run_rank(path: Path, overrides: list[str], *, wait_s: float, as_json: bool) -> int:
    """Be one rank of the examination; rank 0 prints. Returns the exit code."""
    show: Callable[[Report], None] = print_json if as_json else print_table

    def work() -> int:
        config = load_config(path, overrides)
        return examine(config, resolve_environment(os.environ), show, join_s=wait_s)

    code = guarded(work)
    if any(thread.name.startswith("doctor-") for thread in threading.enumerate()):
        # A check that hangs would hold up the interpreter's end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def print_json(report: Report) -> None:
    """One JSON object."""
    print(json.dumps(report.to_json()), flush=True)


def print_table(report: Report) -> None:
    """A row for each check, and below it one for each of its problems."""
    console = Console(highlight=False)
    table = Table(
        "check",
        "",
        "result",
        title=f"doctor, {report.ranks} rank{'s' if report.ranks > 1 else ''}",
        title_justify="left",
    )
    for finding in report.findings:
        table.add_row(finding.check, _MARKS[finding.state], "\n".join(_lines(finding)))
    console.print(table)
    states = [finding.state for finding in report.findings]
    untried = f", {states.count('skipped')} not tried" if "skipped" in states else ""
    failed = f"{states.count('failed')} of {len(states)} do not hold{untried}; see the fixes above"
    console.print(failed if report.exit_code else "all holds")


def _lines(finding: Finding) -> list[str]:
    lines = [escape(finding.result)] if finding.result else []
    for problem in finding.problems:
        ranks = f"rank{'s' if len(problem.ranks) > 1 else ''} {', '.join(map(str, problem.ranks))}"
        lines += [f"[red]{ranks}[/]: {escape(problem.what)}", f"  fix: {escape(problem.fix)}"]
    return lines
