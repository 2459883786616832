"""The whole metadata of a tree as bytes, in pieces that can be sealed one by one, and back.

Pure. Refuses a checkpoint of which anything does not fit: a number or name twice, a file outside every folder, folders in a
ring, an object named twice, segments behind the end, anything left over. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatError
from cloister.sealing.posix import Kind
from cloister.sealing.tree.fields import (
    OBJECT_ID_SIZE,
    BytesReader,
    Reader,
    name_bytes,
    target_bytes,
    time_bytes,
)
from cloister.sealing.tree.operations import decode_runs, encode_runs
from cloister.sealing.tree.segment_map import ENTRY_SIZE
from cloister.sealing.tree.state import MAX_NODES, MAX_SIZE, ROOT, Node, State

MIN_SEGMENT: Final = 4096
MAX_SEGMENT: Final = 65536
MAX_HEADS: Final = 4096
PART_SIZE: Final = 1 << 20
_KINDS: Final[tuple[Kind, ...]] = ("file", "directory", "link")
_RUNS_AT_ONCE: Final = 256
_MORE, _NO_MORE = 1, 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state, which version of the tree it is, and what somebody may remember of versions before."""

    state: State
    version: int
    link: bytes
    """The chain at that version, 32 bytes."""
    heads: Mapping[int, bytes]
    """Version → chain, of versions up to this one that were given out."""


def newest(heads: Mapping[int, bytes]) -> dict[int, bytes]:
    """Half as many as a checkpoint takes."""
    return dict(sorted(heads.items())[-(MAX_HEADS // 2) :])


def encode_checkpoint(checkpoint: Checkpoint) -> Iterator[bytes]:
    """The parts, each about 1 MiB."""
    held = bytearray()
    for piece in _pieces(checkpoint):
        held += piece
        if len(held) >= PART_SIZE:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _pieces(checkpoint: Checkpoint) -> Iterator[bytes]:
    state = checkpoint.state
    heads = sorted(checkpoint.heads.items())
    yield state.segment_size.to_bytes(4) + checkpoint.version.to_bytes(8) + checkpoint.link
    yield len(heads).to_bytes(4) + b"".join(version.to_bytes(8) + link for version, link in heads)
    yield state.next_number.to_bytes(8) + len(state.nodes).to_bytes(4)
    yield _attributes(state.root)
    # A folder comes before what is in it, and what is in it in the order of names.
    waiting = [state.root]
    while waiting:
        folder = waiting.pop()
        for name, node in sorted((folder.children or {}).items()):
            yield node.number.to_bytes(8) + folder.number.to_bytes(8) + name_bytes(name)
            yield bytes([_KINDS.index(node.kind)]) + _attributes(node)
            if node.kind == "directory":
                waiting.append(node)
            elif node.kind == "link":
                yield target_bytes(node.target)
            else:
                yield node.object_id + node.size.to_bytes(8)
                yield from _runs(node)


def _attributes(node: Node) -> bytes:
    return node.mode.to_bytes(2) + time_bytes(node.modified_ns) + time_bytes(node.changed_ns)


def _runs(node: Node) -> Iterator[bytes]:
    held: list[tuple[int, bytes]] = []
    for run in node.segments.runs():
        held.append(run)
        if len(held) == _RUNS_AT_ONCE:
            yield bytes([_MORE]) + encode_runs(tuple(held))
            held.clear()
    if held:
        yield bytes([_MORE]) + encode_runs(tuple(held))
    yield bytes([_NO_MORE])


def decode_checkpoint(parts: Iterable[bytes]) -> Checkpoint:
    """What :func:`encode_checkpoint` wrote. Raises :class:`~cloister.errors.FormatError`."""
    source = _Parts(parts)
    reader = Reader(source.take)
    segment_size, version, link = reader.number(4), reader.number(8), reader.take(32)
    if not MIN_SEGMENT <= segment_size <= MAX_SEGMENT or segment_size & (segment_size - 1):
        raise FormatError("a segment size is a power of two from 4 to 64 KiB")
    heads = _heads(reader, version)
    next_number, count = reader.number(8), reader.number(4)
    if not 1 <= count <= MAX_NODES:
        raise FormatError("a tree has more files than it can have")
    state = State(segment_size, 0)
    _take_attributes(reader, state.root)
    objects: set[bytes] = set()
    for _ in range(count - 1):
        _take_node(reader, state, next_number, objects)
    state.next_number = next_number
    source.end()
    return Checkpoint(state, version, link, heads)


def _heads(reader: Reader, version: int) -> dict[int, bytes]:
    count = reader.number(4)
    if count > MAX_HEADS:
        raise FormatError("a checkpoint has more heads than it can have")
    heads: dict[int, bytes] = {}
    last = 0
    for _ in range(count):
        number = reader.number(8)
        if not last < number <= version:
            raise FormatError("the heads of a checkpoint are out of order")
        heads[number] = reader.take(32)
        last = number
    return heads


def _take_node(reader: Reader, state: State, next_number: int, objects: set[bytes]) -> None:
    number, parent, name = reader.number(8), reader.number(8), reader.name()
    folder = state.nodes.get(parent)
    if folder is None or folder.children is None or name in folder.children:
        raise FormatError("a name is in no folder, or twice in one")
    if not ROOT < number < next_number or number in state.nodes:
        raise FormatError("a number is out of its bounds, or there twice")
    code = reader.number(1)
    if code >= len(_KINDS):
        raise FormatError("something is neither file nor folder nor link")
    node = Node(number, _KINDS[code], 0, 0, folder)
    _take_attributes(reader, node)
    if node.kind == "link":
        node.target = reader.target()
        node.size = len(node.target.encode("utf-8"))
    elif node.kind == "file":
        node.object_id, node.size = reader.take(OBJECT_ID_SIZE), reader.number(8)
        if node.size > MAX_SIZE or node.object_id in objects:
            raise FormatError("a file is too large, or two are the same object")
        objects.add(node.object_id)
        _take_runs(reader, node, state.segments_of(node.size))
    folder.children[name] = node
    state.nodes[number] = node


def _take_attributes(reader: Reader, node: Node) -> None:
    node.mode, node.modified_ns, node.changed_ns = reader.number(2), reader.time(), reader.time()
    if node.mode > 0o7777:
        raise FormatError("a mode has more than its permission bits")


def _take_runs(reader: Reader, node: Node, count: int) -> None:
    end = 0
    while (more := reader.number(1)) == _MORE:
        for first, entries in decode_runs(reader):
            length = len(entries) // ENTRY_SIZE
            if first < end or first + length > count:
                raise FormatError("segments overlap, or lie behind the end")
            node.map_of_its_own().put_run(first, entries)
            end = first + length
    if more != _NO_MORE:
        raise FormatError("a list of segments does not end")


class _Parts:
    """Bytes across parts."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._held = BytesReader(b"")

    def take(self, size: int) -> bytes:
        if self._held.left >= size:
            return self._held.take(size)
        taken = bytearray(self._held.take(self._held.left))
        while len(taken) < size:
            part = next(self._parts, None)
            if part is None:
                raise FormatError("a checkpoint ends too early")
            self._held = BytesReader(part)
            taken += self._held.take(min(size - len(taken), self._held.left))
        return bytes(taken)

    def end(self) -> None:
        if self._held.left or any(self._parts):
            raise FormatError("there is something behind a checkpoint's end")
