"""``[tcb]``, ``[platform]``, ``[tdx]`` and ``[sgx]`` of a policy: what Intel's TEEs may be, and what they must measure.

docs/reference/policy-intel.md says each field in words. Fields that a policy leaves out have their strictest reading:
no optional attribute, zeros where an owner could have written something.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from cloister.appraisal.values import Values, check_digests, check_some
from cloister.encoding import Record, from_hex
from cloister.errors import FormatError
from cloister.evidence.eventlog import MAX_PAYLOAD
from cloister.verifier.rules import TCB_STATUSES, IntelRules

MAX_GRACE = 10 * 365 * 24 * 3600
TDX_MEASUREMENTS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
TDX_OWNER_FIELDS: Final = ("mr_config_id", "mr_owner", "mr_owner_config")
SGX_OWNER_FIELDS: Final = {"config_id": 64, "family_id": 16, "ext_prod_id": 16}
TDX_ATTRIBUTES: Final = ("ICSSD", "LASS", "PKS", "KL", "TPA", "PERFMON")
"""What ``tdx.attributes`` may name. Debug, profiling and migration are never accepted, SEPT_VE_DISABLE always needed."""
SGX_ATTRIBUTES: Final = ("PROVISION_KEY", "EINITTOKEN_KEY", "CET", "KSS", "AEX_NOTIFY")
MISC_SELECT_BITS: Final = ("EXINFO", "CPINFO")
TEXT: Final = "text:"
MAX_TEXT: Final = 4096
MAX_FIRMWARE_EVENTS: Final = 256


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
    firmware_events: dict[str, tuple[str, ...]] | None = None
    """Firmware events that must have happened: a label of one's own -> accepted SHA-384 digests, or ``text:…``.

    Where there is such a table, each event in a register that is not pinned (RTMR0 to RTMR2) must be in it.
    """
    attributes: tuple[str, ...] | None = None
    """Optional attributes that may be set; without the field none."""
    required_attributes: tuple[str, ...] | None = None
    """Optional attributes that must be set."""
    xfam: tuple[str, ...] | None = None
    """Accepted XFAM values, 8 bytes as they stand in the report; without the field all of known features."""
    mr_seam: tuple[str, ...] | None = None
    """Accepted TDX modules; without the field those that Intel's TCB info covers."""
    mr_config_id: Values | None = None
    """Accepted MRCONFIGID; without the field it must be zeros."""
    mr_owner: Values | None = None
    """Likewise MROWNER."""
    mr_owner_config: Values | None = None
    """Likewise MROWNERCONFIG."""
    service_td: tuple[str, ...] | None = None
    """Accepted MRSERVICETD digests; without the field a TD bound to a service TD is refused."""


class SgxReference(Record, frozen=True, kw_only=True):
    """``[sgx]``: reference values of an enclave: ``mrenclave``, or signer, product and lowest version."""

    mrenclave: tuple[str, ...] | None = None
    mrsigner: tuple[str, ...] | None = None
    isv_prod_id: int | None = None
    min_isv_svn: int | None = None
    attributes: tuple[str, ...] | None = None
    """Optional attributes that may be set; without the field none."""
    required_attributes: tuple[str, ...] | None = None
    """Optional attributes that must be set."""
    xfrm: tuple[str, ...] | None = None
    """Accepted XFRM values, 8 bytes as they stand in the report; without the field all of known features."""
    misc_select: tuple[str, ...] | None = None
    """MISCSELECT bits that may be set; without the field none."""
    config_id: Values | None = None
    """Accepted CONFIGID (64 bytes); without the field it must be zeros."""
    min_config_svn: int | None = None
    """Lowest CONFIGSVN; without the field it must be 0."""
    family_id: Values | None = None
    """Accepted ISVFAMILYID (16 bytes); without the field it must be zeros."""
    ext_prod_id: Values | None = None
    """Accepted ISVEXTPRODID (16 bytes); without the field it must be zeros."""


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
    for name in (*TDX_MEASUREMENTS, *TDX_OWNER_FIELDS):
        _check_values(name, getattr(tdx, name), 48)
    for name, size in (("service_td", 48), ("mr_seam", 48), ("xfam", 8)):
        _check_values(name, getattr(tdx, name), size)
    _check_names("attributes", tdx.attributes, TDX_ATTRIBUTES)
    _check_names("required_attributes", tdx.required_attributes, TDX_ATTRIBUTES)
    _check_events(tdx.events)
    _check_firmware_events(tdx.firmware_events)
    if tdx.mrtd == "any":
        # Only MRTD is written by the TDX module; what it measured extends the registers and says what happened.
        raise FormatError(
            'mrtd is "any": firmware that nobody pinned can show whatever the rest asks for, so this would accept '
            "every trust domain in the world",
            todo="list the accepted MRTD digests",
        )


def check_sgx(sgx: SgxReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    for name, size in SGX_OWNER_FIELDS.items():
        _check_values(name, getattr(sgx, name), size)
    _check_values("xfrm", sgx.xfrm, 8)
    _check_names("attributes", sgx.attributes, SGX_ATTRIBUTES)
    _check_names("required_attributes", sgx.required_attributes, SGX_ATTRIBUTES)
    _check_names("misc_select", sgx.misc_select, MISC_SELECT_BITS)
    if sgx.min_config_svn is not None and not 0 <= sgx.min_config_svn <= 0xFFFF:
        raise FormatError("min_config_svn must be 0 to 65535")
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


@lru_cache(maxsize=1024)
def firmware_digests(value: str) -> frozenset[bytes]:
    """The SHA-384 digests that ``value`` of ``firmware_events`` accepts.

    A text stands for the forms in which firmware and loaders measure one: UTF-8 or UTF-16, with or without its NUL.
    """
    if not value.startswith(TEXT):
        return frozenset({bytes.fromhex(value)})
    text = value.removeprefix(TEXT)
    return frozenset(
        hashlib.sha384(form.encode(encoding)).digest()
        for form in (text, text + "\0")
        for encoding in ("utf-8", "utf-16-le")
    )


def _check_values(name: str, values: Values | None, size: int) -> None:
    if values is not None and values != "any":
        check_digests(name, values, size)


def _check_names(name: str, values: tuple[str, ...] | None, known: tuple[str, ...]) -> None:
    if values is None:
        return
    check_some(name, values)
    for value in values:
        if value not in known:
            raise FormatError(
                f"{name} names {value[:40]!r}, which no policy can accept",
                todo=f"it may name {', '.join(known)}",
            )


def _check_events(events: dict[str, Values] | None) -> None:
    _check_labels("events", events)
    for event, payloads in (events or {}).items():
        if payloads == "any":
            continue
        check_some(f"events.{event}", payloads)
        for payload in payloads:
            if len(payload) > 2 * MAX_PAYLOAD:
                raise FormatError(f"events.{event} has a payload over {MAX_PAYLOAD} bytes")
            from_hex(payload, len(payload) // 2, what=f"events.{event}")


def _check_firmware_events(events: dict[str, tuple[str, ...]] | None) -> None:
    _check_labels("firmware_events", events)
    for label, values in (events or {}).items():
        check_some(f"firmware_events.{label}", values)
        if len(values) > MAX_FIRMWARE_EVENTS:
            raise FormatError(f"firmware_events.{label} lists over {MAX_FIRMWARE_EVENTS} values")
        for value in values:
            if not value.startswith(TEXT):
                from_hex(value, 48, what=f"firmware_events.{label}")
            elif not 1 <= len(value.removeprefix(TEXT)) <= MAX_TEXT:
                raise FormatError(
                    f"firmware_events.{label} has a text of over {MAX_TEXT} characters, or of none"
                )


def _check_labels(name: str, table: Mapping[str, object] | None) -> None:
    if table is None:
        return
    if not table:
        raise FormatError(
            f"{name} is an empty table", todo="leave it out, or name the events that must happen"
        )
    if len(table) > MAX_FIRMWARE_EVENTS:
        raise FormatError(f"{name} names over {MAX_FIRMWARE_EVENTS} events")
    for label in table:
        if not 1 <= len(label) <= 64:
            raise FormatError(f"{name} names {label[:64]!r}: names have 1 to 64 characters")
