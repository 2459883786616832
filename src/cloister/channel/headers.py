"""Which header fields cross the seal, and the names both ends know. Pure.

Fields that mean something for one hop only (RFC 9110, section 7.6.1) stay out on both sides; what the gateway and
the transport say to each other inside is dropped before an application sees the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cloister.channel.padding import PADDING_HEADER
from cloister.channel.receipts import HEADER

Fields = tuple[tuple[bytes, bytes], ...]

ATTESTATION_PATH: Final = "/.well-known/attestation"
GATEWAY_PATH: Final = "/.well-known/ohttp-gateway"
MANIFEST_PATH: Final = "/.well-known/cloister-manifest"
REQUEST_ID_HEADER: Final = b"cloister-request-id"
REPLICA_HEADER: Final = b"cloister-replica"
RECEIPT_HEADER: Final = HEADER
EXTENSION: Final = "cloister.sealed"
"""Name of the ASGI extension that marks a request as having come through the seal."""

REQUEST_ID: Final = re.compile(rb"[0-9a-f]{32}\Z")
TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")

_ONE_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_NOT_SENT: Final = _ONE_HOP | {
    b"host",
    b"accept-encoding",
    b"content-length",
    REQUEST_ID_HEADER,
    PADDING_HEADER,
    RECEIPT_HEADER,
}
_NOT_PRESENTED: Final = _ONE_HOP | {b"content-length", PADDING_HEADER}


def across(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Without the fields of one hop; names in lower case."""
    return _without(fields, _ONE_HOP)


def to_seal(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """What of a caller's request goes inside: the authority says the host, the message its own length.

    ``accept-encoding`` is dropped: compression makes sizes depend on what is said.
    """
    return _without(fields, _NOT_SENT)


def to_present(fields: Iterable[tuple[bytes, bytes]]) -> Fields:
    """What of an opened response the caller sees."""
    return _without(fields, _NOT_PRESENTED)


def first(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of a field."""
    return next((value for key, value in fields if key.lower() == name), None)


def _without(fields: Iterable[tuple[bytes, bytes]], dropped: frozenset[bytes]) -> Fields:
    return tuple((name.lower(), value.strip(b" \t")) for name, value in fields if name.lower() not in dropped)
