"""Threads that open segments for every open file of the process, and the buffers that ciphertext passes through.

A read of a few segments takes less time than starting threads for it, so these stay. After a fork there are none, and new
ones are started. The caller works too: with one segment nothing is handed to anybody.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

MAX_THREADS: Final = 16

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_own = threading.local()


def room(size: int) -> memoryview:
    """A buffer of this thread for ciphertext, at least ``size`` bytes; the next call gives the same one."""
    held: bytearray | None = getattr(_own, "room", None)
    if held is None or len(held) < size:
        held = _own.room = bytearray(size)
    return memoryview(held)


def share_out(count: int, work: Callable[[int], None], *, threads: int) -> None:
    """Run ``work(0)`` … ``work(count - 1)``, each once. Raises what a failing one raised, when none runs any more."""
    threads = min(threads, count, MAX_THREADS)
    if threads <= 1:
        for number in range(count):
            work(number)
        return
    numbers = iter(range(count))
    taking = threading.Lock()
    stopped = threading.Event()

    def loop() -> None:
        try:
            while not stopped.is_set():
                with taking:
                    number = next(numbers, None)
                if number is None:
                    return
                work(number)
        except BaseException:
            stopped.set()
            raise

    others: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):  # the interpreter is ending: the caller does it alone
        others += [_workers().submit(loop) for _ in range(threads - 1)]
    try:
        loop()
    finally:
        stopped.set()
        # Who has not begun has nothing to do; who has is waited for, as it writes into our caller's buffers.
        errors = [other.exception() for other in others if not other.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _workers() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603 -- one for the process
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(
                min(len(os.sched_getaffinity(0)), MAX_THREADS), thread_name_prefix="sealed-files"
            )
        return _pool


def _after_fork() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
