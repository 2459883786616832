"""Are these the Intel platform and workload that the policy names? Checks 11, 14 and 15 for TDX and SGX.

Attributes are judged bit by bit: one that the policy does not name must be off, one that has no name here is refused.
Firmware events are judged by their digests alone, because a log's types and descriptions are covered by nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.appraisal.reference_intel import (
    SGX_OWNER_FIELDS,
    TDX_MEASUREMENTS,
    TDX_OWNER_FIELDS,
    SgxReference,
    TdxReference,
    firmware_digests,
)
from cloister.appraisal.values import Values, one_of
from cloister.errors import AppraisalRefused
from cloister.evidence.sgx import XFRM_KNOWN, XFRM_REQUIRED, SgxReport
from cloister.evidence.tdx import XFAM_KNOWN, XFAM_REQUIRED, TdReport
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail

FIRMWARE_REGISTERS = (0, 1, 2)
"""RTMRs that firmware, boot loader and kernel extend; RTMR3 is the launcher's."""


def judge_tdx_platform(claims: Claims, reference: TdxReference, trail: Trail) -> None:
    """11. Attributes, XFAM, module and owners' fields. Raises :class:`~cloister.errors.AppraisalRefused`."""
    report = claims.report
    with trail.check(11, name="TD attributes") as found:
        if not isinstance(report, TdReport):
            raise AppraisalRefused(f"{claims.tee} claims hold no TD report")
        names = _attributes(
            "TD attribute",
            report.attribute_names,
            always={"SEPT_VE_DISABLE"},
            optional=reference.attributes,
            required=reference.required_attributes,
        )
        _features("xfam", report.xfam, reference.xfam, known=XFAM_KNOWN, needed=XFAM_REQUIRED)
        found(f"{', '.join(names)}; XFAM {report.xfam.hex()}")
    with trail.check(11, name="TDX module and owner") as found:
        if reference.mr_seam is not None:
            one_of("mr_seam", report.mr_seam.hex(), reference.mr_seam)
        for name in TDX_OWNER_FIELDS:
            _owner_field(name, getattr(report, name), getattr(reference, name))
        found("as the policy lists")
    with trail.check(11, name="service TD") as found:
        service_td = claims.details["mr_service_td"]
        if service_td.strip("0") and service_td not in (reference.service_td or ()):
            raise AppraisalRefused(
                f"the trust domain is bound to service TD {service_td[:16]}…",
                todo="a service TD can reach into it; list it as tdx.service_td to accept it",
            )
        found("none" if not service_td.strip("0") else f"{service_td[:16]}… as the policy lists")


def judge_tdx(claims: Claims, reference: TdxReference, trail: Trail) -> None:
    """14. and 15. Registers and events. Raises :class:`~cloister.errors.AppraisalRefused`."""
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
    if reference.firmware_events is not None:
        with trail.check(15, name="firmware events") as found:
            _firmware_events(claims, reference, reference.firmware_events)
            found(", ".join(reference.firmware_events))


def judge_sgx_platform(claims: Claims, reference: SgxReference, trail: Trail) -> None:
    """11. Attributes, MISCSELECT and KSS fields. Raises :class:`~cloister.errors.AppraisalRefused`."""
    report = claims.report
    with trail.check(11, name="enclave attributes") as found:
        if not isinstance(report, SgxReport):
            raise AppraisalRefused(f"{claims.tee} claims hold no enclave report")
        names = _attributes(
            "enclave attribute",
            report.attribute_names,
            always={"INIT", "MODE64BIT"},
            optional=reference.attributes,
            required=reference.required_attributes,
        )
        _features("xfrm", report.xfrm, reference.xfrm, known=XFRM_KNOWN, needed=XFRM_REQUIRED)
        _attributes("MISCSELECT bit", report.misc_select_names, optional=reference.misc_select)
        found(f"{', '.join(names)}; XFRM {report.xfrm.hex()}")
    with trail.check(11, name="enclave configuration") as found:
        for name, value in _kss_fields(report).items():
            _owner_field(name, value, getattr(reference, name))
        if report.config_svn < (reference.min_config_svn or 0):
            raise AppraisalRefused(
                f"config_svn is {report.config_svn}, below {reference.min_config_svn}",
                todo="update the configuration",
            )
        if reference.min_config_svn is None and report.config_svn:
            raise AppraisalRefused(
                f"config_svn is {report.config_svn}, and the policy says nothing of it",
                todo="whoever launched it chose that; set sgx.min_config_svn to accept it",
            )
        found("as the policy lists")


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


def _firmware_events(
    claims: Claims, reference: TdxReference, required: Mapping[str, tuple[str, ...]]
) -> None:
    """Each label's event happened, and in registers that are not pinned nothing else did."""
    accepted = {
        label: frozenset().union(*map(firmware_digests, values)) for label, values in required.items()
    }
    events = [event for event in claims.measured_events if event.register in FIRMWARE_REGISTERS]
    happened = {event.digest for event in events}
    for label, digests in accepted.items():
        if not digests & happened:
            raise AppraisalRefused(
                f"the firmware event {label!r} is required and did not happen",
                todo="something else was booted, or no firmware log came with the evidence",
            )
    for number in FIRMWARE_REGISTERS:
        name = f"rtmr{number}"
        if getattr(reference, name) != "any":
            continue
        found = [event for event in events if event.register == number]
        if not found and claims.measurements[name].strip(b"\0"):
            raise AppraisalRefused(
                f"{name} is not pinned, and no log says what was measured into it",
                todo=f"send the firmware log, or list the accepted values of {name}",
            )
        for event in found:
            if not any(event.digest in digests for digests in accepted.values()):
                raise AppraisalRefused(
                    f"{name} holds an event that the policy does not list: {event.digest.hex()}",
                    todo=f"the log calls it {event.name or event.kind}; compare before you add it",
                )


def _attributes(
    what: str,
    names: frozenset[str],
    *,
    always: set[str] | frozenset[str] = frozenset(),
    optional: tuple[str, ...] | None = None,
    required: tuple[str, ...] | None = None,
) -> list[str]:
    """The names that are set, if all that must be are, and no other than may be."""
    for name in sorted((always | set(required or ())) - names):
        raise AppraisalRefused(f"{what} {name} is off", todo="the policy requires it: launch it with it")
    for name in sorted(names - always - set(optional or ()) - set(required or ())):
        raise AppraisalRefused(
            f"{what} {name} is set, which the policy does not list",
            todo="launch it without, or list it if you know what it allows",
        )
    return sorted(names)


def _features(name: str, value: bytes, accepted: tuple[str, ...] | None, *, known: int, needed: int) -> None:
    """XFAM or XFRM: a listed value, or without a list nothing but known features."""
    if accepted is not None:
        one_of(name, value.hex(), accepted)
        return
    bits = int.from_bytes(value, "little")
    if bits & ~known or bits & needed != needed:
        raise AppraisalRefused(
            f"{name} is {value.hex()}, which has features that are not known here, or lacks x87 or SSE",
            todo=f"list the value as {name} to accept it",
        )


def _owner_field(name: str, value: bytes, accepted: Values | None) -> None:
    """A field that whoever launched the workload may fill: as listed, or zeros."""
    if accepted == "any":
        return
    if accepted is not None:
        one_of(name, value.hex(), accepted)
    elif value.strip(b"\0"):
        raise AppraisalRefused(
            f"{name} is {value.hex()[:32]}…, and the policy says nothing of it",
            todo=f'whoever launched it wrote that; list it as {name}, or write "any"',
        )


def _kss_fields(report: SgxReport) -> dict[str, bytes]:
    values = (report.config_id, report.isv_family_id, report.isv_ext_prod_id)
    return dict(zip(SGX_OWNER_FIELDS, values, strict=True))


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
