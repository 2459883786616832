"""``[tcb]``, ``[platform]``, ``[tdx]`` and ``[sgx]`` of a policy: what Intel's TEEs may be, and what they must measure."""

from __future__ import annotations

import re
from typing import Final

from cloister.appraisal.values import Values, check_digests, check_some
from cloister.encoding import Record, from_hex
from cloister.errors import FormatError
from cloister.evidence.eventlog import MAX_PAYLOAD
from cloister.verifier.rules import TCB_STATUSES, IntelRules

MAX_GRACE = 10 * 365 * 24 * 3600
TDX_MEASUREMENTS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")


class Tcb(Record, frozen=True, kw_only=True):
    """``[tcb]``: how up to date the platform has to be."""

    min_evaluation_number: int
    accepted_statuses: tuple[str, ...] = ("UpToDate",)
    rejected_advisories: tuple[str, ...] | None = None
    out_of_date_grace_seconds: int | None = None
    """How old the TCB level of an accepted ``OutOfDate`` platform may be; required with that status only."""


class Platform(Record, frozen=True, kw_only=True):
    """``[platform]``: properties of genuine platforms that have to be accepted explicitly."""

    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False


class TdxReference(Record, frozen=True, kw_only=True):
    """``[tdx]``: reference values of a trust domain. Its presence accepts the kind."""

    mrtd: Values
    rtmr0: Values
    rtmr1: Values
    rtmr2: Values
    rtmr3: Values
    events: dict[str, Values] | None = None
    """Launch events that must have happened: name -> accepted payloads, hexadecimal, or "any".

    Where there is such a table, an event that it does not name is refused.
    """
    service_td: tuple[str, ...] | None = None
    """Accepted MRSERVICETD digests; without the field a TD bound to a service TD is refused."""


class SgxReference(Record, frozen=True, kw_only=True):
    """``[sgx]``: reference values of an enclave: ``mrenclave``, or signer, product and lowest version."""

    mrenclave: tuple[str, ...] | None = None
    mrsigner: tuple[str, ...] | None = None
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None


def intel_rules(tcb: Tcb, platform: Platform) -> IntelRules:
    """The part that the Intel verifier enforces."""
    return IntelRules(
        min_tcb_evaluation_number=tcb.min_evaluation_number,
        accepted_statuses=frozenset(tcb.accepted_statuses),
        rejected_advisories=frozenset(tcb.rejected_advisories or ()),
        out_of_date_grace=tcb.out_of_date_grace_seconds or 0,
        allow_dynamic_platform=platform.allow_dynamic_platform,
        allow_cached_keys=platform.allow_cached_keys,
        allow_smt=platform.allow_smt,
    )


def check_tcb(tcb: Tcb) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    if not 1 <= tcb.min_evaluation_number <= 0xFFFF:
        raise FormatError("min_evaluation_number must be 1 to 65535")
    check_some("accepted_statuses", tcb.accepted_statuses)
    for status in tcb.accepted_statuses:
        if status == "Revoked":
            raise FormatError("accepted_statuses names Revoked", todo="a revoked platform is never accepted")
        if status not in TCB_STATUSES:
            raise FormatError(
                f"accepted_statuses names the unknown status {status[:40]!r}",
                todo=f"the statuses are {', '.join(TCB_STATUSES)}",
            )
    out_of_date = any(status.startswith("OutOfDate") for status in tcb.accepted_statuses)
    if out_of_date != (tcb.out_of_date_grace_seconds is not None):
        raise FormatError(
            "out_of_date_grace_seconds and an OutOfDate status in accepted_statuses go together",
            todo="say how old the TCB level of an accepted platform may be",
        )
    if tcb.out_of_date_grace_seconds is not None and not 1 <= tcb.out_of_date_grace_seconds <= MAX_GRACE:
        raise FormatError(f"out_of_date_grace_seconds must be 1 to {MAX_GRACE}")
    if tcb.rejected_advisories is not None:
        check_some("rejected_advisories", tcb.rejected_advisories)
    for advisory in tcb.rejected_advisories or ():
        if not re.fullmatch(r"[A-Z0-9-]{1,64}", advisory):
            raise FormatError(f"rejected_advisories names {advisory[:40]!r}, which is no advisory id")


def check_tdx(tdx: TdxReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    for name in TDX_MEASUREMENTS:
        values = getattr(tdx, name)
        if values != "any":
            check_digests(name, values, 48)
    if tdx.service_td is not None:
        check_digests("service_td", tdx.service_td, 48)
    if tdx.events is not None and not tdx.events:
        raise FormatError(
            "events is an empty table", todo="leave it out, or name the events that must happen"
        )
    for event, payloads in (tdx.events or {}).items():
        if not 1 <= len(event) <= 64:
            raise FormatError(f"events names {event[:64]!r}: names have 1 to 64 characters")
        if payloads == "any":
            continue
        check_some(f"events.{event}", payloads)
        for payload in payloads:
            if len(payload) > 2 * MAX_PAYLOAD:
                raise FormatError(f"events.{event} has a payload over {MAX_PAYLOAD} bytes")
            from_hex(payload, len(payload) // 2, what=f"events.{event}")
    if tdx.mrtd == "any":
        # Only MRTD is written by the TDX module; what it measured extends the registers and says what happened.
        raise FormatError(
            'mrtd is "any": firmware that nobody pinned can show whatever the rest asks for, so this would accept '
            "every trust domain in the world",
            todo="list the accepted MRTD digests",
        )


def check_sgx(sgx: SgxReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    by_signer = (sgx.mrsigner, sgx.isv_prod_id, sgx.min_isv_svn)
    if sgx.mrenclave is not None:
        if any(field is not None for field in by_signer):
            raise FormatError("sgx names mrenclave and a signer", todo="decide for one of them")
        check_digests("mrenclave", sgx.mrenclave, 32)
        return
    if sgx.mrsigner is None or sgx.isv_prod_id is None or sgx.min_isv_svn is None:
        raise FormatError("sgx needs mrenclave, or mrsigner with isv_prod_id and min_isv_svn")
    check_digests("mrsigner", sgx.mrsigner, 32)
    for name, value in (("isv_prod_id", sgx.isv_prod_id), ("min_isv_svn", sgx.min_isv_svn)):
        if not 0 <= value <= 0xFFFF:
            raise FormatError(f"{name} must be 0 to 65535")
