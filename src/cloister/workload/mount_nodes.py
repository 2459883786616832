"""Nodes: the numbers by which the kernel knows files, and the paths by which a :class:`~cloister.sealing.posix.Files` does.

A node lives as long as the kernel remembers it or something below it. One whose name was removed, or given to another
file, has no path any more: who holds it open reaches it by its handles, everybody else gets ``ESTALE``.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.sealing.posix import Filling, OpenFile
from cloister.workload.mount_kernel import MAX_TRANSFER, ROOT_ID


def refused(number: int) -> OSError:
    """What a program gets with this errno."""
    return OSError(number, os.strerror(number))


class Node:
    """A file or folder that the kernel knows."""

    __slots__ = ("children", "handles", "identity", "lookups", "name", "parent")

    def __init__(self, identity: int, parent: Node | None, name: str) -> None:
        self.identity = identity
        self.parent = parent
        """None for the root, and for what has no name any more."""
        self.name = name
        self.lookups = 0
        self.children: dict[str, Node] = {}
        self.handles: list[OpenFile] = []


class Nodes:
    """All nodes of a mount. Thread-safe."""

    def __init__(self) -> None:
        self.root = Node(ROOT_ID, None, "")
        self._known = {ROOT_ID: self.root}
        self._next = ROOT_ID + 1
        self._lock = threading.Lock()

    def node(self, identity: int) -> Node:
        """By its number."""
        try:
            return self._known[identity]
        except KeyError:
            raise refused(errno.ESTALE) from None

    def path(self, node: Node) -> str:
        """Where it lies now, relative, ``""`` for the root."""
        parts = []
        with self._lock:
            here: Node | None = node
            while here is not None and here is not self.root:
                parts.append(here.name)
                here = here.parent
        if here is None:
            raise refused(errno.ESTALE)
        return "/".join(reversed(parts))

    def below(self, parent: int, name: str) -> str:
        """The path of ``name`` in the folder ``parent``."""
        folder = self.path(self.node(parent))
        return f"{folder}/{name}" if folder else name

    def found(self, parent: int, name: str) -> Node:
        """The node of that name, which the kernel remembers once more from now on."""
        folder = self.node(parent)
        with self._lock:
            node = folder.children.get(name)
            if node is None:
                node = Node(self._next, folder, name)
                self._next += 1
                folder.children[name] = self._known[node.identity] = node
            node.lookups += 1
            return node

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """The kernel forgets nodes, each as many times as the second number says."""
        with self._lock:
            for identity, times in forgotten:
                node = self._known.get(identity)
                if node is not None and node is not self.root:
                    node.lookups -= times
                    self._drop(node)

    def removed(self, parent: int, name: str) -> None:
        """The name is gone."""
        folder = self.node(parent)
        with self._lock:
            self._detach(folder, name)

    def moved(self, parent: int, name: str, new_parent: int, new_name: str) -> None:
        """The name was given to something else's place."""
        folder, target = self.node(parent), self.node(new_parent)
        with self._lock:
            node = folder.children.pop(name, None)
            self._detach(target, new_name)
            if node is not None:
                node.parent, node.name = target, new_name
                target.children[new_name] = node
                self._drop(folder)

    def nameless(self, node: Node) -> bool:
        """Its name is gone, though it may be open."""
        return node.parent is None and node is not self.root

    def opened(self, node: Node, file: OpenFile) -> None:
        """``file`` is one more way to the node."""
        with self._lock:
            node.handles.append(file)

    def closed(self, node: Node, file: OpenFile) -> None:
        """It no longer is."""
        with self._lock:
            node.handles.remove(file)

    def _detach(self, folder: Node, name: str) -> None:
        node = folder.children.pop(name, None)
        if node is not None:
            node.parent = None
            self._drop(node)

    def _drop(self, node: Node) -> None:
        while node is not self.root and node.lookups <= 0 and not node.children:
            self._known.pop(node.identity, None)
            parent = node.parent
            if parent is None:
                return
            parent.children.pop(node.name, None)
            node = parent


@dataclass(frozen=True, slots=True)
class Opened:
    """What a handle's number stands for."""

    node: Node
    file: OpenFile
    filling: Filling | None


class ThreadMemory(threading.local):
    """A thread's own: what it read into is written to the device before it reads again."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(MAX_TRANSFER))
