"""Errors that a user can cause. Each carries the exit code of `reste train` and one line that names the fix."""

from __future__ import annotations

EXIT_FINISHED = 0
EXIT_BUG = 1
EXIT_HUNG = 5
"""A rank did not go on within the time-out."""
EXIT_STOPPED = 85
"""Stopped on request with a checkpoint saved: requeue me."""
EXIT_INTERRUPTED = 130
"""A second Ctrl-C: stopped at once, nothing saved."""


class UserError(Exception):
    """Something the user can mend; printed as one line, without a traceback."""

    exit_code = 2
    everywhere = False
    """Raised alike on all ranks, so that one of them speaks for all."""


class ConfigError(UserError):
    """The configuration, the command line or the environment is wrong (exit code 2)."""


class DataError(UserError):
    """The data set is missing, inconsistent or damaged (exit code 3)."""

    exit_code = 3


class NonFiniteError(UserError):
    """Loss or gradient became NaN or infinite before the optimizer moved (exit code 4)."""

    exit_code = 4
