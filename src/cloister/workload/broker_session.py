"""The broker of a workload: verified by one of the policies that were measured, before anything is asked of it.

What the broker must be comes from the configuration's policy file, or from the ``broker`` policies of a manifest that
lies beside it; both are read before the launch is measured, and their digests are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from cloister.appraisal.policy import Policy, load_policy, read_policy
from cloister.attester import Attester, DeviceAttester
from cloister.broker.client import TIMEOUT, BrokerKeys
from cloister.broker.mesh_client import MeshIdentity
from cloister.broker.wire import PREFIX, Bundle
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import decode_json
from cloister.errors import AppraisalRefused, BrokerError, NetworkError, UsageError
from cloister.evidence.bundle import TeeKind
from cloister.manifest.manifest import parse_manifest
from cloister.manifest.storage import read_signed
from cloister.workload.configuration import Broker, Identity
from cloister.workload.held_keys import HeldKeys

MAX_BUNDLE: Final = 128 * 1024


def broker_policies(broker: Broker, base: Path) -> tuple[Policy, ...]:
    """What the broker must be; at least one. Raises :class:`~cloister.errors.UsageError`, PolicyError, ManifestError."""
    if broker.policy is not None:
        return (read_policy(base / broker.policy),)
    path = base / str(broker.manifest)
    texts = parse_manifest(read_signed(path).document).broker
    if not texts:
        raise UsageError(f"{path} says nothing of the broker", todo="name a policy in [broker]")
    return tuple(load_policy(text, name=f"broker policy {number}") for number, text in enumerate(texts, 1))


@dataclass(frozen=True, slots=True)
class BrokerSession:
    """A broker that was verified, and this workload's keys from it."""

    keys: BrokerKeys
    held: HeldKeys
    """The keys that were released so far, and the way to more."""
    channel: SealedClient
    url: str

    def close(self) -> None:
        """Erase the keys, forget the session, close the channel."""
        self.held.close()
        self.keys.close()

    def identity(self, wanted: Identity) -> MeshIdentity:
        """The mesh identity of that name; it is issued when it is first asked for. Raises BrokerError."""
        result = self.channel.attestation
        root = None if result is None else result.keys.mesh_root_sha256
        if root is None:
            raise BrokerError("this broker has no mesh", todo="leave [identity] out, or use its owners' mode")
        return MeshIdentity(
            lambda csr: self.keys.certificate(wanted.workload, csr),
            bundle=self._bundle,
            workload=wanted.workload,
            application=wanted.application,
            root_sha256=root,
        )

    def _bundle(self) -> bytes:
        try:
            response = self.channel.get(f"{self.url}{PREFIX}/mesh/bundle", timeout=TIMEOUT)
        except httpx2.TransportError as error:
            raise NetworkError(
                f"the broker at {self.url} cannot be reached ({type(error).__name__})"
            ) from None
        if response.status_code != 200:
            raise BrokerError(f"the broker answered with status {response.status_code}")
        return decode_json(response.content, Bundle, what="the mesh's bundle", limit=MAX_BUNDLE).bundle


def open_session(
    url: str,
    policies: Sequence[Policy],
    attester: Attester,
    *,
    tee: TeeKind = "tdx",
    devices: DeviceAttester | None = None,
    purpose: str | None = None,
    dial: Callable[..., SealedClient] = connect,
) -> BrokerSession:
    """Verify the broker by the first of ``policies`` that it meets, and attest to it when a key is asked for.

    Raises :class:`~cloister.errors.NetworkError`, and what verification raises.
    """
    refusal: AppraisalRefused | None = None
    for policy in policies:
        try:
            channel = dial(url, policy=policy)
        except AppraisalRefused as error:
            refusal = error
            continue
        keys = BrokerKeys(
            url, policy=policy, attester=attester, tee=tee, devices=devices, purpose=purpose, client=channel
        )
        return BrokerSession(keys, HeldKeys(keys), channel, url.rstrip("/"))
    raise refusal or UsageError("there is no policy for the broker")
