"""QUIC's variable-length integers (RFC 9000, section 16), as Binary HTTP and chunked OHTTP use them.

One to eight bytes, big-endian; the two top bits of the first byte say how many. A value may be spelled longer
than it needs to be: both formats allow that, and neither authenticates the spelling.
"""

from __future__ import annotations

from cloister.errors import UsageError

MAX_VARINT = 2**62 - 1


def encode_varint(value: int) -> bytes:
    """The shortest spelling of ``value`` (0 to 2^62 - 1). Raises :class:`UsageError` outside of it."""
    if value < 0:
        raise UsageError("a variable-length integer is not negative")
    if value < 1 << 6:
        return value.to_bytes(1, "big")
    if value < 1 << 14:
        return (value | 1 << 14).to_bytes(2, "big")
    if value < 1 << 30:
        return (value | 2 << 30).to_bytes(4, "big")
    if value <= MAX_VARINT:
        return (value | 3 << 62).to_bytes(8, "big")
    raise UsageError("a variable-length integer ends at 2^62 - 1")


def decode_varint(data: bytes | bytearray | memoryview, at: int) -> tuple[int, int] | None:
    """Read the integer at offset ``at``: (value, offset behind it), or None while bytes are missing."""
    if at >= len(data):
        return None
    first = data[at]
    if first < 0x40:
        return first, at + 1
    size = 1 << (first >> 6)
    if len(data) - at < size:
        return None
    return int.from_bytes(data[at : at + size], "big") & ((1 << (8 * size - 2)) - 1), at + size
