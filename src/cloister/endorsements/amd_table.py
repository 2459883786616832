"""The certificate table that a host hands to its guest with an extended report (AMD, "GHCB Standardization", 56421).

Linux gives it as ``auxblob`` of configfs-tsm. It comes from the host, so it is only taken apart: bounded, every entry
inside the table, none twice, none overlapping the header. Entries with GUIDs that are not known are left aside.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from cloister.endorsements.amd import SnpEndorsements, endorsements_for
from cloister.endorsements.x509 import MAX_CERTIFICATE, MAX_LIST, read_certificate, read_pem_certificates
from cloister.errors import EndorsementError

MAX_TABLE = 256 * 1024
MAX_ENTRIES = 16
_ENTRY = 24
_NAMES: Final = {
    uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: "vcek",
    uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes: "vlek",
    uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: "intermediate",
    uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes: "root",
    uuid.UUID("92f81bc3-5811-4d3d-97ff-d19f88dc67ea").bytes: "crl",
}


@dataclass(frozen=True, slots=True)
class CertificateTable:
    """What the host provided, in DER; empty where it did not."""

    vcek: bytes = b""
    vlek: bytes = b""
    intermediate: bytes = b""
    """ASK or ASVK."""
    root: bytes = b""
    crl: bytes = b""

    def endorsements(self, signing_key: str, *, crl: bytes = b"") -> SnpEndorsements:
        """For a report signed by its ``signing_key`` (``vcek`` or ``vlek``).

        A chain that is not whole here, or is of the other kind of key, is replaced by that of this package's data;
        ``crl`` replaces the table's own.
        Raises :class:`~cloister.errors.EndorsementError` where the key's certificate is not in the table.
        """
        certificate = self.vlek if signing_key == "vlek" else self.vcek
        if not certificate:
            raise EndorsementError(
                f"the host's certificate table has no {signing_key.upper()}",
                todo="fetch the certificate (AMD KDS), or have the host load it",
            )
        issuer = read_certificate(certificate).issuer
        if not (self.intermediate and self.root) or read_certificate(self.intermediate).subject != issuer:
            return endorsements_for(certificate, crl=crl or self.crl)
        return SnpEndorsements(
            signing_key=certificate, intermediate=self.intermediate, root=self.root, crl=crl or self.crl
        )


def parse_certificate_table(data: bytes) -> CertificateTable:
    """Take the table apart; empty data is an empty table. Raises :class:`~cloister.errors.EndorsementError`."""
    if len(data) > MAX_TABLE:
        raise _malformed(f"it is {len(data)} bytes long, over its bound of {MAX_TABLE}")
    entries: list[tuple[bytes, int, int]] = []
    at = 0
    while data:
        entry = data[at : at + _ENTRY]
        if len(entry) != _ENTRY:
            raise _malformed("its header does not end")
        at += _ENTRY
        if not entry.strip(b"\0"):
            break
        if len(entries) == MAX_ENTRIES:
            raise _malformed(f"it has more than {MAX_ENTRIES} entries")
        offset, length = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        entries.append((entry[:16], offset, length))
    found: dict[str, bytes] = {}
    for guid, offset, length in entries:
        name = _NAMES.get(guid)
        if name is None:
            continue
        if name in found:
            raise _malformed(f"it has two entries for {name}")
        if offset < at or not length or offset + length > len(data):
            raise _malformed(f"its entry for {name} is not inside it")
        if length > (MAX_LIST if name == "crl" else 2 * MAX_CERTIFICATE):
            raise _malformed(f"its entry for {name} is {length} bytes long")
        found[name] = _der(data[offset : offset + length], name)
    return CertificateTable(**found)


def _der(content: bytes, name: str) -> bytes:
    # Hosts load what their operator gave them; tools accept both encodings of a certificate.
    if name != "crl" and content.startswith(b"-----BEGIN"):
        return read_pem_certificates(content, what=f"the host's {name}", count=1)[0]
    return content


def _malformed(why: str) -> EndorsementError:
    return EndorsementError(f"the host's certificate table is malformed: {why}")
