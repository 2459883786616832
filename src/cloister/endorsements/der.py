"""Strict DER (ITU-T X.690): one element after another, definite minimal lengths, nothing skipped, nothing guessed.

Only what certificates and revocation lists need. It exists because AMD gives every chip's certificate the serial
number zero, which the usual parser is going to refuse, and because every failure here is one of our own errors.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from cloister.errors import EndorsementError

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
UTF8_STRING: Final = 0x0C
PRINTABLE_STRING: Final = 0x13
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
SEQUENCE: Final = 0x30
SET: Final = 0x31

_MAX_INTEGER = 64
"""Bytes of an INTEGER that is read as a number; serial numbers have 20 at most."""
_MAX_OID = 64
_UTC: Final = re.compile(rb"[0-9]{12}Z")
_GENERALIZED: Final = re.compile(rb"[0-9]{14}Z")


class Der:
    """A cursor over the elements of ``data``. Every failure is an :class:`~cloister.errors.EndorsementError`."""

    __slots__ = ("_at", "_data", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    @property
    def done(self) -> bool:
        return self._at == len(self._data)

    def fail(self, why: str) -> EndorsementError:
        """The error to raise for a document that is not what it should be."""
        return EndorsementError(f"the {self._what} is malformed: {why}", todo="fetch it again")

    def peek(self) -> int | None:
        """The next element's tag, or None at the end."""
        return None if self.done else self._data[self._at]

    def element(self, tag: int) -> tuple[bytes, bytes]:
        """The next element, which must have ``tag``: whole, and its content."""
        data, start = self._data, self._at
        if start + 2 > len(data):
            raise self.fail(f"it ends before an element of tag {tag:#04x}")
        if data[start] != tag:
            raise self.fail(f"tag {data[start]:#04x} stands where {tag:#04x} should")
        length, at = data[start + 1], start + 2
        if length >= 0x80:
            size = length & 0x7F
            if not 1 <= size <= 4 or at + size > len(data):
                raise self.fail("a length is indefinite or too long")
            length = int.from_bytes(data[at : at + size], "big")
            at += size
            if length < 0x80 or length >> 8 * (size - 1) == 0:
                raise self.fail("a length is not minimal")
        end = at + length
        if end > len(data):
            raise self.fail("an element runs past the end")
        self._at = end
        return data[start:end], data[at:end]

    def enter(self, tag: int) -> Der:
        """A cursor over the next element's content."""
        return Der(self.element(tag)[1], self._what)

    def integer(self) -> int:
        """An INTEGER of up to 64 bytes, minimal."""
        content = self.element(INTEGER)[1]
        if not 1 <= len(content) <= _MAX_INTEGER:
            raise self.fail(f"an integer of {len(content)} bytes")
        # Nine leading bits that are all alike say nothing that eight would not.
        if len(content) > 1 and (content[0], content[1] >> 7) in ((0x00, 0), (0xFF, 1)):
            raise self.fail("an integer is not minimal")
        return int.from_bytes(content, "big", signed=True)

    def boolean(self) -> bool:
        content = self.element(BOOLEAN)[1]
        if content not in (b"\x00", b"\xff"):
            raise self.fail("a boolean is neither true nor false")
        return content == b"\xff"

    def bits(self) -> bytes:
        """A BIT STRING of whole bytes."""
        content = self.element(BIT_STRING)[1]
        if not content or content[0] != 0:
            raise self.fail("a bit string is not made of whole bytes")
        return content[1:]

    def oid(self) -> str:
        """An OBJECT IDENTIFIER, dotted."""
        content = self.element(OBJECT_IDENTIFIER)[1]
        if not 1 <= len(content) <= _MAX_OID or content[-1] & 0x80:
            raise self.fail("an object identifier is not whole")
        arcs: list[int] = []
        value = 0
        fresh = True
        for byte in content:
            if fresh and byte == 0x80:
                raise self.fail("an object identifier is not minimal")
            value = value << 7 | byte & 0x7F
            fresh = not byte & 0x80
            if fresh:
                arcs.append(value)
                value = 0
        first = min(arcs[0] // 40, 2)
        return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))

    def time(self) -> int:
        """UTCTime or GeneralizedTime as RFC 5280 (4.1.2.5) writes them; Unix seconds."""
        tag = self.peek()
        if tag == UTC_TIME:
            text = self.element(UTC_TIME)[1]
            form = _UTC
        else:
            text = self.element(GENERALIZED_TIME)[1]
            form = _GENERALIZED
        if not form.fullmatch(text):
            raise self.fail("a time is not written as RFC 5280 wants it")
        digits = text[:-1].decode("ascii")
        if tag == UTC_TIME:
            digits = ("19" if digits[:2] >= "50" else "20") + digits
        month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
        try:
            moment = datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            raise self.fail("a time is on no calendar") from None
        return int(moment.timestamp())

    def end(self) -> None:
        """Nothing may follow."""
        if not self.done:
            raise self.fail(f"{len(self._data) - self._at} bytes follow where nothing should")
