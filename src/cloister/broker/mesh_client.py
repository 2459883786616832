"""A workload's identity in the mesh: a key, a certificate for it, both replaced after two thirds of the certificate's life.

The key is made here for each certificate and leaves this process's memory for nobody. How the broker is asked is an
argument: a callable that sends the request inside an attested session. What comes back is verified before it is used, by
the digest of the mesh's root that the broker's evidence binds. Refused: a bundle of an older manifest than one seen
before, a certificate for another key or another name. Only a network that fails is tried again, a bounded number of times.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.broker.mesh import TrustBundle, parse_bundle
from cloister.broker.mesh_peer import MeshPeer, MeshRefused, verify_bundle, verify_peer
from cloister.broker.mesh_request import make_request
from cloister.broker.mesh_tls import client_context, demanding, server_context
from cloister.channel.tls_context import server_side, swapping
from cloister.errors import BrokerError, CloisterError, NetworkError

ATTEMPTS: Final = 4
BACKOFF: Final = 0.25
"""Seconds before the second attempt; doubled each time."""
PAUSE: Final = 30.0
"""Seconds between two looks at the mesh's bundle."""

T = TypeVar("T")
Issued = tuple[tuple[bytes, ...], bytes]
"""The chain, leaf first (DER), and the trust bundle, as the broker answers."""
_log = logging.getLogger("cloister.broker")


@dataclass(frozen=True, slots=True)
class MeshCredential:
    """One certificate with its key, and what its holder believes of others."""

    chain: tuple[bytes, ...]
    """DER, leaf first."""
    bundle: TrustBundle
    own: MeshPeer
    """What the certificate says."""
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    """For programs that read it from a private file."""
    client: ssl.SSLContext = field(repr=False)
    """For connections to other workloads, by their :func:`~cloister.broker.mesh_request.dns_name`."""
    server: ssl.SSLContext = field(repr=False)
    """For connections from them, until the credential is replaced: :attr:`MeshIdentity.context` follows."""

    @property
    def renew_at(self) -> int:
        """Unix seconds: two thirds of its life are over."""
        return self.own.not_after - (self.own.not_after - self.own.not_before) // 3


class MeshIdentity:
    """The identity of ``workload``. Threads may share it.

    ``request`` gets a PKCS #10 request (DER) and gives what the broker issued for it; ``bundle`` gives the broker's newest
    trust bundle. ``root_sha256`` is the ``mesh_root_sha256`` of the broker's verified key material. ``now`` gives Unix
    seconds, ``attempts`` bounds how often the network is tried for one renewal.
    """

    def __init__(
        self,
        request: Callable[[bytes], Issued],
        *,
        bundle: Callable[[], bytes],
        workload: str,
        application: str,
        root_sha256: str,
        attempts: int = ATTEMPTS,
        now: Callable[[], int] = lambda: int(time.time()),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._request = request
        self._bundle = bundle
        self._workload = workload
        self._application = application
        self._root_sha256 = root_sha256
        self._attempts = attempts
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._held: MeshCredential | None = None
        self._floor = 0
        """Version of the newest manifest seen: an older bundle would bring back what its successor revoked."""
        self.context = swapping(demanding(server_side()), lambda: self._standing().server)
        """A server's context that follows every renewal, for ``uvicorn`` and ``asyncio``."""

    def credential(self) -> MeshCredential:
        """The one to use now; renewed first when it is time, by one thread while others use what still stands.

        Raises :class:`NetworkError` only when there is none that still stands, :class:`MeshRefused`, and what the broker
        refuses.
        """
        if not self._due():
            return self._standing()
        if not self._lock.acquire(blocking=not self._stands()):
            return self._standing()
        try:
            return self._renewed() if self._due() else self._standing()
        except NetworkError as error:
            if not self._stands():
                raise
            _log.warning("the mesh certificate was not renewed: %s", error)
            return self._standing()
        finally:
            self._lock.release()

    def renew(self) -> MeshCredential:
        """A new key and certificate, now."""
        with self._lock:
            return self._renewed()

    def refresh(self) -> bool:
        """Look whether another manifest is in force, and renew if so: peers of the one before are then refused."""
        bundle = self._verified(self._retried(self._bundle))
        held = self._held
        if held is not None and held.bundle == bundle:
            return False
        # From now on what the manifest before let in is refused, also where the renewal fails.
        self._floor = max(self._floor, bundle.manifest_version)
        self.renew()
        return True

    async def keep_renewed(self, *, pause: float = PAUSE) -> None:
        """Renew in time and follow the manifest, until cancelled; a failure is logged and tried again."""
        while True:
            try:
                await asyncio.to_thread(self.credential)
                await asyncio.to_thread(self.refresh)
            except CloisterError as error:
                _log.warning("the mesh certificate was not renewed: %s", error)
            await asyncio.sleep(pause)

    def _due(self) -> bool:
        held = self._held
        return held is None or not self._stands() or self._now() >= held.renew_at

    def _stands(self) -> bool:
        held = self._held
        return (
            held is not None
            and held.bundle.manifest_version >= self._floor
            and held.own.not_before <= self._now() < held.own.not_after
        )

    def _standing(self) -> MeshCredential:
        held = self._held
        if held is None or not self._stands():
            raise NetworkError(
                "there is no mesh certificate that still stands", todo="is the key broker reachable?"
            )
        return held

    def _renewed(self) -> MeshCredential:
        key = ec.generate_private_key(ec.SECP256R1())
        csr = make_request(key, workload=self._workload, application=self._application)
        chain, body = self._retried(lambda: self._request(csr))
        bundle = self._verified(body)
        own = verify_peer(chain, bundle=bundle, now=self._now(), workload=self._workload)
        if own.public_key != key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo):
            raise MeshRefused("the broker's certificate is for another key than was asked")
        client, server = client_context(bundle, chain, key), server_context(bundle, chain, key)
        self._held = MeshCredential(chain, bundle, own, key, client, server)
        self._floor = bundle.manifest_version
        return self._held

    def _verified(self, body: bytes) -> TrustBundle:
        bundle = parse_bundle(body)
        if bundle.application != self._application:
            raise MeshRefused("the bundle is of another application")
        if bundle.manifest_version < self._floor:
            raise MeshRefused(
                f"the bundle is of manifest version {bundle.manifest_version}, but {self._floor} was in force before",
                todo="the broker's state may have been rolled back; do not go on",
            )
        verify_bundle(bundle, root_sha256=self._root_sha256, now=self._now())
        return bundle

    def _retried(self, ask: Callable[[], T]) -> T:
        for attempt in range(1, self._attempts + 1):
            try:
                return ask()
            except NetworkError:
                if attempt == self._attempts:
                    raise
                self._sleep(BACKOFF * 2 ** (attempt - 1))
        raise BrokerError("a mesh identity needs at least one attempt")
