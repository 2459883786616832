"""The working state of an open tree: what programs see, what of it is durable, and the commits that take one to the other.

A commit carries everything that changed since the last: segments are sealed into free slots and synced, then one record says
so, and only when that is on the disk is anything acknowledged. Meanwhile programs go on; those who wait for a commit share
it. A commit that fails (a full disk) loses nothing: it can be tried again. What may be done is decided in names.py.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from cloister.errors import SealingError
from cloister.sealing.tree.cache import SegmentCache
from cloister.sealing.tree.checkpoint import MAX_HEADS, Checkpoint, newest
from cloister.sealing.tree.contents import Contents, ContentsBatch
from cloister.sealing.tree.head import Head
from cloister.sealing.tree.journal import Journal, journal_name, write_journal
from cloister.sealing.tree.objects import Objects, StoredObject
from cloister.sealing.tree.operations import Operation, encode
from cloister.sealing.tree.state import Node, State, apply

CACHED: Final = 32 << 20
"""Bytes of opened segments that are kept for whoever reads in small pieces."""
MAX_DIRTY: Final = 16 << 20
"""Bytes in memory that are not sealed yet; over it they are sealed, without a commit."""
MAX_UNCOMMITTED: Final = 256 << 20
"""Bytes sealed since the last commit; over it, whoever writes commits first."""
MAX_PENDING: Final = 4 << 20
"""Bytes of operations since the last commit."""
MIN_COMPACTED: Final = 16 << 20
"""Bytes of records, at least, before a new journal takes the place of the old one."""
MIN_COMPACTED_ON_CLOSE: Final = 64 << 10
PUNCHED: Final = 64 << 20
"""Bytes of an object that came free in its middle before they are given back."""
MAX_OPEN: Final = 512
"""Objects that stay open although nobody uses them, until the next commit."""
_SYNCED_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class _Batch:
    operations: list[bytes]
    contents: list[ContentsBatch]
    removed: list[tuple[bytes, Contents | None]]
    objects: list[StoredObject]
    created: bool
    stored: int


class Ledger:
    """``lock`` guards state and contents; it is held for no longer than it takes to seal some segments."""

    def __init__(self, checkpoint: Checkpoint, objects: Objects, journal: Journal | None) -> None:
        """``checkpoint`` is as of the journal's last record; without a journal nothing can be changed."""
        self.state: State = checkpoint.state
        self.objects = objects
        self.lock = threading.RLock()
        self.committing = threading.RLock()
        self.cache = SegmentCache(CACHED)
        self.dirty = 0
        """Segments in memory."""
        self._journal = journal
        self._version, self._link = checkpoint.version, checkpoint.link
        self._heads = dict(checkpoint.heads)
        self._remembered: bytes | None = None
        self._remembered_version = 0
        self._contents: dict[int, Contents] = {}
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._removed: list[tuple[bytes, Contents | None]] = []
        self._compact_over = self._compaction_bound()
        self.closed = False

    # What is known of versions

    @property
    def head(self) -> Head:
        """The newest that is durable. Whoever was given it may remember it: checkpoints keep it."""
        with self.lock:
            self._heads[self._version] = self._link
            self._keep_few()
            return Head(self.objects.keys.tree_id.hex(), self._version, self._link.hex())

    def remember(self, head: Head) -> None:
        """Somebody outside remembers this one and will ask for it: kept in checkpoints until a newer one is remembered."""
        with self.lock:
            self._heads[head.version] = self._remembered = bytes.fromhex(head.digest)
            self._remembered_version = head.version

    def _keep_few(self) -> None:
        if len(self._heads) > MAX_HEADS:
            kept = newest(self._heads)
            if self._remembered is not None:
                kept[self._remembered_version] = self._remembered
            self._heads = kept

    # Doing things, under the lock

    def do(self, operation: Operation) -> Node | None:
        """Apply it and have it committed some time. The answer as of :func:`~cloister.sealing.tree.state.apply`."""
        encoded = encode(operation)
        node = apply(self.state, operation)
        self._pending.append(encoded)
        self._pending_size += len(encoded)
        return node

    def has_gone(self, node: Node | None) -> None:
        """``node`` was removed or replaced: its object goes when that is durable and nobody has it open."""
        if node is not None and node.kind == "file":
            contents = self._contents.get(node.number)
            if contents is not None:
                contents.removed = True
                if not contents.handles:
                    self.dirty -= len(contents.dirty)
                    contents.dirty.clear()
            self._removed.append((node.object_id, contents))

    def contents(self, node: Node) -> Contents:
        """Of a file; it stays known while it is used."""
        found = self._contents.get(node.number)
        if found is None:
            stored = StoredObject(self.objects, node)
            found = Contents(node, stored, self.state.segment_size, self.cache)
            self._contents[node.number] = found
        return found

    def segments_with_contents(self, node: Node) -> int:
        """Those that are no holes, in memory or on the disk. Programs take a file without any for empty."""
        contents = self._contents.get(node.number)
        unsealed = () if contents is None else contents.dirty
        return node.segments.stored + sum(node.segments.get(number) is None for number in unsealed)

    def release(self, contents: Contents) -> None:
        """One handle less. Raises OSError."""
        contents.handles -= 1
        if contents.handles:
            return
        if contents.gone:
            self._remove(contents.node.object_id, contents)
        elif contents.idle:
            self._drop(contents)

    def _drop(self, contents: Contents) -> None:
        contents.object.close()
        if not contents.object.is_open:
            self._contents.pop(contents.node.number, None)

    def _remove(self, object_id: bytes, contents: Contents | None) -> None:
        if contents is not None:
            self._contents.pop(contents.node.number, None)
            self.dirty -= len(contents.dirty)
            contents.object.let_go()
        # What cannot be removed now is found and removed when the tree is opened to write.
        with contextlib.suppress(OSError):
            self.objects.remove(object_id)

    def write_back(self, *, removed: bool) -> None:
        """Seal everything that is in memory, of files that were removed too if ``removed``. Raises OSError."""
        for contents in list(self._contents.values()):
            # What was removed is sealed only to make room in memory: no commit says anything of it.
            if contents.dirty and (removed or not contents.removed):
                try:
                    contents.write_back()
                finally:
                    self.dirty = sum(len(one.dirty) for one in self._contents.values())
        self._close_some()

    def _close_some(self) -> None:
        idle = [one for one in self._contents.values() if not one.handles and one.object.is_open]
        for contents in idle[: max(0, len(idle) - MAX_OPEN)]:
            contents.object.close()

    # Committing, not under the lock

    def make_room_for_names(self) -> None:
        """Before a name is changed: commit if there are too many operations. Raises OSError."""
        if self._pending_size > MAX_PENDING:
            self.commit()

    def make_room(self) -> None:
        """Before contents are changed: commit or seal what is over its bound. Raises OSError."""
        self.make_room_for_names()
        if self.objects.stored > MAX_UNCOMMITTED:
            self.commit()
        if self.dirty * self.state.segment_size > MAX_DIRTY:
            with self.lock:
                self.write_back(removed=True)

    def commit(self) -> None:
        """When this returns, everything done before it was called is durable. Raises OSError; then it can be tried again."""
        journal = self._journal
        if journal is None:
            return
        with self.committing:
            with self.lock:
                if not self._pending and not any(
                    one.touched and not one.removed for one in self._contents.values()
                ):
                    return
                journal.settle()
                self.write_back(removed=False)
                batch = self._begin()
            try:
                failed = _sync(batch.objects)
                if failed:
                    self._lost(batch, failed)
                if batch.created:
                    self.objects.storage.sync()
                journal.append(b"".join(batch.operations))
            except BaseException:
                self._undone(batch, certain=journal.settled)
                raise
            self._done(batch, journal)

    def _begin(self) -> _Batch:
        operations, self._pending, self._pending_size = self._pending, [], 0
        removed, self._removed = self._removed, []
        changed = [one for one in self._contents.values() if one.touched and not one.removed]
        contents = [one.begin() for one in changed]
        operations += [encode(part.contents.operation(part)) for part in contents]
        objects = [one.object for one in self._contents.values() if one.object.unsynced and not one.removed]
        for stored in objects:
            stored.pins += 1
            stored.unsynced = False
        created, self.objects.created = self.objects.created, False
        stored_bytes, self.objects.stored = self.objects.stored, 0
        return _Batch(operations, contents, removed, objects, created, stored_bytes)

    def _done(self, batch: _Batch, journal: Journal) -> None:
        with self.lock:
            self._version, self._link = journal.version, journal.link
            for stored in batch.objects:
                stored.pins -= 1
            for part in batch.contents:
                part.contents.object.done(part.slots, PUNCHED)
                if part.contents.idle:
                    with contextlib.suppress(OSError):
                        self._drop(part.contents)
            for object_id, contents in batch.removed:
                if contents is not None:
                    contents.gone = True
                if contents is None or not contents.handles:
                    self._remove(object_id, contents)

    def _undone(self, batch: _Batch, *, certain: bool) -> None:
        with self.lock:
            made = len(batch.operations) - len(batch.contents)
            self._pending[:0] = batch.operations[:made]
            self._pending_size = sum(len(one) for one in self._pending)
            self._removed[:0] = batch.removed
            self.objects.created |= batch.created
            self.objects.stored += batch.stored
            for stored in batch.objects:
                stored.pins -= 1
                stored.unsynced = True
            for part in batch.contents:
                part.contents.undone(part, certain=certain)

    def _lost(self, batch: _Batch, failed: dict[StoredObject, OSError]) -> None:
        """A failed sync: the disk may have lost what the cache still has. Take it back into memory, to be written anew."""
        with self.lock:
            for part in batch.contents:
                if part.contents.object in failed:
                    part.contents.changed |= {one for one in part.changed if one < part.contents.kept}
                    with contextlib.suppress(SealingError, OSError):
                        part.contents.bring_back()
            self.dirty = sum(len(one.dirty) for one in self._contents.values())
        raise next(iter(failed.values()))

    # Compaction

    def _compaction_bound(self) -> int:
        return MIN_COMPACTED if self._journal is None else max(MIN_COMPACTED, self._journal.checkpoint_size)

    def compact(self, *, over: int | None = None) -> None:
        """Begin a new journal if the records of this one are too many. Raises OSError of the commit before it; what
        keeps the new journal from being written is no failure: the old one goes on."""
        journal = self._journal
        if journal is None or journal.recorded_size <= (self._compact_over if over is None else over):
            return
        with self.committing, self.lock:
            self.commit()
            old = journal_name(journal.first_version)
            self._heads[self._version] = self._link
            self._keep_few()
            checkpoint = Checkpoint(self.state, self._version, self._link, self._heads)
            try:
                made = write_journal(
                    self.objects.storage, self.objects.keys, checkpoint, self.objects.entropy
                )
            except OSError:
                self._compact_over = journal.recorded_size + self._compaction_bound()
                return
            self._journal = made
            self._compact_over = self._compaction_bound()
            journal.close()
            with contextlib.suppress(OSError):
                self.objects.storage.remove(old)

    def close(self) -> None:
        """Let go of everything. What was not committed is lost."""
        with self.committing, self.lock:
            self.closed = True
            for contents in self._contents.values():
                contents.object.pins = 0
                contents.object.let_go()
            self._contents.clear()
            self.cache.clear()
            if self._journal is not None:
                self._journal.close()
                self._journal = None
            self.objects.keys.erase()


def _sync(objects: Iterable[StoredObject]) -> dict[StoredObject, OSError]:
    """Sync all, several at once; which failed."""
    failed: dict[StoredObject, OSError] = {}

    def sync(stored: StoredObject) -> None:
        try:
            stored.sync()
        except OSError as error:
            failed[stored] = error

    work: list[StoredObject] = list(objects)
    if len(work) < _SYNCED_AT_ONCE // 2:
        for one in work:
            sync(one)
    else:
        with ThreadPoolExecutor(_SYNCED_AT_ONCE, thread_name_prefix="tree-sync") as pool:
            list(pool.map(sync, work))
    return failed
