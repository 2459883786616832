"""An exported log, checked without the broker (docs/spec/audit-export.md). Pure: lines in, a summary out, in constant
memory.

An export is a header line, one line for each entry and, where the exporter wrote it, a last line of hashes that tells
*where* a damaged export was altered. What is cut, moved, added, altered or there twice is refused, with its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, Literal

from cloister import merkle
from cloister.broker.audit import MAX_ENTRY, Entry, damaged, parse_entry
from cloister.broker.tree_head import SignedHead, TreeHead, parse_head, require_cosignatures, verify_head
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError
from cloister.manifest.owner_key import PublicKey

FORMAT: Final = "cloister/audit-export/v1"
END_FORMAT: Final = "cloister/audit-export-end/v1"
MAX_HEADER: Final = 128 * 1024
MAX_BLOCKS: Final = 4096
MAX_LINE: Final = 512 * 1024
"""Bytes of the longest line: the last, with its hashes."""
_END: Final = b'{"blocks":'


class ExportHeader(Record, frozen=True, kw_only=True):
    """The first line of an export."""

    format: Literal["cloister/audit-export/v1"] = FORMAT
    log_key: bytes
    signed: SignedHead


class ExportEnd(Record, frozen=True, kw_only=True):
    """The last line: the root of each run of :func:`block_size` entries; the last run may be shorter."""

    format: Literal["cloister/audit-export-end/v1"] = END_FORMAT
    blocks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export was proven to be."""

    size: int
    root: str
    log_key: bytes
    witnesses: frozenset[str]
    time: int = 0
    """Of the tree head, Unix seconds."""


def block_size(size: int) -> int:
    """Entries in a run: the smallest power of two with which a log of ``size`` has at most 4096 runs."""
    length = 1
    while -(-size // length) > MAX_BLOCKS:
        length *= 2
    return length


def export_header(log_key: bytes, signed: SignedHead) -> bytes:
    """The first line, without its newline."""
    return encode_json(ExportHeader(log_key=log_key, signed=signed))


def export_lines(log_key: bytes, signed: SignedHead, entries: Iterable[bytes]) -> Iterator[bytes]:
    """A whole export, line by line with newlines, of the entries that ``signed`` covers."""
    yield export_header(log_key, signed) + b"\n"
    blocks = _Blocks(parse_head(signed.head).size)
    for body in entries:
        blocks.append(merkle.leaf_hash(body))
        yield body + b"\n"
    yield encode_json(ExportEnd(blocks=tuple(blocks.roots()))) + b"\n"


def verify_export(
    lines: Iterable[bytes],
    *,
    log_key: bytes | None,
    witnesses: Mapping[str, PublicKey],
    threshold: int,
    extends: SignedHead | None = None,
) -> Summary:
    """Check an export as a whole. Raises :class:`~cloister.broker.audit.AuditDamaged` or ``HeadRefused``.

    ``log_key`` (32 bytes) pins the log; ``extends`` is a head that was kept before: the log must still begin with what it
    covers. ``threshold`` of ``witnesses`` must have co-signed; 0 asks for none.
    """
    source = iter(lines)
    header = _header(next(source, b""))
    if log_key is not None and header.log_key != log_key:
        raise damaged("the export is of another log than the one that is pinned")
    head = verify_head(header.signed, log_key=header.log_key)
    named = (
        require_cosignatures(header.signed, keys=witnesses, threshold=threshold)
        if threshold
        else frozenset[str]()
    )
    kept = None if extends is None else _kept(extends, head)
    entries = _Entries(head)
    before = merkle.EMPTY_ROOT
    end: ExportEnd | None = None
    for line in source:
        if end is not None:
            raise damaged("the export goes on behind its end")
        if line.startswith(_END):
            end = _parsed_end(line)
            continue
        entries.take(_line(line, f"entry {entries.tree.size}", MAX_ENTRY))
        if kept is not None and entries.tree.size == kept.size:
            before = entries.tree.root()
    entries.finish(end)
    if kept is not None and before.hex() != kept.root:
        raise damaged(f"the log was rewritten: its first {kept.size} entries are not what they were")
    return Summary(head.size, head.root, header.log_key, named, head.time)


def bounded_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of an opened export; one that is over every bound comes cut, and is refused as such."""
    while line := stream.readline(MAX_LINE + 2):
        yield line


def verify_entry(body: bytes, number: int, path: Sequence[bytes], head: TreeHead) -> Entry:
    """Entry ``number`` of the log of ``head``, which was verified, by its audit path. Raises ``AuditDamaged``."""
    try:
        merkle.verify_inclusion(body, number, head.size, path, bytes.fromhex(head.root))
    except FormatError as error:
        raise damaged(f"entry {number} is not in the log of {head.size} entries ({error.what})") from None
    return parse_entry(body, number)


class _Entries:
    """Takes the entries of an export, one after the other."""

    def __init__(self, head: TreeHead) -> None:
        self._head = head
        self._blocks = _Blocks(head.size)
        self._state = ""
        self.tree = merkle.Frontier()

    def take(self, body: bytes) -> None:
        """The next entry, by its number."""
        number = self.tree.size
        if number >= self._head.size:
            raise damaged(f"the export has an entry {number}, and its head covers {self._head.size}")
        self._state = parse_entry(body, number).state
        leaf = merkle.leaf_hash(body)
        self.tree.append(leaf)
        self._blocks.append(leaf)

    def finish(self, end: ExportEnd | None) -> None:
        """Raise unless these were all the entries of the head, and nothing else."""
        size = self._head.size
        if self.tree.size != size:
            raise damaged(f"the export was cut: it ends before entry {self.tree.size} of {size}")
        if self.tree.root().hex() == self._head.root:
            if size and self._state != self._head.state:
                raise damaged("the tree head vouches for another state than the last entry")
            if end is None or end.blocks == tuple(self._blocks.roots()):
                return
            raise damaged("the hashes at the end of the export are not those of its entries")
        where = f"entries 0 to {size - 1}"
        if end is not None and self._blocks.root_of(end.blocks) == self._head.root:
            length = block_size(size)
            block = next(at for at, root in enumerate(self._blocks.roots()) if root != end.blocks[at])
            last = min(size, (block + 1) * length) - 1
            where = f"entry {last}" if length == 1 else f"entries {block * length} to {last}"
        raise damaged(f"the entries are not those of the tree head: altered among {where}")


class _Blocks:
    """The roots of runs of entries."""

    def __init__(self, size: int) -> None:
        self._length = block_size(size)
        self._roots: list[bytes] = []
        self._run = merkle.Frontier()

    def append(self, leaf: bytes) -> None:
        self._run.append(leaf)
        if self._run.size == self._length:
            self._roots.append(self._run.root())
            self._run = merkle.Frontier()

    def roots(self) -> list[bytes]:
        return [*self._roots, self._run.root()] if self._run.size else list(self._roots)

    def root_of(self, blocks: Sequence[bytes]) -> str:
        """The root of the log whose runs have these roots; a run is a power of two long, so it is a subtree."""
        if len(blocks) != len(self.roots()) or any(len(one) != merkle.DIGEST_SIZE for one in blocks):
            return ""
        tree = merkle.Frontier()
        for one in blocks:
            tree.append(one)
        return tree.root().hex()


def _header(line: bytes) -> ExportHeader:
    try:
        return decode_json(
            _line(line, "the header", MAX_HEADER), ExportHeader, what="the export", limit=MAX_HEADER
        )
    except FormatError as error:
        raise damaged(error.what) from None


def _parsed_end(line: bytes) -> ExportEnd:
    try:
        return decode_json(
            _line(line, "the end", MAX_LINE), ExportEnd, what="the export's end", limit=MAX_LINE
        )
    except FormatError as error:
        raise damaged(error.what) from None


def _kept(extends: SignedHead, head: TreeHead) -> TreeHead:
    kept = parse_head(extends.head)
    if kept.log != head.log:
        raise damaged("the head that was kept is of another log")
    if kept.size > head.size:
        raise damaged(f"the log was cut: {kept.size} entries before, {head.size} now")
    return kept


def _line(line: bytes, what: str, limit: int) -> bytes:
    if not line.endswith(b"\n") or len(line) > limit + 1:
        raise damaged(f"{what} of the export is cut short or too long")
    return line[:-1]
