"""Sealed HTTP for any program that takes an ``httpx2`` client: verify, then talk.

:func:`connect` verifies before it returns, so that a wrong address, policy or workload shows where it is written.
:func:`connect_async` cannot wait; its client verifies on entry (``async with``), on ``await client.verify()`` or
before the first byte of the first request. Both keep the result at ``client.attestation`` and verify anew when it
ends or when the keys rotated.

Method, path, headers (API keys among them) and body travel inside. Refused: requests to another origin, answers in
the clear, answers that end early or do not open. Network failures are ``httpx2``'s own exceptions, so that SDKs
retry them; refusals are :class:`~cloister.errors.CloisterError`, which SDKs pass on unchanged.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx2

from cloister.appraisal.policy import Policy, read_policy
from cloister.appraisal.result import AttestationResult
from cloister.channel.exchange import AnswerReader, PlainRequest
from cloister.channel.manifest_anchor import Anchored, ManifestAnchor, read_anchor
from cloister.channel.receipt_file import ReceiptFile, Shown
from cloister.channel.receipts import SALT_SIZE
from cloister.channel.verification import Verification
from cloister.channel.wire import DEFAULT_TIMEOUT, AsyncSealedStream, AsyncWire, SealedStream, Wire
from cloister.errors import NetworkError, UsageError
from cloister.evidence.binding import NONCE_SIZE
from cloister.evidence.key_material import KeyMaterial

MAX_REQUEST: Final = 32 * 1024 * 1024
"""Bytes of a request's body."""
_AROUND: Final = ("app", "mounts", "proxies", "proxy", "transport")
"""Settings of a client by which some or all requests would not come to the sealed transport."""


def wall_clock() -> int:
    """Unix seconds."""
    return int(time.time())


def fresh_nonce() -> bytes:
    """32 random bytes."""
    return secrets.token_bytes(NONCE_SIZE)


def refuse_ways_around(settings: Mapping[str, object]) -> None:
    """Raise :class:`UsageError` if ``settings`` of a client would lead requests around the seal, in the clear."""
    found = ", ".join(name for name in _AROUND if settings.get(name) is not None)
    if found:
        raise UsageError(
            f"the setting {found} would send requests in the clear, around the seal",
            todo="for a proxy: cloister.connect(url, policy=…, transport=httpx2.HTTPTransport(proxy=…))",
        )


TakeReceipt = Callable[[ReceiptFile], None]
"""Keeps a receipt."""


class SealedTransport(httpx2.BaseTransport):
    """The blocking half: performs the steps of :class:`Verification` on another transport."""

    def __init__(
        self,
        origin: httpx2.URL,
        verification: Verification,
        outer: httpx2.BaseTransport | None = None,
        *,
        receipts: TakeReceipt | None = None,
    ) -> None:
        self._origin = origin
        self._verification = verification
        self._receipts = receipts
        # Over plain HTTP nothing needs certificates, and loading them takes longer than a verification.
        self._outer = outer or httpx2.HTTPTransport(verify=origin.scheme == "https")

    @property
    def attestation(self) -> AttestationResult[KeyMaterial] | None:
        """The newest result."""
        return self._verification.result

    def verify(self) -> AttestationResult[KeyMaterial]:
        """Verify now. Raises :class:`NetworkError`, or what appraisal raises."""
        try:
            return Wire(self._origin, self._outer, {}).drive(self._verification.verify())
        except httpx2.TransportError as error:
            raise _unreachable(self._origin, error) from error

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        plain = _plain_request(self._origin, request, request.read())
        wire = Wire(self._origin, self._outer, request.extensions)
        answer = wire.drive(self._verification.converse(plain, salt=_salt(self._receipts)))
        return _response(answer, plain, SealedStream(wire, answer, partial(_take, self._receipts)))

    def close(self) -> None:
        self._outer.close()


class AsyncSealedTransport(httpx2.AsyncBaseTransport):
    """The asynchronous half; see :class:`SealedTransport`."""

    def __init__(
        self,
        origin: httpx2.URL,
        verification: Verification,
        outer: httpx2.AsyncBaseTransport | None = None,
        *,
        receipts: TakeReceipt | None = None,
    ) -> None:
        self._origin = origin
        self._verification = verification
        self._receipts = receipts
        self._outer = outer or httpx2.AsyncHTTPTransport(verify=origin.scheme == "https")

    @property
    def attestation(self) -> AttestationResult[KeyMaterial] | None:
        """The newest result."""
        return self._verification.result

    @property
    def shown(self) -> Shown | None:
        """The evidence that it came of."""
        return self._verification.shown

    async def verify(self) -> AttestationResult[KeyMaterial]:
        """Verify now. Raises :class:`NetworkError`, or what appraisal raises."""
        try:
            return await AsyncWire(self._origin, self._outer, {}).drive(self._verification.verify())
        except httpx2.TransportError as error:
            raise _unreachable(self._origin, error) from error

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        plain = _plain_request(self._origin, request, await request.aread())
        wire = AsyncWire(self._origin, self._outer, request.extensions)
        answer = await wire.drive(self._verification.converse(plain, salt=_salt(self._receipts)))
        return _response(answer, plain, AsyncSealedStream(wire, answer, partial(_take, self._receipts)))

    async def aclose(self) -> None:
        await self._outer.aclose()


def _salt(receipts: TakeReceipt | None) -> bytes | None:
    return None if receipts is None else secrets.token_bytes(SALT_SIZE)


def _take(receipts: TakeReceipt | None, answer: AnswerReader) -> None:
    file = None if answer.promised is None else answer.promised.take(answer)
    if receipts is not None and file is not None:
        receipts(file)


def _plain_request(origin: httpx2.URL, request: httpx2.Request, body: bytes) -> PlainRequest:
    if _origin_of(request.url) != origin:
        raise UsageError(
            f"this client is connected to {origin} and sends nothing to {request.url.host}",
            todo="connect() to that origin as well, with a policy or a manifest for it",
        )
    if len(body) > MAX_REQUEST:
        raise UsageError(f"the request's body is {len(body)} bytes long, over {MAX_REQUEST}")
    return PlainRequest(
        method=request.method.encode("ascii"),
        scheme=request.url.raw_scheme,
        authority=request.url.netloc,
        path=request.url.raw_path,
        fields=tuple(request.headers.raw),
        body=body,
        request_id=secrets.token_hex(16).encode(),
    )


def _response(
    answer: AnswerReader, plain: PlainRequest, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream
) -> httpx2.Response:
    assert answer.head is not None  # noqa: S101 -- converse() ends with a head
    extensions = {"http_version": b"HTTP/1.1", "cloister_request_id": plain.request_id}
    return httpx2.Response(
        answer.head.status, headers=list(answer.head.headers), stream=stream, extensions=extensions
    )


def _origin_of(url: httpx2.URL) -> httpx2.URL:
    return url.copy_with(username="", password="", raw_path=b"/", fragment=None)


def _unreachable(origin: httpx2.URL, error: Exception) -> NetworkError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return NetworkError(f"{origin} does not answer ({detail})", todo="check the address and that it runs")


class SealedClient(httpx2.Client):
    """An ``httpx2.Client`` whose requests are sealed to a verified workload."""

    def __init__(self, sealed: SealedTransport, **settings: Any) -> None:
        refuse_ways_around(settings)
        super().__init__(transport=sealed, **settings)
        self._sealed = sealed

    @property
    def attestation(self) -> AttestationResult[KeyMaterial] | None:
        """Who is verified: claims, checks, expiry. It is replaced when it ends or the keys rotate."""
        return self._sealed.attestation

    def verify(self) -> AttestationResult[KeyMaterial]:
        """Verify now, whether or not a result still stands."""
        return self._sealed.verify()


class AsyncSealedClient(httpx2.AsyncClient):
    """An ``httpx2.AsyncClient`` whose requests are sealed to a verified workload."""

    def __init__(self, sealed: AsyncSealedTransport, **settings: Any) -> None:
        refuse_ways_around(settings)
        super().__init__(transport=sealed, **settings)
        self._sealed = sealed

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            await self.verify()
        except BaseException:
            await self.aclose()
            raise
        return self

    @property
    def attestation(self) -> AttestationResult[KeyMaterial] | None:
        """As :attr:`SealedClient.attestation`; None before the first verification."""
        return self._sealed.attestation

    async def verify(self) -> AttestationResult[KeyMaterial]:
        """Verify now, whether or not a result still stands."""
        return await self._sealed.verify()


def connect(
    url: str,
    *,
    policy: str | Path | Policy | Sequence[Policy] | None = None,
    manifest: str | Path | ManifestAnchor | None = None,
    timeout: float | httpx2.Timeout | None = DEFAULT_TIMEOUT,
    transport: httpx2.BaseTransport | None = None,
    headers: Mapping[str, str] | None = None,
    allow_classical_kem: bool = False,
    receipts: TakeReceipt | None = None,
    now: Callable[[], int] = wall_clock,
    nonce: Callable[[], bytes] = fresh_nonce,
) -> SealedClient:
    """Verify the workload at ``url`` and return a client whose every request is sealed to it.

    ``url`` is an origin (``http://host:8000``), with or without ``/v1``. ``policy`` is a policy or the path of one,
    or several of which one has to be met; instead of it ``manifest`` is an anchor or the path of one, and takes
    whatever reference values the pinned owners sign for the workload. ``timeout`` in seconds for requests.
    ``transport`` carries the sealed bytes (a proxy, a test). Only the post-quantum KEM is used unless
    ``allow_classical_kem``. ``receipts`` is given each answer's checked receipt at its end (docs/spec/receipt.md);
    an answer without one is then an error. ``now`` and ``nonce`` are for tests.
    Raises :class:`NetworkError`, :class:`~cloister.errors.PolicyError`, :class:`~cloister.errors.ManifestError` and
    what appraisal raises.
    """
    origin, verification = prepare(
        url, policy, manifest=manifest, now=now, nonce=nonce, allow_classical_kem=allow_classical_kem
    )
    sealed = SealedTransport(origin, verification, transport, receipts=receipts)
    try:
        sealed.verify()
    except BaseException:
        sealed.close()
        raise
    return SealedClient(sealed, base_url=url, timeout=timeout, headers=headers)


def connect_async(
    url: str,
    *,
    policy: str | Path | Policy | Sequence[Policy] | None = None,
    manifest: str | Path | ManifestAnchor | None = None,
    timeout: float | httpx2.Timeout | None = DEFAULT_TIMEOUT,
    transport: httpx2.AsyncBaseTransport | None = None,
    headers: Mapping[str, str] | None = None,
    allow_classical_kem: bool = False,
    receipts: TakeReceipt | None = None,
    now: Callable[[], int] = wall_clock,
    nonce: Callable[[], bytes] = fresh_nonce,
) -> AsyncSealedClient:
    """As :func:`connect`, for ``asyncio`` and ``trio``.

    It returns at once; the workload is verified on ``async with``, on ``await client.verify()``, or before the
    first byte of the first request leaves, where what is wrong is raised.
    """
    origin, verification = prepare(
        url, policy, manifest=manifest, now=now, nonce=nonce, allow_classical_kem=allow_classical_kem
    )
    sealed = AsyncSealedTransport(origin, verification, transport, receipts=receipts)
    return AsyncSealedClient(sealed, base_url=url, timeout=timeout, headers=headers)


def prepare(
    url: str,
    policy: str | Path | Policy | Sequence[Policy] | None = None,
    *,
    manifest: str | Path | ManifestAnchor | None = None,
    now: Callable[[], int] = wall_clock,
    nonce: Callable[[], bytes] = fresh_nonce,
    allow_classical_kem: bool = False,
) -> tuple[httpx2.URL, Verification]:
    """What both halves begin with. Raises :class:`UsageError`, :class:`~cloister.errors.PolicyError`."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise UsageError("the address is not a URL", todo="give http://host:port") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError("the address is not an http(s) URL with a host", todo="give http://host:port")
    if parsed.path.rstrip("/") not in ("", "/v1") or parsed.query or parsed.userinfo:
        raise UsageError(
            f"the address of {parsed.host} has more than an origin",
            todo="give http://host:port or http://host:port/v1",
        )
    return _origin_of(parsed), Verification(
        accepts=_accepts(policy, manifest), nonce=nonce, now=now, allow_classical_kem=allow_classical_kem
    )


def _accepts(
    policy: str | Path | Policy | Sequence[Policy] | None, manifest: str | Path | ManifestAnchor | None
) -> Policy | Sequence[Policy] | Anchored:
    """Who is accepted: exactly one of the two says it."""
    if manifest is not None and policy is None:
        return Anchored(manifest if isinstance(manifest, ManifestAnchor) else read_anchor(manifest))
    if policy is None or manifest is not None:
        raise UsageError(
            "a workload is accepted by a policy or by a manifest",
            todo="pass exactly one of policy=… and manifest=…",
        )
    return read_policy(policy) if isinstance(policy, str | Path) else policy
