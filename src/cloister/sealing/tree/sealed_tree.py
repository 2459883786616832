"""A sealed tree as a file system that programs write in place.

Everything in it is sealed before it touches the disk, every read is authenticated, and the tree as a whole has a head that
changes with every commit: whoever remembers heads finds out when an old tree is put in the place of a new one. Refuses what
POSIX refuses, by its errno. Thread-safe. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from cloister.errors import TamperedFile, TruncatedFile
from cloister.sealing.posix import Space, Status
from cloister.sealing.tree import names
from cloister.sealing.tree.fields import MAX_TIME, OBJECT_ID_SIZE
from cloister.sealing.tree.handle import TreeFile, status_of
from cloister.sealing.tree.head import Head
from cloister.sealing.tree.ledger import MIN_COMPACTED_ON_CLOSE, Ledger
from cloister.sealing.tree.names import refused
from cloister.sealing.tree.operations import (
    MakeDirectory,
    MakeFile,
    MakeLink,
    Operation,
    Remove,
    SetAttributes,
)
from cloister.sealing.tree.state import MAX_NODES, Node
from cloister.sealing.tree.storage import StoredFile
from cloister.sealing.workers import Progress, Tally

_MODE = 0o7777
_VERIFIED_AT_ONCE = 1 << 20


class SealedTree:
    """:class:`~cloister.sealing.posix.Files`, with a head. Made by :func:`~cloister.sealing.tree.open_tree`."""

    def __init__(
        self,
        ledger: Ledger,
        header: StoredFile,
        *,
        writable: bool,
        recorded: Callable[[Head], None] | None,
        now_ns: Callable[[], int],
    ) -> None:
        self.writable = writable
        self._ledger = ledger
        self._header = header
        self._recorded = recorded
        self._last_recorded: Head | None = None
        self._now_ns = now_ns
        self._closed = False
        self._closing = threading.Lock()

    # The tree as a whole

    @property
    def head(self) -> Head:
        """The newest version that is durable."""
        return self._ledger.head

    def commit(self) -> Head:
        """Make everything durable that was done so far, and have it recorded; the head that is certain then.

        Raises OSError (``ENOSPC`` and others: nothing is lost, and it can be tried again), and what ``recorded`` raises:
        then it is durable, and nobody remembers it.
        """
        ledger = self._ledger
        self._usable()
        with ledger.committing:
            ledger.commit()
            head = ledger.head
            if self._recorded is not None and head != self._last_recorded:
                self._recorded(head)
                self._last_recorded = head
                ledger.remember(head)
            ledger.compact()
            return head

    def note_recorded(self, head: Head) -> None:
        """``head``, which :meth:`commit` gave, is remembered by somebody who was not told through ``recorded``."""
        self._ledger.remember(head)

    def verify(self, progress: Progress | None = None) -> None:
        """Authenticate every segment of every file; ``progress`` counts bytes.

        Raises :class:`~cloister.errors.TamperedFile`, :class:`~cloister.errors.TruncatedFile`, OSError.
        """
        with self._ledger.lock:
            self._usable()
            files = [(path, node) for path, node in _walk(self._ledger.state.root) if node.kind == "file"]
            opened = [(path, self._opened(node, write=False)) for path, node in files]
            tally = Tally(sum(node.size for _, node in files), progress)
        try:
            for path, file in opened:
                self._verify(path, file, tally)
        finally:
            for _, file in opened:
                file.close()

    def _verify(self, path: str, file: TreeFile, tally: Tally) -> None:
        offset = 0
        try:
            while data := file.read(offset, _VERIFIED_AT_ONCE):
                offset += len(data)
                tally.add(len(data))
        except (TamperedFile, TruncatedFile) as error:
            raise type(error)(f"{path!a}: {error.what}", todo=error.todo) from None

    def sync(self) -> None:
        """As :meth:`commit`."""
        self.commit()

    def space(self) -> Space:
        """Of the file system below."""
        self._usable()
        return self._ledger.objects.storage.space()

    def close(self) -> None:
        """Commit, have it recorded, and let go. What it raises, it raises after it let go; more often does nothing."""
        with self._closing:
            if self._closed:
                return
            try:
                if self.writable:
                    self.commit()
                    self._ledger.compact(over=MIN_COMPACTED_ON_CLOSE)
            finally:
                self._closed = True
                self._ledger.close()
                self._header.close()
                self._ledger.objects.storage.close()

    # Looking

    def status(self, path: str) -> Status:
        """Raises ``ENOENT``, ``ENOTDIR``."""
        with self._ledger.lock:
            return status_of(self._find(path), self._ledger)

    def names(self, path: str) -> tuple[str, ...]:
        """What a folder holds, sorted."""
        with self._ledger.lock:
            children = self._find(path).children
            if children is None:
                raise refused(errno.ENOTDIR)
            return tuple(sorted(children))

    def read_link(self, path: str) -> str:
        """Where a link leads. Raises ``EINVAL`` for what is none."""
        with self._ledger.lock:
            node = self._find(path)
            if node.kind != "link":
                raise refused(errno.EINVAL)
            return node.target

    # Files

    def open(self, path: str, *, write: bool) -> TreeFile:
        """Raises ``EISDIR``, ``ELOOP`` for a link, ``EROFS``."""
        with self._ledger.lock:
            node = self._file(path)
            if write:
                self._changeable()
            return self._opened(node, write=write)

    def create(self, path: str, mode: int) -> TreeFile:
        """A new, empty file."""
        with self._changing():
            folder, name = names.free_place(self._ledger.state, path)
            number, parent = self._next_number(), folder.number
            object_id = self._ledger.objects.entropy(OBJECT_ID_SIZE)
            node = self._do(MakeFile(number, parent, name, mode & _MODE, self._now(), object_id))
            assert node is not None  # noqa: S101 -- for the type checker: making gives what was made
            return self._opened(node, write=True)

    def truncate(self, path: str, size: int) -> None:
        """Raises what :meth:`open` raises."""
        file = self.open(path, write=True)
        try:
            file.truncate(size)
        finally:
            file.close()

    # Names

    def make_directory(self, path: str, mode: int) -> None:
        """Raises ``EEXIST``."""
        with self._changing():
            folder, name = names.free_place(self._ledger.state, path)
            self._do(MakeDirectory(self._next_number(), folder.number, name, mode & _MODE, self._now()))

    def link(self, path: str, target: str) -> None:
        """A symbolic link. ``EPERM`` unless ``target`` stays inside."""
        with self._changing():
            folder, name = names.free_place(self._ledger.state, path)
            names.check_target(target, names.depth_of(folder))
            self._do(MakeLink(self._next_number(), folder.number, name, target, self._now()))

    def remove_directory(self, path: str) -> None:
        """Raises ``ENOTEMPTY``, ``ENOTDIR``, ``EBUSY`` for the root."""
        with self._changing():
            node = self._find(path)
            if node.children is None:
                raise refused(errno.ENOTDIR)
            if node.parent is None:
                raise refused(errno.EBUSY)
            if node.children:
                raise refused(errno.ENOTEMPTY)
            self._remove(path)

    def unlink(self, path: str) -> None:
        """Raises ``EISDIR``."""
        with self._changing():
            if self._find(path).children is not None:
                raise refused(errno.EISDIR)
            self._remove(path)

    def _remove(self, path: str) -> None:
        folder, name = names.place(self._ledger.state, path)
        self._ledger.has_gone(self._do(Remove(folder.number, name, self._now())))

    def rename(self, old: str, new: str, *, replace: bool = True) -> None:
        """As rename(2), and renameat2(2) with RENAME_NOREPLACE."""
        with self._changing():
            move = names.plan_move(self._ledger.state, old, new, replace=replace, time_ns=self._now())
            if move is not None:
                self._ledger.has_gone(self._do(move))

    # Attributes

    def set_mode(self, path: str, mode: int) -> None:
        """Permission bits."""
        with self._changing():
            node = self._find(path)
            self._do(SetAttributes(node.number, mode & _MODE, node.modified_ns, self._now()))

    def set_modified(self, path: str, modified_ns: int) -> None:
        """Nanoseconds since 1970. Raises ``EINVAL`` beyond 2262."""
        if not -MAX_TIME <= modified_ns <= MAX_TIME:
            raise refused(errno.EINVAL)
        with self._changing():
            node = self._find(path)
            self._do(SetAttributes(node.number, node.mode, modified_ns, self._now()))

    # Inside

    def _find(self, path: str) -> Node:
        self._usable()
        return names.find(self._ledger.state, path)

    def _file(self, path: str) -> Node:
        node = self._find(path)
        if node.kind != "file":
            raise refused(errno.EISDIR if node.kind == "directory" else errno.ELOOP)
        return node

    def _opened(self, node: Node, *, write: bool) -> TreeFile:
        contents = self._ledger.contents(node)
        return TreeFile(self._ledger, contents, write=write, sync=self.commit, now_ns=self._now)

    def _changing(self) -> AbstractContextManager[object]:
        self._changeable()
        # Not for contents that others wrote: on a full disk, whoever removes a file is let.
        self._ledger.make_room_for_names()
        return self._ledger.lock

    def _do(self, operation: Operation) -> Node | None:
        self._usable()
        return self._ledger.do(operation)

    def _next_number(self) -> int:
        if len(self._ledger.state.nodes) >= MAX_NODES:
            raise refused(errno.ENOSPC)
        return self._ledger.state.next_number

    def _now(self) -> int:
        return min(max(self._now_ns(), -MAX_TIME), MAX_TIME)

    def _usable(self) -> None:
        if self._closed:
            raise refused(errno.EBADF)

    def _changeable(self) -> None:
        self._usable()
        if not self.writable:
            raise refused(errno.EROFS)


def _walk(root: Node) -> list[tuple[str, Node]]:
    found = []
    waiting = [("", root)]
    while waiting:
        path, node = waiting.pop()
        found.append((path, node))
        for name, below in (node.children or {}).items():
            waiting.append((f"{path}/{name}" if path else name, below))
    return sorted(found, key=lambda pair: pair[0])
