"""SSH keys and signatures for tests: real ``ssh-keygen`` output, and security tokens by hand (PROTOCOL.u2f).

A token here is an ordinary private key whose signatures are laid out as OpenSSH lays out a token's.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.manifest.ssh import MAGIC, ssh_string


def make_ssh_key(path: Path, kind: str = "ed25519") -> Path:
    """A key pair by ssh-keygen, without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


def mpint(number: int) -> bytes:
    return ssh_string(number.to_bytes(number.bit_length() // 8 + 1, "big"))


def frame(
    blob: bytes,
    raw: bytes,
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    namespace: bytes = b"cloister",
    reserved: bytes = b"",
    algorithm: bytes = b"sha512",
) -> bytes:
    """An SSHSIG around a raw signature."""
    fields = b"".join(ssh_string(part) for part in (blob, namespace, reserved, algorithm, raw))
    return magic + version.to_bytes(4, "big") + fields


def to_be_signed(
    message: bytes, *, namespace: bytes = b"cloister", reserved: bytes = b"", algorithm: bytes = b"sha512"
) -> bytes:
    digest = hashlib.new(algorithm.decode(), message).digest()
    return MAGIC + b"".join(ssh_string(part) for part in (namespace, reserved, algorithm, digest))


class Ed25519Token:
    """A security token with an Ed25519 key."""

    kind = b"sk-ssh-ed25519@openssh.com"

    def __init__(self, seed: bytes = bytes(32), application: bytes = b"ssh:") -> None:
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.application = application
        self.blob = b"".join(
            ssh_string(part) for part in (self.kind, self._key.public_key().public_bytes_raw(), application)
        )

    def core(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def raw(self, signed: bytes, *, flags: int = 1, counter: int = 7) -> bytes:
        trailer = bytes([flags]) + counter.to_bytes(4, "big")
        data = hashlib.sha256(self.application).digest() + trailer + hashlib.sha256(signed).digest()
        return ssh_string(self.kind) + ssh_string(self.core(data)) + trailer

    def sign(self, message: bytes, *, flags: int = 1) -> bytes:
        return frame(self.blob, self.raw(to_be_signed(message), flags=flags))


class P256Token(Ed25519Token):
    """A security token with a key on P-256."""

    kind = b"sk-ecdsa-sha2-nistp256@openssh.com"

    def __init__(self, secret: int = 12345, application: bytes = b"ssh:") -> None:
        self._p256 = ec.derive_private_key(secret, ec.SECP256R1())
        self.application = application
        point = self._p256.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.blob = b"".join(ssh_string(part) for part in (self.kind, b"nistp256", point, application))

    def core(self, data: bytes) -> bytes:
        r, s = decode_dss_signature(self._p256.sign(data, ec.ECDSA(SHA256())))
        return mpint(r) + mpint(s)
