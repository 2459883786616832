"""An open file of a tree. It stays what it is when its name goes to another file or away.

Reads open segments outside the tree's lock. Should a segment have moved meanwhile, it does not authenticate, and the
read is done once more under the lock: what does not authenticate then is refused.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloister.errors import TamperedFile, TruncatedFile
from cloister.sealing.posix import Status
from cloister.sealing.segments import Writable
from cloister.sealing.tree.contents import Contents, Planned
from cloister.sealing.tree.ledger import Ledger
from cloister.sealing.tree.names import refused

if TYPE_CHECKING:
    from cloister.sealing.tree.state import Node


_ROOM = 1 << 20


class _Room(threading.local):
    """Memory for one read of a thread."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(_ROOM))


_room = _Room()


class TreeFile:
    """An :class:`~cloister.sealing.posix.OpenFile`. Thread-safe."""

    def __init__(
        self,
        ledger: Ledger,
        contents: Contents,
        *,
        write: bool,
        sync: Callable[[], object],
        now_ns: Callable[[], int],
    ) -> None:
        """Under the lock. ``sync`` commits the tree."""
        self._ledger = ledger
        self._contents = contents
        self._write = write
        self._sync = sync
        self._now_ns = now_ns
        self._closed = False
        self._closing = threading.Lock()
        contents.handles += 1

    @property
    def status(self) -> Status:
        """As of its path."""
        with self._ledger.lock:
            self._usable()
            return status_of(self._contents.node, self._ledger)

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end of the file.

        Raises :class:`~cloister.errors.TamperedFile`, :class:`~cloister.errors.TruncatedFile`, OSError.
        """
        if offset < 0 or length < 0:
            raise refused(errno.EINVAL)
        # Fresh memory costs more than AES: pages are faulted in. So segments are opened into memory that is used again.
        if length <= len(_room.buffer):
            with _room.buffer[:length] as room:
                return bytes(room[: self.read_into(offset, room)])
        with memoryview(bytearray(max(0, min(length, self.status.size - offset)))) as room:
            return bytes(room[: self.read_into(offset, room)])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As :meth:`read`, into memory that is there; how many bytes. When it raises, what is in the buffer is nobody's."""
        ledger, stored = self._ledger, self._contents.object
        with ledger.lock:
            self._usable()
            stored.pins += 1
            planned = self._plan(offset, len(buffer))
        try:
            return self._fill(buffer, *planned)
        except (TamperedFile, TruncatedFile, OSError):
            with ledger.lock:
                return self._fill(buffer, *self._plan(offset, len(buffer)))
        finally:
            with ledger.lock:
                stored.pins -= 1

    def _plan(self, offset: int, length: int) -> tuple[int, int, int, list[Planned]]:
        size = self._contents.node.size
        end = min(offset + length, size)
        planned = self._contents.plan(offset, end) if offset < end else []
        if any(entry is not None for _, entry, _ in planned):
            self._contents.object.file(write=False)
        return offset, end, size, planned

    def _fill(self, buffer: memoryview, offset: int, end: int, file_size: int, planned: list[Planned]) -> int:
        contents, size = self._contents, self._contents.size_of
        wanted: list[tuple[int, bytes, Writable]] = []
        for number, entry, held in planned:
            start = number * size
            low, high = max(offset, start), min(end, start + size)
            if held is not None:
                buffer[low - offset : high - offset] = held
            elif entry is None:
                buffer[low - offset : high - offset] = bytes(high - low)
            elif high - low == (length := min(size, file_size - start)):
                wanted.append((number, entry, buffer[low - offset : high - offset]))
            else:
                plain = self._part(number, entry, length)
                buffer[low - offset : high - offset] = memoryview(plain)[low - start : high - start]
        if wanted:
            contents.object.fetch(contents.object.file(write=False), wanted)
        return max(0, end - offset)

    def _part(self, number: int, entry: bytes, length: int) -> bytes | bytearray | memoryview:
        stored, cache = self._contents.object, self._ledger.cache
        known = cache.get(stored.name, entry)
        if known is not None and len(known) == length:
            return known
        plain = bytearray(length)
        stored.fetch(stored.file(write=False), [(number, entry, plain)])
        cache.put(stored.name, entry, plain)
        return plain

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """All of ``data``. Raises OSError and errors of sealing; then nothing of it was written."""
        if offset < 0:
            raise refused(errno.EINVAL)
        if not self._write:
            raise refused(errno.EBADF)
        with memoryview(data) as view:
            if not view.nbytes:
                return 0
            self._ledger.make_room()
            with self._ledger.lock:
                self._usable()
                self._change(lambda: self._contents.write(offset, view))
            return view.nbytes

    def truncate(self, size: int) -> None:
        """Raises OSError and errors of sealing; then nothing has changed."""
        if size < 0 or not self._write:
            raise refused(errno.EINVAL)
        self._ledger.make_room()
        with self._ledger.lock:
            self._usable()
            self._change(lambda: self._contents.truncate(size))

    def _change(self, act: Callable[[], None]) -> None:
        contents = self._contents
        before = len(contents.dirty)
        try:
            act()
        finally:
            self._ledger.dirty += len(contents.dirty) - before
        contents.node.modified_ns = contents.node.changed_ns = self._now_ns()

    def sync(self) -> None:
        """Commit: what was written so far, here and elsewhere in the tree, outlives a crash."""
        with self._ledger.lock:
            self._usable()
        self._sync()

    def close(self) -> None:
        """Nothing is committed by it. Once; more often does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with self._ledger.lock:
            self._ledger.release(self._contents)

    def _usable(self) -> None:
        if self._closed or self._ledger.closed:
            raise refused(errno.EBADF)


def status_of(node: Node, ledger: Ledger) -> Status:
    """What ``stat`` shows of a node. Under the lock."""
    return Status(
        kind=node.kind,
        number=node.number,
        mode=node.mode,
        size=node.size,
        stored=min(node.size, ledger.segments_with_contents(node) * ledger.state.segment_size),
        modified_ns=node.modified_ns,
        changed_ns=node.changed_ns,
    )
