"""The broker behind the sealed channel: its own evidence in front, no request in the clear."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette

from cloister.attester import Attester
from cloister.broker.protocol import MAX_ATTEST
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway

MAX_REQUEST: Final = MAX_ATTEST + 64 * 1024
"""Bytes of an opened request: the largest body and its head."""


def seal_broker(app: Starlette, attester: Attester) -> tuple[SealedGateway, KeyRing]:
    """The gateway to serve, and its keys (close them when the server stops)."""
    keyring = KeyRing(replica="broker-0")
    evidence = EvidenceService(attester, keyring)
    gateway = SealedGateway(app, keyring=keyring, evidence=evidence, allow=(), max_request=MAX_REQUEST)
    return gateway, keyring
