"""A running program and its launcher: signals go in, the exit code comes out, nothing of it is left behind.

The launcher blocks the signals below before it makes a thread, and takes them here one at a time. What a terminal sends it
sends to the program too, so only what a process sent is passed on. When the program ends, whatever it left running is
asked to end and then killed: what they hold in the clear shall not outlive the mounts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from cloister.errors import WorkloadError

FORWARDED: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
        signal.SIGALRM,
        signal.SIGCONT,
    }
)
ENDING: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
BLOCKED: Final = FORWARDED | {signal.SIGCHLD, signal.SIGTSTP}
GRACE: Final = 10.0
"""Seconds between asking and killing."""
LOOK: Final = 1.0
"""Seconds between two looks at the mounts."""
_PR_SET_CHILD_SUBREAPER: Final = 36
_SENT_BY_PROCESS: Final = 0
"""``si_code`` of a signal that a process sent (``SI_USER``, and below it its kin); the terminal's is above."""


def block_signals() -> None:
    """Before any thread is made: they inherit it."""
    # Who starts us may ignore it: the kernel would then throw exit codes away, and every program would seem to end with 0.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)


def unblock_signals() -> None:
    """In a child, before it becomes the program."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def require_unasked() -> None:
    """Raise KeyboardInterrupt if somebody asked this process to end before there was a program to pass it on to."""
    if threading.current_thread() is threading.main_thread() and signal.sigpending() & ENDING:
        raise KeyboardInterrupt


def adopt_orphans() -> None:
    """Make every process below this one ours when its parent ends (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def supervise(
    program: subprocess.Popen[bytes], broken: Callable[[], str | None], *, ours: Collection[int] = ()
) -> int:
    """Wait for the program's end; the answer is its exit code, or 128 and the signal that ended it.

    ``broken`` is asked about once a second and names what the program cannot go on without: it is then ended, and
    :class:`~cloister.errors.WorkloadError` is raised. ``ours`` are other children, which somebody else waits for.
    """
    while True:
        code = program.poll()
        if code is not None:
            return code if code >= 0 else 128 - code
        _bury_orphans({program.pid, *ours})
        reason = broken()
        if reason is not None:
            end(program)
            raise WorkloadError(f"the program was ended, because {reason}", todo="see the log above")
        found = signal.sigtimedwait(BLOCKED, LOOK)
        if found is None:
            continue
        if found.si_signo == signal.SIGTSTP:
            if found.si_code <= _SENT_BY_PROCESS:
                program.send_signal(signal.SIGTSTP)
            os.kill(os.getpid(), signal.SIGSTOP)  # the shell waits for this process, not for the program
        elif found.si_signo in FORWARDED and found.si_code <= _SENT_BY_PROCESS:
            with contextlib.suppress(ProcessLookupError):
                program.send_signal(found.si_signo)


def _bury_orphans(known: Collection[int]) -> None:
    """Children that became ours and have ended; unburied they would use up the machine's process ids."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            if found.si_pid in known:
                return
            os.waitpid(found.si_pid, 0)


def end(program: subprocess.Popen[bytes], *, grace: float = GRACE) -> None:
    """Ask it to end; after ``grace`` seconds end it."""
    program.terminate()
    try:
        program.wait(grace)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def end_leftovers(spared: Collection[int], *, grace: float = 2.0) -> int:
    """End every child of this process but ``spared``, with the orphans that become ours meanwhile. How many there were.

    Raises :class:`~cloister.errors.WorkloadError` if one cannot be ended.
    """
    asked: set[int] = set()
    asked_until = time.monotonic() + grace
    while left := _children() - set(spared):
        late = time.monotonic() - asked_until
        if late > GRACE:
            raise WorkloadError(f"{len(left)} processes that the program left cannot be ended")
        for child in left:
            with contextlib.suppress(ProcessLookupError):
                if late > 0:
                    os.kill(child, signal.SIGKILL)
                elif child not in asked:
                    os.kill(child, signal.SIGTERM)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
        asked |= left
        time.sleep(0.02)
    return len(asked)


def _children() -> set[int]:
    # /proc/PID/task/TID/children is not in every kernel.
    found: set[int] = set()
    own = os.getpid()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything; the parent is the second field behind it.
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == own:
                found.add(int(entry.name))
    return found
