"""Appraisal: is this the workload that the policy names, fresh, and are these its keys?

:func:`appraise` is pure: the bundle, the nonce, the policy and ``now`` are arguments. It runs seventeen numbered
checks (docs/reference/checks.md) and raises at the first that fails; there is no partial result. The key material is
decoded only after the quote that binds it was verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from cloister.appraisal.devices import appraise_devices
from cloister.appraisal.dispatch import judge_platform, judge_workload, verify_evidence
from cloister.appraisal.policy import Policy
from cloister.appraisal.result import Appraised, AttestationResult
from cloister.errors import AppraisalRefused, EvidenceError
from cloister.evidence.binding import BatchedBinding, Binding, check_bound
from cloister.evidence.bundle import EvidenceBundle
from cloister.verifier.logs import replay_logs
from cloister.verifier.trail import Trail

K = TypeVar("K")
_OURS: Final = BatchedBinding()


def appraise(
    bundle: EvidenceBundle,
    *,
    nonce: bytes,
    policy: Policy,
    now: int,
    decode: Callable[[bytes], K],
    not_after: Callable[[K], int | None],
    collateral: bytes | None = None,
    device_collateral: bytes | None = None,
    binding: Binding = _OURS,
    trail: Trail | None = None,
) -> AttestationResult[K]:
    """Appraise ``bundle`` as the answer to ``nonce`` (32 bytes) at ``now`` (Unix seconds).

    ``decode`` turns the bound key material into its type, ``not_after`` says when those keys end (Unix seconds, or
    None where they have no end of their own). ``collateral`` and ``device_collateral`` replace the endorsements that
    the bundle carries, for instance from a cache. ``binding`` is how the evidence ties nonce and keys together: the caller
    knows, because the caller asked. ``trail`` remembers the checks for whoever shows them.
    Raises the errors of the checks: all of them are :class:`~cloister.errors.CloisterError`.
    """
    trail = Trail() if trail is None else trail
    # 1. The evidence answers this nonce (what it then has to carry is compared with the quote in 12).
    with trail.check(1) as found:
        bound = binding.bind(bundle, nonce)
        found(bound.found)
    # 2. The policy accepts this kind of TEE at all.
    with trail.check(2) as found:
        if bundle.tee not in policy.tees:
            raise AppraisalRefused(
                f"the policy does not accept a TEE of kind {bundle.tee}",
                todo=f"it accepts {' and '.join(policy.tees)}; add the table of that kind if you mean to",
            )
        found(bundle.tee.upper())
    # 3. to 11. The evidence is genuine, now, of a platform that the policy accepts.
    endorsements = bundle.endorsements if collateral is None else collateral
    claims = verify_evidence(bundle.tee, bundle.quote, endorsements, policy=policy, now=now, trail=trail)
    with trail.check(3):
        if claims.tee != bundle.tee:
            raise EvidenceError(f"the bundle says {bundle.tee}, its quote is {claims.tee}")
    judge_platform(claims, policy, trail)
    # 12. Its report data binds the nonce, the keys and the device evidence of this very bundle.
    with trail.check(12) as found:
        check_bound(bound, claims.report_data)
        found(f"report data {claims.report_data.hex()[:16]}…")
    # 13. The event logs, where there are any, replay to the quoted registers; only then their events are claims.
    with trail.check(13) as found:
        claims = replay_logs(claims, event_log=bundle.event_log, firmware_log=bundle.firmware_log)
        count = len(claims.events) + len(claims.measured_events)
        found(f"{count} events" if count else "none")
    # 14. and 15. The measurements and events are those that the policy names.
    judge_workload(claims, policy, trail)
    # 16. The devices are genuine, those that the policy wants, and answer the same nonce.
    claims = appraise_devices(
        claims,
        bundle.device_evidence,
        bundle.device_endorsements if device_collateral is None else device_collateral,
        nonce=bound.device_nonce,
        policy=policy,
        now=now,
        trail=trail,
    )
    # 17. The result ends with the keys, the endorsements or the policy's patience, whichever is first.
    with trail.check(17) as found:
        keys = decode(bundle.key_material)
        keys_end = not_after(keys)
        if keys_end is not None and keys_end <= now:
            raise EvidenceError(f"the attested keys ended at {keys_end}", todo="ask for evidence again")
        ends = [claims.collateral_expires, now + policy.max_age_seconds]
        expires = min(ends if keys_end is None else [*ends, keys_end])
        found(f"the result stands for {expires - now} s")
    claims = replace(claims, checks=trail.passed)
    policy_digest = policy.digest
    seal = Appraised(
        keys,
        claims,
        key_material=bundle.key_material,
        policy_digest=policy_digest,
        verified_at=now,
        expires=expires,
        checks=trail.passed,
    )
    return AttestationResult(
        keys=keys,
        claims=claims,
        policy_digest=policy_digest,
        verified_at=now,
        expires=expires,
        checks=trail.passed,
        key_material=bundle.key_material,
        _seal=seal,
    )
