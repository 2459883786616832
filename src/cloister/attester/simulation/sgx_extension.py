"""The SGX extension of a PCK certificate (OID 1.2.840.113741.1.13.1), in DER.

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5.
Only what that profile needs of DER is written here; reading is the verifier's.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509

from cloister.attester.simulation.hardware import Hardware

_ARC: Final = "1.2.840.113741.1.13.1"
SGX_EXTENSION: Final = x509.ObjectIdentifier(_ARC)

_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
_SGX_TYPE_STANDARD: Final = 0


def sgx_extension(hardware: Hardware) -> bytes:
    """The extension's DER value."""
    components = [_entry(f"2.{n}", _integer(svn)) for n, svn in enumerate(hardware.cpu_svn, start=1)]
    tcb = _tlv(
        _SEQUENCE,
        *components,
        _entry("2.17", _integer(hardware.pce_svn)),
        _entry("2.18", _tlv(_OCTETS, hardware.cpu_svn)),
    )
    flags = (hardware.dynamic_platform, hardware.cached_keys, hardware.smt_enabled)
    configuration = _tlv(
        _SEQUENCE, *(_entry(f"7.{n}", _boolean(flag)) for n, flag in enumerate(flags, start=1))
    )
    return _tlv(
        _SEQUENCE,
        _entry("1", _tlv(_OCTETS, hardware.ppid)),
        _entry("2", tcb),
        _entry("3", _tlv(_OCTETS, hardware.pce_id)),
        _entry("4", _tlv(_OCTETS, hardware.fmspc)),
        _entry("5", _tlv(_ENUMERATED, bytes([_SGX_TYPE_STANDARD]))),
        _entry("6", _tlv(_OCTETS, hardware.platform_instance_id)),
        _entry("7", configuration),
    )


def _entry(arc: str, value: bytes) -> bytes:
    return _tlv(_SEQUENCE, _oid(f"{_ARC}.{arc}"), value)


def _boolean(value: bool) -> bytes:
    return _tlv(_BOOLEAN, b"\xff" if value else b"\x00")


def _integer(value: int) -> bytes:
    # One bit more than the value needs: DER integers are signed.
    return _tlv(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    encoded = bytearray([40 * first + second])
    for arc in rest:
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(0x80 | arc & 0x7F)
        encoded += bytes(reversed(septets))
    return _tlv(_OID, bytes(encoded))


def _tlv(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length = len(body)
    if length < 0x80:
        return bytes([tag, length]) + body
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + body
