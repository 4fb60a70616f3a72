"""`reste report`: run folders, read (`reading`, `layers`), drawn (`panels`, `pictures`, `latent`) and told (`page`)."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.errors import UserError

REPORT = "report.html"
"""The page's name in a run folder."""

COMPARISON = "comparison.html"
"""The name of a page about several runs, which leaves that of each run alone."""

log = logging.getLogger(__name__)


def keep_report(run: Path) -> None:
    """Write the page of a run into its folder; where that fails a finished run stays finished, and a warning says so.

    The libraries that draw are imported here, since they take a second.
    """
    try:
        from trainer.durable import replace_file
        from trainer.report.page import make_report

        replace_file(run / REPORT, make_report([run]).html().encode())
    except Exception as error:  # the run is finished, whatever a strange file or a library that draws raises now
        expected = isinstance(error, UserError | OSError)
        log.info("%s: %s", type(error).__name__, error, exc_info=not expected)  # for the log file
        reason = next(iter(str(error).splitlines()), "") if expected else type(error).__name__
        log.warning("%s cannot be written (%s): try `reste report %s`", run / REPORT, reason, run)
