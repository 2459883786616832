"""Rate limits per peer, before anything is opened: a token bucket for each address, in a table of bounded size.

The address is that of the connection, so behind a proxy all of its clients share one bucket: set the limit there
instead. IPv6 addresses count by their /64. A peer over its limit is told when to come back; nobody else notices.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from cloister.broker.metrics import Metrics

MAX_PEERS: Final = 16_384


class Buckets:
    """A bucket for each peer: ``rate`` requests a second, ``burst`` at once. Several listeners may share them."""

    def __init__(
        self,
        *,
        rate: float,
        burst: int,
        ticks: Callable[[], float] = time.monotonic,
        max_peers: int = MAX_PEERS,
    ) -> None:
        self.rate = rate
        self._burst = burst
        self._ticks = ticks
        self._max_peers = max_peers
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, peer: str) -> bool:
        """Count one request; False if it is one too many."""
        now = self._ticks()
        with self._lock:
            left, at = self._left.pop(peer, (float(self._burst), now))
            left = min(float(self._burst), left + (now - at) * self.rate)
            allowed = left >= 1
            self._left[peer] = (left - 1 if allowed else left, now)
            while len(self._left) > self._max_peers:
                # The one that was silent longest; by then its bucket is mostly full again.
                self._left.popitem(last=False)
        return allowed


class RateLimit:
    """ASGI middleware over ``buckets``. ``exempt`` paths are not counted."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        buckets: Buckets,
        metrics: Metrics,
        exempt: frozenset[str] = frozenset(("/healthz",)),
    ) -> None:
        self._app = app
        self._buckets = buckets
        self._metrics = metrics
        self._exempt = exempt

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._exempt or self._buckets.take(peer_of(scope)):
            await self._app(scope, receive, send)
            return
        self._metrics.limited.inc()
        wait = str(max(1, round(1 / self._buckets.rate))).encode()
        body = (
            b'{"detail":"too many requests from this address","status":429,"title":"too many requests",'
            b'"type":"urn:cloister:problem:too-many-requests"}'
        )
        headers = [(b"content-type", b"application/problem+json"), (b"retry-after", wait)]
        await send({"type": "http.response.start", "status": 429, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def peer_of(scope: Scope) -> str:
    """The address of a connection, or the network that counts as one."""
    client = scope.get("client")
    if not client:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return str(client[0])[:64]
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
