"""Threads that share the segments of a file, or the files of a directory; AES-GCM and SHA-256 release the GIL.

The first failure stops all of them, and so does Ctrl-C: no thread outlives the call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with (bytes done, bytes in all), one call at a time, from any thread."""

MAX_WORKERS = 64

_LARGE = 4 << 20
"""Files over this share their segments among the workers, smaller ones are shared out whole."""


class Tally:
    """Adds up bytes done by several threads and tells ``progress``."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """``count`` more bytes are done."""
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


def share(count: int, make_worker: Callable[[], Callable[[int], None]], *, workers: int) -> None:
    """Run jobs ``0 … count - 1``, each once, on at most ``workers`` threads.

    ``make_worker`` is called once in each thread and returns what does one job, so buffers can be its own.
    Raises what the first failing job raised, after all threads have stopped.
    """
    workers = max(1, min(workers, count, MAX_WORKERS))
    if workers == 1:
        work = make_worker()
        for number in range(count):
            work(number)
        return
    numbers = iter(range(count))
    taking = threading.Lock()
    stopped = threading.Event()

    def loop() -> None:
        work = make_worker()
        while True:
            with taking:
                number = next(numbers, None)
            if number is None or stopped.is_set():
                return
            work(number)

    with ThreadPoolExecutor(workers, thread_name_prefix="sealing") as pool:
        running = [pool.submit(loop) for _ in range(workers)]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            # On the way out, be it a failed job or Ctrl-C, every thread ends after the job it is at.
            stopped.set()
    for future in running:
        future.result()


def share_out(sizes: Mapping[str, int], work: Callable[[str, int], None], *, workers: int | None) -> None:
    """``work(path, threads)`` for each path: small files one to a thread, then each large one with all threads.

    ``workers`` defaults to the number of CPUs. Raises as :func:`share`.
    """
    threads = workers or cpus()
    small = [path for path, size in sizes.items() if size <= _LARGE]
    if small:
        share(len(small), lambda: lambda number: work(small[number], 1), workers=threads)
    for path, size in sizes.items():
        if size > _LARGE:
            work(path, threads)


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
