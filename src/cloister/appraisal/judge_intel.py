"""Are these the Intel platform and workload that the policy names? Checks 11, 14 and 15 for TDX and SGX."""

from __future__ import annotations

from collections.abc import Mapping

from cloister.appraisal.reference_intel import TDX_MEASUREMENTS, SgxReference, TdxReference
from cloister.appraisal.values import Values, one_of
from cloister.errors import AppraisalRefused
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail


def judge_tdx_platform(claims: Claims, reference: TdxReference, trail: Trail) -> None:
    """11. Attributes, XFAM and owners' fields. Raises :class:`~cloister.errors.AppraisalRefused`."""
    with trail.check(11, name="service TD") as found:
        service_td = claims.details["mr_service_td"]
        if service_td.strip("0") and service_td not in (reference.service_td or ()):
            raise AppraisalRefused(
                f"the trust domain is bound to service TD {service_td[:16]}…",
                todo="a service TD can reach into it; list it as tdx.service_td to accept it",
            )
        found("none" if not service_td.strip("0") else f"{service_td[:16]}… as the policy lists")


def judge_tdx(claims: Claims, reference: TdxReference, trail: Trail) -> None:
    """14. and 15. Registers and launch events. Raises :class:`~cloister.errors.AppraisalRefused`."""
    with trail.check(14) as found:
        pinned = []
        for name in TDX_MEASUREMENTS:
            accepted = getattr(reference, name)
            if accepted == "any":
                continue
            one_of(name, claims.measurements[name].hex(), accepted)
            pinned.append(name)
        found(f"{', '.join(pinned)} as the policy lists" if pinned else "any")
    with trail.check(15, name="launch events") as found:
        if reference.events is not None:
            required_events(claims.events, reference.events)
        found(", ".join(reference.events or ()) or "none required")


def judge_sgx_platform(claims: Claims, reference: SgxReference, trail: Trail) -> None:
    """11. Attributes and masks. Raises :class:`~cloister.errors.AppraisalRefused`."""


def judge_sgx(claims: Claims, reference: SgxReference, trail: Trail) -> None:
    """14. The enclave itself, or its signer, product and lowest version."""
    with trail.check(14) as found:
        found(_enclave(claims, reference))
    trail.found(15, "none: MRENCLAVE covers the launch", name="launch events")


def required_events(events: Mapping[str, bytes], required: Mapping[str, Values]) -> None:
    """Each required event happened, with a payload that is listed, and no other event did."""
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
            one_of(f"launch event {name!r}", payload.hex(), payloads)


def _enclave(claims: Claims, reference: SgxReference) -> str:
    if reference.mrenclave is not None:
        one_of("mrenclave", claims.measurements["mrenclave"].hex(), reference.mrenclave)
        return "mrenclave as the policy lists"
    if reference.mrsigner is None or reference.isv_prod_id is None or reference.min_isv_svn is None:
        raise AppraisalRefused("the policy's sgx table is not complete")
    one_of("mrsigner", claims.measurements["mrsigner"].hex(), reference.mrsigner)
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
    return f"mrsigner as the policy lists, product {product}, version {version}"
