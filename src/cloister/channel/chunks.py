"""The outer framing of sealed messages (draft-ietf-ohai-chunked-ohttp, sections 3 and 4), before any opening.

A chunk that is not the last stands behind its length, a variable-length integer of at least 1; the last stands
behind a 0 and goes on to the end of the stream. Without chunks (RFC 9458) the whole stream is the one, last unit.
This framing is not authenticated, so it only ever bounds and cuts; what was cut has to open.

Refused: a length over the bound, before anything of it is kept; a stream that ends inside a chunk or before the
last one. Memory held is at most one sealed chunk and what a single ``push`` brought.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from cloister.channel.hpke import TAG_LENGTH, Buffer
from cloister.channel.varint import decode_varint, encode_varint
from cloister.errors import (
    ChannelError,
    ChunkRefused,
    OversizedChunk,
    TruncatedMessage,
    UsageError,
)

FINAL: Final = b"\x00"
"""The length that marks the last chunk."""
MAX_CHUNK: Final = 1 << 20
"""Plaintext bytes of a chunk (without chunks: of the message) that are sealed and opened unless told otherwise."""


def frame(sealed: bytes, *, final: bool) -> bytes:
    """One sealed chunk as it goes out."""
    return (FINAL if final else encode_varint(len(sealed))) + sealed


class ChunkReader:
    """Cuts bytes, arriving in any portions, into sealed chunks."""

    __slots__ = ("_at", "_bound", "_buffer", "_last")

    def __init__(self, *, chunked: bool, max_chunk: int) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._bound = max_chunk + TAG_LENGTH
        self._last = not chunked

    def push(self, data: Buffer) -> None:
        """Take in what arrived."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def take(self, length: int) -> bytes | None:
        """The next ``length`` bytes, or None while some are missing: for what stands before the chunks."""
        if len(self._buffer) - self._at < length:
            return None
        return self._cut(self._at, length)

    def next_chunk(self) -> bytes | None:
        """The next complete chunk that is not the last; None if there is none yet.

        Raises :class:`OversizedChunk`, :class:`ChunkRefused` (a chunk too short to hold a byte of data).
        """
        if not self._last:
            found = decode_varint(self._buffer, self._at)
            if found is None:
                return None
            length, start = found
            if length:
                return self._whole(length, start)
            self._last = True
            self._at = start
        if len(self._buffer) - self._at > self._bound:
            raise OversizedChunk(f"the last chunk goes over the bound of {self._bound} bytes")
        return None

    def last_chunk(self) -> bytes:
        """The last chunk, once the stream has ended. Raises :class:`TruncatedMessage`."""
        rest = len(self._buffer) - self._at
        if not self._last or rest < TAG_LENGTH:
            raise TruncatedMessage("the sealed stream ended without its final chunk")
        return self._cut(self._at, rest)

    def _whole(self, length: int, start: int) -> bytes | None:
        if length > self._bound:
            raise OversizedChunk(f"a chunk of {length} bytes is over the bound of {self._bound}")
        if length <= TAG_LENGTH:
            raise ChunkRefused(f"a chunk of {length} bytes holds no data and is not the last")
        return self._cut(start, length) if len(self._buffer) - start >= length else None

    def _cut(self, start: int, length: int) -> bytes:
        self._at = start + length
        with memoryview(self._buffer) as view:
            return bytes(view[start : self._at])


class Opener(ABC):
    """What both openers do: cut, open, remember a failure, know the end."""

    def __init__(self, *, chunked: bool, max_chunk: int) -> None:
        self.chunked = chunked
        self.complete = False
        """Whether the final chunk was opened."""
        self._reader = ChunkReader(chunked=chunked, max_chunk=max_chunk)
        self._shut = False

    def feed(self, data: Buffer) -> list[bytes]:
        """Open what has become whole: plaintexts in order, none of them empty, and never the last one."""
        self._check_open()
        try:
            self._reader.push(data)
            opened = []
            if self._begin():
                while (sealed := self._reader.next_chunk()) is not None:
                    opened.append(self._open(b"", sealed))
        except BaseException:
            self._shut = True
            raise
        return opened

    def finish(self) -> list[bytes]:
        """The stream has ended: the last chunk's plaintext, or nothing if it holds none.

        Raises :class:`TruncatedMessage` unless the final chunk is there, :class:`ChunkRefused` or
        :class:`DecapsulationFailed` unless it opens as the final one.
        """
        self._check_open()
        self._shut = True
        if not self._begin():
            raise TruncatedMessage("the sealed stream ended inside its head")
        opened = self._open(final_aad(final=True, chunked=self.chunked), self._reader.last_chunk())
        self.complete = True
        return [opened] if opened else []

    @abstractmethod
    def _begin(self) -> bool:
        """Read what stands before the chunks; False while bytes of it are missing."""

    @abstractmethod
    def _open(self, aad: bytes, sealed: bytes) -> bytes:
        """Open the next chunk, or raise."""

    def _check_open(self) -> None:
        if self._shut:
            raise ChannelError("this stream has ended or was refused", todo="start another exchange")


def final_aad(*, final: bool, chunked: bool) -> bytes:
    return b"final" if final and chunked else b""


def check_seal(data: Buffer, *, final: bool, chunked: bool, finished: bool) -> None:
    if finished:
        raise UsageError("the final chunk was already sealed")
    if not chunked and not final:
        raise UsageError("a message without chunks is sealed at once, as the final one")
    if len(data) > MAX_CHUNK:
        raise OversizedChunk(f"a chunk of {len(data)} bytes is over the bound of {MAX_CHUNK}")
