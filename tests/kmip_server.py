"""PyKMIP's own server as a process, over mutual TLS with certificates made for it; its objects are in a SQLite file.

The server is PyKMIP's ``KmipServer``, unchanged, and not by its own command, which writes below /var/log. Each is forked
from a process that has loaded PyKMIP once: loading takes seconds. It speaks TLS 1.2.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import multiprocessing
import os
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ports import free_port

DAY = datetime.timedelta(days=1)
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["kmip.services.server"])


@dataclass(frozen=True)
class Identity:
    """A certificate and its key as files."""

    certificate: Path
    key: Path


@dataclass(frozen=True)
class TestAuthority:
    """A CA in a directory."""

    directory: Path
    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    __test__ = False

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        certificate = (
            self._builder(self.name, self.key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))

    @property
    def file(self) -> Path:
        return self.directory / f"{self.name}.pem"

    def issue(self, name: str, *, server: bool = False, address: str = "127.0.0.1") -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        builder = self._builder(name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if server:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        identity = Identity(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        identity.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return identity

    def _builder(self, name: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
        )


class KmipServerProcess:
    """One server. ``kill`` ends it at once; ``start`` brings it back with the same objects."""

    def __init__(self, directory: Path, authority: TestAuthority, identity: Identity) -> None:
        self.directory = directory
        self.authority = authority
        self.port = free_port()
        self._process: ForkServerProcess | None = None
        (directory / "policies").mkdir(parents=True)
        self.log = directory / "server.log"
        self.database = directory / "kmip.sqlite"
        self._configuration = directory / "server.json"
        self._configuration.write_text(
            json.dumps(
                {
                    "hostname": "127.0.0.1",
                    "port": self.port,
                    "certificate_path": str(identity.certificate),
                    "key_path": str(identity.key),
                    "ca_path": str(authority.file),
                    "auth_suite": "TLS1.2",
                    "policy_path": str(directory / "policies"),
                    "database_path": str(self.database),
                    "log_path": str(self.log),
                    "logging_level": "INFO",
                }
            )
        )

    def start(self) -> None:
        self._process = _LOADED.Process(target=_serve, args=(self._configuration, self.directory / "stderr"))
        self._process.start()
        deadline = time.monotonic() + 60
        while True:
            assert self._process.is_alive(), (self.directory / "stderr").read_text()
            assert time.monotonic() < deadline, "the KMIP server does not come up"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        if self._process is not None:
            self._signal(9)
            self._process.join(20)
            self._process = None

    def stop_answering(self) -> None:
        """It keeps its connections and says nothing more."""
        self._signal(19)

    def answer_again(self) -> None:
        self._signal(18)

    def _signal(self, number: int) -> None:
        """To it and its policy monitor, which is a process of its own."""
        assert self._process is not None
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)


def _serve(configuration: Path, errors: Path) -> None:
    """In a process of its own, with a group of its own."""
    from kmip.services.server import KmipServer

    os.setsid()
    with errors.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    server = KmipServer(
        config_path=None, enable_tls_client_auth=True, **json.loads(configuration.read_text())
    )
    server.start()
    server.serve()
