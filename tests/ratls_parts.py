"""Attested TLS for tests: honest servers, certificates that are wrong in one thing, and a TLS peer that records.

Every part is real: the simulated TEE's quotes, OpenSSL's handshakes, sockets on loopback.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from cloister.appraisal.policy import Policy
from cloister.attester.simulated import SimulatedTee
from cloister.channel.ratls import AttestedTls, collect_for_tls
from cloister.channel.ratls_certificate import (
    CMW_OID,
    MEDIA_TYPE,
    make_attested_certificate,
    subject_public_key_info,
)
from cloister.channel.tls_context import load_chain, server_side
from cloister.evidence.bundle import EvidenceBundle, encode_bundle
from cloister.evidence.cmw import encode_cmw
from sealed_service import launched, listen, policy_for

NOW = int(time.time())


@dataclass
class Clock:
    now: int = NOW

    def __call__(self) -> int:
        return self.now


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def honest() -> tuple[SimulatedTee, Policy]:
    tee = launched()
    return tee, policy_for(tee)


@dataclass(frozen=True)
class Server:
    """An honest server's parts: an attacker who saw a handshake has ``certificate``, never ``key``."""

    key: ec.EllipticCurvePrivateKey
    bundle: EvidenceBundle
    certificate: bytes


@functools.cache
def attested(now: int = NOW) -> Server:
    key = new_key()
    bundle = collect_for_tls(honest()[0], subject_public_key_info(key))
    return Server(key, bundle, make_attested_certificate(key, bundle, now=now))


def certified(
    key: ec.EllipticCurvePrivateKey,
    wrapped: bytes | EvidenceBundle | None,
    *,
    start: int = NOW - 60,
    life: int = 3660,
    critical: bool = False,
    extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    oid: str = CMW_OID,
    issuer: str = "attested",
    signer: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    """A certificate like the product's, but for what is asked."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "attested")])
    begin = datetime.datetime.fromtimestamp(start, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(seconds=life))
    )
    if isinstance(wrapped, EvidenceBundle):
        wrapped = encode_cmw(MEDIA_TYPE, encode_bundle(wrapped))
    if wrapped is not None:
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), wrapped), critical=critical
        )
    for extension, marked in extra:
        builder = builder.add_extension(extension, critical=marked)
    return builder.sign(signer or key, SHA256()).public_bytes(Encoding.DER)


def resigned(der: bytes, key: ec.EllipticCurvePrivateKey, old: bytes, new: bytes) -> bytes:
    """``der`` with ``old`` replaced by ``new`` of the same length in what is signed, and signed again."""
    assert len(old) == len(new)
    certificate = x509.load_der_x509_certificate(der)
    signed = certificate.tbs_certificate_bytes
    assert old in signed
    signed = signed.replace(old, new)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    return _der(0x30, signed + algorithm + _der(0x03, b"\0" + key.sign(signed, ec.ECDSA(SHA256()))))


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def shows(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    """A server's context with any certificate."""
    context = server_side()
    load_chain(context, (certificate,), key)
    return context


@dataclass
class Served:
    """A server on loopback and what it was asked."""

    port: int
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    peers: set[int] = field(default_factory=set)
    """Client ports: one for each connection on which something was asked."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"


@contextlib.contextmanager
def https(context: ssl.SSLContext, app: Any = None) -> Iterator[Served]:
    """uvicorn under ``context``."""
    listener = listen()
    served = Served(listener.getsockname()[1])

    async def answer(request: Request) -> Response:
        served.asked.append((request.url.path, await request.body()))
        served.peers.add(request.client.port if request.client else 0)
        return PlainTextResponse("hello from the TEE")

    app = app or Starlette(routes=[Route("/{rest:path}", answer, methods=["GET", "POST"])])
    config = uvicorn.Config(
        app,
        log_level="critical",
        lifespan="off",
        ws="none",
        ssl_context_factory=lambda _config, _default: context,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield served
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@dataclass
class Recorder:
    """A peer that makes the handshake with ``context`` (none: says nothing at all) and keeps what it is then told."""

    context: ssl.SSLContext | None
    port: int = 0
    received: bytes = b""
    handshakes: int = 0

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def running(self) -> Iterator[Recorder]:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.1)
        self.port = listener.getsockname()[1]
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(listener, stop), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(10)
            listener.close()

    def _run(self, listener: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(5)
            with contextlib.suppress(OSError), connection:
                if self.context is None:
                    self.received += connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
                    continue
                with self.context.wrap_socket(connection, server_side=True) as secured:
                    self.handshakes += 1
                    while part := secured.recv(65536):
                        self.received += part


@contextlib.contextmanager
def terminating(context: ssl.SSLContext, target: int) -> Iterator[tuple[int, list[bytes]]]:
    """A proxy between: ends TLS with ``context``, opens its own to ``target``, and reads all that passes."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    stop, seen = threading.Event(), []

    def pump(source: ssl.SSLSocket, sink: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                seen.append(part)
                sink.sendall(part)

    def serve(connection: socket.socket) -> None:
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError), connection:
            connection.settimeout(5)
            up = anyone.wrap_socket(socket.create_connection(("127.0.0.1", target), 5))
            with up, context.wrap_socket(connection, server_side=True) as down:
                other = threading.Thread(target=pump, args=(up, down), daemon=True)
                other.start()
                pump(down, up)

    def run() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], seen
    finally:
        stop.set()
        thread.join(10)
        listener.close()


def serving_tls(clock: Any = None, **settings: Any) -> AttestedTls:
    """The honest server's TLS."""
    return AttestedTls(honest()[0], now=clock or Clock(), **settings)
