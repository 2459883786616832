"""What a program finds in its private tmpfs: secrets and its mesh identity, as files that only its user can read.

A certificate and its key are replaced together: each pair is a folder of its own, and one link moves to the newest. Files
are overwritten before they go. The folder is the launcher's to make and to unmount.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.broker.mesh_client import MeshCredential, MeshIdentity
from cloister.errors import CloisterError
from cloister.workload.configuration import Profile

PAUSE: Final = 30.0
"""Seconds between two looks at the mesh."""
CERTIFICATE: Final = "certificate.pem"
KEY: Final = "key.pem"
ANCHORS: Final = "ca.pem"
ROOTED: Final = "ca-with-root.pem"
_ZEROS: Final = bytes(1 << 16)
_log = logging.getLogger("cloister.workload")


def write_private(path: Path, data: bytes, *, user: int) -> None:
    """A new file of mode 0400 that belongs to ``user``."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        os.fchown(descriptor, user, -1)
        file.write(data)


def erase_files(folder: Path) -> None:
    """Overwrite every file below ``folder`` with zeros, and remove all of it. What cannot be overwritten is removed."""
    if folder.is_symlink():  # never ours, and what it leads to is not either
        return
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                _erase(Path(root, name))
    shutil.rmtree(folder, ignore_errors=True)


def _erase(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return
        for start in range(0, found.st_size, len(_ZEROS)):
            file.write(_ZEROS[: found.st_size - start])


class IdentityFiles:
    """Certificate, key and anchors below ``folder``; a thread renews them in time and follows the manifest.

    Files of ``folder/current``: ``certificate.pem`` (the chain, leaf first), ``key.pem`` (PKCS #8), ``ca.pem`` (the
    generations in force) and ``ca-with-root.pem`` (these and the root).
    """

    def __init__(
        self, folder: Path, identity: MeshIdentity, *, user: int, wait: Callable[[float], bool] | None = None
    ) -> None:
        """Asks for the certificate at once. Raises what the broker refuses. ``wait`` is for tests: true ends the thread."""
        self._folder = folder
        self._identity = identity
        self._user = user
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._written: MeshCredential | None = None
        self._count = 0
        # The launcher's own: whoever could rename in it could lead its next writing astray. The files are the user's.
        folder.mkdir(mode=0o755)
        self._write(identity.credential())
        self._thread = threading.Thread(target=self._follow, name="mesh identity", daemon=True)
        self._thread.start()

    @property
    def current(self) -> Path:
        """The folder that always has the newest."""
        return self._folder / "current"

    def close(self) -> None:
        """No more renewals; the files are erased."""
        self._ended.set()
        self._thread.join(5)
        erase_files(self._folder)

    def _follow(self) -> None:
        while not self._wait(PAUSE):
            try:
                self._identity.refresh()
                newest = self._identity.credential()
                if newest is not self._written:
                    self._write(newest)
            except (CloisterError, OSError) as error:
                _log.warning("the mesh certificate was not renewed: %s", error)

    def _write(self, credential: MeshCredential) -> None:
        self._count += 1
        made = self._folder / f"{self._count}"
        made.mkdir(mode=0o755)
        private = credential.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        anchors = _pem(*credential.bundle.intermediates)
        for name, data in (
            (CERTIFICATE, _pem(*credential.chain)),
            (KEY, private),
            (ANCHORS, anchors),
            (ROOTED, anchors + _pem(credential.bundle.root)),
        ):
            write_private(made / name, data, user=self._user)
        link = self._folder / "next"
        link.symlink_to(made.name)
        link.rename(self.current)
        # Who opened the old pair's certificate a moment ago must still find its key: the last but one goes.
        erase_files(self._folder / f"{self._count - 2}")
        self._written = credential


def identity_environment(current: Path, profiles: tuple[Profile, ...]) -> Mapping[str, str]:
    """Variables that name the files: our own, and those that common programs read."""
    certificate, key = str(current / CERTIFICATE), str(current / KEY)
    anchors, rooted = str(current / ANCHORS), str(current / ROOTED)
    found = {
        "CLOISTER_MESH_CERT": certificate,
        "CLOISTER_MESH_KEY": key,
        "CLOISTER_MESH_CA": anchors,
        "CLOISTER_MESH_CA_WITH_ROOT": rooted,
    }
    by_profile: dict[Profile, dict[str, str]] = {
        "ray": {
            "RAY_USE_TLS": "1",
            "RAY_TLS_SERVER_CERT": certificate,
            "RAY_TLS_SERVER_KEY": key,
            "RAY_TLS_CA_CERT": anchors,
        },
        "grpc": {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": anchors},
        # These end a chain at a root only (OpenSSL without X509_V_FLAG_PARTIAL_CHAIN).
        "uvicorn": {
            "UVICORN_SSL_CERTFILE": certificate,
            "UVICORN_SSL_KEYFILE": key,
            "UVICORN_SSL_CA_CERTS": rooted,
            "UVICORN_SSL_CERT_REQS": "2",
        },
        "postgres": {
            "PGSSLCERT": certificate,
            "PGSSLKEY": key,
            "PGSSLROOTCERT": rooted,
            "PGSSLMODE": "verify-full",
        },
    }
    for profile in profiles:
        found |= by_profile[profile]
    return found


def _pem(*certificates: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in certificates)
