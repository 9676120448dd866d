"""Long array work on several threads, which numpy lets run side by side."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

# complex multiplications for which a thread pays, some 10 ms: in less, a scheduler may not have found it a core of its
# own; and the most threads, since all of them wait for the interpreter's lock and for memory
_THREAD, _MAX_THREADS = 1 << 25, 4

_Job = TypeVar("_Job")


def in_parallel(jobs: Iterator[_Job], work: Callable[[Iterator[_Job]], None], multiplications: int) -> None:
    """Work through jobs on as many threads as pay; each draws its next job when it has done one.

    Args:
        jobs: in their order; the iterator is advanced by one thread at a time.
        work: does the jobs that it draws, which share nothing that it writes. Called once by each thread, one of them
            the caller's; the others have ended when this returns.
        multiplications: complex ones of all jobs together, or work that takes as long.

    Raises:
        Exception: whatever the jobs or the work raise.
    """
    num_threads = min(num_cores(), _MAX_THREADS, multiplications // _THREAD)
    if num_threads < 2:
        work(jobs)
        return
    lock = threading.Lock()
    done = False

    def draw() -> Iterator[_Job]:
        while True:
            with lock:
                if done:
                    return
                try:
                    job = next(jobs)
                except StopIteration:
                    return
            yield job

    with ThreadPoolExecutor(num_threads - 1) as pool:
        others = [pool.submit(work, draw()) for _ in range(num_threads - 1)]
        try:
            work(draw())
        finally:
            done = True  # the jobs are drawn, or the caller has been interrupted
    for other in others:
        other.result()


def num_cores() -> int:
    """Cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
