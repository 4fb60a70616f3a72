"""Look-up by name with an answer that helps; every table of named things fails in the same words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def look_up(table: Mapping[str, T], name: str, *, kind: str) -> T:
    """Return `table[name]`.

    Raises:
        ValueError: no such name; the one-line message gives the nearest name, if any, and all known ones.
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}; {hint}known: {', '.join(sorted(table)) or 'none'}")
