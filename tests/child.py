"""A Python program in a process of its own, and the lines that go to it and come from it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Child:
    """Runs a program until it is ended.

    Args:
        program: Python.
        arguments: of its command line.
    """

    def __init__(self, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self._out = self.process.stdout.fileno()
        self._held = b""

    def tell(self, line: str) -> None:
        """Send a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, timeout_s: float = 5.0) -> str:
        """The next line that it prints."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._held:
            left_s = deadline - time.monotonic()
            assert left_s > 0, f"it says nothing for {timeout_s:g} s"
            if select.select([self._out], [], [], left_s)[0]:
                data = os.read(self._out, 65_536)
                assert data, "it has ended"
                self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line.decode().strip()

    def end(self) -> None:
        """Kill it; may be repeated."""
        self.process.kill()
        self.process.communicate()
