"""Whether a party's agent and workload may take part: evidence of both over one nonce, the party's word for the agent. Pure.

1. The agent's evidence meets a policy that every party signed for it, over the aggregator's nonce.
2. Its key is the one that the party's own key delegated to.
3. That key signed this very admission, so nobody else puts an agent's evidence beside another workload's.
4. The workload's evidence meets a policy for it, over the same nonce.
5. The certificate request is of the key that the workload's evidence binds.
6. The agent's key signed that this is its workload's: other parties believe that, and no aggregator.

And whether an aggregator is the one of the federation that a party signed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.appraisal.result import AttestationResult
from cloister.broker.mesh_request import MAX_CSR, requested_key
from cloister.channel.verification import appraise_any
from cloister.errors import FederationError
from cloister.evidence.bundle import parse_bundle
from cloister.evidence.key_material import KeyMaterial
from cloister.federated.agreement import AgreedFederation
from cloister.federated.delegation import accept_delegation
from cloister.federated.identity import check_signature, read_spki
from cloister.federated.messages import KEY_SIZE, NONCE, Admission, Presented
from cloister.manifest.signed import parse_signed

Result = AttestationResult[KeyMaterial]
WORKLOAD: Final = "workload"
"""As what an agent signs the key of its workload."""


@dataclass(frozen=True, slots=True)
class Verified:
    """Who passed."""

    party: str
    agent: Result
    agent_digest: str
    """SHA-256 of the agent's evidence as it came, hexadecimal."""
    workload: Result
    workload_digest: str
    workload_key: bytes
    """SubjectPublicKeyInfo, DER."""
    until: int
    """Unix seconds: the earliest end of both evidences and the delegation."""


def check_aggregator(material: KeyMaterial, agreed: AgreedFederation) -> str:
    """The root of its mesh, if its evidence binds this version of the federation. Raises FederationError."""
    if material.manifest_sha256 != agreed.digest or material.mesh_root_sha256 is None:
        raise FederationError(
            "the aggregator runs another federation, or another version of it, than this party signed",
            todo="compare the digests; `cloister federation show` prints yours",
        )
    return material.mesh_root_sha256


def verify_admission(
    admission: Admission, *, agreed: AgreedFederation, party: str, nonce: bytes, now: int
) -> Verified:
    """Raises FederationError, and what appraisal and signatures raise."""
    if len(admission.nonce) != NONCE or admission.seen < 0:
        raise FederationError("an admission has a nonce for others, and the number of a round")
    if admission.checkpoint_key is not None and len(admission.checkpoint_key) != KEY_SIZE:
        raise FederationError(f"the key of a checkpoint has {KEY_SIZE} bytes")
    agent = appraise_any(
        parse_bundle(admission.agent), agreed.agent_policies(party), nonce=nonce, now=now
    )  # 1
    key_digest = agent.require_fresh(now).tls_spki_sha256
    agent_key = read_spki(admission.agent_key, digest=key_digest)
    delegation = accept_delegation(
        parse_signed(admission.delegation), agreed=agreed, party=party, agent_key=key_digest or "", now=now
    )  # 2
    check_signature(agent_key, admission.signature, "admission", *signed_parts(admission))  # 3
    workload = appraise_any(
        parse_bundle(admission.workload), agreed.workload_policies(party), nonce=nonce, now=now
    )  # 4
    workload_key = requested_spki(admission.csr, party, agreed.federation.name)
    read_spki(workload_key, digest=workload.require_fresh(now).tls_spki_sha256)  # 5
    if workload_key == admission.agent_key:
        raise FederationError("agent and workload have one key, so they are one process")
    check_signature(
        agent_key, admission.vouched, WORKLOAD, *vouched_parts(agreed.digest, party, workload_key)
    )  # 6
    until = min(agent.expires, workload.expires, delegation.not_after)
    return Verified(
        party, agent, _digest(admission.agent), workload, _digest(admission.workload), workload_key, until
    )


def verify_presented(
    presented: Presented, *, agreed: AgreedFederation, party: str, nonce: bytes, now: int
) -> Result:
    """Another party's agent, to this one's (steps 1, 2 and 6). Raises as :func:`verify_admission`."""
    result = appraise_any(
        parse_bundle(presented.evidence), agreed.agent_policies(party), nonce=nonce, now=now
    )
    digest = result.require_fresh(now).tls_spki_sha256
    agent_key = read_spki(presented.agent_key, digest=digest)
    accept_delegation(
        parse_signed(presented.delegation), agreed=agreed, party=party, agent_key=digest or "", now=now
    )
    parts = vouched_parts(agreed.digest, party, presented.workload_key)
    check_signature(agent_key, presented.vouched, WORKLOAD, *parts)
    read_spki(presented.workload_key, digest=hashlib.sha256(presented.workload_key).hexdigest())
    return result


def signed_parts(admission: Admission) -> tuple[bytes, ...]:
    """What an agent's key signs of an admission."""
    return (
        admission.session.encode(),
        admission.delegation,
        admission.agent,
        admission.agent_key,
        admission.workload,
        admission.csr,
        admission.vouched,
        admission.nonce,
        admission.checkpoint_key or b"",
        str(admission.seen).encode(),
    )


def vouched_parts(digest: str, party: str, workload_key: bytes) -> tuple[bytes, ...]:
    """What an agent's key signs as :data:`WORKLOAD`: whose workload has this key, in the federation with this digest."""
    return digest.encode(), party.encode(), workload_key


def requested_spki(csr: bytes, party: str, federation: str) -> bytes:
    """The key of a workload's request (SubjectPublicKeyInfo, DER). Raises :class:`~cloister.errors.FormatError`."""
    key = requested_key(csr[: MAX_CSR + 1], workload=party, application=federation)
    spki: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return spki


def _digest(bundle: bytes) -> str:
    return hashlib.sha256(bundle).hexdigest()
