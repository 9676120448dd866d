"""Whether a process that was written down, perhaps by another machine, still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def machine() -> str:
    """This start of this machine, and this table of processes: containers may share a host's name."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{start} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def started_at(pid: int) -> str | None:
    """When a process of this machine started, as Linux counts.

    Returns:
        None where that cannot be seen, empty for a process that has died and that nobody has taken note of.
    """
    try:
        # the name in brackets may hold anything, brackets and spaces too; what follows it are fields 3 (state) and on
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def died(pid: int, started: str | None) -> bool:
    """Whether a process of this machine has ended; one that cannot be seen lives.

    Args:
        pid: its number, which may be another's by now.
        started: what `started_at` said of it.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's
    now = started_at(pid)
    return now == "" or (None not in (now, started) and now != started)
