"""What Linux says of a process, by its number."""

from __future__ import annotations

from pathlib import Path


def process_state(pid: int) -> tuple[str, str]:
    """The letter of /proc for a process and when it was born, in clock ticks since the machine started.

    Z means that it has ended, whether its parent has noticed or not: in some containers nobody ever does.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", ""
    return fields[0], fields[19]
