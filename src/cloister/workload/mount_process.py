"""``python -m cloister.workload.mount_process N``: one mount in a process of its own, ruled over the inherited socket ``N``.

So a crash or a busy interpreter of one mount touches no other, and keys and plaintext of one are in no other's memory. The
process dumps no core, cannot be traced by others, and leaves signals to its launcher: it ends when it is told to, or when
its launcher has gone, and in both cases what was written is committed first. docs/spec/mount.md has the protocol.
"""

from __future__ import annotations

import logging
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

from cloister.encoding import from_hex
from cloister.errors import CloisterError, IndexMismatch, WorkloadError
from cloister.sealing.posix import Files
from cloister.sealing.tree.head import Head
from cloister.workload.confinement import no_core_dumps
from cloister.workload.held_keys import held
from cloister.workload.linux import PR_SET_DUMPABLE, prctl
from cloister.workload.mount import Mounted
from cloister.workload.mount_device import Session
from cloister.workload.mount_kernel import Owner
from cloister.workload.mount_protocol import Line, MountSpec, Order, Report

TICK: Final = 1.0
COMMIT_SECONDS: Final = 5.0
"""What was written without ``fsync`` lasts after at most so long."""
RECORD_TIMEOUT: Final = 180.0
UNMOUNT_PATIENCE: Final = 5.0
_log = logging.getLogger(__name__)


class Tree(Files, Protocol):
    """What is written in place and has a head: :class:`~cloister.sealing.tree.SealedTree`."""

    @property
    def head(self) -> Head: ...

    def commit(self) -> Head: ...

    def note_recorded(self, head: Head) -> None: ...


class Launcher:
    """The other end of the socket: what it says arrives in a thread."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._parent = os.getppid()
        self._answers: queue.Queue[Order] = queue.Queue()
        self._asking = threading.Lock()
        self.stopping = threading.Event()
        self.gone = threading.Event()
        threading.Thread(target=self._listen, name="launcher", daemon=True).start()

    def _listen(self) -> None:
        try:
            while (order := self._line.receive(Order)) is not None:
                if order.kind == "stop":
                    self.stopping.set()
                else:
                    self._answers.put(order)
        except CloisterError as error:
            _log.error("the launcher is not understood: %s", error.what)
        except OSError:
            pass  # the socket was closed: as good as gone
        self.gone.set()
        self._answers.put(Order(kind="refused", what="the launcher has gone"))
        self.stopping.set()

    @property
    def orphaned(self) -> bool:
        """It has died, even if somebody inherited its end of the socket."""
        return self.gone.is_set() or os.getppid() != self._parent

    def report(self, report: Report) -> None:
        """Say it, if anybody listens."""
        try:
            self._line.send(report)
        except OSError:
            self.gone.set()

    def record(self, head: Head) -> None:
        """Have a head recorded. Raises :class:`~cloister.errors.WorkloadError` unless it was."""
        with self._asking:
            if self.gone.is_set():
                raise WorkloadError("the launcher has gone, so the tree's newest version cannot be recorded")
            self.report(Report(kind="record", head=head))
            try:
                answer = self._answers.get(timeout=RECORD_TIMEOUT)
            except queue.Empty:
                # A late answer must not be taken for the next question's.
                self.gone.set()
                self.stopping.set()
                raise WorkloadError("the launcher does not answer, so the mount ends") from None
        if answer.kind != "recorded":
            raise WorkloadError(f"the tree's newest version was not recorded: {answer.what}")


class Recorded:
    """A writable tree's heads, committed every few seconds and recorded as often as the spec says."""

    def __init__(self, tree: Tree, record: Callable[[Head], None], seconds: float, *, now: float) -> None:
        self._tree = tree
        self._record = record
        self._seconds = seconds
        self._known = tree.head
        self._committed = self._asked = now

    def tick(self, now: float) -> None:
        """Commit and record what is due. What cannot be is said, and tried again."""
        if now - self._committed < COMMIT_SECONDS:
            return
        self._committed = now
        try:
            head = self._tree.commit()
            if self._seconds and head != self._known and now - self._asked >= self._seconds:
                self._asked = now
                self._have_recorded(head)
        except OSError as error:
            _log.error("what was written cannot be committed: %s", error.strerror)
        except CloisterError as error:
            _log.error("%s", error.what)

    def finish(self) -> Head:
        """Commit and record the last head. Raises OSError and CloisterError."""
        head = self._tree.commit()
        if self._seconds and head != self._known:
            self._have_recorded(head)
        return head

    def _have_recorded(self, head: Head) -> None:
        self._record(head)
        self._tree.note_recorded(head)
        self._known = head


def open_files(spec: MountSpec, launcher: Launcher) -> tuple[Files, Tree | None]:
    """Open what the spec names; a tree twice, as what it is too. Raises the errors of sealing."""
    keys = held(spec.keys)
    if spec.kind == "directory":
        if spec.writable:
            raise WorkloadError("a sealed directory is sealed once", todo="write into a sealed tree")
        from cloister.sealing.envelope import erase, unwrap  # noqa: PLC0415
        from cloister.sealing.files import read_header  # noqa: PLC0415
        from cloister.sealing.index import open_index  # noqa: PLC0415
        from cloister.sealing.view import SealedView  # noqa: PLC0415

        signers = [from_hex(signer, 32, what="a signer") for signer in spec.signers]
        directory = Path(spec.source)
        index = open_index(directory, signers=signers, minimum_version=spec.minimum_version)
        if spec.index_digest and index.digest.hex() != spec.index_digest:
            raise IndexMismatch(
                f"the index of {spec.source} is another than the launch measured",
                todo="measure the launch again",
            )
        path, entry = next(iter(index.files.items()))
        header = read_header(directory / entry.file_name)
        # A key that opens nothing is said now, and not as an input error of each file.
        erase(unwrap(header, keys.key(header.key_uri), name=path))
        return SealedView(directory, index, keys, verify=spec.verify), None
    from cloister.sealing.tree import open_tree  # noqa: PLC0415

    tree = open_tree(
        Path(spec.source),
        keys,
        writable=spec.writable,
        minimum=spec.minimum,
        recorded=launcher.record if spec.writable and spec.record_seconds == 0 else None,
    )
    return tree, tree


def serve(spec: MountSpec, launcher: Launcher) -> None:
    """Mount, serve until it is time to stop, and leave everything committed. Raises CloisterError and OSError."""
    files, tree = open_files(spec, launcher)
    owner = Owner(spec.uid, spec.gid)
    try:
        mounted = Mounted(files, owner, clock=time.time_ns)
        session = Session(Path(spec.mountpoint), mounted, owner=owner, writable=spec.writable)
    except BaseException:
        files.close()
        raise
    recorded = None
    if tree is not None and spec.writable:
        recorded = Recorded(tree, launcher.record, spec.record_seconds, now=time.monotonic())
    launcher.report(Report(kind="ready", head=None if tree is None else tree.head))
    while not launcher.stopping.wait(TICK) and not launcher.orphaned and session.alive:
        if recorded:
            recorded.tick(time.monotonic())
    if not session.unmount(patience=UNMOUNT_PATIENCE):
        _log.warning("programs still used %s, which was detached", spec.mountpoint)
    head = None
    try:
        if recorded:
            head = recorded.finish()
    finally:
        files.close()
    launcher.report(Report(kind="stopped", head=head))


def harden() -> None:
    """No core dumps, no tracing, no signals of a terminal; as many open files as the system allows."""
    no_core_dumps()
    prctl(PR_SET_DUMPABLE, 0)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)


def main(arguments: Sequence[str]) -> int:
    """The process, from its hardening to its exit code, which is that of the error."""
    harden()
    os.chdir("/")
    logging.basicConfig(format="cloister mount: %(message)s", level=logging.WARNING)
    (descriptor,) = arguments
    line = Line(socket.socket(fileno=int(descriptor)))
    spec = line.receive(MountSpec)
    if spec is None:
        return WorkloadError.exit_code
    launcher = Launcher(line)
    try:
        serve(spec, launcher)
    except CloisterError as error:
        launcher.report(Report(kind="error", what=error.what, todo=error.todo, name=type(error).__name__))
        return error.exit_code
    except OSError as error:
        what = f"the mount of {spec.source} failed: {error.strerror}"
        launcher.report(Report(kind="error", what=what, name=WorkloadError.__name__))
        return WorkloadError.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
