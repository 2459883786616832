"""What lies in a sealed tree's folder, judged by names alone, before anything is opened.

Refuses whatever a tree does not leave there: other names, links, folders, devices, a missing object, no journal. What an
interrupted commit or compaction left is told apart by its name and by the state, and only a writer removes it.
"""

from __future__ import annotations

import re
from typing import Final

from cloister.errors import IndexMismatch, TruncatedFile, UsageError
from cloister.sealing.reseal_journal import JOURNAL_NAME
from cloister.sealing.tree.journal import PARTIAL, PREFIX, PUT_BACK, journal_name
from cloister.sealing.tree.objects import SUFFIX
from cloister.sealing.tree.state import MAX_NODES, State
from cloister.sealing.tree.storage import Storage

HEADER_NAME: Final = "tree"
_JOURNAL = re.compile(f"{PREFIX}([0-9a-f]{{16}})")
_OBJECT = re.compile(r"[0-9a-f]{32}" + re.escape(SUFFIX))
_MAX_NAMES: Final = 4 * MAX_NODES


class Found:
    """What lies in the folder."""

    def __init__(self) -> None:
        self.journals: list[int] = []
        self.partials: list[str] = []
        self.objects: set[str] = set()

    @classmethod
    def of(cls, storage: Storage, name: str) -> Found:
        """Raises :class:`~cloister.errors.IndexMismatch` for what does not belong there."""
        found = cls()
        for number, (entry, plain) in enumerate(storage.names()):
            if not plain:
                raise IndexMismatch(f"{entry!a} in {name} is not a plain file", todo=PUT_BACK)
            if number > _MAX_NAMES:
                raise IndexMismatch(f"there are more files in {name} than a tree can have")
            found._add(entry, name)
        if not found.journals:
            raise TruncatedFile(f"there is no journal in {name}", todo=PUT_BACK)
        return found

    def _add(self, entry: str, name: str) -> None:
        journal = _JOURNAL.fullmatch(entry)
        if journal:
            self.journals.append(int(journal[1], 16))
        elif _OBJECT.fullmatch(entry):
            self.objects.add(entry)
        elif entry.endswith(PARTIAL) and _JOURNAL.fullmatch(entry.removesuffix(PARTIAL)):
            self.partials.append(entry)
        elif entry == f"{HEADER_NAME}.{JOURNAL_NAME}":
            raise UsageError(
                f"the key of {name} was being changed, and that was interrupted",
                todo="run the same `cloister reseal` again",
            )
        elif entry != HEADER_NAME:
            raise IndexMismatch(f"{entry!a} in {name} belongs to no sealed tree", todo="take it away")

    @property
    def newest(self) -> int:
        """The version at which the newest journal begins."""
        return max(self.journals)

    def must_have(self, state: State) -> None:
        """Raise unless every file that has contents has its object."""
        for node in state.nodes.values():
            if node.segments.stored and node.object_id.hex() + SUFFIX not in self.objects:
                raise TruncatedFile(f"{node.object_id.hex()}{SUFFIX} is missing", todo=PUT_BACK)

    def clean(self, storage: Storage, state: State) -> None:
        """Remove what an interrupted commit or compaction left. Raises OSError."""
        used = {node.object_id.hex() + SUFFIX for node in state.nodes.values() if node.object_id}
        old = [journal_name(version) for version in self.journals if version != self.newest]
        for entry in (*self.partials, *old, *sorted(self.objects - used)):
            storage.remove(entry)
