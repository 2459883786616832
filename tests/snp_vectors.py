"""Captured SEV-SNP reports and certificates by name, for every test that needs real ones."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cloister.endorsements.amd import encode_snp_endorsements, endorsements_for
from cloister.endorsements.x509 import read_pem_certificates
from shared_data import vectors

MILAN, COCO, VLEK, DEBUG = "milan", "coco", "vlek", "debug"
REPORTS = {
    MILAN: "virtee-sev/report_milan.hex",
    COCO: "coco-trustee/snp/test-report.bin",
    VLEK: "coco-trustee/snp/test-vlek-report.bin",
    DEBUG: "google-go-sev-guest/attestation.bin",
}
KEYS = {
    MILAN: "virtee-sev/vcek_milan.der",
    COCO: "coco-trustee/snp/test-vcek.der",
    VLEK: "coco-trustee/snp/test-vlek.der",
    DEBUG: "google-go-sev-guest/vcek.testcer",
    "legacy": "coco-trustee/snp/test-vcek-invalid-legacy.der",
    "turin": "virtee-sev/vcek_turin.der",
}


def at(day: str) -> int:
    """Unix seconds of noon, UTC."""
    return int(datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=UTC).timestamp())


NOW = at("2025-06-15")
"""When every captured certificate holds; the VLEK's ended in December 2025."""


@cache
def report(name: str) -> bytes:
    path = vectors(REPORTS[name])
    return bytes.fromhex(path.read_text().strip()) if path.suffix == ".hex" else path.read_bytes()


@cache
def signing_key(name: str) -> bytes:
    """DER of a VCEK or VLEK; go-sev-guest's is DER too, whatever its name says."""
    return vectors(KEYS[name]).read_bytes()


@cache
def endorsements(name: str) -> bytes:
    """With AMD's chain from this package's data; nobody captured a revocation list."""
    return encode_snp_endorsements(endorsements_for(signing_key(name)))


@cache
def chain(name: str, count: int) -> tuple[bytes, ...]:
    """The certificates of a captured PEM file."""
    return read_pem_certificates(vectors(name).read_bytes(), what=name, count=count)
