"""What Linux says of processes, by their numbers."""

from __future__ import annotations

import os
from pathlib import Path

_GONE = "Z"


def process_state(pid: int) -> tuple[str, str]:
    """The letter of /proc for a process and when it was born, in clock ticks since the machine started.

    Z means that it has ended, whether its parent has noticed or not: in some containers nobody ever does.
    """
    fields = _stat(pid)
    return (fields[0], fields[19]) if fields else (_GONE, "")


def children(parent: int) -> list[int]:
    """Process ids of the living children of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and int(fields[1]) == parent and fields[0] != _GONE:
            found.append(int(folder.name))
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the process's name; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pid: int) -> float:
    """Processor time of a living process, 0 if there is none; in steps of the kernel's clock, which are 10 ms."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
