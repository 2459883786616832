"""A simulated platform on disk: one directory with a document, certificates and private keys.

Made all at once (written beside, synced, renamed) and never over an existing one. Read strictly: a key that
others may read, a symbolic link, a certificate that is not its issuer's or its key's is refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.attester.simulation.chain import Chain, Signer
from cloister.attester.simulation.hardware import FIRMWARE_VERSION, Hardware, check_hardware
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import AttesterError, FormatError, UsageError

FORMAT: Final = "cloister/simulated-platform/v1"
DOCUMENT: Final = "platform.json"
ATTESTATION_KEY: Final = "attestation.key"
_SIGNERS: Final = ("root", "pck-ca", "tcb-signing", "pck")
_MAX_FILE: Final = 64 * 1024
_P = TypeVar("_P")


class _Document(Record, frozen=True, kw_only=True):
    format: Literal["cloister/simulated-platform/v1"] = FORMAT
    firmware_version: str
    created: int
    hardware: Hardware


def write_platform(
    directory: Path,
    chain: Chain,
    hardware: Hardware,
    attestation_key: ec.EllipticCurvePrivateKey,
    created: int,
) -> None:
    """Store a platform as ``directory`` (0700; private keys 0600).

    Raises :class:`UsageError` if something is there already, or if it cannot be written.
    """
    if _occupied(directory):
        raise UsageError(
            f"{directory} exists and is not replaced",
            todo="name a new directory, or load the one that is there",
        )
    document = _Document(firmware_version=FIRMWARE_VERSION, created=created, hardware=hardware)
    files: dict[str, bytes] = {DOCUMENT: encode_json(document), ATTESTATION_KEY: _pem(attestation_key)}
    for name, signer in zip(_SIGNERS, (chain.root, chain.pck_ca, chain.tcb_signing, chain.pck), strict=True):
        files[f"{name}.crt"] = signer.pem.encode("ascii")
        files[f"{name}.key"] = _pem(signer.key)
    try:
        parent = directory.absolute().parent
        beside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))  # mkdtemp makes it 0700
        try:
            for name, content in files.items():
                _write_synced(beside / name, content)
            _sync_directory(beside)
            beside.rename(directory)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync_directory(parent)
    except OSError as error:
        raise UsageError(
            f"{directory} cannot be made ({error.strerror})", todo="check the path and its permissions"
        ) from None


def read_platform(directory: Path) -> tuple[Chain, Hardware, ec.EllipticCurvePrivateKey]:
    """Read what :func:`write_platform` stored.

    Raises :class:`UsageError` if there is none, :class:`AttesterError` if it is not one.
    """
    if not directory.is_dir():
        raise UsageError(
            f"there is no simulated platform at {directory}",
            todo=f"make one: cloister simulate init {directory}",
        )
    try:
        document = decode_json(_read(directory / DOCUMENT), _Document, what=f"{directory / DOCUMENT}")
    except FormatError as error:
        raise _damaged(directory, error.what) from None
    if document.firmware_version != FIRMWARE_VERSION:
        raise AttesterError(
            f"{directory} is of simulated firmware {document.firmware_version!r}, this is {FIRMWARE_VERSION!r}",
            todo="make a new platform; its root and measurements will differ",
        )
    check_hardware(document.hardware)
    root, pck_ca, tcb_signing, pck = (_read_signer(directory, name) for name in _SIGNERS)
    for signer, issuer in ((root, root), (pck_ca, root), (tcb_signing, root), (pck, pck_ca)):
        try:
            signer.certificate.verify_directly_issued_by(issuer.certificate)
        except (InvalidSignature, ValueError, TypeError):
            raise _damaged(directory, f"{signer!r} was not issued by {issuer!r}") from None
    return Chain(root, pck_ca, tcb_signing, pck), document.hardware, _read_key(directory / ATTESTATION_KEY)


def _occupied(directory: Path) -> bool:
    if directory.is_symlink():
        return True
    if directory.is_dir():
        return any(directory.iterdir())  # rename replaces an empty directory, and only that
    return directory.exists()


def _read_signer(directory: Path, name: str) -> Signer:
    path = directory / f"{name}.crt"
    certificate = _parsed(path, x509.load_pem_x509_certificate, _read(path))
    key = _read_key(directory / f"{name}.key")
    if certificate.public_key() != key.public_key():
        raise _damaged(directory, f"{name}.crt is not the certificate of {name}.key")
    return Signer(certificate, key)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = _parsed(path, lambda pem: load_pem_private_key(pem, password=None), _read(path, secret=True))
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _damaged(path.parent, f"{path.name} is not a P-256 key")
    return key


def _parsed(path: Path, parse: Callable[[bytes], _P], pem: bytes) -> _P:
    try:
        return parse(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is dropped on purpose: a parser's message may quote the key.
        raise _damaged(path.parent, f"{path.name} cannot be parsed") from None


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _damaged(path.parent, f"{path.name} cannot be opened ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _damaged(path.parent, f"{path.name} is not a regular file")
        if secret and status.st_mode & 0o077:
            raise AttesterError(
                f"{path} may be read by others (mode {stat.S_IMODE(status.st_mode):04o})",
                todo=f"chmod 600 {path}, and make a new platform if others could have read it",
            )
        content = file.read(_MAX_FILE + 1)
    if len(content) > _MAX_FILE:
        raise _damaged(path.parent, f"{path.name} is over {_MAX_FILE} bytes long")
    return content


def _damaged(directory: Path, what: str) -> AttesterError:
    return AttesterError(
        f"{directory} is not a simulated platform: {what}",
        todo="restore it, or make a new one with another root",
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_synced(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
