"""What was opened and authenticated, and not yet compared with the digest that its owner signed: a restore's second half.

Nothing that depends on such files may leave the workload before they are confirmed; where they are not, the workload ends
(docs/spec/sealed-file.md). Refused: to read the sealed files again. What was handed out is sealed again in memory and
hashed, so that nobody can show one file first and the signed one afterwards.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cloister.errors import SealingError, UsageError
from cloister.sealing import KeySource
from cloister.sealing.index import Index, IndexEntry
from cloister.sealing.reader import SealedBody
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.restore_body import confirm_digest, open_early
from cloister.sealing.restore_memory import frozen_pages
from cloister.sealing.workers import Progress, Tally, cpus, share_out

_CONFIRMED: Final = b"confirmed"
_PATIENCE: Final = 30.0
_SLOWEST: Final = 20e6
"""Bytes in a second that a process of ours is waited for, after the seconds above."""


@dataclass(frozen=True, slots=True)
class Unconfirmed:
    """A file that was opened under its data key, and not yet compared with its signed digest."""

    body: SealedBody
    expected: IndexEntry
    reopen: Callable[[], int]
    """A descriptor to read what was opened, to be closed."""


class Restored:
    """Opened files, authentic to whoever holds their keys, not yet confirmed to be those the index's owner signed."""

    def __init__(
        self, files: Iterable[Unconfirmed], *, remove: Callable[[], None], release: Callable[[], None]
    ) -> None:
        """``remove`` takes the files away, ``release`` lets go of what is held for that; the last call is always this."""
        self._files = {file.body.name: file for file in files}
        self._remove = remove
        self._release = release
        self._open = True
        self._apart: _Apart | None = None

    def confirm(self, *, workers: int | None = None, progress: Progress | None = None) -> None:
        """Return when all of it is what the owner signed. Once.

        Raises :class:`~cloister.errors.IndexMismatch`: then the files were removed, and whoever has used them must end.
        """
        self._once()
        try:
            if self._apart is None or not self._apart.confirmed():
                self._look(workers, progress)
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise SealingError(f"what was restored cannot be read: {error.strerror}") from None
            raise
        self._let_go()

    def begin(self, *, workers: int | None = None) -> None:
        """Begin to confirm in a process of its own; :meth:`confirm` then waits for it.

        For callers whose own process is busy meanwhile in code that lets no other thread of Python run. A copy of this
        process does it, so it needs no keys passed on and reads the same memory. ``workers`` are all processors but one by
        default. Where the copy does not say that all is well, for whatever reason, :meth:`confirm` looks itself.
        """
        self._once()
        if self._apart is not None:
            return
        size = sum(file.expected.size for file in self._files.values())
        threads = workers or max(1, cpus() - 1)
        self._apart = _Apart.start(lambda: self._look(threads, None), seconds=_PATIENCE + size / _SLOWEST)

    def discard(self) -> None:
        """Remove the files, not confirmed or not wanted. Nothing after :meth:`confirm`."""
        if not self._open:
            return
        try:
            self._remove()
        finally:
            self._let_go()

    def _look(self, workers: int | None, progress: Progress | None) -> None:
        sizes = {path: file.expected.size for path, file in self._files.items()}
        tally = Tally(sum(sizes.values()), progress)

        def confirm(path: str, threads: int) -> None:
            file = self._files[path]
            descriptor = file.reopen()
            try:
                confirm_digest(file.body, descriptor, file.expected, workers=threads, tally=tally)
            finally:
                os.close(descriptor)

        share_out(sizes, confirm, workers=workers)

    def _once(self) -> None:
        if not self._open:
            raise UsageError("what was restored was confirmed or discarded before")

    def _let_go(self) -> None:
        self._open = False
        self._files = {}  # and with them the ciphers, which hold keys
        if self._apart is not None:
            self._apart.end()
        self._release()


class _Apart:
    """A copy of this process that says one word or nothing, and ends."""

    def __init__(self, reading: int, child: int, seconds: float) -> None:
        self._reading = reading
        self._child = child
        self._until = time.monotonic() + seconds
        self._ended = False

    @classmethod
    def start(cls, work: Callable[[], None], *, seconds: float) -> _Apart | None:
        """None where no process can be had."""
        try:
            reading, writing = os.pipe()
        except OSError:
            return None
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns that a lock of another thread could be held in the copy for ever. It hashes and encrypts,
                # which takes none of ours; and should it hang, its time is bounded and this process looks itself.
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            return None
        if child == 0:
            # No handler, cleaner or test of the process that was copied runs in here.
            try:
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                work()
                os.write(writing, _CONFIRMED)
            finally:
                os._exit(0)
        os.close(writing)
        return cls(reading, child, seconds)

    def confirmed(self) -> bool:
        """Whether it said so, before its time was over."""
        if self._ended:
            return False
        waiting = select.poll()
        waiting.register(self._reading, select.POLLIN)
        ready = waiting.poll(1000 * max(0.0, self._until - time.monotonic()))
        return bool(ready) and os.read(self._reading, len(_CONFIRMED) + 1) == _CONFIRMED

    def end(self) -> None:
        """It has ended when this returns."""
        if self._ended:
            return
        self._ended = True
        os.close(self._reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._child, 0)


def memory_early(
    directory: Path,
    index: Index,
    paths: Collection[str],
    keys: KeySource,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, int], Restored]:
    """Files of ``index`` in memory that nobody can change any more, and what confirms them.

    The descriptors are the caller's to close. Raises the errors of sealing (errors.py), and of ``keys``, each of which is
    asked for once; nothing is left open then.
    """
    remembered, threads = RememberedKeys(keys), workers or cpus()
    tally = Tally(sum(index.entry(path).size for path in paths), progress)
    files = list[Unconfirmed]()
    with contextlib.ExitStack() as undo:
        own, descriptors = contextlib.ExitStack(), dict[str, int]()
        undo.callback(own.close)
        for path in paths:
            entry = index.entry(path)
            try:
                descriptor, body = _opened(directory, entry, path, remembered, threads, tally)
                undo.callback(os.close, descriptor)
                again = os.dup(descriptor)
            except OSError as error:
                raise SealingError(
                    f"cannot hold the {entry.size} bytes of {path} in memory: {error.strerror}",
                    todo="give the workload more memory",
                ) from None
            own.callback(os.close, again)
            files.append(Unconfirmed(body, entry, partial(os.dup, again)))
            descriptors[path] = descriptor
        undo.pop_all()
    return descriptors, Restored(files, remove=lambda: None, release=own.close)


def _opened(
    directory: Path, entry: IndexEntry, path: str, keys: KeySource, threads: int, tally: Tally
) -> tuple[int, SealedBody]:
    opened = list[SealedBody]()

    def fill(descriptor: int) -> None:
        source = directory / entry.file_name
        opened.append(
            open_early(source, descriptor, keys, name=path, expected=entry, workers=threads, tally=tally)
        )

    descriptor = frozen_pages(entry.size, fill)
    return descriptor, opened[0]
