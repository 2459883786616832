"""What a binary HTTP message holds, and which values are none (RFC 9292, sections 3.4 to 3.6, and RFC 9113, 8.2).

The same rules serve encoding and decoding, so nothing goes out that would not be let in.

Refused: control characters anywhere, upper-case field names, names that are no token (which takes in every
pseudo-field, so none can be injected), values with space at an end, request targets that are not an absolute path
(or ``*`` for OPTIONS), authorities with user names, status codes out of range, and sizes over the bounds below.
Fields that steer a connection (RFC 9110, section 7.6.1) have no meaning inside: they are left out on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from cloister.errors import FormatError, OversizedChunk

Fields = tuple[tuple[bytes, bytes], ...]
"""Field lines in order: (lower-case name, value)."""

MAX_SECTION: Final = 64 * 1024
"""Bytes of one field section, lengths included."""
MAX_FIELDS: Final = 256
"""Field lines of one section."""
MAX_TARGET: Final = 16 * 1024
"""Bytes of a path; also of each other part of the control data."""
MAX_INFORMATIONAL: Final = 8
"""Informational responses before the final one."""

CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade"}
)

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_METHOD: Final = re.compile(_TOKEN)
_SCHEME: Final = re.compile(rb"[a-z][a-z0-9+.\-]*")
_AUTHORITY: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:\[\]%]*")
_PATH: Final = re.compile(rb"/[!\"$-~]*")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


@dataclass(frozen=True, slots=True)
class Request:
    """Control data and header section of a request. Raises :class:`FormatError`, :class:`OversizedChunk`."""

    method: bytes
    scheme: bytes
    authority: bytes
    """Empty if a ``host`` field has it."""
    path: bytes
    """With its query; percent-encoded, as on the wire."""
    headers: Fields = ()

    def __post_init__(self) -> None:
        _part(self.method, _METHOD, "the method")
        _part(self.scheme, _SCHEME, "the scheme")
        _part(self.authority, _AUTHORITY, "the authority")
        if not (self.path == b"*" and self.method == b"OPTIONS"):
            _part(self.path, _PATH, "the path")
        object.__setattr__(self, "headers", check_fields(self.headers))


@dataclass(frozen=True, slots=True)
class Response:
    """Status and header section of a final response. Raises :class:`FormatError`, :class:`OversizedChunk`."""

    status: int
    headers: Fields = ()

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise FormatError(f"{self.status} is not the status code of a final response")
        object.__setattr__(self, "headers", check_fields(self.headers))


def check_fields(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """The same lines without those that steer a connection. Raises as :class:`Request` does."""
    kept = []
    size = 0
    for count, (name, value) in enumerate(fields, start=1):
        check_field(name, value)
        size += len(name) + len(value) + 2
        if count > MAX_FIELDS or size > MAX_SECTION:
            raise OversizedChunk(f"a field section is over {MAX_FIELDS} lines or {MAX_SECTION} bytes")
        if name not in CONNECTION_FIELDS:
            kept.append((name, value))
    return tuple(kept)


def check_field(name: bytes, value: bytes) -> None:
    """One field line. Raises :class:`FormatError`; the value is not repeated in it."""
    if not _NAME.fullmatch(name):
        raise FormatError(f"{name[:64]!r} is not a field name in lower case")
    if not _VALUE.fullmatch(value):
        raise FormatError(f"the value of field {name[:64].decode('ascii')} holds characters it may not")


def _part(value: bytes, form: re.Pattern[bytes], what: str) -> None:
    if len(value) > MAX_TARGET:
        raise OversizedChunk(f"{what} is {len(value)} bytes long, over the bound of {MAX_TARGET}")
    if not form.fullmatch(value):
        raise FormatError(f"{what} of the request is not one")
