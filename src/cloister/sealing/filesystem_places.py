"""Where a path of ``sealed://`` lies: in which filesystem below, in which sealed directory, under which path of its index.

The sealed directory of a path is its nearest parent with an index and a signature. One that this process knows is looked at
first: a sealed directory is flat, and an index that turns up inside one is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import filesystem
from fsspec.utils import tokenize

from cloister.errors import UsageError
from cloister.sealing.filesystem_directory import Pins, SealedDirectory
from cloister.sealing.filesystem_local import LocalStore
from cloister.sealing.filesystem_memory import AccessMemory
from cloister.sealing.filesystem_remote import RemoteStore
from cloister.sealing.filesystem_stores import Store
from cloister.sealing.index import SUFFIX, Index, IndexEntry

MAX_DEPTH = 64
"""So many folders a file may lie below its index."""


@dataclass(frozen=True, slots=True)
class Place:
    """A path: where it lies, in which sealed directory if in any, and how the caller calls that directory."""

    store: Store
    identity: str
    path: str
    directory: SealedDirectory | None
    index: Index | None
    relative: str
    outer: str

    def name(self, relative: str) -> str:
        """The caller's path of a path in the index."""
        return "/".join(part for part in (self.outer, relative) if part)

    @property
    def entry(self) -> IndexEntry | None:
        """The file at this path."""
        return None if self.index is None else self.index.files.get(self.relative)

    @property
    def below(self) -> str:
        """What the paths in the index begin with that lie below this one."""
        return f"{self.relative}/" if self.relative else ""

    def inside(self) -> Iterator[str]:
        """The paths in the index that lie below this one, sorted."""
        if self.index is not None:
            yield from sorted(name for name in self.index.files if name.startswith(self.below))

    def is_folder(self) -> bool:
        """Whether it is a sealed directory, or a folder in one."""
        return self.index is not None and (self.relative == "" or any(True for _ in self.inside()))


class Places:
    """Finds paths. ``target`` is the protocol of a chained filesystem; without one each path names its own."""

    def __init__(self, target: str | None, options: dict[str, Any], memory: AccessMemory, pins: Pins) -> None:
        self._target = target
        self._options = options
        self._memory = memory
        self._pins = pins

    def _inner(self, path: str) -> tuple[Any, str]:
        if self._target is not None:
            inner = filesystem(self._target, **self._options)
            return inner, inner._strip_protocol(path)
        if "::" in path or path.startswith("sealed:"):
            raise UsageError(
                f"{path[:60]!r} is chained inside", todo="write sealed::…, with each step behind it"
            )
        # `sealed://data/x` is `sealed:///data/x`: libraries lose slashes, and a relative URL would mean nothing.
        url = path if "://" in path else f"file:///{path.lstrip('/')}"
        return cast(tuple[Any, str], url_to_fs(url, **self._options))

    def find(self, path: str, *, new: bool = False) -> Place:
        """The sealed directory of ``path``; with ``new`` the one that will be made for it: its nearest parent called
        ``….sealed``, or the folder it is in."""
        inner, below = self._inner(path)
        store: Store = LocalStore() if isinstance(inner, LocalFileSystem) else RemoteStore(inner)
        identity = tokenize(type(inner), inner.storage_args, inner.storage_options)
        below = below.rstrip("/")
        chosen: str | None = None
        for candidate in self._above(store, identity, below):
            directory = SealedDirectory(store, identity, candidate, self._memory, pins=self._pins)
            index = self._index_at(directory)
            if index is not None:
                return self._inside(path, store, identity, below, directory, index)
            named = candidate != below and candidate.endswith(SUFFIX)
            if chosen is None and (named or self._memory.known(identity, candidate)):
                chosen = candidate
        if not new:
            return Place(store, identity, below, None, None, "", path)
        chosen = chosen or store.parent(below)
        if chosen is None:
            raise UsageError(
                f"{path!r} names no file in a folder", todo="name a folder for the sealed directory"
            )
        directory = SealedDirectory(store, identity, chosen, self._memory, pins=self._pins)
        return self._inside(path, store, identity, below, directory, None)

    def _above(self, store: Store, identity: str, path: str) -> list[str]:
        """Where the index of ``path`` may lie, nearest first. Below one that is known there is none: it is flat."""
        found: list[str] = []
        candidate: str | None = path
        while candidate is not None and len(found) < MAX_DEPTH:
            if self._memory.known(identity, candidate):
                return [candidate]
            found.append(candidate)
            candidate = store.parent(candidate)
        return found

    def _index_at(self, directory: SealedDirectory) -> Index | None:
        try:
            return directory.index()
        except PermissionError:
            # Object stores say so of what is not there to whoever may not list; what is there and unreadable stays unread.
            return None

    def _inside(
        self,
        path: str,
        store: Store,
        identity: str,
        below: str,
        directory: SealedDirectory,
        index: Index | None,
    ) -> Place:
        relative = below[len(directory.path) :].strip("/")
        outer = path.removesuffix(relative).rstrip("/") if path.endswith(relative) else directory.path
        return Place(store, identity, below, directory, index, relative, outer)
