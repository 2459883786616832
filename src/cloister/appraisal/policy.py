"""The appraisal policy: what a relying party accepts, as a TOML file (docs/spec/policy.md).

Everything that matters is decided by the file: a measurement that may be anything says ``"any"``, an empty list, an
unknown field or an unknown status is refused, and a policy that pins nothing is refused too. There is no field
for debug. The simulated root is named by its digest, and never beside a vendor's.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Final, Literal

from cloister.encoding import Record, convert, encode_json, from_hex
from cloister.endorsements.roots import INTEL_ROOT, VENDOR_ROOT_SHA256S, Root, simulated_root
from cloister.errors import CloisterError, FormatError, PolicyError
from cloister.evidence.bundle import TeeKind
from cloister.evidence.eventlog import MAX_PAYLOAD
from cloister.verifier.rules import TCB_STATUSES, IntelRules

FORMAT: Final = "cloister/policy/v1"
MAX_POLICY = 256 * 1024
MAX_AGE = 30 * 24 * 3600
"""Upper bound of ``max_age_seconds``: collateral lives about as long."""
MAX_GRACE = 10 * 365 * 24 * 3600
TDX_MEASUREMENTS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")

Values = tuple[str, ...] | Literal["any"]
"""Accepted digests in lower-case hexadecimal, or the spelled-out word."""


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


class Roots(Record, frozen=True, kw_only=True):
    """``[roots]``: vendors' by default (``vendor = ["intel"]``), or one simulated root by its SHA-256."""

    vendor: tuple[str, ...] | None = None
    simulated: str | None = None


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


class Policy(Record, frozen=True, kw_only=True):
    """A policy that passed :func:`load_policy`. Immutable; its digest names it in results and receipts."""

    format: Literal["cloister/policy/v1"]
    max_age_seconds: int
    tcb: Tcb
    platform: Platform = Platform()
    roots: Roots = Roots()
    tdx: TdxReference | None = None
    sgx: SgxReference | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the policy's canonical JSON: comments and layout do not count."""
        return hashlib.sha256(encode_json(self)).hexdigest()

    @property
    def tees(self) -> tuple[TeeKind, ...]:
        """The kinds of TEE that are accepted."""
        kinds: list[TeeKind] = []
        if self.tdx is not None:
            kinds.append("tdx")
        if self.sgx is not None:
            kinds.append("sgx")
        return tuple(kinds)

    @property
    def root(self) -> Root:
        """Where certificate chains must end."""
        return simulated_root(self.roots.simulated) if self.roots.simulated else INTEL_ROOT

    @property
    def intel_rules(self) -> IntelRules:
        """The part that the Intel verifier enforces."""
        return IntelRules(
            min_tcb_evaluation_number=self.tcb.min_evaluation_number,
            accepted_statuses=frozenset(self.tcb.accepted_statuses),
            rejected_advisories=frozenset(self.tcb.rejected_advisories or ()),
            out_of_date_grace=self.tcb.out_of_date_grace_seconds or 0,
            allow_dynamic_platform=self.platform.allow_dynamic_platform,
            allow_cached_keys=self.platform.allow_cached_keys,
            allow_smt=self.platform.allow_smt,
        )


def read_policy(path: str | Path) -> Policy:
    """Read and check a policy file. Raises :class:`~cloister.errors.PolicyError`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POLICY + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise PolicyError(
            f"{path} cannot be read ({error.strerror})", todo="name an existing policy file"
        ) from None
    except UnicodeDecodeError:
        raise PolicyError(f"{path} is not UTF-8 text") from None
    return load_policy(text, name=str(path))


def load_policy(text: str, *, name: str) -> Policy:
    """Check the TOML ``text`` of a policy; ``name`` is its file in errors.

    Raises :class:`~cloister.errors.PolicyError` with the line, where it can be told.
    """
    if len(text.encode("utf-8", "replace")) > MAX_POLICY:
        raise PolicyError(f"{name} is longer than {MAX_POLICY} bytes")
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError of its own
        raise PolicyError(f"{name} is not TOML: {str(error)[:200]}") from None
    try:
        policy = convert(table, Policy, what="policy")
        _check(policy)
    except CloisterError as error:
        what = error.what.removeprefix("policy does not have the form it should: ")
        raise PolicyError(
            f"{name}{_line(text, what)}: {what}", todo=error.todo or "see docs/spec/policy.md"
        ) from None
    return policy


def _check(policy: Policy) -> None:
    if not 1 <= policy.max_age_seconds <= MAX_AGE:
        raise FormatError(f"max_age_seconds must be 1 to {MAX_AGE}, not {policy.max_age_seconds}")
    _check_tcb(policy.tcb)
    _check_roots(policy.roots)
    if not policy.tees:
        raise FormatError(
            "the policy accepts no kind of TEE", todo="add a [tdx] or [sgx] table with its measurements"
        )
    if policy.tdx is not None:
        _check_tdx(policy.tdx)
    if policy.sgx is not None:
        _check_sgx(policy.sgx)


def _check_tcb(tcb: Tcb) -> None:
    if not 1 <= tcb.min_evaluation_number <= 0xFFFF:
        raise FormatError("min_evaluation_number must be 1 to 65535")
    _some("accepted_statuses", tcb.accepted_statuses)
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
        _some("rejected_advisories", tcb.rejected_advisories)
    for advisory in tcb.rejected_advisories or ():
        if not re.fullmatch(r"[A-Z0-9-]{1,64}", advisory):
            raise FormatError(f"rejected_advisories names {advisory[:40]!r}, which is no advisory id")


def _check_roots(roots: Roots) -> None:
    if roots.vendor is not None:
        _some("vendor", roots.vendor)
        for vendor in roots.vendor:
            if vendor != "intel":
                raise FormatError(f"vendor names {vendor[:40]!r}", todo='the vendor roots are: "intel"')
    if roots.simulated is None:
        return
    if roots.vendor is not None:
        raise FormatError(
            "simulated stands beside vendor roots: hardware and simulation are never mixed",
            todo="write one policy for each",
        )
    from_hex(roots.simulated, 32, what="simulated")
    if roots.simulated in VENDOR_ROOT_SHA256S:
        raise FormatError("simulated names a hardware vendor's root", todo="leave [roots] out for hardware")


def _check_tdx(tdx: TdxReference) -> None:
    for name in TDX_MEASUREMENTS:
        values = getattr(tdx, name)
        if values != "any":
            _digests(name, values, 48)
    if tdx.service_td is not None:
        _digests("service_td", tdx.service_td, 48)
    if tdx.events is not None and not tdx.events:
        raise FormatError(
            "events is an empty table", todo="leave it out, or name the events that must happen"
        )
    for event, payloads in (tdx.events or {}).items():
        if not 1 <= len(event) <= 64:
            raise FormatError(f"events names {event[:64]!r}: names have 1 to 64 characters")
        if payloads == "any":
            continue
        _some(f"events.{event}", payloads)
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


def _check_sgx(sgx: SgxReference) -> None:
    by_signer = (sgx.mrsigner, sgx.isv_prod_id, sgx.min_isv_svn)
    if sgx.mrenclave is not None:
        if any(field is not None for field in by_signer):
            raise FormatError("sgx names mrenclave and a signer", todo="decide for one of them")
        _digests("mrenclave", sgx.mrenclave, 32)
        return
    if sgx.mrsigner is None or sgx.isv_prod_id is None or sgx.min_isv_svn is None:
        raise FormatError("sgx needs mrenclave, or mrsigner with isv_prod_id and min_isv_svn")
    _digests("mrsigner", sgx.mrsigner, 32)
    for name, value in (("isv_prod_id", sgx.isv_prod_id), ("min_isv_svn", sgx.min_isv_svn)):
        if not 0 <= value <= 0xFFFF:
            raise FormatError(f"{name} must be 0 to 65535")


def _digests(name: str, values: tuple[str, ...], size: int) -> None:
    _some(name, values)
    for value in values:
        from_hex(value, size, what=name)


def _some(name: str, values: tuple[str, ...]) -> None:
    if not values:
        raise FormatError(
            f"{name} is an empty list", todo="an empty list would accept nothing, or everything"
        )
    _unique(name, values)


def _unique(name: str, values: tuple[str, ...]) -> None:
    if len(set(values)) != len(values):
        raise FormatError(f"{name} lists a value twice")


def _line(text: str, what: str) -> str:
    """`` (line N)`` of the field that ``what`` speaks of, where it is found."""
    words = re.findall(r"field `([^`]+)`", what) + re.findall(r"`\$\.([^`]+)`", what)
    for word in [*words, *re.findall(r"^[\w.-]+", what)]:
        field = re.escape(re.sub(r"\[.*?\]", "", word).rpartition(".")[2])
        for number, line in enumerate(text.splitlines(), 1):
            if field and re.match(rf'\s*\[*\s*([\w".-]*\.)?"?{field}"?\s*(=|\])', line):
                return f" (line {number})"
    return ""
