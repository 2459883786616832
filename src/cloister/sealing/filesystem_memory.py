"""What this process remembers for one access to sealed files: its keys, how new each index was, which bodies were checked.

It belongs to the access, not to a filesystem object: fsspec makes one of those in each thread. It never leaves the
process: copying gives the same one back, pickling is refused.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.errors import IndexMismatch, RolledBack, UsageError
from cloister.sealing.access import Access
from cloister.sealing.index import Index, IndexEntry
from cloister.sealing.remembered import RememberedKeys

MAX_CHECKED = 4096
"""So many bodies stay checked; the one used longest ago is checked again."""


class Marks:
    """Fingerprints of blocks under a key that only this process has, to see that a block is still the same.

    SHA-256 over each block is what the signed digest is made of; looking again at a block that was read before
    needs no more than a MAC, and AES-GCM's is several times quicker. No mark is ever shown to anyone.
    """

    def __init__(self) -> None:
        self._mac = AESGCM(os.urandom(32))

    def of(self, segment: int, block: memoryview) -> bytes:
        """16 bytes."""
        return self._mac.encrypt(segment.to_bytes(12, "big"), b"", block)


@dataclass(slots=True)
class Seen:
    """The newest index of one sealed directory that this process has verified."""

    index: Index | None = None
    stamp: object | None = None
    read_at: float = 0.0
    removed: bool = False
    """This process removed the last file; what shows up there with the old version is an old copy."""
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def accept(self, index: Index, *, where: str) -> None:
        """``index`` is what lies there now. Raises :class:`~cloister.errors.RolledBack` if it is older than the last."""
        last = self.index
        if last is not None and index.digest != last.digest:
            if index.tree != last.tree:
                raise IndexMismatch(
                    f"{where} has become another sealed directory while it was in use",
                    todo="find out who exchanged it; a new process accepts it",
                )
            if index.version < last.version:
                raise RolledBack(
                    f"the index of {where} is version {index.version}, this process has seen {last.version}",
                    todo="an old copy was put in place of the newest: get the newest",
                )
            if index.version == last.version:
                raise IndexMismatch(
                    f"there are two indexes of version {index.version} of {where}",
                    todo="two writers wrote at the same time, and the last one won: write again what is missing",
                )
        if self.removed and last is not None and index.version <= last.version:
            raise RolledBack(f"{where} was removed, and an old copy of it has come back")
        self.index = index
        self.removed = False


class AccessMemory:
    """A :class:`~cloister.sealing.KeySource` that asks once for each URI, and what else was learned with it."""

    def __init__(self, access: Access, number: int) -> None:
        self.access = access
        self.marks = Marks()
        self._number = number
        self._keys = RememberedKeys(access.keys)
        self._seen: dict[tuple[str, str], Seen] = {}
        self._checked: OrderedDict[tuple[bytes, bytes], tuple[bytes, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        # fsspec tells instances apart by the text of their options: two accesses never share one.
        return f"<access {self._number} of this process>"

    def __deepcopy__(self, memo: object) -> AccessMemory:
        return self

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "access to sealed files is never pickled: it stands for keys",
            todo="register it in each process with cloister.sealing.access.register",
        )

    @property
    def signers(self) -> frozenset[bytes]:
        """Whose indexes are believed: those that were named, and this process itself where it signs."""
        own = self.access.signing_key
        return self.access.signers if own is None else self.access.signers | {own.public_key}

    def key(self, uri: str) -> bytes:
        """The 32-byte key. Raises what the key source raises."""
        return self._keys.key(uri)

    def renew_locks(self) -> None:
        """After a fork: nobody holds a lock here."""
        self.forget_keys()
        self._lock = threading.Lock()
        for found in self._seen.values():
            found.lock = threading.RLock()

    def forget_keys(self) -> None:
        """Ask again: keys may have been rotated."""
        self._keys = RememberedKeys(self.access.keys)

    def forget_freshness(self) -> None:
        """Read each index again before it is used the next time."""
        with self._lock:
            found = list(self._seen.values())
        for seen in found:
            with seen.lock:
                seen.stamp, seen.read_at = None, float("-inf")

    def seen(self, store: str, directory: str) -> Seen:
        """What is known of a directory. ``store`` tells filesystems apart."""
        with self._lock:
            return self._seen.setdefault((store, directory), Seen())

    def known(self, store: str, directory: str) -> bool:
        """Whether this process has seen a sealed directory at this place."""
        with self._lock:
            found = self._seen.get((store, directory))
            return found is not None and found.index is not None

    def absent(self, store: str, directory: str) -> None:
        """Nothing was found there, and nothing is to be remembered."""
        with self._lock:
            found = self._seen.get((store, directory))
            if found is not None and found.index is None:
                del self._seen[store, directory]

    def checked(self, entry: IndexEntry) -> tuple[bytes, ...] | None:
        """The marks of all blocks of a body that was compared with its signed digest."""
        with self._lock:
            marks = self._checked.get((entry.id, entry.digest))
            if marks is not None:
                self._checked.move_to_end((entry.id, entry.digest))
            return marks

    def remember(self, entry: IndexEntry, marks: tuple[bytes, ...]) -> None:
        """The body of ``entry`` has its signed digest, and these are its blocks."""
        with self._lock:
            self._checked[entry.id, entry.digest] = marks
            while len(self._checked) > MAX_CHECKED:
                self._checked.popitem(last=False)


_memories: dict[int, AccessMemory] = {}
_lock = threading.Lock()


def memory_of(access: Access) -> AccessMemory:
    """The one memory of ``access`` in this process."""
    if not isinstance(access, Access):
        raise UsageError(
            "`access` is no cloister.sealing.access.Access", todo="pass one, or register it for the process"
        )
    with _lock:
        # The memory holds the access, so that no other can come to have its number.
        return _memories.setdefault(id(access), AccessMemory(access, len(_memories)))


def _after_fork() -> None:
    # Another thread of the parent may have held a lock at that moment, and it does not exist here.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    for memory in _memories.values():
        memory.renew_locks()


os.register_at_fork(after_in_child=_after_fork)
