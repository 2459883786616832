"""SSH keys and signatures (OpenSSH's PROTOCOL.sshsig and PROTOCOL.u2f), parsed to the last byte. Pure.

Four kinds of keys are known: Ed25519 and ECDSA on P-256, each plain or on a security token. A signature counts only in
the namespace ``cloister``, so nothing that was signed for git, mail or a login is ever taken for an owner's word, and a
token's only with the mark that somebody touched it. Refused: RSA, DSA, certificates, WebAuthn's form, other versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from cloister.errors import SignatureRefused

NAMESPACE: Final = b"cloister"
MAGIC: Final = b"SSHSIG"
MAX_KEY: Final = 512
"""Bytes of a key blob; a token's application name is the only part without a fixed length."""
MAX_SIGNATURE: Final = 2048

_USER_PRESENT: Final = 0x01
_HASHES: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"sha256": lambda message: hashlib.sha256(message).digest(),
    b"sha512": lambda message: hashlib.sha512(message).digest(),
}
_COORDINATE: Final = 32

Curve = Literal["ed25519", "p256"]


@dataclass(frozen=True, slots=True)
class SshKey:
    """A public key blob that was parsed."""

    blob: bytes
    kind: bytes
    curve: Curve
    point: bytes
    """32 bytes of Ed25519, or a compressed point of P-256."""
    application: bytes | None
    """What a token's key is for (``ssh:``); None for a key that lives in a file."""

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a binary SSHSIG of ``message``. Raises :class:`~cloister.errors.SignatureRefused`."""
        signed, raw = _open(self.blob, message, signature)
        reader = _Reader(raw, "the SSH signature")
        if reader.string() != self.kind:
            raise SignatureRefused("an SSH signature is of another kind than its key")
        core = reader.string()
        if self.application is not None:
            trailer = reader.take(5)  # flags, then a counter of the token
            if not trailer[0] & _USER_PRESENT:
                raise SignatureRefused("a security token signed without being touched")
            signed = b"".join(
                (hashlib.sha256(self.application).digest(), trailer, hashlib.sha256(signed).digest())
            )
        reader.end()
        if self.curve == "ed25519":
            verify_ed25519(self.point, signed, core)
        else:
            verify_p256(self.point, signed, _mpint_pair(core))


_KINDS: Final[dict[bytes, tuple[Curve, bool]]] = {
    b"ssh-ed25519": ("ed25519", False),
    b"ecdsa-sha2-nistp256": ("p256", False),
    b"sk-ssh-ed25519@openssh.com": ("ed25519", True),
    b"sk-ecdsa-sha2-nistp256@openssh.com": ("p256", True),
}


def parse_ssh_key(blob: bytes) -> SshKey:
    """Parse a public key blob. Raises :class:`~cloister.errors.SignatureRefused`."""
    if len(blob) > MAX_KEY:
        raise SignatureRefused(f"an SSH key is longer than {MAX_KEY} bytes")
    reader = _Reader(blob, "the SSH key")
    kind = reader.string()
    if kind not in _KINDS:
        raise SignatureRefused(
            "an SSH key is of a kind that is not accepted",
            todo="use ssh-ed25519, ecdsa-sha2-nistp256, or the same two on a security token",
        )
    curve, token = _KINDS[kind]
    if curve == "ed25519":
        point = reader.string()
        if len(point) != 32:
            raise SignatureRefused("an Ed25519 key has 32 bytes")
    else:
        if reader.string() != b"nistp256":
            raise SignatureRefused("an ECDSA key of SSH is not on the curve that its kind says")
        point = _compressed(reader.string())
    application = reader.string() if token else None
    reader.end()
    return SshKey(blob, kind, curve, point, application)


def verify_ed25519(point: bytes, message: bytes, signature: bytes) -> None:
    """RFC 8032. Raises :class:`~cloister.errors.SignatureRefused`."""
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(point).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise SignatureRefused("an Ed25519 signature does not verify") from None


def verify_p256(point: bytes, message: bytes, pair: tuple[int, int]) -> None:
    """ECDSA with SHA-256 over ``(r, s)``. Raises :class:`~cloister.errors.SignatureRefused`."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        key.verify(encode_dss_signature(*pair), message, ec.ECDSA(SHA256()))
    except (InvalidSignature, ValueError):
        raise SignatureRefused("an ECDSA signature does not verify") from None


def _open(key: bytes, message: bytes, signature: bytes) -> tuple[bytes, bytes]:
    """What the key signed for ``message``, and its raw signature, out of an SSHSIG frame."""
    if len(signature) > MAX_SIGNATURE:
        raise SignatureRefused(f"an SSH signature is longer than {MAX_SIGNATURE} bytes")
    reader = _Reader(signature, "the SSH signature")
    if reader.take(len(MAGIC)) != MAGIC or reader.take(4) != b"\0\0\0\1":
        raise SignatureRefused("a signature of an SSH key is not an SSHSIG of version 1")
    if reader.string() != key:
        raise SignatureRefused("an SSH signature names another key than the one it stands beside")
    if reader.string() != NAMESPACE:
        raise SignatureRefused(
            "an SSH signature was made for something else", todo="sign with `ssh-keygen -Y sign -n cloister`"
        )
    if reader.string():
        raise SignatureRefused("an SSH signature fills a field that is reserved")
    algorithm = reader.string()
    if algorithm not in _HASHES:
        raise SignatureRefused("an SSH signature uses another hash than sha256 or sha512")
    raw = reader.string()
    reader.end()
    digest = _HASHES[algorithm](message)
    return MAGIC + b"".join(ssh_string(part) for part in (NAMESPACE, b"", algorithm, digest)), raw


def ssh_string(data: bytes) -> bytes:
    """Bytes behind their four-byte length (RFC 4251, section 5)."""
    return len(data).to_bytes(4, "big") + data


class _Reader:
    """Takes fields off the front; never reads past the end, never leaves a rest unseen."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._at, self._what = data, 0, what

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise SignatureRefused(f"{self._what} ends too early")
        part, self._at = self._data[self._at : end], end
        return part

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))

    def end(self) -> None:
        if self._at != len(self._data):
            raise SignatureRefused(f"{self._what} goes on behind its end")


def _compressed(encoded: bytes) -> bytes:
    """The one spelling of a point that SSH writes uncompressed."""
    if len(encoded) != 1 + 2 * _COORDINATE or encoded[0] != 4:
        raise SignatureRefused("a P-256 key of SSH is not an uncompressed point")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), encoded)
    except ValueError:
        raise SignatureRefused("a P-256 key is not a point of its curve") from None
    return bytes([2 + (encoded[-1] & 1)]) + encoded[1 : 1 + _COORDINATE]


def _mpint_pair(data: bytes) -> tuple[int, int]:
    reader = _Reader(data, "the ECDSA signature")
    pair = (_positive(reader.string()), _positive(reader.string()))
    reader.end()
    return pair


def _positive(number: bytes) -> int:
    """An mpint (RFC 4251): positive, no longer than it has to be."""
    # A zero in front is there only when the next bit would make the number negative.
    canonical = number[:1] < b"\x80" and (number[:1] > b"\0" or number[1:2] >= b"\x80")
    if not canonical or len(number) > _COORDINATE + 1:
        raise SignatureRefused("an ECDSA signature of SSH holds a number in a form that is not allowed")
    return int.from_bytes(number, "big")
