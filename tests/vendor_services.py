"""The vendors' services on a loopback socket: Intel's PCS and PCCS, AMD's KDS, NVIDIA's RIM service and OCSP responder.

Addresses, headers, media types and bodies are the vendors' own; what is served are captured vectors and whatever the
simulated vendor signs. Any request can be made to fail in the ways that services and networks do: :class:`Fault`.
"""

from __future__ import annotations

import base64
import datetime
import json
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import NameOID

from cloister.endorsements.services import Services

DAY = 86_400


@dataclass(frozen=True)
class Answer:
    """One HTTP answer."""

    body: bytes
    kind: str
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Fault:
    """What happens instead of, or with, the answer that is due."""

    def send(self, handler: _Handler, due: Answer) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Says(Fault):
    """Another answer: a status, an error page, other content."""

    answer: Answer

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.whole(self.answer)


def status(code: int, **headers: str) -> Says:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Says(Answer(b"busy", "text/plain", code, named))


@dataclass(frozen=True)
class Changed(Fault):
    """The due answer, edited."""

    edit: Callable[[Answer], Answer]

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.whole(self.edit(due))


class Cut(Fault):
    """Announces all of the body and closes after half of it."""

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.head(due, {"Content-Length": str(len(due.body))})
        handler.write(due.body[: len(due.body) // 2])
        handler.close_connection = True


class BrokenChunk(Fault):
    """A chunked body whose second chunk has no size."""

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.head(due, {"Transfer-Encoding": "chunked"})
        handler.write(b"5\r\n" + due.body[:5] + b"\r\nnonsense\r\n")
        handler.close_connection = True


class Endless(Fault):
    """A chunked body that does not end, until the client has enough."""

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.head(due, {"Transfer-Encoding": "chunked"})
        while handler.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n"):
            pass
        handler.close_connection = True


@dataclass(frozen=True)
class Drip(Fault):
    """One byte at a time; ``head`` drips the header as well."""

    pause: float = 0.05
    head: bool = False

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.close_connection = True
        if self.head:
            data = b"HTTP/1.1 200 OK\r\nx-padding: " + b"x" * 1000
        else:
            handler.head(due, {"Content-Length": str(len(due.body))})
            data = due.body
        for at in range(len(data)):
            if handler.services.stopping.is_set() or not handler.write(data[at : at + 1]):
                return
            time.sleep(self.pause)


class Closed(Fault):
    """Closes without a word."""

    def send(self, handler: _Handler, due: Answer) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10
    services: VendorServices

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("content-length", "0"))))

    def _answer(self, body: bytes) -> None:
        services = self.services
        with services.lock:
            services.requests.append((self.command, self.path))
            faults = next(
                (queue for start, queue in services.faults.items() if self.path.startswith(start)), None
            )
            fault = faults.popleft() if faults else None
            route = services.routes.get(self.path)
        due = Answer(b"no such thing", "text/plain", 404) if route is None else route(body)
        if fault is None:
            self.whole(due)
        else:
            fault.send(self, due)

    def whole(self, answer: Answer) -> None:
        self.head(answer, {"Content-Length": str(len(answer.body))})
        self.write(answer.body)

    def head(self, answer: Answer, framing: dict[str, str]) -> None:
        self.send_response(answer.status)
        headers = {"Content-Type": answer.kind, **framing, **answer.headers}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def write(self, data: bytes) -> bool:
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
            return False
        return True

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:  # clients that go away are part of the tests
        pass


class VendorServices:
    """All services at one address; a context that runs while it is open."""

    def __init__(self) -> None:
        self.routes: dict[str, Callable[[bytes], Answer]] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        handler = type("Handler", (_Handler,), {"services": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.base = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def addresses(self, **changes: Any) -> Services:
        """Where they are. The root's list is at a PCCS unless named otherwise."""
        base = {"intel": self.base, "amd": self.base, "nvidia_rim": self.base, "nvidia_ocsp": self.base}
        return Services(**{**base, **changes})

    def serve(self, path: str, answer: Answer) -> None:
        self.routes[path] = lambda _: answer

    def fail(self, start: str, *faults: Fault) -> None:
        """The next requests below ``start`` meet ``faults``, one each; the longest start wins if given first."""
        self.faults[start].extend(faults)

    def asked(self, start: str = "/") -> int:
        """How many requests there were below ``start``."""
        return sum(path.startswith(start) for _, path in self.requests)

    # What the vendors serve.

    def serve_intel(self, collateral: bytes, *, tee: str, fmspc: str, ca: str) -> None:
        """The four replies that a set of collateral was made of, as PCS and PCCS send them."""
        parts = json.loads(collateral)
        tcb = f'{{"tcbInfo":{parts["tcb_info"]},"signature":"{parts["tcb_info_signature"]}"}}'
        identity = (
            f'{{"enclaveIdentity":{parts["qe_identity"]},"signature":"{parts["qe_identity_signature"]}"}}'
        )
        base = f"/{tee}/certification/v4"
        chain = "TCB-Info-Issuer-Chain" if tee == "tdx" else "SGX-TCB-Info-Issuer-Chain"
        self.serve(
            f"{base}/tcb?fmspc={fmspc}",
            Answer(tcb.encode(), "application/json", headers={chain: quote(parts["tcb_info_issuer_chain"])}),
        )
        self.serve(
            f"{base}/qe/identity",
            Answer(
                identity.encode(),
                "application/json",
                headers={"SGX-Enclave-Identity-Issuer-Chain": quote(parts["qe_identity_issuer_chain"])},
            ),
        )
        self.serve(
            f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der",
            Answer(
                bytes.fromhex(parts["pck_crl"]),
                "application/pkix-crl",
                headers={"SGX-PCK-CRL-Issuer-Chain": quote(parts["pck_crl_issuer_chain"])},
            ),
        )
        # A PCCS sends hexadecimal, and its web framework calls that HTML; Intel's distribution point sends DER.
        self.serve(
            "/sgx/certification/v4/rootcacrl",
            Answer(parts["root_ca_crl"].encode(), "text/html; charset=utf-8"),
        )
        self.serve(
            "/IntelSGXRootCA.der",
            Answer(bytes.fromhex(parts["root_ca_crl"]), "application/x-x509-ca-cert"),
        )

    def serve_amd(
        self, product: str, *, chip: str, query: str, vcek: bytes, chain: bytes, crl: bytes
    ) -> None:
        """One chip's certificate and its product's chain and list."""
        base = f"/vcek/v1/{product}"
        self.serve(f"{base}/{chip}?{query}", Answer(vcek, "application/pkix-cert"))
        self.serve(f"{base}/cert_chain", Answer(chain, "application/x-pem-file"))
        self.serve(f"{base}/crl", Answer(crl, "application/pkix-crl"))

    def serve_rim(self, rim_id: str, xml: bytes, **changes: str) -> None:
        """One manifest, as NVIDIA's RIM service sends it."""
        body = {
            "id": rim_id,
            "rim": base64.b64encode(xml).decode(),
            "sha256": "",
            "last_updated": "2025-01-01T00:00:00Z",
            "rim_format": "TCG_RIM",
            "request_id": "1",
            **changes,
        }
        self.serve(f"/v1/rim/{rim_id}", Answer(json.dumps(body).encode(), "application/json"))

    def serve_ocsp(
        self, pairs: Iterable[tuple[bytes, bytes]], *, now: int, life: int | None = 2 * DAY
    ) -> None:
        """A responder for (certificate, issuer) pairs; ``life`` None leaves ``nextUpdate`` out."""
        known = {x509.load_der_x509_certificate(one).serial_number: (one, issuer) for one, issuer in pairs}

        def answer(body: bytes) -> Answer:
            request = ocsp.load_der_ocsp_request(body)
            found = known.get(request.serial_number)
            if found is None:
                return Answer(
                    ocsp.OCSPResponseBuilder.build_unsuccessful(
                        ocsp.OCSPResponseStatus.UNAUTHORIZED
                    ).public_bytes(Encoding.DER),
                    "application/ocsp-response",
                )
            certificate, issuer = (x509.load_der_x509_certificate(der) for der in found)
            key, responder = ocsp_responder(now)
            response = (
                ocsp.OCSPResponseBuilder()
                .add_response(
                    cert=certificate,
                    issuer=issuer,
                    algorithm=hashes.SHA384(),
                    cert_status=ocsp.OCSPCertStatus.GOOD,
                    this_update=moment(now - 60),
                    next_update=None if life is None else moment(now + life),
                    revocation_time=None,
                    revocation_reason=None,
                )
                .responder_id(ocsp.OCSPResponderEncoding.HASH, responder)
                .certificates([responder])
                .sign(key, hashes.SHA384())
            )
            return Answer(response.public_bytes(Encoding.DER), "application/ocsp-response")

        self.routes["/"] = answer

    def serve_ocsp_answers(self, answers: Iterable[bytes]) -> None:
        """A responder that has exactly these answers."""
        known = {ocsp.load_der_ocsp_response(answer).serial_number: answer for answer in answers}

        def answer(body: bytes) -> Answer:
            return Answer(known[ocsp.load_der_ocsp_request(body).serial_number], "application/ocsp-response")

        self.routes["/"] = answer


def moment(seconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


@cache
def ocsp_responder(now: int) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A responder's key and certificate, of nobody."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in OCSP responder")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(7)
    builder = builder.not_valid_before(moment(now - DAY)).not_valid_after(moment(now + 90 * DAY))
    return key, builder.public_key(key.public_key()).sign(key, hashes.SHA384())


@cache
def amd_list(now: int, common_name: str = "ARK-Milan") -> bytes:
    """A revocation list in the form of AMD's (RSA-PSS, SHA-384), signed by nobody that matters."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(moment(now - DAY))
        .next_update(moment(now + 30 * DAY))
        .add_extension(x509.CRLNumber(1), critical=False)
    )
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER)
