"""Intel's PCK certificate: which platform it names, and who says so.

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5 (the SGX
extension). The certificate is only read here; whoever wants to rely on it verifies its chain (verifier/intel.py),
or asks Intel for collateral by what it names. The extension is read as strict DER: one encoding, every length met
exactly, each identifier once. What this reader does not know (the platform's further fields) is skipped, because Intel
adds fields; what it reads has exactly its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from cloister.errors import EndorsementError

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
MAX_CERTIFICATE: Final = 16 * 1024
MAX_FIELDS: Final = 32
_CACHED: Final = 64

_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_OID: Final = 0x06
_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")
"""1.2.840.113741.1.13.1, as an OID's contents: each field's identifier is this and one number more."""
_FIELDS: Final = {1: ("ppid", 16), 3: ("pce_id", 2), 4: ("fmspc", 6)}
_AUTHORITIES: Final[dict[str, Literal["processor", "platform"]]] = {
    "SGX PCK Processor CA": "processor",
    "SGX PCK Platform CA": "platform",
}


@dataclass(frozen=True, slots=True)
class PckIdentity:
    """From the SGX extension (OID 1.2.840.113741.1.13.1) and the issuer; lower-case hexadecimal."""

    fmspc: str
    """6 bytes: family, model, stepping, platform and custom SKU; what TCB info is asked for by."""
    ppid: str
    """16 bytes: the platform provisioning id."""
    pce_id: str
    """2 bytes, as the certificate has them."""
    ca: Literal["processor", "platform"]
    """Which of Intel's authorities issued it, and so which revocation list speaks of it."""
    spki_sha256: str
    """SHA-256 of the certificate's SubjectPublicKeyInfo (DER)."""


def read_pck(der: bytes) -> PckIdentity:
    """Read, not verify. Raises :class:`~cloister.errors.EndorsementError`."""
    if len(der) > MAX_CERTIFICATE:
        raise EndorsementError(
            f"the PCK certificate is {len(der)} bytes long, over its bound of {MAX_CERTIFICATE}"
        )
    return _read(der)


@lru_cache(maxsize=_CACHED)
def _read(der: bytes) -> PckIdentity:
    try:
        certificate = x509.load_der_x509_certificate(der)
        extension = certificate.extensions.get_extension_for_oid(SGX_EXTENSION).value
        issuers = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except x509.ExtensionNotFound:
        raise _malformed("it has no SGX extension", "it is another kind of certificate") from None
    except Exception as error:  # cryptography raises ValueError, TypeError, UnsupportedAlgorithm and more
        raise _malformed(f"it cannot be read ({type(error).__name__})") from None
    if not isinstance(extension, x509.UnrecognizedExtension):  # pragma: no cover -- no library knows this OID
        raise _malformed("its SGX extension is not opaque")
    fields = _fields(extension.value)
    name = str(issuers[0].value) if len(issuers) == 1 else ""
    for ending, ca in _AUTHORITIES.items():
        if name.endswith(ending):
            return PckIdentity(
                fmspc=fields["fmspc"].hex(),
                ppid=fields["ppid"].hex(),
                pce_id=fields["pce_id"].hex(),
                ca=ca,
                spki_sha256=hashlib.sha256(spki).hexdigest(),
            )
    shown = "".join(char if char.isprintable() else "?" for char in name[:80])
    raise _malformed(f"its issuer {shown!r} is none of Intel's PCK authorities")


def _fields(extension: bytes) -> dict[str, bytes]:
    (whole,) = _exactly(extension, _SEQUENCE, count=1)
    found: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for entry in _exactly(whole, _SEQUENCE):
        parts = list(_values(entry))
        if len(parts) != 2 or parts[0][0] != _OID:
            raise _malformed("a field of its SGX extension is not an identifier with a value")
        identifier, (tag, value) = parts[0][1], parts[1]
        if identifier in seen:
            raise _malformed("its SGX extension has a field twice")
        seen.add(identifier)
        if identifier[:-1] != _PREFIX or identifier[-1] not in _FIELDS:
            continue
        name, size = _FIELDS[identifier[-1]]
        if tag != _OCTETS or len(value) != size:
            raise _malformed(f"its {name} is not {size} bytes")
        found[name] = value
    for name, _size in _FIELDS.values():
        if name not in found:
            raise _malformed(f"its SGX extension has no {name}")
    return found


def _exactly(data: bytes, tag: int, *, count: int | None = None) -> list[bytes]:
    """The contents of the values in ``data``, each of which has ``tag``."""
    values = list(_values(data))
    if any(found != tag for found, _ in values) or (count is not None and len(values) != count):
        raise _malformed("its SGX extension has another structure")
    return [value for _, value in values]


def _values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and contents of each DER value in ``data`` (X.690: definite, shortest lengths), with nothing left over."""
    at = 0
    for _ in range(MAX_FIELDS):
        if at == len(data):
            return
        head = data[at : at + 4]
        if len(head) < 2 or head[0] & 0x1F == 0x1F:
            break
        length, size = head[1], 2
        if length >= 0x80:
            size += length & 0x7F
            length = int.from_bytes(head[2:size], "big")
            # One or two bytes, and no shorter form of the same length.
            if size not in (3, 4) or len(head) < size or length < (0x80 if size == 3 else 0x100):
                break
        if len(data) - at - size < length:
            break
        yield head[0], data[at + size : at + size + length]
        at += size + length
    if at != len(data):
        raise _malformed("its SGX extension is not DER")


def _malformed(what: str, todo: str = "take it from the quote or from Intel again") -> EndorsementError:
    return EndorsementError(f"a PCK certificate is malformed: {what}", todo=todo)
