"""An owner's public key as one line of text, and the check of its signatures (docs/spec/signed-document.md). Pure.

Three forms: ``ed25519:``, ``es256:`` and ``ssh:``. Each key has one spelling within its form, and :attr:`PublicKey.identity`
tells that two forms are the same key, so that nobody counts twice by writing a key in two ways. Verification raises.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.encoding import from_hex
from cloister.errors import FormatError, ManifestError, SignatureRefused
from cloister.manifest.ssh import MAX_KEY, parse_ssh_key, verify_ed25519, verify_p256

MAX_KEY_TEXT: Final = 4 + 4 * (MAX_KEY + 2) // 3
_FORMS: Final = "write ed25519:<64 hex>, es256:<66 hex> or ssh:<base64>, as `cloister manifest key` prints it"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may sign. Made by :func:`parse_public_key`."""

    text: str
    """The form that manifests carry."""
    identity: str
    """The same for the same key, however it is written."""
    _check: Callable[[bytes, bytes], None] = field(repr=False, compare=False)

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raise :class:`~cloister.errors.SignatureRefused` unless ``signature`` is this key's over ``message``."""
        self._check(message, signature)


def parse_public_key(text: str) -> PublicKey:
    """Parse a key's text. Raises :class:`~cloister.errors.ManifestError`."""
    form, colon, value = text.partition(":")
    if not colon or len(text) > MAX_KEY_TEXT:
        raise ManifestError("an owner's key is in no form that is known", todo=_FORMS)
    try:
        if form == "ed25519":
            return _ed25519(text, from_hex(value, 32, what="an Ed25519 key"))
        if form == "es256":
            return _es256(text, from_hex(value, 33, what="a P-256 key"))
        if form == "ssh":
            return _ssh(text, _base64(value))
    except (FormatError, SignatureRefused) as error:
        raise ManifestError(
            f"an owner's key cannot be read: {error.what}", todo=error.todo or _FORMS
        ) from None
    raise ManifestError("an owner's key is in no form that is known", todo=_FORMS)


def _ed25519(text: str, point: bytes) -> PublicKey:
    def check(message: bytes, signature: bytes) -> None:
        verify_ed25519(point, message, signature)

    return PublicKey(text, f"ed25519 {point.hex()}", check)


def _es256(text: str, point: bytes) -> PublicKey:
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise ManifestError("a P-256 key is not a point of its curve", todo=_FORMS) from None

    def check(message: bytes, signature: bytes) -> None:
        if len(signature) != 64:
            raise SignatureRefused("an ES256 signature has 64 bytes")
        pair = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
        verify_p256(point, message, pair)

    return PublicKey(text, f"p256 {point.hex()}", check)


def _ssh(text: str, blob: bytes) -> PublicKey:
    key = parse_ssh_key(blob)
    return PublicKey(text, f"{key.curve} {key.point.hex()}", key.verify)


def ssh_key_text(blob: bytes) -> str:
    """The text of an SSH public key blob (the second word of a ``.pub`` file, decoded)."""
    return "ssh:" + base64.b64encode(blob).decode("ascii")


def _base64(text: str) -> bytes:
    try:
        value = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise FormatError("it is not base64") from None
    if base64.b64encode(value).decode("ascii") != text:
        raise FormatError("it is not base64 in its one spelling")
    return value
