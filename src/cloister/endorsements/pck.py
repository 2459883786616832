"""Intel's PCK certificate: which platform it names. SKELETON: read_pck is to be written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PckIdentity:
    """From the SGX extension (OID 1.2.840.113741.1.13.1) and the issuer; lower-case hexadecimal."""

    fmspc: str
    ppid: str
    pce_id: str
    ca: Literal["processor", "platform"]
    spki_sha256: str
    """SHA-256 of the certificate's SubjectPublicKeyInfo (DER)."""


def read_pck(der: bytes) -> PckIdentity:
    """Read, not verify. Raises :class:`~cloister.errors.EndorsementError`."""
    raise NotImplementedError
