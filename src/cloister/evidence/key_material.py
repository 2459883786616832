"""The keys that a workload shows under its quote (docs/spec/key-material.md).

Strict JSON. Its exact transported bytes are hashed into the binding, so there is one encoding per document
and nobody re-encodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import FormatError

FORMAT: Final = "cloister/key-material/v1"
MAX_KEY_MATERIAL = 64 * 1024


@dataclass(frozen=True, slots=True)
class BrokerIdentity:
    """What a key broker shows of itself in its key material; the fields are those of :class:`KeyMaterial`."""

    mesh_root_sha256: str | None = None
    manifest_sha256: str | None = None


class KeyMaterial(Record, frozen=True, kw_only=True):
    """Public keys of one replica. Private halves live in its memory and are erased when they rotate."""

    format: Literal["cloister/key-material/v1"] = FORMAT
    ohttp_keys: bytes
    """An ``application/ohttp-keys`` list (RFC 9458, section 3.2), preferred first."""
    not_after: int
    """Unix seconds: after this the private keys are gone."""
    replica: str
    """Routing hint: which replica holds the private keys."""
    tls_spki_sha256: str | None = None
    """Lower-case hexadecimal digest of the server's TLS key, where it has one."""
    mesh_root_sha256: str | None = None
    """Of a key broker: SHA-256 of the root certificate (DER) of the mesh that it certifies, hexadecimal."""
    manifest_sha256: str | None = None
    """Of a key broker: digest of the manifest in force, hexadecimal."""
    receipt_public_key: str | None = None
    """Ed25519 public key that signs receipts of answers, hexadecimal; None where none are given."""


def parse_key_material(data: bytes) -> KeyMaterial:
    """Decode key material. Raises :class:`~cloister.errors.FormatError`."""
    material = decode_json(data, KeyMaterial, what="key material", limit=MAX_KEY_MATERIAL)
    if not material.ohttp_keys:
        raise FormatError("key material names no key")
    if not 1 <= len(material.replica) <= 128:
        raise FormatError("key material names no replica (1 to 128 characters)")
    for name in ("tls_spki_sha256", "mesh_root_sha256", "manifest_sha256", "receipt_public_key"):
        digest = getattr(material, name)
        if digest is not None:
            from_hex(digest, 32, what=f"{name} of the key material")
    return material


def encode_key_material(material: KeyMaterial) -> bytes:
    """The canonical wire form: what is sent is what is hashed."""
    return encode_json(material)
