"""Reading binary HTTP (RFC 9292) as it arrives: bytes in any portions, events out.

Both framings (known and indeterminate length), informational responses (accepted, checked and passed over),
trailers, padding, and the truncation that the RFC allows: a message may leave its last sections out (headers,
content, trailers) if they are empty, and may end nowhere else.

Refused (:class:`FormatError`): a framing indicator of the other kind, anything :mod:`bhttp_message` refuses, a
field that reaches over its section's end, padding that is not zero, a request whose ``content-length`` is not the
length of its content. An end anywhere else is :class:`TruncatedMessage`, a section over its bound
:class:`OversizedChunk` before it is kept. Content is handed on as it comes and never collected: bounding it is the
caller's part. Once a decoder has raised, it stays shut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloister.channel.bhttp_message import (
    MAX_FIELDS,
    MAX_INFORMATIONAL,
    MAX_SECTION,
    MAX_TARGET,
    Fields,
    Request,
    Response,
    check_field,
    check_fields,
)
from cloister.channel.varint import decode_varint
from cloister.errors import ChannelError, FormatError, OversizedChunk, TruncatedMessage

M = TypeVar("M", Request, Response)
T = TypeVar("T")
Steps = Generator[None, None, T]
"""A piece of parsing: it yields whenever it needs more bytes."""


@dataclass(frozen=True, slots=True)
class Head(Generic[M]):
    """Control data and headers are complete."""

    message: M


@dataclass(frozen=True, slots=True)
class BodyChunk:
    """The next bytes of the content, never empty. How they are cut means nothing."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """Content and trailers are complete; only padding may follow."""

    trailers: Fields


class _Decoder(ABC, Generic[M]):
    """A parser that runs as far as its bytes reach."""

    known: int
    """Framing indicator of a known-length message; that of an indeterminate one is 2 more."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._dropped = 0
        self._ended = False
        self._shut = False
        self._events: list[Head[M] | BodyChunk | End] = []
        self._parser = self._message()

    def feed(self, data: bytes) -> list[Head[M] | BodyChunk | End]:
        """What has become complete. Raises :class:`FormatError`, :class:`OversizedChunk`."""
        if self._at:
            del self._buffer[: self._at]
            self._dropped += self._at
            self._at = 0
        self._buffer += data
        return self._run()

    def finish(self) -> list[Head[M] | BodyChunk | End]:
        """The input has ended: the :class:`End`, if a message truncated as it may be has not brought it yet.

        Raises :class:`TruncatedMessage` if it ended elsewhere.
        """
        self._ended = True
        events = self._run()
        self._shut = True
        return events

    def _run(self) -> list[Head[M] | BodyChunk | End]:
        if self._shut:
            raise ChannelError("this message has ended or was refused")
        try:
            next(self._parser, None)
        except BaseException:
            self._shut = True
            raise
        events, self._events = self._events, []
        return events

    def _message(self) -> Steps[None]:
        framing = yield from self._varint()
        if framing not in (self.known, self.known + 2):
            raise FormatError(f"binary HTTP with framing indicator {framing} is not expected here")
        known = framing == self.known
        head = yield from self._head(known)
        self._events.append(Head(head))
        declared = self._declared_length(head)
        length = yield from (self._known_content() if known else self._chunked_content())
        if declared is not None and declared != length:
            raise FormatError(
                f"the request has {length} bytes of content, its content-length says {declared}"
            )
        trailers = check_fields((yield from self._fields(known, optional=True)))
        self._events.append(End(trailers))
        while not self._ended:
            self._check_padding()
            yield
        self._check_padding()

    @abstractmethod
    def _head(self, known: bool) -> Steps[M]:
        """Control data and header section."""

    @abstractmethod
    def _declared_length(self, head: M) -> int | None:
        """What the headers say the content's length is, where that has to hold."""

    def _known_content(self) -> Steps[int]:
        length = left = yield from self._varint(optional=True)
        while left:
            if self._at_end():
                yield from self._more()
            portion = self._cut(min(left, len(self._buffer) - self._at))
            if portion:
                left -= len(portion)
                self._events.append(BodyChunk(portion))
        return length

    def _chunked_content(self) -> Steps[int]:
        total = 0
        while True:
            # Only a message without any content may leave the mark of its content's end out.
            length = yield from self._varint(optional=not total)
            if not length:
                return total
            total += length
            while length:
                if self._at_end():
                    yield from self._more()
                portion = self._cut(min(length, len(self._buffer) - self._at))
                if portion:
                    length -= len(portion)
                    self._events.append(BodyChunk(portion))

    def _fields(self, known: bool, *, optional: bool = False) -> Steps[Fields]:
        """One section, each line checked as it is read; ``optional``: empty if the input ends before it."""
        fields: list[tuple[bytes, bytes]] = []
        budget = MAX_SECTION
        if known:
            budget = yield from self._varint(optional=optional)
            if budget > MAX_SECTION:
                raise OversizedChunk(f"a field section of {budget} bytes is over the bound of {MAX_SECTION}")
        end = self._position() + budget
        while not known or self._position() < end:
            length = yield from self._varint(optional=optional and not known and not fields)
            if not length and not known:
                break
            name = yield from self._take(self._room(length, end, known))
            length = yield from self._varint()
            value = yield from self._take(self._room(length, end, known))
            check_field(name, value)
            fields.append((name, value))
            if len(fields) > MAX_FIELDS:
                raise OversizedChunk(f"a field section has more than {MAX_FIELDS} lines")
        return tuple(fields)

    def _room(self, length: int, end: int, known: bool) -> int:
        if self._position() + length <= end:
            return length
        if known:
            raise FormatError("a field reaches over the end of its section")
        raise OversizedChunk(f"a field section is over the bound of {MAX_SECTION} bytes")

    def _varint(self, *, optional: bool = False) -> Steps[int]:
        """The next integer; ``optional``: 0 if the input ends cleanly before it."""
        while True:
            found = decode_varint(self._buffer, self._at)
            if found is not None:
                value, self._at = found
                return value
            if self._ended and optional and self._at_end():
                return 0
            yield from self._more()

    def _take(self, length: int) -> Steps[bytes]:
        while len(self._buffer) - self._at < length:
            yield from self._more()
        return self._cut(length)

    def _more(self) -> Steps[None]:
        if self._ended:
            raise TruncatedMessage("the binary HTTP message ends too early")
        yield

    def _cut(self, length: int) -> bytes:
        start = self._at
        self._at += length
        with memoryview(self._buffer) as view:
            return bytes(view[start : self._at])

    def _position(self) -> int:
        return self._dropped + self._at

    def _at_end(self) -> bool:
        return self._at == len(self._buffer)

    def _check_padding(self) -> None:
        padding = self._cut(len(self._buffer) - self._at)
        if padding.count(0) != len(padding):
            raise FormatError("the padding of a binary HTTP message holds other bytes than zero")


class RequestDecoder(_Decoder[Request]):
    """Reads one request."""

    known = 0

    def _head(self, known: bool) -> Steps[Request]:
        parts = []
        for what in ("method", "scheme", "authority", "path"):
            length = yield from self._varint()
            if length > MAX_TARGET:
                raise OversizedChunk(f"the {what} is {length} bytes long, over the bound of {MAX_TARGET}")
            parts.append((yield from self._take(length)))
        method, scheme, authority, path = parts
        # Control data is checked before the headers are read: nonsense is refused at its first bytes.
        Request(method, scheme, authority, path)
        return Request(method, scheme, authority, path, (yield from self._fields(known, optional=True)))

    def _declared_length(self, head: Request) -> int | None:
        values = [value for name, value in head.headers if name == b"content-length"]
        if not values:
            return None
        if len(values) > 1 or not values[0].isdigit() or len(values[0]) > 18:
            raise FormatError("the request's content-length is not one number")
        return int(values[0])


class ResponseDecoder(_Decoder[Response]):
    """Reads one response; informational ones before it are checked and passed over."""

    known = 1

    def _head(self, known: bool) -> Steps[Response]:
        for _ in range(MAX_INFORMATIONAL + 1):
            status = yield from self._varint()
            if not 100 <= status <= 199:
                Response(status)
                return Response(status, (yield from self._fields(known, optional=True)))
            yield from self._fields(known)
        raise OversizedChunk(f"more than {MAX_INFORMATIONAL} informational responses")

    def _declared_length(self, head: Response) -> int | None:
        """Answers to HEAD and 304 declare a length and have no content (RFC 9110, section 8.6)."""
        return None
