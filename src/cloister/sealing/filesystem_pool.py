"""Threads that open segments for every open file of the process, and the buffers that ciphertext passes through.

A read of a few segments takes less time than starting threads for it, so these stay. After a fork there are none, and new
ones are started. The caller works too: with one segment nothing is handed to anybody.

pyarrow reads our files in threads of its own, which let go of them a moment after the answer is there. One that asks for
the GIL just as the interpreter ends takes the process down (CPython before 3.14 ends it inside a C++ destructor:
"terminate called without an active exception"); so the end waits until those threads are at rest.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

MAX_THREADS: Final = 16
_REST: Final = 0.001
"""Seconds between two looks at the threads of others."""
_LOOKS: Final = 3
"""Looks in a row that find every thread asleep: one alone may fall between two steps of a thread."""
_LONGEST: Final = 2.0
"""Seconds that the end of the process is put off at most: threads that spin are never at rest."""

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


def let_pyarrow_finish(*, longest: float = _LONGEST) -> None:
    """Wait until no other thread of the process wants a processor, ``longest`` seconds at most.

    Each look gives up the GIL, so who waits for it has it, and is seen running or is done.
    """
    if "pyarrow" not in sys.modules:
        return
    quiet, until = 0, time.monotonic() + longest
    while quiet < _LOOKS and time.monotonic() < until:
        time.sleep(_REST)
        quiet = quiet + 1 if _all_asleep() else 0


def _all_asleep() -> bool:
    """Whether the kernel has every thread but this one waiting (proc(5), `stat`: the state follows the name in brackets)."""
    own = str(threading.get_native_id())
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                state = (task / "stat").read_bytes().rpartition(b")")[2].split()[:1]
                if task.name != own and state != [b"S"]:
                    return False
    return True


def _after_fork() -> None:
    global _lock, _pool
    _lock, _pool = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)
atexit.register(let_pyarrow_finish)
