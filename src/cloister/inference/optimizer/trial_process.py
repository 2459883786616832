"""One candidate in a process of its own: the parent's side.

Whatever becomes of the child (an error, a crash, no memory, silence) is a :class:`TrialFailed` with one line that says so,
and never the parent's end. Every wait ends at its deadline; then, and whenever a trial is closed, the child is killed with
all of its process group. Between its turns a child is stopped, so that it takes no processor from the one that is measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloister.errors import InferenceError

MAX_ANSWER: Final = 1 << 20
MAX_SAID: Final = 4096
"""Bytes kept of the end of what the child writes on standard error."""
_SIGNALS: Final[Mapping[int, str]] = {
    signal.SIGKILL: "it was killed, most likely for want of memory",
    signal.SIGSEGV: "it crashed (segmentation fault)",
    signal.SIGABRT: "it crashed (abort)",
    signal.SIGILL: "it crashed (an instruction that this processor lacks)",
    signal.SIGBUS: "it crashed (bus error)",
    signal.SIGFPE: "it crashed (arithmetic)",
}


class TrialFailed(InferenceError):
    """This candidate cannot be measured; the others can."""


class TrialProcess:
    """A child that answers one request at a time. A context manager: leaving it kills the child and its children."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = b""
        self._received = b""
        reading, writing = os.pipe()
        try:
            # A session of its own: Ctrl-C in the terminal is the parent's, which ends the child by its group.
            self._child = subprocess.Popen(  # noqa: S603 -- this very program
                (
                    sys.executable,
                    "-P",
                    "-m",
                    "cloister.inference.optimizer.trial",
                    str(writing),
                    str(os.getpid()),
                ),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(writing,),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._answers = reading

    def ask(self, do: str, deadline: float, **request: Any) -> Mapping[str, Any]:
        """The child's answer by ``deadline`` (of the clock). Raises :class:`TrialFailed`."""
        self._signal(signal.SIGCONT)
        assert self._child.stdin is not None  # noqa: S101 -- asked for above
        with contextlib.suppress(BrokenPipeError):  # it is gone: what it left says why
            self._child.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._child.stdin.flush()
        answer = json.loads(self._line(deadline))
        if "failed" in answer:
            raise TrialFailed(str(answer["failed"]))
        found: Mapping[str, Any] = answer["answer"]
        return found

    def pause(self) -> None:
        """Have it take no processor until it is asked again."""
        self._signal(signal.SIGSTOP)

    def close(self) -> None:
        """Kill it and its children. Idempotent."""
        self._signal(signal.SIGKILL)
        self._child.wait()
        for stream in (self._child.stdin, self._child.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._answers >= 0:
            os.close(self._answers)
            self._answers = -1

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _signal(self, number: signal.Signals) -> None:
        # The leader is not reaped before `close`, so its group cannot be another's.
        if self._child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)

    def _line(self, deadline: float) -> bytes:
        errors = self._child.stderr
        assert errors is not None  # noqa: S101 -- asked for above
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            selector.register(errors, selectors.EVENT_READ)
            while b"\n" not in self._received:
                left = deadline - self._clock()
                ready = selector.select(max(0.0, left))
                if not ready and left <= 0:
                    self._signal(signal.SIGKILL)
                    raise TrialFailed("it was not done when its time was over")
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if key.fd != self._answers:
                        self._said = (self._said + data)[-MAX_SAID:]
                        if not data:
                            selector.unregister(errors)
                        continue
                    self._received += data
                    if not data or len(self._received) > MAX_ANSWER:
                        raise TrialFailed(self._why())
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _why(self) -> str:
        """Why there is no answer, from how it ended and what it said last."""
        status = None
        for _ in range(100):
            # Looked at without being reaped: its number stays its own until `close` has killed its group.
            status = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if status is not None:
                break
            time.sleep(0.01)
        if status is not None and status.si_code in (os.CLD_KILLED, os.CLD_DUMPED):
            number = status.si_status
            return _SIGNALS.get(number, f"it was ended by signal {number}")
        said = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        last = "".join(char for char in said[-1][:200] if char.isprintable()) if said else ""
        return f"it ended by itself: {last}" if last else "it ended by itself"
