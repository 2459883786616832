"""An SPDM 1.1 measurement report (DMTF DSP0274 1.1): the request and the answer that a device signs together.

Bytes in, frozen dataclasses out; nothing is trusted yet. A report is the GET_MEASUREMENTS request (37 bytes) with
the MEASUREMENTS response directly behind it; the signature at its end covers everything before it. Refused: any
other version, message or measurement specification, indices or opaque fields that stand twice, lengths that do not
meet exactly, and more than 64 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cloister.errors import EvidenceError
from cloister.evidence.reader import Reader

MAX_REPORT: Final = 64 * 1024
"""Upper bound of one report, bytes; captured ones are 2 and 4 KiB."""
REQUEST_SIZE: Final = 37
NONCE_SIZE: Final = 32
SIGNATURE_SIZE: Final = 96
"""ECDSA P-384 as r ‖ s, big-endian."""
MAX_OPAQUE_FIELDS: Final = 64

_VERSION: Final = 0x11
_GET_MEASUREMENTS: Final = 0xE0
_MEASUREMENTS: Final = 0x60
_DMTF: Final = 1


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measurement block."""

    index: int
    """1 to 254, as SPDM counts; reference manifests count from 0."""
    kind: int
    """DMTFSpecMeasurementValueType: bit 7 set for raw bits instead of a digest."""
    value: bytes


@dataclass(frozen=True, slots=True)
class SpdmReport:
    """What a device answered to one request. Unverified."""

    slot: int
    """The certificate slot that was asked to sign, 0 to 7."""
    nonce: bytes
    """The requester's, 32 bytes: this is the one that makes the report fresh."""
    response_nonce: bytes
    """The device's own, 32 bytes."""
    parameters: tuple[int, int]
    """Param1 and Param2 of the response."""
    measurements: tuple[Measurement, ...]
    opaque: tuple[tuple[int, bytes], ...]
    """Vendor fields by id, in order, each id once."""
    signed: bytes
    """Request and response without the signature."""
    signature: bytes
    """r ‖ s, 96 bytes."""


def parse_report(data: bytes) -> SpdmReport:
    """Parse one report. Raises :class:`~cloister.errors.EvidenceError`."""
    if len(data) > MAX_REPORT:
        raise EvidenceError(f"the SPDM report is {len(data)} bytes long, over its bound of {MAX_REPORT}")
    reader = Reader(data, "SPDM report")
    slot, nonce = _request(reader)
    version, code, first, second = reader.take(4)
    if (version, code) != (_VERSION, _MEASUREMENTS):
        raise EvidenceError(
            f"the SPDM report's answer is message {code:#04x} of version {version:#04x}, not MEASUREMENTS of 1.1",
            todo="the device refused the request, or the bytes are of another format",
        )
    blocks = reader.take(1)[0]
    record = reader.take(int.from_bytes(reader.take(3), "little"))
    measurements = _measurements(record, blocks)
    response_nonce = reader.take(NONCE_SIZE)
    opaque = _opaque(reader.take(reader.u16()))
    signature = reader.take(SIGNATURE_SIZE)
    reader.end()
    return SpdmReport(
        slot=slot,
        nonce=nonce,
        response_nonce=response_nonce,
        parameters=(first, second),
        measurements=measurements,
        opaque=opaque,
        signed=data[:-SIGNATURE_SIZE],
        signature=signature,
    )


def _request(reader: Reader) -> tuple[int, bytes]:
    version, code, attributes, operation = reader.take(4)
    if (version, code) != (_VERSION, _GET_MEASUREMENTS):
        raise EvidenceError(
            f"the SPDM report begins with message {code:#04x} of version {version:#04x}, "
            "not with GET_MEASUREMENTS of 1.1",
            todo="it is of another format",
        )
    if (attributes, operation) != (1, 0xFF):
        raise EvidenceError("the SPDM request did not ask for all measurements, signed")
    nonce = reader.take(NONCE_SIZE)
    slot = reader.take(1)[0]
    if slot > 7:
        raise EvidenceError(f"the SPDM request names certificate slot {slot}; there are 0 to 7")
    return slot, nonce


def _measurements(record: bytes, blocks: int) -> tuple[Measurement, ...]:
    reader = Reader(record, "SPDM measurement record")
    found: dict[int, Measurement] = {}
    for _ in range(blocks):
        index, specification = reader.take(2)
        if specification != _DMTF:
            raise EvidenceError(f"measurement {index} is not of the DMTF specification ({specification})")
        block = Reader(reader.take(reader.u16()), f"SPDM measurement {index}")
        kind = block.take(1)[0]
        value = block.take(block.u16())
        block.end()
        if index in (0, 0xFF) or index in found:
            raise EvidenceError(f"the SPDM report has measurement index {index} twice, or where none may be")
        found[index] = Measurement(index, kind, value)
    reader.end()
    if not found:
        raise EvidenceError("the SPDM report holds no measurements")
    return tuple(found.values())


def _opaque(data: bytes) -> tuple[tuple[int, bytes], ...]:
    reader = Reader(data, "SPDM report's opaque data")
    found: dict[int, bytes] = {}
    while reader.remaining:
        field = reader.u16()
        value = reader.take(reader.u16())
        if field in found or len(found) >= MAX_OPAQUE_FIELDS:
            raise EvidenceError(f"the SPDM report's opaque data has field {field} twice, or too many fields")
        found[field] = value
    return tuple(found.items())
