"""Evidence profiles: what a session announced fixes the form of its evidence and how that binds its key. Never guessed.

``cloister/evidence/v1`` is our workloads' own: one evidence bundle, bound as docs/spec/binding.md says. ``trustee`` is
what guests of the Confidential Containers send (trustee.py). Evidence of one is never read as the other's: the profile,
the TEE and the hash are those of the session's beginning, and nothing in an attestation can change them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol, trustee
from cloister.broker.protocol import (
    VERSION,
    AuthRequest,
    Challenge,
    ChallengeParameters,
    HashName,
    RuntimeData,
    Unsupported,
)
from cloister.broker.trustee import init_data_digest
from cloister.broker.trustee_binding import TrusteeBinding, check_init_data
from cloister.broker.trustee_evidence import Primary, read_additional, read_primary
from cloister.encoding import Record, encode_json
from cloister.errors import EvidenceError, NetworkError
from cloister.evidence.bundle import TEE_KINDS, EvidenceBundle, NonceProof, TeeKind, encode_bundle

Collateral = Callable[[TeeKind, bytes], bytes]
"""Endorsements for a quote or report whose guest brings none."""
DeviceCollateral = Callable[[bytes], bytes]
"""The same for device evidence (evidence/nvidia.py)."""
Profile = Literal["cloister/evidence/v1", "trustee"]
KEPT_FORMAT: Final = "cloister/trustee-evidence/v1"


@dataclass(frozen=True, slots=True)
class Announced:
    """What a session said at its beginning."""

    profile: Profile
    tee: TeeKind
    version: str = VERSION
    hash: HashName = trustee.HASHES[0]
    """What binds runtime data under ``trustee``; the other profile leaves no choice."""


class KeptTrustee(Record, frozen=True, kw_only=True):
    """What is kept of a guest's attestation: enough to appraise it again."""

    format: Literal["cloister/trustee-evidence/v1"] = KEPT_FORMAT
    hash: HashName
    init_data: str
    """The body, or empty."""
    evidence: EvidenceBundle


@dataclass(frozen=True, slots=True)
class Presented:
    """Evidence of a session, its form checked and nothing else."""

    profile: Profile
    runtime: RuntimeData
    bundle: EvidenceBundle
    """For ``trustee`` its key material is the runtime data that the evidence binds."""
    hash: HashName = trustee.HASHES[0]
    init_data: str | None = field(default=None, repr=False)
    init_data_digest: bytes = b""
    """Of the body of init-data, if any came."""
    record: bytes = field(init=False, repr=False, compare=False)
    """What is kept for audits."""
    evidence_sha256: str = field(init=False, compare=False)
    """Its digest, hexadecimal."""

    def __post_init__(self) -> None:
        record = encode_bundle(self.bundle)
        if self.profile == trustee.PROFILE:
            record = encode_json(
                KeptTrustee(hash=self.hash, init_data=self.init_data or "", evidence=self.bundle)
            )
        object.__setattr__(self, "record", record)
        object.__setattr__(self, "evidence_sha256", hashlib.sha256(record).hexdigest())


def announce(body: bytes) -> Announced:
    """What the body of ``/auth`` announces. Raises :class:`~cloister.errors.FormatError` or ``Unsupported``."""
    request = protocol.parse_auth(body)
    if request.extra_params == {"profile": protocol.PROFILE}:
        return Announced(protocol.PROFILE, _tee(request, TEE_KINDS))
    chosen = trustee.select_hash(request.extra_params)
    return Announced(trustee.PROFILE, _tee(request, trustee.TEES), hash=chosen)


def challenge(announced: Announced, nonce: bytes) -> Challenge:
    """The answer to it: ``nonce`` (32 bytes), and the hash where there was a choice."""
    chosen = announced.hash if announced.profile == trustee.PROFILE else None
    return Challenge(
        nonce=protocol.encode_nonce(nonce), extra_params=ChallengeParameters(selected_hash_algorithm=chosen)
    )


def present(
    announced: Announced,
    body: bytes,
    *,
    collateral: Collateral | None = None,
    device_collateral: DeviceCollateral | None = None,
) -> Presented:
    """Read the body of an attestation as its session announced it.

    ``collateral`` and ``device_collateral`` find endorsements for guests that bring none. Raises
    :class:`~cloister.errors.FormatError`, :class:`~cloister.errors.EvidenceError` and what those raise.
    """
    if announced.profile == protocol.PROFILE:
        runtime, bundle = protocol.parse_attestation(body)
        if bundle.tee != announced.tee:
            raise EvidenceError("the evidence is of another TEE than was announced")
        return Presented(announced.profile, runtime, bundle)
    return _present_guest(announced, body, collateral, device_collateral)


def appraise_presented(
    presented: Presented, *, nonce: bytes, policy: Policy, now: int, not_after: int | None
) -> AttestationResult[RuntimeData]:
    """Appraise it as the answer to ``nonce``, whose keys end at ``not_after`` (Unix seconds, or None).

    Raises what :func:`~cloister.appraisal.appraise.appraise` raises, and
    :class:`~cloister.errors.BindingMismatch` for init-data that the guest was not launched with.
    """
    if presented.profile == protocol.PROFILE:
        return appraise(
            presented.bundle,
            nonce=nonce,
            policy=policy,
            now=now,
            decode=protocol.parse_runtime_data,
            not_after=lambda _runtime: not_after,
        )
    result = appraise(
        presented.bundle,
        nonce=nonce,
        policy=policy,
        now=now,
        decode=lambda bound: trustee.plain_runtime(trustee.parse_bound_runtime(bound)),
        not_after=lambda _runtime: not_after,
        binding=TrusteeBinding(presented.hash),
    )
    if presented.init_data is not None:
        check_init_data(presented.init_data_digest, result.claims.report)
    return result


def _present_guest(
    announced: Announced,
    body: bytes,
    collateral: Collateral | None,
    device_collateral: DeviceCollateral | None,
) -> Presented:
    attestation = trustee.parse_guest_attestation(body)
    evidence = attestation.tee_evidence
    init_data = attestation.init_data
    digest = init_data_digest(init_data) if init_data else b""
    primary = read_primary(announced.tee, evidence.primary_evidence)
    devices = read_additional(evidence.additional_evidence)
    bundle = EvidenceBundle(
        tee=announced.tee,
        quote=primary.quote,
        key_material=trustee.bound_runtime(attestation.runtime_data, evidence.additional_evidence),
        nonce_proof=NonceProof(index=0, size=1, path=()),
        firmware_log=primary.firmware_log,
        device_evidence=devices,
        endorsements=_endorsements(announced.tee, primary, collateral),
        device_endorsements=device_collateral(devices) if devices and device_collateral else b"",
    )
    return Presented(
        announced.profile,
        trustee.plain_runtime(attestation.runtime_data),
        bundle,
        hash=announced.hash,
        init_data=init_data.body if init_data else None,
        init_data_digest=digest,
    )


def _endorsements(tee: TeeKind, primary: Primary, collateral: Collateral | None) -> bytes:
    if collateral is None or (primary.endorsements and primary.signed_by_vlek):
        return primary.endorsements  # nobody but the cloud has a VLEK's certificate
    try:
        return collateral(tee, primary.quote)
    except NetworkError:
        if primary.endorsements:
            return primary.endorsements  # without the revocation list, which a policy may do without
        raise


def _tee(request: AuthRequest, known: tuple[TeeKind, ...]) -> TeeKind:
    for kind in known:
        if request.tee == kind:
            return kind
    raise Unsupported("tee", "another kind of TEE was announced")
