"""Sealed files opened for reading: one segment at a time in any order, or any range of the plaintext.

Refuses to tell a size before the last segment authenticated, and to hand out a byte of a segment that did not.
There is no way to write. Format: docs/spec/sealed-file.md.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import BinaryIO

from cloister.errors import IndexMismatch, TamperedFile, TruncatedFile, UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import ReadInto
from cloister.sealing.envelope import HEADER_SIZE, Header, erase, parse_header, unwrap
from cloister.sealing.index import IndexEntry, check_size
from cloister.sealing.segments import PREAMBLE_SIZE, SegmentCipher, Writable, layout_of_body


class SealedBody:
    """A sealed file whose header was read and whose data key was unwrapped: opens segments, in any order."""

    def __init__(
        self,
        read_into: ReadInto,
        file_size: int,
        keys: KeySource,
        *,
        name: str,
        expected: IndexEntry | None,
    ) -> None:
        """``expected`` is the index's entry; None reads a file on its own. Asks ``keys`` for one key."""
        self._read_into = read_into
        self.name = name
        if expected is not None:
            check_size(file_size, expected, name=name)
        start = bytearray(min(HEADER_SIZE + PREAMBLE_SIZE, file_size))
        self._fill(memoryview(start), 0)
        header = parse_header(bytes(start[:HEADER_SIZE]), name=name)
        if expected is not None and header.file_id != expected.id:
            raise IndexMismatch(f"{name} is another file than its index names", todo="get it from its owner")
        self.layout = layout_of_body(file_size - HEADER_SIZE, name=name)
        data_key = unwrap(header, keys.key(header.key_uri), name=name)
        try:
            preamble = start[HEADER_SIZE:]
            self._cipher = SegmentCipher(data_key, preamble, header.associated_data, name=name)
        finally:
            erase(data_key)
        self.header = header
        self._preamble = bytes(preamble)

    def open_segment(self, segment: int, block: bytearray, out: Writable, *, hashed: bool = True) -> bytes:
        """Decrypt one segment into ``out`` (``layout.plain(segment).length`` bytes) by way of ``block`` (1 MiB).

        The block is copied out of the file once, then hashed and opened: who changes the file meanwhile gains
        nothing. Returns the SHA-256 of the block, or nothing if it is not to be ``hashed``. Raises as
        :meth:`SegmentCipher.open_into`.
        """
        span = self.layout.block(segment)
        with memoryview(block)[: span.length] as whole:
            self._fill(whole, HEADER_SIZE + span.start)
            self.open_block(segment, whole, out)
            return hashlib.sha256(whole).digest() if hashed else b""

    def open_block(self, segment: int, block: memoryview, out: Writable) -> None:
        """Decrypt one block (``layout.block(segment).length`` bytes) that the caller read, and that nobody changes.

        Raises as :meth:`SegmentCipher.open_into`.
        """
        start = PREAMBLE_SIZE if segment == 0 else 0
        if block[:start] != self._preamble[:start]:
            raise TamperedFile(f"{self.name} changed while it was read")
        with block[start:] as sealed:
            self._cipher.open_into(segment, segment == self.layout.segments - 1, sealed, out)

    def digest_again(self, segment: int, clear: memoryview, block: bytearray) -> bytes:
        """The SHA-256 of the block that segment ``segment`` has if its plaintext is ``clear``, by way of ``block``.

        For :func:`~cloister.sealing.restore_body.confirm_digest` alone: what is sealed here again is hashed and forgotten.
        """
        start = PREAMBLE_SIZE if segment == 0 else 0
        with memoryview(block)[: self.layout.block(segment).length] as whole, whole[start:] as sealed:
            whole[:start] = self._preamble[:start]
            self._cipher.seal_into(segment, segment == self.layout.segments - 1, clear, sealed)
            return hashlib.sha256(whole).digest()

    def _fill(self, buffer: memoryview, offset: int) -> None:
        if self._read_into(buffer, offset) != len(buffer):
            raise TruncatedFile(f"{self.name} became shorter while it was read", todo="get it again")


class SealedReader:
    """Random access to a sealed file, over any seekable binary file. Thread-safe.

    The last segment is authenticated on opening, so :attr:`size` can be trusted; each read authenticates the
    segments it touches. The index's digest is over the whole body and is not checked here.
    """

    def __init__(
        self, file: BinaryIO, keys: KeySource, *, name: str, expected: IndexEntry | None = None
    ) -> None:
        self._file = file
        self._lock = threading.Lock()
        file_size = file.seek(0, os.SEEK_END)
        self._body = SealedBody(self._read_into, file_size, keys, name=name, expected=expected)
        self._block = bytearray(self._body.layout.block(0).length)
        self._held = -1
        self._clear = bytearray()
        self._segment(self._body.layout.segments - 1)

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._body.layout.size

    @property
    def header(self) -> Header:
        """The sealed file's header."""
        return self._body.header

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset`` on, fewer at the end of the file, empty behind it."""
        if offset < 0 or length < 0:
            raise UsageError("offset and length of a read are not negative")
        end = min(offset + length, self.size)
        parts = []
        with self._lock:
            while offset < end:
                segment = self._body.layout.segment_at(offset)
                start = self._body.layout.plain(segment).start
                part = bytes(self._segment(segment)[offset - start : end - start])
                parts.append(part)
                offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Erase the plaintext held; the file stays the caller's."""
        with self._lock:
            self._held = -1
            erase(self._clear)

    def _segment(self, segment: int) -> bytearray:
        if self._held != segment:
            self._held = -1
            clear = bytearray(self._body.layout.plain(segment).length)
            self._body.open_segment(segment, self._block, clear)
            erase(self._clear)
            self._held, self._clear = segment, clear
        return self._clear

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        self._file.seek(offset)
        done = 0
        while done < len(buffer):
            part = self._file.read(len(buffer) - done)
            if not part:
                break
            buffer[done : done + len(part)] = part
            done += len(part)
        return done
