"""The broker as it is served: evidence in front, requests through the seal only, and for its operator three plain
paths.

``/healthz`` says that the process runs, ``/readyz`` that its state is open and its database answers, ``/metrics``
counts; none of them says anything of a resource, an owner or a workload.
"""

from __future__ import annotations

import contextlib
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from cloister.attester import Attester
from cloister.broker.app import create_broker
from cloister.broker.desk import Desk
from cloister.broker.endpoints import MAX_BODY
from cloister.broker.limits import Buckets, RateLimit
from cloister.broker.metrics import CONTENT_TYPE
from cloister.broker.protocol import MAX_ATTEST
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.errors import CloisterError

MAX_REQUEST: Final = max(MAX_ATTEST, MAX_BODY) + 64 * 1024
"""Bytes of an opened request: the largest body and its head."""
PLAIN: Final = ("/healthz", "/readyz", "/metrics")
RATE: Final = 50.0
"""Requests a second and peer, where the operator sets no other."""
BURST: Final = 200


def seal_broker(
    desk: Desk, attester: Attester, *, replica: str = "broker-0", buckets: Buckets | None = None
) -> tuple[ASGIApp, KeyRing]:
    """The application to serve, and its keys (close them when the server stops)."""
    keyring = KeyRing(replica=replica, shown=desk.shown)
    desk.changed = keyring.rotate  # what the evidence binds has changed: show it under new keys
    evidence = EvidenceService(attester, keyring)
    gateway = SealedGateway(
        operated(desk),
        keyring=keyring,
        evidence=evidence,
        allow=PLAIN,
        max_request=MAX_REQUEST,
        manifest=desk.newest_manifest,
    )
    return RateLimit(gateway, buckets=buckets or default_buckets(), metrics=desk.metrics), keyring


def attested_broker(desk: Desk, *, buckets: Buckets | None = None) -> ASGIApp:
    """The application to serve behind attested TLS alone: for guests that know no sealed channel."""
    return RateLimit(operated(desk), buckets=buckets or default_buckets(), metrics=desk.metrics)


def default_buckets() -> Buckets:
    """What an operator gets who says nothing."""
    return Buckets(rate=RATE, burst=BURST)


def operated(desk: Desk) -> Starlette:
    """The broker's application with its operator's plain paths beside it."""

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        if not desk.custody.opened:
            progress = await run_in_threadpool(desk.custody.progress)
            return JSONResponse(
                {"status": "locked", "have": progress.have, "need": progress.need}, status_code=503
            )
        with contextlib.suppress(CloisterError):
            await run_in_threadpool(desk.custody.state.journal.catch_up)
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "the state cannot be used"}, status_code=503)

    async def metrics(_request: Request) -> Response:
        return Response(await run_in_threadpool(desk.gather), media_type=CONTENT_TYPE)

    return Starlette(
        routes=[
            Route("/healthz", health),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Mount("/", create_broker(desk)),
        ]
    )
