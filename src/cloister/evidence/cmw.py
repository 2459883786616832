"""The conceptual message wrapper as CBOR record (draft-ietf-rats-msg-wrap): what evidence travels in inside a certificate.

One form is read: ``[media type, bytes, indicator]`` in deterministic CBOR with the indicator of evidence alone. JSON
records, CBOR tags, collections and CoAP content formats are refused, and so is any other media type than the one asked
for: the caller knows what it takes, nothing is detected.
"""

from __future__ import annotations

from typing import Final

from cloister.encoding import decode_cbor
from cloister.errors import FormatError

INDICATOR_EVIDENCE: Final = 1 << 2
"""Bit 2 of the registry: the value is evidence, and no endorsements, reference values or results."""


def encode_cmw(media_type: str, value: bytes) -> bytes:
    """The record of evidence ``value``."""
    import cbor2  # noqa: PLC0415 -- only attested TLS needs it; keeps `import cloister` quick

    return cbor2.dumps([media_type, value, INDICATOR_EVIDENCE], canonical=True)


def parse_cmw(data: bytes, *, media_type: str, limit: int) -> bytes:
    """The evidence in a record of ``media_type``, at most ``limit`` bytes in all. Raises :class:`FormatError`."""
    record = decode_cbor(data, what="conceptual message wrapper", limit=limit)
    if not isinstance(record, list) or len(record) != 3:
        raise FormatError("a conceptual message wrapper is a record of media type, value and indicator")
    found, value, indicator = record
    if not isinstance(found, str) or found != media_type:
        raise FormatError(f"the wrapped message is not {media_type}", todo="it was made by other software")
    if not isinstance(value, bytes):
        raise FormatError("the wrapped message is not a byte string")
    if type(indicator) is not int or indicator != INDICATOR_EVIDENCE:
        raise FormatError("the wrapped message does not say that it is evidence")
    return value
