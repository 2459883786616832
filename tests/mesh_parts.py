"""A mesh for tests: an authority, its generations, and workloads with certificates over real handshakes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.broker.mesh import MeshGeneration, MeshRoot, TrustBundle, encode_bundle, issue
from cloister.broker.mesh_request import dns_name, make_request
from cloister.broker.mesh_tls import client_context, server_context

NOW = int(time.time())
APPLICATION = "clinic"
EVIDENCE = hashlib.sha256(b"evidence").digest()


def digest(version: int) -> str:
    return hashlib.sha256(b"manifest %d" % version).hexdigest()


@functools.cache
def _root(application: str) -> MeshRoot:
    return MeshRoot.create(application=application, now=NOW)


def root(application: str = APPLICATION) -> MeshRoot:
    return _root(application)


def root_sha256(application: str = APPLICATION) -> str:
    """What the broker's evidence binds."""
    return hashlib.sha256(root(application).certificate).hexdigest()


def generation(version: int = 1, application: str = APPLICATION) -> MeshGeneration:
    return _generation(version, application)


@functools.cache
def _generation(version: int, application: str) -> MeshGeneration:
    return MeshGeneration.create(
        root(application), manifest_version=version, manifest_digest=digest(version), now=NOW
    )


def bundle(version: int = 1, application: str = APPLICATION) -> TrustBundle:
    return TrustBundle(
        application=application,
        manifest_version=version,
        root=root(application).certificate,
        intermediates=(generation(version, application).certificate,),
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Member:
    """A workload with its certificate."""

    workload: str
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: tuple[bytes, ...]
    bundle: TrustBundle

    def client(self) -> ssl.SSLContext:
        return client_context(self.bundle, self.chain, self.key)

    def server(self) -> ssl.SSLContext:
        return server_context(self.bundle, self.chain, self.key)


def member(
    workload: str = "scorer", version: int = 1, application: str = APPLICATION, **changes: Any
) -> Member:
    key = new_key()
    csr = make_request(key, workload=workload, application=application)
    fields: dict[str, Any] = {"evidence_sha256": EVIDENCE, "now": NOW, "lifetime": 3600, **changes}
    leaf = issue(generation(version, application), csr, workload=workload, application=application, **fields)
    chain = (leaf, generation(version, application).certificate)
    return Member(workload, key, chain, bundle(version, application))


@dataclass
class Broker:
    """The authority's half of the endpoint, without HTTP: what it answers to one workload."""

    workload: str = "scorer"
    version: int = 1
    now: int = NOW
    lifetime: int = 3600

    def request(self, csr: bytes) -> tuple[tuple[bytes, ...], bytes]:
        made = generation(self.version)
        leaf = issue(
            made, csr, workload=self.workload, application=APPLICATION,
            evidence_sha256=EVIDENCE, now=self.now, lifetime=self.lifetime,
        )  # fmt: skip
        return (leaf, made.certificate), self.bundle()

    def bundle(self) -> bytes:
        return encode_bundle(bundle(self.version))


@contextlib.contextmanager
def answering(context: ssl.SSLContext) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers a line with its peer's certificate's workload known to it: port, and what it was told."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop, told = threading.Event(), []

    def run() -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(5)
            with (
                contextlib.suppress(OSError),
                connection,
                context.wrap_socket(connection, server_side=True) as secured,
            ):
                told.append(secured.recv(100))
                secured.sendall(b"welcome")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], told
    finally:
        stop.set()
        thread.join(10)
        listener.close()


def talk(
    context: ssl.SSLContext, port: int, workload: str = "scorer", application: str = APPLICATION
) -> bytes:
    """Connect as a client, say something and hear the answer."""
    with (
        socket.create_connection(("127.0.0.1", port), 5) as tcp,
        context.wrap_socket(tcp, server_hostname=dns_name(workload, application)) as secured,
    ):
        secured.sendall(b"the question")
        return secured.recv(100)
