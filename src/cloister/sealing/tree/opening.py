"""Opening a sealed tree: who else has it, which key it is under, which version it is.

Refuses a second writer, a reader beside a writer, another key, and a tree that is older than a head that is remembered, or
of another history. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from cloister.errors import IndexMismatch, RolledBack, UsageError
from cloister.sealing import KeySource
from cloister.sealing.envelope import HEADER_SIZE, TREE_SUITE, parse_header, unwrap
from cloister.sealing.files import Entropy
from cloister.sealing.tree.folder import HEADER_NAME, Found
from cloister.sealing.tree.head import Head
from cloister.sealing.tree.journal import PUT_BACK, Journal, Replayed, journal_name, replay
from cloister.sealing.tree.ledger import Ledger
from cloister.sealing.tree.objects import Objects
from cloister.sealing.tree.sealed_tree import SealedTree
from cloister.sealing.tree.storage import FolderStorage, Storage, StoredFile
from cloister.sealing.tree.tree_keys import TreeKeys

__all__ = ["HEADER_NAME", "open_in", "open_tree"]


def open_tree(
    directory: Path,
    keys: KeySource,
    *,
    writable: bool,
    minimum: Head | None = None,
    recorded: Callable[[Head], None] | None = None,
    now_ns: Callable[[], int] = time.time_ns,
    entropy: Entropy = os.urandom,
) -> SealedTree:
    """Open a tree. ``minimum`` is the newest head that somebody remembers; ``recorded`` is given each new head before a
    commit (``fsync``) returns, and what it raises the commit raises.

    Raises :class:`~cloister.errors.RolledBack`, :class:`~cloister.errors.IndexMismatch`, the other errors of sealing,
    :class:`~cloister.errors.UsageError` if somebody else has it, OSError.
    """
    storage = FolderStorage(directory)
    return open_in(
        storage,
        keys,
        writable=writable,
        minimum=minimum,
        recorded=recorded,
        now_ns=now_ns,
        entropy=entropy,
        name=str(directory),
    )


def open_in(
    storage: Storage,
    keys: KeySource,
    *,
    writable: bool,
    minimum: Head | None,
    recorded: Callable[[Head], None] | None,
    now_ns: Callable[[], int],
    entropy: Entropy,
    name: str,
) -> SealedTree:
    """As :func:`open_tree`, from any storage, which is the tree's to close from now on."""
    with contextlib.ExitStack() as undo:
        undo.callback(storage.close)
        header = _header(storage, name, alone=writable)
        undo.callback(header.close)
        tree_keys = _keys(header, keys, name)
        undo.callback(tree_keys.erase)
        if minimum is not None and minimum.tree != tree_keys.tree_id.hex():
            raise IndexMismatch(f"{name} is another tree than the one that was recorded", todo=PUT_BACK)
        found = Found.of(storage, name)
        file = storage.open(journal_name(found.newest), write=writable)
        undo.callback(file.close)
        replayed = replay(
            file,
            tree_keys,
            name=journal_name(found.newest),
            first_version=found.newest,
            asked=None if minimum is None else minimum.version,
        )
        _not_older(replayed, minimum, name)
        found.must_have(replayed.checkpoint.state)
        state, journal = replayed.checkpoint, None
        objects = Objects(storage, tree_keys, state.state.segment_size, entropy)
        objects.writable = writable
        if writable:
            journal = _journal(file, tree_keys, entropy, replayed)
            found.clean(storage, state.state)
        ledger = Ledger(state, objects, journal)
        if minimum is not None:
            ledger.remember(minimum)
        undo.pop_all()
        if not writable:
            file.close()
        return SealedTree(ledger, header, writable=writable, recorded=recorded, now_ns=now_ns)


def _header(storage: Storage, name: str, *, alone: bool) -> StoredFile:
    try:
        header = storage.open(HEADER_NAME, write=False)
    except FileNotFoundError:
        raise UsageError(f"there is no sealed tree at {name}", todo="make one first") from None
    if not header.lock(alone=alone):
        header.close()
        raise UsageError(
            f"another process has the sealed tree at {name} open",
            todo="end it first: a tree has one writer, and no reader beside it",
        )
    return header


def _keys(header: StoredFile, keys: KeySource, name: str) -> TreeKeys:
    data = bytearray(HEADER_SIZE + 1)
    with memoryview(data) as view:
        count = header.read([view], 0)
    what = f"the header of {name}"
    if count > HEADER_SIZE:
        raise IndexMismatch(f"{what} is longer than it can be", todo=PUT_BACK)
    parsed = parse_header(bytes(data[:count]), name=what, suite=TREE_SUITE)
    return TreeKeys(parsed.file_id, unwrap(parsed, keys.key(parsed.key_uri), name=name))


def _journal(file: StoredFile, keys: TreeKeys, entropy: Entropy, replayed: Replayed) -> Journal:
    if replayed.torn:
        file.truncate(replayed.end)
        file.sync()
    journal = Journal(
        file,
        keys,
        entropy,
        version=replayed.checkpoint.version,
        link=replayed.checkpoint.link,
        start=replayed.start,
        end=replayed.end,
    )
    journal.first_version = replayed.first_version
    return journal


def _not_older(replayed: Replayed, minimum: Head | None, name: str) -> None:
    if minimum is None:
        return
    version = replayed.checkpoint.version
    if version < minimum.version:
        raise RolledBack(
            f"{name} is version {version}, and version {minimum.version} was recorded", todo=PUT_BACK
        )
    if replayed.link_asked is None:
        raise RolledBack(
            f"{name} no longer knows what its version {minimum.version} was",
            todo="compare with a newer recorded head",
        )
    if replayed.link_asked.hex() != minimum.digest:
        raise RolledBack(
            f"{name} has another history than the one whose version {minimum.version} was recorded",
            todo=PUT_BACK,
        )
