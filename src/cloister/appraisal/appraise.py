"""Appraisal: is this the workload that the policy names, fresh, and are these its keys?

:func:`appraise` is pure: the bundle, the nonce, the policy and ``now`` are arguments. It runs sixteen numbered
checks (docs/spec/policy.md) and raises at the first that fails; there is no partial result. The key material is
decoded only after the quote that binds it was verified.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from cloister.appraisal.policy import TDX_MEASUREMENTS, Policy, SgxReference, TdxReference, Values
from cloister.appraisal.result import Appraised, AttestationResult
from cloister.errors import AppraisalRefused, EventLogMismatch, EvidenceError
from cloister.evidence.binding import check_binding, check_nonce
from cloister.evidence.bundle import EvidenceBundle
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.verifier import intel
from cloister.verifier.claims import Check, Claims

K = TypeVar("K")


def appraise(
    bundle: EvidenceBundle,
    *,
    nonce: bytes,
    policy: Policy,
    now: int,
    decode: Callable[[bytes], K],
    not_after: Callable[[K], int | None],
    collateral: bytes | None = None,
) -> AttestationResult[K]:
    """Appraise ``bundle`` as the answer to ``nonce`` (32 bytes) at ``now`` (Unix seconds).

    ``decode`` turns the bound key material into its type, ``not_after`` says when those keys end (Unix seconds, or
    None where they have no end of their own). ``collateral`` replaces what the bundle carries, for instance from a
    file. Raises the errors of the checks: all of them are :class:`~cloister.errors.CloisterError`.
    """
    # 1. The evidence answers this nonce (the root it leads to is compared with the quote in 12).
    nonce_root = check_nonce(bundle, nonce)
    checks = [Check(1, "nonce", f"leaf {bundle.nonce_proof.index} of {bundle.nonce_proof.size}")]
    # 2. The policy accepts this kind of TEE at all.
    if bundle.tee not in policy.tees:
        raise AppraisalRefused(
            f"the policy does not accept a TEE of kind {bundle.tee}",
            todo=f"it accepts {' and '.join(policy.tees)}; add a [{bundle.tee}] table if you mean to",
        )
    checks.append(Check(2, "kind of TEE", bundle.tee.upper()))
    # 3. to 11. The quote is genuine, now, on a platform that the policy accepts.
    claims = intel.verify(
        bundle.quote,
        bundle.endorsements if collateral is None else collateral,
        root=policy.root,
        now=now,
        rules=policy.intel_rules,
    )
    if claims.tee != bundle.tee:
        raise EvidenceError(f"the bundle says {bundle.tee}, its quote is {claims.tee}")
    checks.extend(claims.checks)
    # 12. Its report data binds the nonce, the keys and the device evidence of this very bundle.
    check_binding(bundle, nonce_root, claims.report_data)
    if bundle.device_evidence:
        raise AppraisalRefused(
            "the bundle carries device evidence, which this release cannot verify",
            todo="appraise a workload without GPUs",
        )
    checks.append(Check(12, "binding", f"report data {claims.report_data.hex()[:16]}…"))
    # 13. The event log, where there is one, replays to the quoted register; only then its events are claims.
    claims = replace(claims, events=_events(bundle, claims))
    checks.append(Check(13, "event log", f"{len(claims.events)} events" if claims.events else "none"))
    # 14. and 15. The measurements and launch events are those that the policy names.
    checks.extend(_reference_values(claims, policy))
    # 16. The result ends with the keys, the collateral or the policy's patience, whichever is first.
    keys = decode(bundle.key_material)
    keys_end = not_after(keys)
    if keys_end is not None and keys_end <= now:
        raise EvidenceError(f"the attested keys ended at {keys_end}", todo="ask for evidence again")
    ends = [claims.collateral_expires, now + policy.max_age_seconds]
    expires = min(ends if keys_end is None else [*ends, keys_end])
    checks.append(Check(16, "freshness", f"the result stands for {expires - now} s"))
    claims = replace(claims, checks=tuple(checks))
    policy_digest = policy.digest
    return AttestationResult(
        keys=keys,
        claims=claims,
        policy_digest=policy_digest,
        verified_at=now,
        expires=expires,
        checks=tuple(checks),
        _seal=Appraised(keys, claims, policy_digest=policy_digest, expires=expires),
    )


def _events(bundle: EvidenceBundle, claims: Claims) -> Mapping[str, bytes]:
    if not bundle.event_log:
        return {}
    register = claims.measurements.get("rtmr3")
    if register is None:
        raise EventLogMismatch(
            f"a {claims.tee.upper()} quote has no register that an event log could replay to",
            todo="the log cannot be believed; send none",
        )
    events = parse_event_log(bundle.event_log)
    if not hmac.compare_digest(replay(events), register):
        raise EventLogMismatch(
            "the event log does not replay to the quoted rtmr3",
            todo="something else was launched than the log says",
        )
    return {event.name: event.payload for event in events}


def _reference_values(claims: Claims, policy: Policy) -> list[Check]:
    if claims.tee == "tdx" and policy.tdx is not None:
        return _tdx(claims, policy.tdx)
    if claims.tee == "sgx" and policy.sgx is not None:
        return _sgx(claims, policy.sgx)
    raise AppraisalRefused(f"the policy has no reference values for {claims.tee}")


def _tdx(claims: Claims, reference: TdxReference) -> list[Check]:
    # 14. Each register is one of the listed digests, or the policy says "any".
    pinned = []
    for name in TDX_MEASUREMENTS:
        accepted = getattr(reference, name)
        if accepted == "any":
            continue
        _one_of(name, claims.measurements[name].hex(), accepted)
        pinned.append(name)
    service_td = claims.details["mr_service_td"]
    if service_td.strip("0") and service_td not in (reference.service_td or ()):
        raise AppraisalRefused(
            f"the trust domain is bound to service TD {service_td[:16]}…",
            todo="a service TD can reach into it; list it as tdx.service_td to accept it",
        )
    # 15. Each required event happened, with a payload that the policy lists, and no other event did.
    if reference.events is not None:
        _required_events(claims.events, reference.events)
    return [
        Check(14, "measurements", f"{', '.join(pinned)} as the policy lists" if pinned else "any"),
        Check(15, "launch events", ", ".join(reference.events or ()) or "none required"),
    ]


def _required_events(events: Mapping[str, bytes], required: Mapping[str, Values]) -> None:
    for name in events:
        if name not in required:
            raise AppraisalRefused(
                f"the launch event {name!r} happened, which the policy does not list",
                todo='list it, with "any" if its payload does not matter',
            )
    for name, payloads in required.items():
        payload = events.get(name)
        if payload is None:
            raise AppraisalRefused(
                f"the launch event {name!r} is required and did not happen",
                todo="the workload was launched otherwise than the policy demands",
            )
        if payloads != "any":
            _one_of(f"launch event {name!r}", payload.hex(), payloads)


def _sgx(claims: Claims, reference: SgxReference) -> list[Check]:
    # 14. The enclave itself, or its signer, product and lowest version.
    events = Check(15, "launch events", "none: MRENCLAVE covers the launch")
    if reference.mrenclave is not None:
        _one_of("mrenclave", claims.measurements["mrenclave"].hex(), reference.mrenclave)
        return [Check(14, "measurements", "mrenclave as the policy lists"), events]
    if reference.mrsigner is None or reference.isv_prod_id is None or reference.min_isv_svn is None:
        raise AppraisalRefused("the policy's sgx table is not complete")
    _one_of("mrsigner", claims.measurements["mrsigner"].hex(), reference.mrsigner)
    product, version = int(claims.details["isv_prod_id"]), int(claims.details["isv_svn"])
    if product != reference.isv_prod_id:
        raise AppraisalRefused(
            f"isv_prod_id is {product}, not {reference.isv_prod_id}",
            todo="this is another product of the same signer",
        )
    if version < reference.min_isv_svn:
        raise AppraisalRefused(
            f"isv_svn is {version}, below {reference.min_isv_svn}", todo="update the enclave"
        )
    outcome = f"mrsigner as the policy lists, product {product}, version {version}"
    return [Check(14, "measurements", outcome), events]


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        shown = value if len(value) <= 96 else f"{value[:96]}…"
        raise AppraisalRefused(
            f"{name} is {shown or 'empty'}, which the policy does not list",
            todo="this is another workload, or its reference values changed: compare before you add it",
        )
