"""Sizes that say little: buckets for sealed chunks, and records that carry data and padding (docs/spec/padding.md).

Pure. The composer makes a Binary HTTP response whose every sealed chunk has a bucket's size; the reader takes
the data out again. It refuses padding that is not zero, lengths over their bound and content cut within a record.
"""

from __future__ import annotations

from cloister.channel import bhttp
from cloister.errors import ChunkRefused, OversizedChunk, TruncatedMessage

BUCKETS = (512, 1024, 2048, 4096, 8192, 16384)
"""Plaintext sizes of sealed chunks, bytes."""
LARGEST = BUCKETS[-1]
PADDING_HEADER = b"cloister-padding"
PADDING_VERSION = b"v1"

_LENGTHS = 8
_FRAME = 2
"""Length of the varint before a record: records are 64 to 16383 bytes long, so always two bytes."""
_SMALLEST_RECORD = 64
_MAX_PREFIX = 8192


def request_size(length: int) -> int:
    """The bucket for a request of ``length`` bytes; beyond the largest, its next multiple."""
    for bucket in BUCKETS:
        if length <= bucket:
            return bucket
    return -(-length // LARGEST) * LARGEST


def encode_record(data: bytes, size: int) -> bytes:
    """One record of ``size`` bytes in all: the two lengths, ``data``, zeros."""
    padding = size - _LENGTHS - len(data)
    if padding < 0:
        raise ValueError("a record is not shorter than its data")
    return b"".join((len(data).to_bytes(4, "big"), padding.to_bytes(4, "big"), data, bytes(padding)))


class RecordReader:
    """Takes the data out of a stream of records, however it is cut up."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, content: bytes) -> list[bytes]:
        """The data of every record completed by ``content``. Raises :class:`ChunkRefused` and its siblings."""
        self._buffer += content
        found = []
        while len(self._buffer) >= _LENGTHS:
            length = int.from_bytes(self._buffer[:4], "big")
            padding = int.from_bytes(self._buffer[4:_LENGTHS], "big")
            if length > LARGEST or padding > LARGEST:
                raise OversizedChunk(f"a padding record claims {length} + {padding} bytes")
            end = _LENGTHS + length + padding
            if len(self._buffer) < end:
                break
            if any(self._buffer[_LENGTHS + length : end]):
                raise ChunkRefused(
                    "padding that is not zero", todo="the workload does not keep to its format"
                )
            if length:
                found.append(bytes(self._buffer[_LENGTHS : _LENGTHS + length]))
            del self._buffer[:end]
        return found

    def finish(self) -> None:
        """Raises :class:`TruncatedMessage` within a record."""
        if self._buffer:
            raise TruncatedMessage("the answer ends within a padding record")


class ResponseComposer:
    """Cuts a response into plaintexts of sealed chunks: padded to buckets, or as they come.

    ``head`` is the encoded head of an indeterminate-length response (bhttp.py); it waits for the first data.
    """

    def __init__(self, head: bytes, *, padded: bool) -> None:
        self._prefix = head
        self._padded = padded

    def compose(
        self, data: bytes, *, final: bool, trailers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> list[bytes]:
        """The plaintexts that carry ``data``, and the end of the message if ``final``; the last is final.

        ``trailers`` stand at the end, at most 8 KiB.
        """
        tail = bhttp.body_end(trailers) if final else b""
        return self._buckets(data, tail) if self._padded else self._plain(data, tail)

    def _plain(self, data: bytes, tail: bytes) -> list[bytes]:
        body = b"".join(bhttp.body_chunk(data[at : at + 8192]) for at in range(0, len(data), 8192))
        message, self._prefix = self._prefix + body + tail, b""
        return [message[at : at + LARGEST] for at in range(0, len(message), LARGEST)]

    def _buckets(self, data: bytes, tail: bytes) -> list[bytes]:
        chunks = []
        while len(self._prefix) > _MAX_PREFIX:
            chunks.append(self._prefix[:_MAX_PREFIX])
            self._prefix = self._prefix[_MAX_PREFIX:]
        offset, done = 0, False
        while not done:
            overhead = len(self._prefix) + _FRAME + _LENGTHS + len(tail)
            piece = data[offset : offset + LARGEST - overhead]
            offset += len(piece)
            done = offset == len(data)
            ending = tail if done else b""
            fixed = len(self._prefix) + _FRAME + len(ending)
            needed = fixed + max(_LENGTHS + len(piece), _SMALLEST_RECORD)
            bucket = next(size for size in BUCKETS if needed <= size)
            record = encode_record(piece, bucket - fixed)
            chunks.append(self._prefix + bhttp.body_chunk(record) + ending)
            self._prefix = b""
        return chunks
