"""Are these the SEV-SNP machine and guest that the policy names? Checks 8 to 11, 14 and 15.

Only of claims that the verifier made: the signature stands, the key is that of the reported chip and firmware, and
debug is off. Every refusal names the field of the policy that would accept it, where there is one.
"""

from __future__ import annotations

from cloister.appraisal.reference_snp import SnpReference, SnpTcb, needed_permissions, parse_version
from cloister.appraisal.values import Values, one_of
from cloister.errors import AppraisalRefused
from cloister.evidence.snp import SnpReport
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail

_WORDS = {
    "allow_smt": "hyper-threading is allowed: sibling threads share caches",
    "allow_migration_agent": "a migration agent may move the guest, or is bound to it",
    "allow_multi_socket": "the guest may run on several sockets",
    "allow_cxl": "the guest may be given CXL memory or devices",
    "allow_masked_chip_id": "the report hides which chip made it",
}


def judge_snp_platform(claims: Claims, reference: SnpReference, trail: Trail) -> None:
    """8. to 11. Product, kind of key, TCB minima, firmware, guest policy, VMPL.

    Raises :class:`~cloister.errors.AppraisalRefused`.
    """
    report = _report(claims)
    product = claims.details["product"]
    with trail.check(8, name="product and signing key") as found:
        if product not in reference.products:
            raise AppraisalRefused(
                f"the processor is of product {product}, which the policy does not list",
                todo=f"it accepts {', '.join(reference.products)}; add it to snp.products with its TCB minima",
            )
        if report.signing_key not in reference.signing_keys:
            raise AppraisalRefused(
                f"the report is signed by a {report.signing_key.upper()}, which the policy does not accept",
                todo="a VLEK is a cloud's and names no chip; snp.signing_keys accepts it",
            )
        found(f"{product}, {report.signing_key.upper()}")
    minimum = reference.tcb[product]
    with trail.check(9, name="TCB minima") as found:
        _tcb(report, minimum)
        found("reported, committed, launch and current TCB reach the policy's")
    with trail.check(10, name="firmware") as found:
        found(_firmware(report, minimum))
    with trail.check(11, name="guest policy") as found:
        found(_guest_policy(report, reference))
    with trail.check(11, name="VMPL and memory") as found:
        if report.vmpl > reference.max_vmpl:
            raise AppraisalRefused(
                f"the report is of VMPL {report.vmpl}, above {reference.max_vmpl}",
                todo="less privileged software in the guest asked for it; snp.max_vmpl accepts it",
            )
        checked = "alias_check_complete" in report.platform_flags
        if not checked and reference.alias_check == "required":
            raise AppraisalRefused(
                "the machine does not say that it looked for aliased memory (ALIAS_CHECK_COMPLETE)",
                todo='update its firmware, or accept it with snp.alias_check = "any"',
            )
        found(f"VMPL {report.vmpl}, aliased memory {'looked for' if checked else 'NOT looked for'}")


def judge_snp(claims: Claims, reference: SnpReference, trail: Trail) -> None:
    """14. and 15. Measurement, host data, id keys. Raises :class:`~cloister.errors.AppraisalRefused`."""
    report = _report(claims)
    with trail.check(14) as found:
        one_of("measurement", report.measurement.hex(), reference.measurement)
        found(f"measurement {report.measurement.hex()[:16]}… as the policy lists")
    with trail.check(15, name="host data and ID block") as found:
        for name, accepted in (
            ("host_data", reference.host_data),
            ("id_key_digest", reference.id_key_digest),
            ("author_key_digest", reference.author_key_digest),
            ("family_id", reference.family_id),
            ("image_id", reference.image_id),
        ):
            _listed(name, getattr(report, name), accepted)
        if report.author_key_enabled and reference.author_key_digest is None:
            raise AppraisalRefused("the guest has an author key, and the policy lists none")
        _guest_svn(report, reference)
        found(_shown(report))


def _report(claims: Claims) -> SnpReport:
    if not isinstance(claims.report, SnpReport):
        raise AppraisalRefused(f"{claims.tee} evidence holds no SEV-SNP report")
    return claims.report


def _tcb(report: SnpReport, minimum: SnpTcb) -> None:
    for which in ("reported", "committed", "launch", "current"):
        version = getattr(report, f"{which}_tcb")
        for name in ("bootloader", "tee", "snp", "microcode", "fmc"):
            lowest, value = getattr(minimum, name), getattr(version, name)
            # Turin alone has an FMC; a policy for it names its minimum, and check_snp saw to that.
            if lowest is not None and (value is None or value < lowest):
                raise AppraisalRefused(
                    f"the {which} TCB has {name} {value}, below {lowest}",
                    todo="update the machine's firmware" + (" and relaunch" if which == "launch" else ""),
                )


def _firmware(report: SnpReport, minimum: SnpTcb) -> str:
    lowest = parse_version("firmware", minimum.firmware, 3)
    for which in ("current", "committed"):
        version = getattr(report, f"{which}_version")
        if version < lowest:
            raise AppraisalRefused(
                f"the {which} firmware is {'.'.join(map(str, version))}, below {minimum.firmware}",
                todo="update the machine's firmware" + (" and commit it" if which == "committed" else ""),
            )
    return ".".join(map(str, report.committed_version))


def _guest_policy(report: SnpReport, reference: SnpReference) -> str:
    if report.minimum_abi < parse_version("min_abi", reference.min_abi, 2):
        raise AppraisalRefused(
            f"the guest's policy allows firmware of ABI {'.'.join(map(str, report.minimum_abi))}, "
            f"below {reference.min_abi}",
            todo="launch it with a policy that demands more",
        )
    for name, needed in needed_permissions(report).items():
        if needed and not getattr(reference, name):
            raise AppraisalRefused(_WORDS[name], todo=f"launch it otherwise, or accept it with snp.{name}")
    for name in reference.hardening if reference.hardening != "any" else ():
        if name not in report.policy_flags:
            raise AppraisalRefused(
                f"the guest's policy does not demand {name}, which snp.hardening lists",
                todo="launch it with that bit of its policy",
            )
    return ", ".join(sorted(report.policy_flags)) or "no bit set"


def _listed(name: str, value: bytes, accepted: Values | None) -> None:
    if accepted is None:
        if value.strip(b"\0"):
            raise AppraisalRefused(
                f"{name} is {value.hex()}, and the policy says nothing of it",
                todo=f'list it as snp.{name}, or write "any" if it does not matter',
            )
    elif accepted != "any":
        one_of(name, value.hex(), accepted)


def _guest_svn(report: SnpReport, reference: SnpReference) -> None:
    if reference.min_guest_svn is None:
        if report.guest_svn:
            raise AppraisalRefused(
                f"guest_svn is {report.guest_svn}, and the policy says nothing of it",
                todo="name the lowest accepted as snp.min_guest_svn",
            )
    elif report.guest_svn < reference.min_guest_svn:
        raise AppraisalRefused(
            f"guest_svn is {report.guest_svn}, below {reference.min_guest_svn}", todo="update the guest"
        )


def _shown(report: SnpReport) -> str:
    names = ("host_data", "id_key_digest", "author_key_digest", "family_id", "image_id")
    set_ones = [name for name in names if getattr(report, name).strip(b"\0")]
    return ", ".join(set_ones) + " as the policy lists" if set_ones else "none"
