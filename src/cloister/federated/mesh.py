"""The federation's mesh: the aggregator's own root, an intermediate for this version, an hour's certificate for a party.

The same certificates as a key broker's mesh has (broker/mesh.py); the application is the federation, the workloads are its
parties and the aggregator. Root and keys live in the aggregator's memory and end with it. Its evidence binds the root and
the federation's digest, so a party knows the other end of its connection before it connects.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.broker.mesh import MeshGeneration, MeshRoot, TrustBundle, encode_bundle, issue, parse_bundle
from cloister.broker.mesh_peer import MeshPeer, verify_bundle, verify_peer
from cloister.broker.mesh_request import dns_name, make_request
from cloister.broker.mesh_tls import client_context, server_context
from cloister.evidence.key_material import BrokerIdentity
from cloister.federated.agreement import AgreedFederation
from cloister.federated.federation import AGGREGATOR

LIFETIME: Final = 3600
"""Seconds of a party's certificate."""


class FederationMesh:
    """The aggregator's. ``now`` is Unix seconds."""

    def __init__(self, agreed: AgreedFederation, *, now: int) -> None:
        federation = agreed.federation
        self._name = federation.name
        self._root = MeshRoot.create(application=federation.name, now=now)
        self._generation = MeshGeneration.create(
            self._root, manifest_version=federation.version, manifest_digest=agreed.digest, now=now
        )
        self.shown = BrokerIdentity(
            mesh_root_sha256=hashlib.sha256(self._root.certificate).hexdigest(),
            manifest_sha256=agreed.digest,
        )
        """What the aggregator's key material says of it."""
        self.bundle = TrustBundle(
            application=federation.name,
            manifest_version=federation.version,
            root=self._root.certificate,
            intermediates=(self._generation.certificate,),
        )

    def issue(self, csr: bytes, *, name: str, evidence: bytes, now: int) -> tuple[bytes, ...]:
        """A chain (DER) for the key of a request; ``evidence`` is the bundle on which it is issued."""
        leaf = issue(
            self._generation, csr, workload=name, application=self._name,
            evidence_sha256=hashlib.sha256(evidence).digest(), now=now, lifetime=LIFETIME,
        )  # fmt: skip
        return (leaf, self._generation.certificate)

    def server(self, *, now: int) -> ssl.SSLContext:
        """The aggregator's own end, with a key of its own, for as long as a certificate lives."""
        key = ec.generate_private_key(ec.SECP384R1())
        csr = make_request(key, workload=AGGREGATOR, application=self._name)
        return server_context(self.bundle, self.issue(csr, name=AGGREGATOR, evidence=b"", now=now), key)

    def peer(self, certificate: bytes, *, now: int) -> MeshPeer:
        """Whose it is. Raises :class:`~cloister.broker.mesh_peer.MeshRefused`."""
        return verify_peer((certificate,), bundle=self.bundle, now=now)


def encoded(mesh: FederationMesh) -> bytes:
    """The trust bundle as it travels."""
    return encode_bundle(mesh.bundle)


def party_context(
    bundle: bytes,
    chain: tuple[bytes, ...],
    key: ec.EllipticCurvePrivateKey,
    *,
    root: str,
    digest: str,
    now: int,
) -> tuple[ssl.SSLContext, str]:
    """A party's end, and the name that the aggregator's certificate has to have.

    ``root`` and ``digest`` are what the aggregator's evidence binds. Raises :class:`~cloister.broker.mesh_peer.MeshRefused`.
    """
    found = parse_bundle(bundle)
    verify_bundle(found, root_sha256=root, manifest_sha256=digest, now=now)
    return client_context(found, chain, key), dns_name(AGGREGATOR, found.application)
