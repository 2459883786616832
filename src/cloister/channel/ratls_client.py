"""HTTPS to a server whose certificate is its evidence: verify after the handshake, before the first byte of a request.

Every connection is verified, a pooled one too once its attestation has ended: it is then closed, and the next one shows
the renewed certificate. TLS 1.3 proves that the peer has the key of the certificate it shows; the evidence in it proves
whose key that is. No certificate authority and no host name counts. Refused: other origins, ``http``, proxies, resumed
sessions, requests in the clear.

What such a server says may be believed as that TEE's. It is not enough to release a key to it: for that a workload
attests over a fresh nonce (docs/spec/kbs.md).
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpcore2
import httpx2

from cloister.appraisal.policy import Policy, read_policy
from cloister.channel.ratls_certificate import AttestedServer, verify_attested_certificate
from cloister.channel.tls_context import client_side
from cloister.channel.transport import refuse_ways_around, wall_clock
from cloister.channel.wire import DEFAULT_TIMEOUT
from cloister.errors import ChannelError, PlaintextRequest, UsageError

MAX_CONNECTIONS: Final = 16
KEEP_ALIVE: Final = 30.0
"""Seconds that an idle connection is kept."""

Verify = Callable[[bytes], AttestedServer]


class AttestedTransport(httpx2.BaseTransport):
    """To one origin (``https://host:port``). ``now`` gives Unix seconds. Threads may share it.

    Raises ``httpx2``'s own exceptions for failures of the network, :class:`~cloister.errors.CloisterError` for refusals.
    """

    def __init__(
        self, origin: str | httpx2.URL, *, policy: Policy, now: Callable[[], int] = wall_clock
    ) -> None:
        self._origin = _origin(httpx2.URL(origin))
        self._policy = policy
        self._clock = now
        self._floor = 0
        self._lock = threading.Lock()
        self.server: AttestedServer | None = None
        """Who was verified last."""
        context = client_side()
        # Not `ssl` says who the peer is but its evidence: _AttestedStream is the only way to a connection.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self._pool = httpcore2.ConnectionPool(
            ssl_context=context,
            max_connections=MAX_CONNECTIONS,
            keepalive_expiry=KEEP_ALIVE,
            http1=True,
            http2=False,
            retries=0,
            network_backend=_AttestingBackend(self._verify, self._now),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        if _origin(request.url) != self._origin:
            raise UsageError(
                f"this client is connected to {self._origin} and sends nothing to {request.url.host}",
                todo="connect to that origin as well, with a policy for it",
            )
        if not isinstance(request.stream, httpx2.SyncByteStream):
            raise UsageError("this client is a blocking one", todo="give the body as bytes or an iterator")
        sent = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=request.url.raw_scheme,
                host=request.url.raw_host,
                port=request.url.port,
                target=request.url.raw_path,
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _mapped():
            answer = self._pool.handle_request(sent)
        return httpx2.Response(
            answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions
        )

    def close(self) -> None:
        self._pool.close()

    def _now(self) -> int:
        return max(self._clock(), self._floor)

    def _verify(self, der: bytes) -> AttestedServer:
        server = verify_attested_certificate(der, policy=self._policy, now=self._now())
        with self._lock:
            self._floor = max(self._floor, server.claims.issued_at)
            self.server = server
        return server


class AttestedClient(httpx2.Client):
    """An ``httpx2.Client`` to one attested server."""

    def __init__(self, transport: AttestedTransport, **settings: Any) -> None:
        refuse_ways_around(settings)
        super().__init__(transport=transport, **settings)
        self._attested = transport

    @property
    def server(self) -> AttestedServer | None:
        """Who was verified last; None before the first connection."""
        return self._attested.server


def connect_attested(
    url: str,
    *,
    policy: str | Path | Policy,
    timeout: float | httpx2.Timeout | None = DEFAULT_TIMEOUT,
    headers: Mapping[str, str] | None = None,
    now: Callable[[], int] = wall_clock,
) -> AttestedClient:
    """A client of the server at ``url`` (``https://host:port``), which is verified on each connection.

    ``policy`` is a policy or the path of one; ``timeout`` in seconds for requests. Nothing is sent before the first request.
    Raises :class:`UsageError`, :class:`~cloister.errors.PolicyError`.
    """
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise UsageError("the address is not a URL", todo="give https://host:port") from None
    if parsed.scheme != "https" or not parsed.host or parsed.userinfo:
        raise UsageError("attested TLS needs an https address", todo="give https://host:port")
    read = policy if isinstance(policy, Policy) else read_policy(policy)
    transport = AttestedTransport(parsed, policy=read, now=now)
    return AttestedClient(transport, base_url=url, timeout=timeout, headers=headers)


class _AttestingBackend(httpcore2.NetworkBackend):
    """TCP whose streams do nothing but TLS with an attested server."""

    def __init__(self, verify: Verify, now: Callable[[], int]) -> None:
        self._tcp = httpcore2.SyncBackend()
        self._verify = verify
        self._now = now

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        stream = self._tcp.connect_tcp(host, port, timeout, local_address, socket_options)
        return _UnverifiedStream(stream, self._verify, self._now)

    def sleep(self, seconds: float) -> None:
        self._tcp.sleep(seconds)


class _UnverifiedStream(httpcore2.NetworkStream):
    """A TCP connection on which nothing may be said before it is TLS with a verified peer."""

    def __init__(self, tcp: httpcore2.NetworkStream, verify: Verify, now: Callable[[], int]) -> None:
        self._tcp = tcp
        self._verify = verify
        self._now = now

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        raise PlaintextRequest("nothing is read outside of attested TLS")

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        raise PlaintextRequest("nothing is sent outside of attested TLS")

    def close(self) -> None:
        self._tcp.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        secured = self._tcp.start_tls(ssl_context, server_hostname, timeout)
        try:
            return _AttestedStream(secured, self._verify(_shown(secured)), self._now)
        except BaseException:
            secured.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._tcp.get_extra_info(info)


class _AttestedStream(httpcore2.NetworkStream):
    """TLS with a server that was verified, as long as that stands."""

    def __init__(
        self, secured: httpcore2.NetworkStream, server: AttestedServer, now: Callable[[], int]
    ) -> None:
        self._secured = secured
        self._server = server
        self._now = now

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._secured.read(max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._server.require_fresh(self._now())
        self._secured.write(buffer, timeout)

    def close(self) -> None:
        self._secured.close()

    def get_extra_info(self, info: str) -> Any:
        # The pool asks an idle connection this to see whether the peer left: then it makes another one.
        if info == "is_readable" and self._now() >= self._server.expires:
            return True
        return self._secured.get_extra_info(info)


class _Body(httpx2.SyncByteStream):
    """The body of an answer, with this library's exceptions."""

    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _mapped():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


def _shown(secured: httpcore2.NetworkStream) -> bytes:
    """The certificate (DER) with which the handshake was made."""
    connection = secured.get_extra_info("socket")
    if not isinstance(connection, ssl.SSLSocket) or connection.version() != "TLSv1.3":
        raise ChannelError("the connection is not TLS 1.3")
    der = connection.getpeercert(binary_form=True)
    if der is None or connection.session_reused:
        raise ChannelError("the server showed no certificate in this handshake")
    return der


def _origin(url: httpx2.URL) -> httpx2.URL:
    return url.copy_with(username="", password="", raw_path=b"/", fragment=None)


@contextmanager
def _mapped() -> Iterator[None]:
    """Failures of the network as ``httpx2``'s exceptions: they have the same names."""
    try:
        yield
    except _CORE as error:
        kind = next(
            getattr(httpx2, one.__name__) for one in type(error).__mro__ if hasattr(httpx2, one.__name__)
        )
        raise kind(str(error)) from error


_CORE: Final = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
)
