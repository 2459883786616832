"""A server's attested TLS: an ephemeral key, the evidence of it in its certificate, renewed before it ends.

The key is made here, lives in this process's memory and is replaced with its certificate. ``context`` is one object for
the life of the server (``uvicorn.Config(ssl_context_factory=lambda *_: tls.context)``, ``asyncio.start_server(ssl=…)``):
every handshake goes on with the certificate of that moment. One that has ended is not shown; the handshake is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

from cloister.attester import Attester, DeviceAttester, RawDeviceEvidence
from cloister.channel.ratls_certificate import (
    MAX_LIFETIME,
    make_attested_certificate,
    subject_public_key_info,
)
from cloister.channel.tls_context import load_chain, server_side, swapping
from cloister.errors import AttesterError, ChannelError, CloisterError
from cloister.evidence.binding import NO_NONCE, ra_tls_device_nonce, ra_tls_report_data
from cloister.evidence.bundle import EvidenceBundle

RETRY: Final = 15.0
"""Seconds before renewal is tried again."""
_log = logging.getLogger("cloister.channel")


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown in handshakes: a certificate, and the context that has its key."""

    certificate: bytes
    context: ssl.SSLContext
    made: int
    ends: int


class AttestedTls:
    """The TLS of one server process. Threads may share it. ``now`` gives Unix seconds, ``lifetime`` is in seconds.

    Raises what the attester raises: a server that cannot show evidence does not start.
    """

    def __init__(
        self,
        attester: Attester,
        *,
        devices: DeviceAttester | None = None,
        lifetime: int = MAX_LIFETIME,
        now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self._attester = attester
        self._devices = devices
        self._lifetime = lifetime
        self._now = now
        self._process = os.getpid()
        self._shown = self._make()
        self.context = swapping(server_side(), self._current)

    @property
    def certificate(self) -> bytes:
        """What is shown now, DER."""
        return self._shown.certificate

    def due(self) -> bool:
        """Half of its life is over, or the clock was set back."""
        return not self._shown.made <= self._now() < (self._shown.made + self._shown.ends) // 2

    def renew(self) -> None:
        """Another key with a certificate of its own, for every handshake from now on. Raises what the attester raises."""
        self._shown = self._make()

    async def keep_renewed(self, *, pause: float = RETRY) -> None:
        """Renew when it is due, until cancelled; a failure is logged and tried again after ``pause`` seconds."""
        while True:
            if self.due():
                try:
                    await asyncio.to_thread(self.renew)
                except CloisterError as error:
                    _log.warning("the attested certificate was not renewed: %s", error)
            await asyncio.sleep(pause)

    def _current(self) -> ssl.SSLContext:
        shown = self._shown
        if os.getpid() != self._process or self._now() >= shown.ends:
            raise ChannelError("there is no attested certificate to show in this process, or it has ended")
        return shown.context

    def _make(self) -> _Shown:
        now = self._now()
        key = ec.generate_private_key(ec.SECP256R1())
        bundle = collect_for_tls(self._attester, subject_public_key_info(key), devices=self._devices)
        try:
            certificate = make_attested_certificate(key, bundle, now=now, lifetime=self._lifetime)
        except AttesterError:
            if not bundle.device_endorsements:
                raise
            # Reference manifests of several GPUs do not fit; clients get those from the vendor.
            bundle = structs.replace(bundle, device_endorsements=b"")
            certificate = make_attested_certificate(key, bundle, now=now, lifetime=self._lifetime)
        context = server_side()
        load_chain(context, (certificate,), key)
        return _Shown(certificate, context, now, now + self._lifetime)


def collect_for_tls(
    attester: Attester, spki: bytes, *, devices: DeviceAttester | None = None
) -> EvidenceBundle:
    """Evidence of a TLS key (SubjectPublicKeyInfo, DER), without a nonce: for a certificate and nothing else."""
    shown = devices.collect(ra_tls_device_nonce(spki)) if devices else RawDeviceEvidence(evidence=b"")
    raw = attester.quote(ra_tls_report_data(spki, shown.evidence))
    return EvidenceBundle(
        tee=raw.tee,
        quote=raw.quote,
        key_material=spki,
        nonce_proof=NO_NONCE,
        event_log=raw.event_log,
        firmware_log=raw.firmware_log,
        device_evidence=shown.evidence,
        endorsements=raw.endorsements,
        device_endorsements=shown.endorsements,
    )
