"""A tree's metadata in memory, and the pure rules by which operations change it.

The same :func:`apply` runs when a program does something and when a journal is replayed, so both end in the same state.
Refuses an operation that cannot follow: an unknown number, a taken name, a folder moved into itself, a number given twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloister.errors import FormatError
from cloister.sealing.posix import Kind
from cloister.sealing.tree.operations import (
    MakeDirectory,
    MakeFile,
    MakeLink,
    Move,
    Operation,
    Remove,
    SetAttributes,
    SetContents,
)
from cloister.sealing.tree.segment_map import ENTRY_SIZE, SegmentMap

ROOT: Final = 1
MAX_NODES: Final = 1 << 20
MAX_SIZE: Final = 1 << 40
_NO_SEGMENTS: Final = SegmentMap()


class Node:
    """A file, folder or link."""

    __slots__ = (
        "changed_ns",
        "children",
        "kind",
        "mode",
        "modified_ns",
        "number",
        "object_id",
        "parent",
        "segments",
        "size",
        "target",
    )

    def __init__(self, number: int, kind: Kind, mode: int, time_ns: int, parent: Node | None) -> None:
        self.number = number
        self.kind: Kind = kind
        self.mode = mode
        self.modified_ns = time_ns
        self.changed_ns = time_ns
        self.parent = parent
        """The folder it is in; None for the root and for what has been removed."""
        self.children: dict[str, Node] | None = {} if kind == "directory" else None
        self.target = ""
        self.object_id = b""
        self.size = 0
        self.segments = _NO_SEGMENTS

    def map_of_its_own(self) -> SegmentMap:
        """The segment map, to be changed: empty files share one until then."""
        if self.segments is _NO_SEGMENTS:
            self.segments = SegmentMap()
        return self.segments


class State:
    """Everything, by number."""

    def __init__(self, segment_size: int, time_ns: int) -> None:
        self.segment_size = segment_size
        self.root = Node(ROOT, "directory", 0o700, time_ns, None)
        self.nodes: dict[int, Node] = {ROOT: self.root}
        self.next_number = ROOT + 1

    def segments_of(self, size: int) -> int:
        """How many segments ``size`` bytes have."""
        return -(-size // self.segment_size)


def apply(state: State, operation: Operation) -> Node | None:
    """Do it; the answer is what was made, or what was removed or replaced. Raises :class:`~cloister.errors.FormatError`."""
    match operation:
        case MakeFile() | MakeDirectory() | MakeLink():
            return _make(state, operation)
        case Remove(parent, name, time_ns):
            folder = _folder(state, parent)
            node = _child(folder, name)
            _must(not node.children, "a folder that is removed is not empty")
            del _names(folder)[name]
            _forget(state, node)
            _touch(folder, time_ns)
            node.changed_ns = time_ns
            return node
        case Move():
            return _move(state, operation)
        case SetAttributes(number, mode, modified_ns, changed_ns):
            node = _node(state, number)
            node.mode, node.modified_ns, node.changed_ns = mode, modified_ns, changed_ns
            return None
        case SetContents():
            _set_contents(state, operation)
            return None


def _make(state: State, operation: MakeFile | MakeDirectory | MakeLink) -> Node:
    folder = _folder(state, operation.parent)
    names = _names(folder)
    _must(operation.name not in names, "a name is taken")
    _must(operation.number == state.next_number, "a number is not the next one")
    _must(len(state.nodes) < MAX_NODES, "there are more files than a tree can have")
    match operation:
        case MakeFile():
            node = Node(operation.number, "file", operation.mode, operation.time_ns, folder)
            node.object_id = operation.object_id
        case MakeDirectory():
            node = Node(operation.number, "directory", operation.mode, operation.time_ns, folder)
        case MakeLink():
            node = Node(operation.number, "link", 0o777, operation.time_ns, folder)
            node.target = operation.target
            node.size = len(operation.target.encode("utf-8"))
    names[operation.name] = node
    state.nodes[node.number] = node
    state.next_number += 1
    _touch(folder, operation.time_ns)
    return node


def _move(state: State, move: Move) -> Node | None:
    folder, new_folder = _folder(state, move.parent), _folder(state, move.new_parent)
    node = _child(folder, move.name)
    _must(all(above is not node for above in upwards(new_folder)), "a folder is moved into itself")
    replaced = _names(new_folder).get(move.new_name)
    if replaced is not None:
        _must(replaced is not node, "something is moved to where it is")
        _must(not replaced.children, "a folder that is replaced is not empty")
        _must((replaced.kind == "directory") == (node.kind == "directory"), "a folder replaces what is none")
        _forget(state, replaced)
        replaced.changed_ns = move.time_ns
    del _names(folder)[move.name]
    _names(new_folder)[move.new_name] = node
    node.parent = new_folder
    node.changed_ns = move.time_ns
    _touch(folder, move.time_ns)
    _touch(new_folder, move.time_ns)
    return replaced


def _set_contents(state: State, operation: SetContents) -> None:
    node = _node(state, operation.number)
    _must(node.kind == "file", "contents are given to what is no file")
    _must(operation.size <= MAX_SIZE, "a file is larger than it can be")
    count = state.segments_of(operation.size)
    _must(operation.kept <= min(count, state.segments_of(node.size)), "more segments are kept than there are")
    segments = node.map_of_its_own()
    segments.cut(operation.kept)
    for first, entries in operation.runs:
        _must(first + len(entries) // ENTRY_SIZE <= count, "a segment lies behind the end")
        segments.put_run(first, entries)
    node.size = operation.size
    node.modified_ns, node.changed_ns = operation.modified_ns, operation.changed_ns


def upwards(node: Node) -> Iterator[Node]:
    """The node and all folders above it."""
    above: Node | None = node
    while above is not None:
        yield above
        above = above.parent


def _node(state: State, number: int) -> Node:
    node = state.nodes.get(number)
    if node is None:
        raise FormatError(f"there is nothing of number {number}")
    return node


def _folder(state: State, number: int) -> Node:
    node = _node(state, number)
    _must(node.kind == "directory", "a name is in what is no folder")
    return node


def _names(folder: Node) -> dict[str, Node]:
    assert folder.children is not None  # noqa: S101 -- for the type checker: _folder looked
    return folder.children


def _child(folder: Node, name: str) -> Node:
    node = _names(folder).get(name)
    if node is None:
        raise FormatError("a name is not there")
    return node


def _forget(state: State, node: Node) -> None:
    del state.nodes[node.number]
    node.parent = None


def _touch(folder: Node, time_ns: int) -> None:
    folder.modified_ns = folder.changed_ns = time_ns


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise FormatError(otherwise)
