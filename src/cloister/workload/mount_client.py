"""The launcher's side of a mount's process: start it, answer when it wants a head recorded, stop it.

Refused: to go on as if mounted when it is not ready in time. What a mount that died leaves behind is detached, so that
nobody meets a dead mount point.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloister import errors
from cloister.errors import CloisterError, FormatError, WorkloadError
from cloister.sealing.tree.head import Head
from cloister.workload.mount_device import detach
from cloister.workload.mount_protocol import Line, MountSpec, Order, Report

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 120.0
_log = logging.getLogger(__name__)


def refuse_to_record(head: Head) -> None:
    """For mounts that have nothing to record: nobody remembers ``head``."""
    raise WorkloadError(f"nobody records version {head.version} of the tree")


class MountProcess:
    """A mount that runs."""

    def __init__(
        self, process: subprocess.Popen[bytes], line: Line, spec: MountSpec, head: Head | None
    ) -> None:
        """By :meth:`start`."""
        self._process = process
        self._line = line
        self.mountpoint = Path(spec.mountpoint)
        self.head = head
        """A tree's newest head that is known here: what it was opened at, then what was recorded last."""
        self._failure: CloisterError | None = None
        self._stopped = threading.Event()
        self._listening: threading.Thread | None = None

    @classmethod
    def start(
        cls, spec: MountSpec, *, record: Callable[[Head], None], timeout: float = START_TIMEOUT
    ) -> MountProcess:
        """Start a process that mounts ``spec``, and wait until it is ready.

        ``record`` is called in a thread, for one head after the other; what it raises is told to the mount, as a refusal.
        Raises :class:`~cloister.errors.WorkloadError`, or what the mount met, by its class.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(  # noqa: S603 -- this interpreter, and a number
                [sys.executable, "-I", "-m", "cloister.workload.mount_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
                start_new_session=True,
            )
        line = Line(ours)
        try:
            line.wait_at_most(timeout)
            line.send(spec)
            report = line.receive(Report)
            if report is None or report.kind != "ready":
                raise _failure_of(report, spec)
        except TimeoutError:
            _end(process, line, Path(spec.mountpoint))
            raise WorkloadError(
                f"{spec.source} was not mounted within {timeout:.0f} seconds", todo="see the log above"
            ) from None
        except BaseException:
            _end(process, line, Path(spec.mountpoint))
            raise
        line.wait_at_most(None)
        mounted = cls(process, line, spec, report.head)
        mounted._listen_with(record)
        return mounted

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._process.poll() is None and not self._stopped.is_set()

    def stop(self, timeout: float = STOP_TIMEOUT) -> Head | None:
        """Unmount, with everything committed and recorded: a writable tree's last head.

        Raises what the mount met; :class:`~cloister.errors.WorkloadError` if it died, or does not end in time and is
        killed: then what ``fsync`` acknowledged is there, and nothing else is promised.
        """
        with contextlib.suppress(OSError):
            self._line.send(Order(kind="stop"))
        in_time = self._stopped.wait(timeout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout if in_time else 0)
        ended = self._process.poll()
        _end(self._process, self._line, self.mountpoint)
        if self._failure is not None:
            raise self._failure
        if ended != 0:
            why = "did not stop in time" if ended is None else "died"
            raise WorkloadError(
                f"the mount at {self.mountpoint} {why}",
                todo="what fsync acknowledged is there; see the log above",
            )
        return self.head

    def _listen_with(self, record: Callable[[Head], None]) -> None:
        def listen() -> None:
            try:
                while (report := self._line.receive(Report)) is not None:
                    self._take(report, record)
            except CloisterError as error:
                self._failure = error
            except OSError:
                pass  # it has died, or we closed the line
            finally:
                self._stopped.set()

        self._listening = threading.Thread(target=listen, name="mount-client", daemon=True)
        self._listening.start()

    def _take(self, report: Report, record: Callable[[Head], None]) -> None:
        if report.kind == "record" and report.head is not None:
            head = report.head
            try:
                record(head)
            except CloisterError as error:
                self._line.send(Order(kind="refused", what=error.what))
            except Exception as error:
                # The mount waits for an answer, whatever went wrong here; its text may not be for another's log.
                _log.exception("a head of the tree at %s was not recorded", self.mountpoint)
                self._line.send(Order(kind="refused", what=type(error).__name__))
            else:
                self.head = head
                self._line.send(Order(kind="recorded"))
        elif report.kind == "stopped":
            self.head = self.head if report.head is None else report.head
        elif report.kind == "error":
            self._failure = _error_of(report)
        else:
            raise FormatError("the mount says what it cannot say now")


def _error_of(report: Report) -> CloisterError:
    kind = getattr(errors, report.name, None)
    if not (isinstance(kind, type) and issubclass(kind, CloisterError)):
        kind = WorkloadError
    return kind(report.what, todo=report.todo)


def _failure_of(report: Report | None, spec: MountSpec) -> CloisterError:
    if report is not None and report.kind == "error":
        return _error_of(report)
    return WorkloadError(f"the process that mounts {spec.source} died", todo="see the log above")


def _end(process: subprocess.Popen[bytes], line: Line, mountpoint: Path) -> None:
    if process.poll() is None:
        process.kill()
    code = process.wait()
    line.close()
    if code != 0:
        detach(mountpoint)
