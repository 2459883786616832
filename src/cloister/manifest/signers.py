"""Who can sign: a seed, a P-256 key, or whatever ``ssh-keygen`` reaches (a file, an agent, a security token).

Private keys stay in objects that show only the public half. ``ssh-keygen`` is run without a shell, for a bounded time,
and what it made is checked before it is believed.
"""

from __future__ import annotations

import base64
import binascii
import shutil
import subprocess
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from cloister.errors import SignatureRefused, UsageError
from cloister.manifest.owner_key import parse_public_key, ssh_key_text

SSH_SECONDS: Final = 120
"""Time for a person to find the token and touch it."""
_MAX_PUBLIC_FILE: Final = 16 * 1024
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"


class Signer(Protocol):
    """Somebody who signs."""

    @property
    def key(self) -> str:
        """The public key's text."""
        ...

    def sign(self, message: bytes) -> bytes:
        """A signature that :func:`~cloister.manifest.owner_key.parse_public_key` of ``key`` verifies."""
        ...


class Ed25519Signer:
    """Signs with the key of a 32-byte seed, as ``cloister keys new --signing`` makes it."""

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.key = f"ed25519:{self._private.public_key().public_bytes_raw().hex()}"

    def __repr__(self) -> str:
        return f"Ed25519Signer({self.key})"

    def sign(self, message: bytes) -> bytes:
        """64 bytes (RFC 8032)."""
        return self._private.sign(message)


class Es256Signer:
    """Signs with ECDSA on P-256; ``pem`` is an unencrypted private key (PKCS #8 or SEC 1)."""

    def __init__(self, pem: bytes) -> None:
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            # TypeError: it is encrypted. What the library says may quote the file.
            raise UsageError(
                "that is no unencrypted private key in PEM", todo="give a P-256 key, or use an SSH key"
            ) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise UsageError("the private key is not on P-256", todo="ES256 needs a P-256 key")
        self._private = private
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        self.key = f"es256:{point.hex()}"

    def __repr__(self) -> str:
        return f"Es256Signer({self.key})"

    def sign(self, message: bytes) -> bytes:
        """64 bytes: r and s."""
        r, s = decode_dss_signature(self._private.sign(message, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class SshSigner:
    """Signs through ``ssh-keygen -Y sign``: ``path`` is a private key, or a ``.pub`` file whose key an agent holds."""

    def __init__(self, path: Path, *, seconds: float = SSH_SECONDS) -> None:
        self._path, self._seconds = path.absolute(), seconds
        self.key = read_ssh_public_key(path if path.suffix == ".pub" else path.with_name(path.name + ".pub"))

    def __repr__(self) -> str:
        return f"SshSigner({self.key})"

    def sign(self, message: bytes) -> bytes:
        """The binary SSHSIG. Raises :class:`~cloister.errors.UsageError`."""
        program = shutil.which("ssh-keygen")
        if program is None:
            raise UsageError("ssh-keygen is not installed", todo="install OpenSSH's client")
        command = [program, "-Y", "sign", "-n", "cloister", "-f", str(self._path)]
        try:
            # Its standard error stays the caller's: that is where it asks for a touch or says why it refuses.
            done = subprocess.run(  # noqa: S603 -- no shell, a fixed program, the path is one argument
                command, input=message, stdout=subprocess.PIPE, timeout=self._seconds, check=False
            )
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"ssh-keygen made no signature within {self._seconds:g} seconds",
                todo="touch the token when it blinks, then try again",
            ) from None
        except OSError as error:
            raise UsageError(f"ssh-keygen cannot be run: {error.strerror}") from None
        if done.returncode:
            raise UsageError(
                f"ssh-keygen did not sign (exit status {done.returncode})",
                todo="check the key file, its agent or its token",
            )
        signature = _dearmoured(done.stdout)
        try:
            parse_public_key(self.key).verify(message, signature)
        except SignatureRefused as error:
            raise UsageError(
                f"ssh-keygen signed with another key than {self._path.name} shows: {error.what}",
                todo="keep the private key and its .pub file together",
            ) from None
        return signature


def read_ssh_public_key(path: Path) -> str:
    """The text of the key in a ``.pub`` file. Raises :class:`~cloister.errors.UsageError`, or ManifestError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PUBLIC_FILE + 1)
    except OSError as error:
        raise UsageError(
            f"the public key {path} cannot be read ({error.strerror})",
            todo="make it with `ssh-keygen -y -f KEY > KEY.pub`",
        ) from None
    words = data.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error, ValueError):
        raise UsageError(f"{path} is not a public key of SSH", todo="name a .pub file") from None
    return parse_public_key(ssh_key_text(blob)).text


def _dearmoured(armoured: bytes) -> bytes:
    try:
        lines = armoured.decode("ascii").split()
        text = " ".join(lines)
        if not (text.startswith(_BEGIN) and text.endswith(_END)):
            raise ValueError
        inner = text.removeprefix(_BEGIN).removesuffix(_END).replace(" ", "")
        return base64.b64decode(inner, validate=True)
    except (UnicodeDecodeError, binascii.Error, ValueError):
        raise UsageError("ssh-keygen answered with something that is no signature") from None
