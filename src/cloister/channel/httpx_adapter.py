"""The sealed channel for programs on ``httpx`` 0.28, the older line: its transport seam is the same.

A thin adapter: requests and answers are handed across, exceptions become ``httpx``'s of the same name. All that
verifies and seals is transport.py. Needs the package ``httpx`` (extra ``httpx``).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import httpx2

from cloister.appraisal.policy import Policy
from cloister.channel import transport
from cloister.channel.manifest_anchor import ManifestAnchor
from cloister.channel.transport import AsyncSealedTransport, SealedTransport


class HttpxTransport(httpx.BaseTransport):
    """:class:`SealedTransport` behind ``httpx``'s seam."""

    def __init__(self, sealed: SealedTransport) -> None:
        self._sealed = sealed

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with _mapped():
            response = self._sealed.handle_request(_across(request, request.read()))
        return _back(response, _Stream(response))

    def close(self) -> None:
        self._sealed.close()


class AsyncHttpxTransport(httpx.AsyncBaseTransport):
    """:class:`AsyncSealedTransport` behind ``httpx``'s seam."""

    def __init__(self, sealed: AsyncSealedTransport) -> None:
        self._sealed = sealed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        with _mapped():
            response = await self._sealed.handle_async_request(_across(request, await request.aread()))
        return _back(response, _AsyncStream(response))

    async def aclose(self) -> None:
        await self._sealed.aclose()


class _Stream(httpx.SyncByteStream):
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with _mapped():
            yield from cast(httpx2.SyncByteStream, self._response.stream)

    def close(self) -> None:
        self._response.close()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, response: httpx2.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _mapped():
            async for part in cast(httpx2.AsyncByteStream, self._response.stream):
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


def connect(
    url: str,
    *,
    policy: str | Path | Policy | None = None,
    manifest: str | Path | ManifestAnchor | None = None,
    **settings: Any,
) -> httpx.Client:
    """As :func:`cloister.connect`, for ``httpx``: verifies now; ``settings`` are those of ``httpx.Client``.

    Those that would lead requests around the seal (``proxy``, ``mounts``) raise :class:`UsageError`.
    """
    transport.refuse_ways_around(settings)
    origin, verification = transport.prepare(url, policy, manifest=manifest)
    sealed = SealedTransport(origin, verification)
    try:
        sealed.verify()
    except BaseException:
        sealed.close()
        raise
    settings.setdefault("timeout", httpx.Timeout(600.0, connect=5.0))
    return httpx.Client(transport=HttpxTransport(sealed), base_url=url, **settings)


def connect_async(
    url: str,
    *,
    policy: str | Path | Policy | None = None,
    manifest: str | Path | ManifestAnchor | None = None,
    **settings: Any,
) -> httpx.AsyncClient:
    """As :func:`cloister.connect_async`, for ``httpx``: verifies before the first request."""
    transport.refuse_ways_around(settings)
    origin, verification = transport.prepare(url, policy, manifest=manifest)
    sealed = AsyncSealedTransport(origin, verification)
    settings.setdefault("timeout", httpx.Timeout(600.0, connect=5.0))
    return httpx.AsyncClient(transport=AsyncHttpxTransport(sealed), base_url=url, **settings)


def _across(request: httpx.Request, body: bytes) -> httpx2.Request:
    return httpx2.Request(
        request.method,
        str(request.url),
        headers=request.headers.raw,
        content=body,
        extensions={"timeout": request.extensions.get("timeout", {})},
    )


def _back(response: httpx2.Response, stream: httpx.SyncByteStream | httpx.AsyncByteStream) -> httpx.Response:
    return httpx.Response(
        response.status_code, headers=response.headers.raw, stream=stream, extensions=response.extensions
    )


@contextlib.contextmanager
def _mapped() -> Iterator[None]:
    """``httpx2``'s exceptions as ``httpx``'s of the same name; others pass."""
    try:
        yield
    except httpx2.TransportError as error:
        named = getattr(httpx, type(error).__name__, httpx.TransportError)
        raise named(str(error)) from error
