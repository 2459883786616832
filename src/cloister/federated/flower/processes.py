"""Flower's own processes: a SuperLink beside the aggregator, a SuperNode beside a party's workload, each on loopback alone.

Both speak TLS with a key made for the occasion, and nobody outside reaches them: what comes from outside comes through
relay.py. Each has a folder of its own in memory as its FLWR_HOME. What Flower prints goes to one private log file.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import secrets
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.errors import FederationError
from cloister.federated.flower.app import write_app
from cloister.federated.flower.launcher import Started
from cloister.federated.flower.programs import Programs
from cloister.federated.identity import public_openssh
from cloister.federated.upstream import connections

HOST: Final = "127.0.0.1"
START_SECONDS: Final = 60.0
_CONNECTION: Final = "here"


@dataclass(frozen=True, slots=True)
class Loopback:
    """A certificate for this machine's loopback, and its key, as files that only this user reads."""

    certificate: Path
    key: Path

    @classmethod
    def make(cls, folder: Path) -> Loopback:
        """Fresh, for a month, into ``folder``."""
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=31))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, SHA384())
        )
        found = cls(folder / "loopback.pem", folder / "loopback.key")
        write_private(found.certificate, certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(found.key, private)
        return found


def write_private(path: Path, data: bytes) -> None:
    """A new file that only this user reads."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def free_port() -> int:
    """A port of loopback that nobody has at this moment; who listens on it finds out whether that is still so."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        port: int = found.getsockname()[1]
    return port


class SuperLink:
    """Flower's server, and how parties' nodes and the run are told to it. Raises FederationError where it does not start."""

    def __init__(self, folder: Path, *, environment: Mapping[str, str]) -> None:
        """``folder`` is private and empty; ``environment`` is handed on to the ServerApp."""
        self._folder = folder
        self._loopback = Loopback.make(folder)
        self.port = free_port()
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n[superlink.{_CONNECTION}]\naddress = "{HOST}:{self.port}"\n'
            f'root-certificates = "{self._loopback.certificate}"\n',
            "utf-8",
        )
        self._programs = Programs(folder)
        self._environment = {"FLWR_HOME": str(home), **environment}
        self._process = self._programs.start(
            "flower-superlink",
            [
                "--host", HOST, "--port", str(self.port),
                "--ssl-certfile", str(self._loopback.certificate), "--ssl-keyfile", str(self._loopback.key),
                "--ssl-ca-certfile", str(self._loopback.certificate),
                "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            ],
            self._environment, folder / "superlink.log",
        )  # fmt: skip
        try:
            _wait_for(self.port, self._process, "Flower's SuperLink")
        except BaseException:
            self.close()
            raise

    def connections(self) -> urllib3.HTTPSConnectionPool:
        """For what is passed on to it."""
        context = ssl.create_default_context(cadata=self._loopback.certificate.read_text("ascii"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return connections(f"{HOST}:{self.port}", context)

    def register(self, spki: bytes) -> int:
        """The node's number for the SuperNode with this key (DER), which was read out of evidence."""
        path = self._folder / f"node-{secrets.token_hex(8)}.pub"
        path.write_bytes(public_openssh(spki))
        try:
            answer = self._call("supernode", "register", str(path), _CONNECTION)
        finally:
            path.unlink(missing_ok=True)
        return int(answer["node-id"])

    def unregister(self, node: int) -> None:
        """Nothing of this node is taken any more."""
        with contextlib.suppress(FederationError):  # it may have gone by itself
            self._call("supernode", "unregister", str(node), _CONNECTION)

    def run(self) -> None:
        """Start the ServerApp."""
        app = self._folder / "app"
        app.mkdir()
        write_app(app)
        self._call("run", str(app), _CONNECTION)

    def close(self) -> None:
        self._process.close()
        self._programs.close()

    def _call(self, *arguments: str) -> dict[str, str]:
        try:
            answer: dict[str, str] = json.loads(
                self._programs.call("flwr", [*arguments, "--format", "json"], self._environment)
            )
        except ValueError:
            raise FederationError("Flower's command line does not answer as it should") from None
        if not answer.get("success"):
            reason = " ".join(str(answer.get("error-message", "")).split())[:200]
            raise FederationError(f"Flower refuses `{arguments[0]} {arguments[1][:16]}`: {reason}")
        return answer


class SuperNode:
    """A party's node. ``forward`` is the port of the relay on loopback that leads to the aggregator."""

    def __init__(
        self,
        programs: Programs,
        folder: Path,
        *,
        forward: int,
        root: Path,
        key: bytes,
        environment: Mapping[str, str],
    ) -> None:
        home = folder / "home"
        home.mkdir()
        private = folder / "node.key"
        write_private(private, key)
        self._process = programs.start(
            "flower-supernode",
            [
                "--superlink", f"{HOST}:{forward}", "--root-certificates", str(root),
                "--auth-supernode-private-key", str(private), "--host", HOST, "--port", str(free_port()),
                "--max-wait-time", "600",
            ],
            {"FLWR_HOME": str(home), **environment}, folder / "supernode.log",
        )  # fmt: skip

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.close()


def _wait_for(port: int, process: Started, what: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if (code := process.poll()) is not None:
            raise FederationError(f"{what} ended with code {code} before it listened")
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise FederationError(f"{what} did not listen within {START_SECONDS:.0f} s")
