"""The keys that a workload shows under its quote (docs/spec/key-material.md).

Strict JSON. Its exact transported bytes are hashed into the binding, so there is one encoding per document
and nobody re-encodes it.
"""

from __future__ import annotations

from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import FormatError

FORMAT: Final = "cloister/key-material/v1"
MAX_KEY_MATERIAL = 64 * 1024


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


def parse_key_material(data: bytes) -> KeyMaterial:
    """Decode key material. Raises :class:`~cloister.errors.FormatError`."""
    material = decode_json(data, KeyMaterial, what="key material", limit=MAX_KEY_MATERIAL)
    if not material.ohttp_keys:
        raise FormatError("key material names no key")
    if not 1 <= len(material.replica) <= 128:
        raise FormatError("key material names no replica (1 to 128 characters)")
    if material.tls_spki_sha256 is not None:
        from_hex(material.tls_spki_sha256, 32, what="tls_spki_sha256 of the key material")
    return material


def encode_key_material(material: KeyMaterial) -> bytes:
    """The canonical wire form: what is sent is what is hashed."""
    return encode_json(material)
