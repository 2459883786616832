"""HCL reports as Azure's paravisor makes them, around a simulated SEV-SNP processor and any attestation key."""

from __future__ import annotations

import hashlib
import json
from functools import cache

from cryptography.hazmat.primitives.asymmetric import rsa

from cloister.attester.simulation.snp import SimulatedSnp
from cloister.encoding import b64url_encode
from handmade_tpm import NOW


@cache
def processor() -> SimulatedSnp:
    """One simulated processor for the whole run: its RSA-4096 keys take seconds."""
    return SimulatedSnp.generate(now=NOW)


def jwk(key: rsa.RSAPublicKey, kid: str = "HCLAkPub") -> dict[str, object]:
    numbers = key.public_numbers()
    return {
        "kid": kid,
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": b64url_encode(numbers.e.to_bytes(3, "big")),
        "n": b64url_encode(numbers.n.to_bytes(key.key_size // 8, "big")),
    }


def runtime_data(ak: rsa.RSAPublicKey, **changes: object) -> bytes:
    document: dict[str, object] = {
        "keys": [jwk(ak), jwk(ak, "HCLEkPub")],
        "vm-configuration": {"console-enabled": True, "secure-boot": True, "vmUniqueId": "0-1", "extra": [1]},
        "user-data": "00" * 64,
    }
    document.update(changes)
    return json.dumps(document).encode()


def hcl_report(
    data: bytes,
    snp_report: bytes,
    *,
    signature: bytes = b"HCLA",
    size: int | None = None,
    data_size: int | None = None,
    version: int = 1,
    kind: int = 2,
    hash_type: int = 1,
    length: int | None = None,
    header: tuple[int, int, int, int, int, int] = (1, 2, 0, 0, 0, 0),
) -> bytes:
    """The report around ``data`` (runtime data) and a SEV-SNP report."""

    def u32(*values: int) -> bytes:
        return b"".join(value.to_bytes(4, "little") for value in values)

    length = len(data) if length is None else length
    body = u32(20 + len(data) if data_size is None else data_size, version, kind, hash_type, length) + data
    total = 32 + len(snp_report) + len(body)
    first, *rest = header
    return signature + u32(first, total if size is None else size, *rest) + snp_report + body


def sealed_report(data: bytes, *, report_data: bytes | None = None) -> bytes:
    """An HCL report whose SEV-SNP report seals ``data``."""
    sealed = hashlib.sha256(data).digest() + bytes(32) if report_data is None else report_data
    return hcl_report(data, processor().sign(processor().report(sealed)))
