"""Check of the tracker: a throw-away run in the configured MLflow store."""

from __future__ import annotations

import time

from trainer.config import Config
from trainer.doctor.check import ByRank, Check, Context, Facts, Problem
from trainer.errors import ConfigError
from trainer.secrets import redact
from trainer.tracking.address import resolve_uri
from trainer.tracking.store import reason
from trainer.tracking.trial import write_and_read_back


def look_at_tracker(context: Context) -> Facts:
    """Rank 0, the only one that tracks, writes, reads back and deletes."""
    config = context.config
    if context.rank != 0 or not config.tracking.enabled:
        return {"where": None}
    uri = resolve_uri(config.tracking.uri, config.run_dir)
    started = time.monotonic()
    try:
        where = write_and_read_back(uri)
    except Exception as error:
        raise ConfigError(
            f"{redact(uri)} does not take a run ({reason(error)}): start or mend it, or set another tracking.uri; a "
            "run trains without it, and reste track sync sends it later"
        ) from error
    return {"where": f"{where} ({redact(uri)})", "seconds": time.monotonic() - started}


def judge_tracker(facts: ByRank, config: Config) -> tuple[str, list[Problem]]:
    """A store that does not work has raised; here is only something to report."""
    if not config.tracking.enabled:
        return "not used (tracking.enabled=false)", []
    if 0 not in facts:
        return "", []
    fact = facts[0]
    return f"written, read back and deleted in {fact['seconds']:.1f} s: {fact['where']}", []


TRACKER = Check(
    "tracker", look_at_tracker, judge_tracker, "does the address of tracking.uri answer from rank 0's machine?", 180.0
)
