"""AMD SEV-SNP reports: is this report genuine, at ``now``, under one of these roots?

AMD publishes no library for this in Python; all of it is here and in amd_chain.py. The report's own key must be the one
of the chip and the firmware that the report names, and the host cannot choose a chain of another family. No measurement,
no VMPL and no guest policy but debug is judged here: see appraisal. The numbers are those of docs/spec/snp.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cloister.endorsements.amd import parse_snp_endorsements
from cloister.endorsements.roots import Root, require_root
from cloister.errors import EndorsementError, VerificationError
from cloister.evidence.snp import SnpReport, parse_report
from cloister.verifier.amd_chain import (
    HWID_SIZES,
    AmdChain,
    SigningKey,
    check_dates,
    check_revocation,
    read_chain,
    read_signing_key,
    verify_chain,
)
from cloister.verifier.certificates import public_key, verify_ecdsa
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail, day

MAX_TIME: Final = 1 << 40

_log = logging.getLogger("cloister.verifier")
_announced = threading.Event()


def verify(
    report: bytes,
    endorsements: bytes,
    *,
    roots: Sequence[Root],
    now: int,
    revocation_required: bool,
    trail: Trail | None = None,
) -> Claims:
    """Verify ``report`` (1184 bytes) against ``endorsements`` (endorsements/amd.py) at ``now`` (Unix seconds).

    ``roots`` are the ARKs that may stand at the end. Without ``revocation_required`` a missing revocation list is
    accepted, and the claims say so. Raises :class:`~cloister.errors.EvidenceError` (not a report),
    :class:`~cloister.errors.EndorsementError` (missing, malformed, out of their time, of another product) or
    :class:`~cloister.errors.VerificationError` (not genuine, debug, revoked, of another chip or another TCB).
    """
    trail = Trail() if trail is None else trail
    start = len(trail.passed)
    if not 0 <= now <= MAX_TIME:
        raise EndorsementError(f"{now} is no time", todo="give Unix seconds")
    # 3. The report has exactly the form of its version.
    with trail.check(3, name="report form") as found:
        parsed = parse_report(report)
        found(f"SEV-SNP report, version {parsed.version}")
    # 4. Never debug. Before the signature on purpose: the reason is clearer, and altering the bit only refuses more.
    with trail.check(4) as found:
        if parsed.debug:
            raise VerificationError(
                "the guest's policy allows debugging: its memory can be read from outside",
                todo="launch it without the debug bit; no policy accepts this",
            )
        found("off")
    with trail.check(6):
        chain = read_chain(parse_snp_endorsements(endorsements))
    # 5. The chain ends in a root that the policy names, by digest.
    with trail.check(5) as found:
        root = require_root(chain.root.der, roots)
        found(f"{root.name}, SHA-256 {root.sha256[:16]}…")
    # 6. Every certificate, and the revocation list, hold at `now`.
    with trail.check(6) as found:
        issued, expires = check_dates(chain, now=now)
        found(f"issued {day(issued)}, expires {day(expires)}")
    # 7. Signatures from the root down to the report, and nothing of it revoked.
    with trail.check(7):
        verify_chain(chain, roots)
    with trail.check(6 if not chain.crl else 7):
        listed = check_revocation(chain, now=now, required=revocation_required)
    if listed is not None:
        issued, expires = max(issued, listed[0]), min(expires, listed[1])
    with trail.check(7) as found:
        _verify_report(parsed, chain)
        parsed = _read_as(report, parsed, chain)
        revocation = "revocation was NOT checked" if listed is None else f"list of {day(listed[0])}"
        found(
            f"{chain.root.common_name}, {chain.intermediate.common_name}, {chain.kind.upper()}; {revocation}"
        )
    # 8. The key that signed is of the product, kind and chip that the report names.
    with trail.check(8, name="signing key") as found:
        key = read_signing_key(chain)
        _same_signer(parsed, key)
        found(f"{key.kind.upper()} of {key.product_name}" + (f" for {key.csp_id}" if key.csp_id else ""))
    # 9. And of the firmware that it reports.
    with trail.check(9, name="reported TCB") as found:
        if key.tcb != parsed.reported_tcb:
            raise VerificationError(
                f"the report's TCB is {parsed.reported_tcb}, its {key.kind.upper()} is of {key.tcb}",
                todo="fetch the certificate of the TCB that the report names",
            )
        found(str(parsed.reported_tcb))
    if root.simulated:
        _announce(root)
    return Claims(
        tee="snp",
        root_sha256=root.sha256,
        simulated=root.simulated,
        report=parsed,
        measurements={"measurement": parsed.measurement},
        report_data=parsed.report_data,
        debug=parsed.debug,
        tcb_status=None,
        advisory_ids=(),
        tcb_evaluation_number=None,
        issued_at=issued,
        collateral_expires=expires,
        hardware=_hardware(parsed),
        details=_details(parsed, key, revocation="not checked" if listed is None else "checked"),
        checks=trail.passed[start:],
    )


def _read_as(report: bytes, parsed: SnpReport, chain: AmdChain) -> SnpReport:
    """Version 2 does not say its product: its chain, verified by now, says how to read the TCB."""
    return parse_report(report, product=chain.product) if parsed.product is None else parsed


def _verify_report(report: SnpReport, chain: AmdChain) -> None:
    r, s = (int.from_bytes(report.signature[half : half + 48], "big") for half in (0, 48))
    key = public_key(chain.signing_key.public_key)
    verify_ecdsa(
        key, encode_dss_signature(r, s), report.signed, hash_name="sha384", what="the SEV-SNP report"
    )


def _same_signer(report: SnpReport, key: SigningKey) -> None:
    if report.signing_key != key.kind:
        raise VerificationError(
            f"the report says that a {report.signing_key.upper()} signed it, not a {key.kind.upper()}"
        )
    if report.product is not None and report.product != key.product:
        raise VerificationError(
            f"the report is of a {report.product} processor, its {key.kind.upper()} of {key.product}",
            todo="this is the chain of another family of processors",
        )
    if key.hwid is None:
        return
    if report.mask_chip_key:
        raise VerificationError("the report says that the chip's key is masked, and shows the chip's key")
    if not report.chip_id_masked and report.chip_id != key.hwid + bytes(64 - HWID_SIZES[key.product]):
        raise VerificationError(
            f"the report is of chip {report.chip_id.hex()[:16]}…, its VCEK of chip {key.hwid.hex()[:16]}…",
            todo="fetch the certificate of the chip that the report names",
        )


def _hardware(report: SnpReport) -> dict[str, str]:
    """A VLEK is shared by a cloud's machines: under it the chip id is the word of whoever holds the VLEK."""
    if report.signing_key != "vcek" or report.chip_id_masked:
        return {}
    return {"chip_id": report.chip_id.hex()}


def _details(report: SnpReport, key: SigningKey, *, revocation: str) -> dict[str, str]:
    details = {
        "report_version": str(report.version),
        "product": key.product,
        "product_name": key.product_name,
        "signing_key": report.signing_key,
        "revocation": revocation,
        "vmpl": str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "policy": f"{report.policy:#x}",
        "policy_flags": ", ".join(sorted(report.policy_flags)),
        "policy_minimum_abi": ".".join(map(str, report.minimum_abi)),
        "platform_info": f"{report.platform_info:#x}",
        "platform_flags": ", ".join(sorted(report.platform_flags)),
        "author_key_enabled": str(report.author_key_enabled).lower(),
        "mask_chip_key": str(report.mask_chip_key).lower(),
        "chip_id_masked": str(report.chip_id_masked).lower(),
        "current_version": ".".join(map(str, report.current_version)),
        "committed_version": ".".join(map(str, report.committed_version)),
    }
    for name in ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb"):
        details[name] = str(getattr(report, name))
    for name in ("family_id", "image_id", "host_data", "id_key_digest", "author_key_digest", "report_id"):
        details[name] = getattr(report, name).hex()
    details |= {"report_id_ma": report.report_id_ma.hex(), "chip_id": report.chip_id.hex()}
    if report.cpuid is not None:
        details["cpuid"] = "family {:#x}, model {:#x}, stepping {}".format(*report.cpuid)
    if report.launch_mitigations is not None and report.current_mitigations is not None:
        details["launch_mitigations"] = f"{report.launch_mitigations:#x}"
        details["current_mitigations"] = f"{report.current_mitigations:#x}"
    if key.csp_id is not None:
        details["csp_id"] = key.csp_id
    return details


def _announce(root: Root) -> None:
    """Loudly, once per process: whoever reads the log must not take this for hardware."""
    if not _announced.is_set():
        _announced.set()
        _log.warning(
            "SIMULATED TEE ACCEPTED: the policy names simulated root %s. No hardware protects this workload; "
            "never use this for real data.",
            root.sha256,
        )
