"""The index of a service kept in a sealed tree: its file lies in memory, and each change is committed to an untrusted disk.

A tree authenticates all of itself and knows its version, so that neither a page nor the whole can be put back: the broker
remembers the newest version, which is the least that is opened (docs/spec/sealed-tree.md). With an owner's key file there is
nobody to remember, and an old copy of the whole tree passes.

Pages of the database end with random bytes that each writing draws anew; those that differ are written, and nothing else.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cloister.errors import CloisterError, KnowledgeError
from cloister.knowledge.index import Index
from cloister.sealing.key_file import KeyFile
from cloister.sealing.tree import SealedTree, open_tree
from cloister.workload.tree_record import TreeRecord, make_where_new

NAME: Final = "index.db"
PAGE: Final = 4096
TAIL: Final = 80
"""Of each page: SQLCipher's random vector and tag."""
_PART: Final = 1 << 20
_RUN: Final = 256
"""Pages that are written at once."""


class KeptIndex:
    """One index file and its tree. Threads may share it."""

    def __init__(self, tree: SealedTree, place: Path) -> None:
        self._tree = tree
        self._place = place
        self._lock = threading.Lock()
        self._tails: list[bytes] = []
        """Of the pages as the tree has them."""
        self._certain = True
        """Whether the last commit went through."""

    @classmethod
    @contextmanager
    def restored(
        cls, directory: Path, place: Path, *, kek: bytes, key_uri: str, record: TreeRecord | None
    ) -> Iterator[KeptIndex]:
        """The file at ``place`` as the tree at ``directory`` has it; nothing there for a tree that is new.

        Raises RolledBack and the other errors of sealing, UsageError, OSError, and what the broker raises.
        """
        minimum = None if record is None else record.newest()
        make_where_new(directory, minimum, key_uri=key_uri, kek=kek)
        with ExitStack() as undo:
            tree = open_tree(
                directory,
                KeyFile(kek, key_uri),
                writable=True,
                minimum=minimum,
                recorded=None if record is None else record.record,
            )
            undo.callback(tree.close)
            kept = cls(tree, place)
            if NAME in tree.names(""):
                kept._restore()
            yield kept

    def keep(self, index: Index) -> None:
        """Commit what the file is now, and have it recorded. Raises :class:`KnowledgeError`: then it is not kept."""
        with self._lock:
            try:
                with index.still():
                    tails = self._write()
                if tails != self._tails or not self._certain:
                    self._certain = False
                    self._tree.commit()
                    self._certain = True
            except OSError as error:
                raise _not_kept(error.strerror or type(error).__name__) from None
            except CloisterError as error:
                raise _not_kept(str(error)) from None
            self._tails = tails

    def _restore(self) -> None:
        file = self._tree.open(NAME, write=False)
        try:
            with self._place.open("xb") as target:
                offset = 0
                while part := file.read(offset, _PART):
                    target.write(part)
                    offset += len(part)
        finally:
            file.close()
        self._tails = _tails(self._place)

    def _write(self) -> list[bytes]:
        """Write the pages that differ; the tails of all as they are now."""
        tails = _tails(self._place)
        changed = [
            number
            for number, tail in enumerate(tails)
            if number >= len(self._tails) or tail != self._tails[number]
        ]
        if not changed and len(tails) == len(self._tails):
            return tails
        known = NAME in self._tree.names("")
        file = self._tree.open(NAME, write=True) if known else self._tree.create(NAME, 0o600)
        try:
            with self._place.open("rb") as source:
                for first, count in _runs(changed):
                    source.seek(first * PAGE)
                    file.write(first * PAGE, source.read(count * PAGE))
            file.truncate(len(tails) * PAGE)
        finally:
            file.close()
        return tails


def _tails(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return []
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
            return [pages[end - TAIL : end] for end in range(PAGE, len(pages) + 1, PAGE)]


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together: (first, how many)."""
    start = 0
    for place in range(1, len(numbers) + 1):
        over = place == len(numbers) or numbers[place] != numbers[place - 1] + 1
        if over or place - start == _RUN:
            yield numbers[start], place - start
            start = place


def _not_kept(why: str) -> KnowledgeError:
    return KnowledgeError(
        f"the change is in the index and was not kept on the disk: {why}",
        todo="do it again when that is mended",
    )
