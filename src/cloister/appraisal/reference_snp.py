"""``[snp]`` of a policy: what an SEV-SNP guest and its machine may be, and what the guest must measure.

A field that may be left out then has its strictest meaning: no VMPL above 0, no migration agent, no SMT, no data of the
host, no ID block. What cannot have such a meaning (minima, the kind of revocation) has to be written.
docs/reference/policy-snp.md has every field.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from cloister.appraisal.values import Values, check_digests, check_some
from cloister.encoding import Record
from cloister.endorsements.amd import PRODUCTS
from cloister.errors import FormatError
from cloister.evidence.snp import MAX_VMPL, SnpReport, TcbVersion
from cloister.verifier.claims import Claims

HARDENING: Final = ("ciphertext_hiding", "mem_aes_256_xts", "page_swap_disable", "rapl_dis")
"""Bits of the guest policy that demand more of the machine, where its firmware knows them."""
SIGNING_KEYS: Final = ("vcek", "vlek")
_DIGESTS: Final = {
    "host_data": 32,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "family_id": 16,
    "image_id": 16,
}
"""Fields of the report that are zeros unless the guest's owner or host set them; sizes in bytes."""


class SnpTcb(Record, frozen=True, kw_only=True):
    """``[snp.tcb.PRODUCT]``: the lowest firmware, 0 to 255 each.

    Reported, committed, launch and current TCB must all reach it.
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None
    """Turin's; required there, and nowhere else."""
    firmware: str
    """Lowest firmware version, ``major.minor.build``, current and committed."""


class SnpReference(Record, frozen=True, kw_only=True):
    """``[snp]``. Its presence accepts the kind."""

    measurement: tuple[str, ...]
    """Accepted launch measurements, 96 hexadecimal digits each; never "any"."""
    products: tuple[str, ...]
    """Of ``milan``, ``genoa``, ``turin``."""
    revocation: Literal["required", "unchecked"]
    """``required``: AMD's CRL must be among the endorsements; ``unchecked`` accepts its absence."""
    tcb: dict[str, SnpTcb]
    """The minima of each product."""
    min_abi: str
    """Lowest ABI (``major.minor``) that the guest's policy demands of its firmware; ``0.0`` accepts every policy."""
    hardening: tuple[str, ...] | Literal["any"]
    """Bits that the guest's policy must have (:data:`HARDENING`), or "any" where it need not."""
    signing_keys: tuple[str, ...] = ("vcek",)
    """Of ``vcek`` and ``vlek``: a VLEK is a cloud's, and says nothing of the chip."""
    max_vmpl: int = 0
    alias_check: Literal["required", "any"] = "required"
    """Memory aliases (BadRAM) were looked for at boot; firmware before 1.55 never says so."""
    allow_smt: bool = False
    allow_migration_agent: bool = False
    allow_multi_socket: bool = False
    """The guest's policy does not bind it to one socket."""
    allow_cxl: bool = False
    allow_masked_chip_id: bool = False
    """The report of a VCEK may hide which chip made it."""
    host_data: Values | None = None
    id_key_digest: Values | None = None
    author_key_digest: Values | None = None
    family_id: Values | None = None
    image_id: Values | None = None
    min_guest_svn: int | None = None
    """Lowest version of the guest in its ID block; without the field it must be 0, as without an ID block."""


def parse_version(name: str, text: str, parts: int) -> tuple[int, ...]:
    """``1.55.29`` of field ``name``: ``parts`` numbers of one byte. Raises :class:`~cloister.errors.FormatError`."""
    form = r"\.".join([r"(0|[1-9][0-9]{0,2})"] * parts)
    match = re.fullmatch(form, text)
    numbers = tuple(int(number) for number in match.groups()) if match else ()
    if not numbers or max(numbers) > 0xFF:
        raise FormatError(f"{name} must be {parts} numbers of 0 to 255 with dots between, such as 1.55")
    return numbers


def check_snp(snp: SnpReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    check_digests("measurement", snp.measurement, 48)
    _named("products", snp.products, PRODUCTS)
    _named("signing_keys", snp.signing_keys, SIGNING_KEYS)
    if snp.hardening != "any":
        _named("hardening", snp.hardening, HARDENING)
    parse_version("min_abi", snp.min_abi, 2)
    if not 0 <= snp.max_vmpl <= MAX_VMPL:
        raise FormatError(f"max_vmpl must be 0 to {MAX_VMPL}")
    if snp.min_guest_svn is not None and not 0 <= snp.min_guest_svn <= 0xFFFFFFFF:
        raise FormatError("min_guest_svn must be 0 to 4294967295")
    for name, size in _DIGESTS.items():
        values = getattr(snp, name)
        if values is not None and values != "any":
            check_digests(name, values, size)
    if set(snp.tcb) != set(snp.products):
        raise FormatError(
            "tcb and products do not name the same products", todo="write [snp.tcb.PRODUCT] for each of them"
        )
    for product, minimum in snp.tcb.items():
        _check_tcb(product, minimum)


def observed_snp(claims: Claims) -> dict[str, object]:
    """The fields of ``[snp]`` that would accept what ``claims`` show, for a draft; plain values only.

    It accepts as little as it can: what is at its strictest already is left out, and ``revocation`` is what was done.
    """
    report = claims.report
    if not isinstance(report, SnpReport):
        raise FormatError("snp: these claims are not of an SEV-SNP report")
    product = claims.details["product"]
    lowest = _lowest((report.reported_tcb, report.committed_tcb, report.launch_tcb, report.current_tcb))
    firmware = ".".join(map(str, min(report.current_version, report.committed_version)))
    fields: dict[str, object] = {
        "measurement": [report.measurement.hex()],
        "products": [product],
        "revocation": "required" if claims.details["revocation"] == "checked" else "unchecked",
        "tcb": {product: {**lowest, "firmware": firmware}},
        "min_abi": ".".join(map(str, report.minimum_abi)),
        "hardening": [name for name in HARDENING if name in report.policy_flags] or "any",
    }
    if report.signing_key != "vcek":
        fields["signing_keys"] = [report.signing_key]
    if report.vmpl:
        fields["max_vmpl"] = report.vmpl
    if "alias_check_complete" not in report.platform_flags:
        fields["alias_check"] = "any"
    for name, needed in needed_permissions(report).items():
        if needed:
            fields[name] = True
    for name in _DIGESTS:
        value: bytes = getattr(report, name)
        if value.strip(b"\0"):
            fields[name] = [value.hex()]
    if report.guest_svn:
        fields["min_guest_svn"] = report.guest_svn
    return fields


def needed_permissions(report: SnpReport) -> dict[str, bool]:
    """Which of the table's ``allow_…`` this report needs."""
    return {
        "allow_smt": "smt" in report.policy_flags or "smt_en" in report.platform_flags,
        # Without an agent its report id is all ones.
        "allow_migration_agent": "migrate_ma" in report.policy_flags
        or report.report_id_ma not in (b"\xff" * 32, bytes(32)),
        "allow_multi_socket": "single_socket" not in report.policy_flags,
        "allow_cxl": "cxl_allow" in report.policy_flags,
        "allow_masked_chip_id": report.signing_key == "vcek" and report.chip_id_masked,
    }


def _lowest(versions: tuple[TcbVersion, ...]) -> dict[str, int]:
    found = {
        name: min(getattr(version, name) for version in versions)
        for name in ("bootloader", "tee", "snp", "microcode")
    }
    fmcs = [version.fmc for version in versions if version.fmc is not None]
    return {**found, "fmc": min(fmcs)} if fmcs else found


def _named(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    check_some(name, values)
    for value in values:
        if value not in known:
            raise FormatError(f"{name} names {value[:40]!r}", todo=f"known are {', '.join(known)}")


def _check_tcb(product: str, minimum: SnpTcb) -> None:
    for name in ("bootloader", "tee", "snp", "microcode", "fmc"):
        value = getattr(minimum, name)
        if value is not None and not 0 <= value <= 0xFF:
            raise FormatError(f"tcb.{product}.{name} must be 0 to 255")
    if (minimum.fmc is not None) != (product == "turin"):
        raise FormatError(f"tcb.{product}.fmc is for Turin, and required there")
    parse_version(f"tcb.{product}.firmware", minimum.firmware, 3)
