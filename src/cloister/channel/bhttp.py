"""Binary HTTP messages (RFC 9292): writing them, and the names for reading them.

A message known in full goes out in known-length form, one that is still being made in indeterminate-length form:
``request_head`` or ``response_head``, any number of ``body_chunk``, one ``body_end``, and zero bytes as padding.
Reading is in :mod:`cloister.channel.bhttp_decoder`; what a message may hold in
:mod:`cloister.channel.bhttp_message`, which refuses the same on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from cloister.channel.bhttp_decoder import BodyChunk, End, Head, RequestDecoder, ResponseDecoder
from cloister.channel.bhttp_message import (
    CONNECTION_FIELDS,
    MAX_FIELDS,
    MAX_INFORMATIONAL,
    MAX_SECTION,
    MAX_TARGET,
    Fields,
    Request,
    Response,
    check_fields,
)
from cloister.channel.varint import encode_varint

__all__ = [
    "CONNECTION_FIELDS",
    "MAX_FIELDS",
    "MAX_INFORMATIONAL",
    "MAX_SECTION",
    "MAX_TARGET",
    "MEDIA_TYPE",
    "BodyChunk",
    "End",
    "Fields",
    "Head",
    "Request",
    "RequestDecoder",
    "Response",
    "ResponseDecoder",
    "body_chunk",
    "body_end",
    "encode_request",
    "encode_response",
    "request_head",
    "response_head",
]

MEDIA_TYPE: Final = "message/bhttp"


def encode_request(
    request: Request, body: bytes = b"", *, trailers: Iterable[tuple[bytes, bytes]] = (), pad_to: int = 0
) -> bytes:
    """A known-length request; zero bytes bring it to ``pad_to`` bytes if it is shorter."""
    head = b"\x00" + _control(request) + _prefixed(_lines(request.headers))
    return _known(head, body, trailers, pad_to)


def encode_response(
    response: Response, body: bytes = b"", *, trailers: Iterable[tuple[bytes, bytes]] = (), pad_to: int = 0
) -> bytes:
    """A known-length response; ``pad_to`` as above."""
    head = b"\x01" + encode_varint(response.status) + _prefixed(_lines(response.headers))
    return _known(head, body, trailers, pad_to)


def request_head(request: Request) -> bytes:
    """How an indeterminate-length request begins."""
    return b"\x02" + _control(request) + _lines(request.headers) + b"\x00"


def response_head(response: Response) -> bytes:
    """How an indeterminate-length response begins."""
    return b"\x03" + encode_varint(response.status) + _lines(response.headers) + b"\x00"


def body_chunk(data: bytes) -> bytes:
    """The next portion of content; nothing for no data, since a length of 0 would end the content."""
    return _prefixed(data) if data else b""


def body_end(trailers: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """The end of content, and the trailers. Only zero bytes may follow."""
    return b"\x00" + _lines(check_fields(trailers)) + b"\x00"


def _known(head: bytes, body: bytes, trailers: Iterable[tuple[bytes, bytes]], pad_to: int) -> bytes:
    message = head + _prefixed(body) + _prefixed(_lines(check_fields(trailers)))
    return message.ljust(pad_to, b"\x00")


def _control(request: Request) -> bytes:
    parts = (request.method, request.scheme, request.authority, request.path)
    return b"".join(_prefixed(part) for part in parts)


def _lines(fields: Fields) -> bytes:
    return b"".join(_prefixed(name) + _prefixed(value) for name, value in fields)


def _prefixed(data: bytes) -> bytes:
    return encode_varint(len(data)) + data
