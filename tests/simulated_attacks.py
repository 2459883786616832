"""Attacks on evidence by name: each is genuine but for one thing.

``ATTACKS`` is a table of names with what dcap-qvl says; the unit tests put it to dcap-qvl, the scenarios to
Cloister's own appraisal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attester.simulated import collateral_window
from cloister.attester.simulation.chain import (
    DAY,
    Signer,
    Window,
    draw_key,
    issue_pck,
    issue_root,
    public_point,
)
from cloister.attester.simulation.collateral import microcode_for
from cloister.attester.simulation.quote import TD_SEPT_VE_DISABLE, Layout, qe_report
from simulated_evidence import (
    AUTH_DATA,
    NOW,
    Presented,
    edited,
    ended,
    flipped,
    foreign_enclave,
    forge,
    honest,
    mixed,
    platform,
    presented,
    processor,
    reissued,
    relaunch_advised,
    seeded,
    signed_by,
    taken,
    td_with,
    with_module,
    with_status,
)


@dataclass(frozen=True)
class Attack:
    name: str
    present: Callable[[], Presented]
    dcap_says: str
    """A regular expression that dcap-qvl's refusal matches, so that the right check is seen to refuse."""


def _serial(signer: Signer) -> list[int]:
    return [signer.certificate.serial_number]


def _ended(part: str) -> Presented:
    return presented(platform(), collateral=ended(part))


def _mallory() -> ec.EllipticCurvePrivateKey:
    return draw_key(seeded("mallory"))


def _self_made_root() -> Presented:
    """The attacker's own vendor, with the honest root's name: everything but the root's key is alike."""
    other = platform("attacker")
    return replace(presented(other), root=platform().chain.root.der)


_FRESH = collateral_window(NOW)
_CHAIN = platform().chain
_HONEST_REPORT = 48 + 584

ATTACKS: tuple[Attack, ...] = (
    *(
        Attack(f"platform-{status}", partial(with_status, status), f"status {status} is not acceptable")
        for status in (
            "SWHardeningNeeded",
            "ConfigurationNeeded",
            "ConfigurationAndSWHardeningNeeded",
            "OutOfDate",
            "OutOfDateConfigurationNeeded",
        )
    ),
    Attack("platform-Revoked", partial(with_status, "Revoked"), "invalid: Revoked"),
    Attack("platform-below-every-level", lambda: with_status(""), "No matching TCB level"),
    Attack("tdx-module-out-of-date", lambda: with_module(2), "status OutOfDate is not"),
    Attack("tdx-module-revoked", lambda: with_module(1), "invalid: Revoked"),
    Attack("tdx-module-below-every-level", lambda: with_module(0), "TDX module TCB level"),
    Attack("tdx-relaunch-advised", relaunch_advised, "status TDRelaunchAdvised is not"),
    Attack("quoting-enclave-out-of-date", lambda: presented(processor(qe_svn=3)), "status OutOfDate is not"),
    Attack("quoting-enclave-revoked", lambda: presented(processor(qe_svn=2)), "invalid: Revoked"),
    Attack("quoting-enclave-below-every-level", lambda: presented(processor(qe_svn=1)), "QE"),
    Attack(
        "multi-socket-platform-not-accepted",
        lambda: presented(processor(dynamic_platform=True)),
        "Dynamic platform is not allowed",
    ),
    Attack(
        "cached-keys-not-accepted",
        lambda: presented(processor(cached_keys=True)),
        "Cached keys are not allowed",
    ),
    Attack(
        "hyper-threading-not-accepted",
        lambda: presented(processor(smt_enabled=True)),
        "SMT .* is not allowed",
    ),
    Attack("debug-td", lambda: presented(platform(), debug=True), "(?i)debug"),
    Attack("debug-enclave", lambda: presented(platform(), Layout.SGX_V3, debug=True), "(?i)debug"),
    Attack("td-without-sept-ve-disable", lambda: presented(platform(), quote=td_with(0)), "SEPT_VE_DISABLE"),
    Attack(
        "td-that-may-migrate",
        lambda: presented(platform(), quote=td_with(TD_SEPT_VE_DISABLE | 1 << 29)),
        "migration",
    ),
    Attack(
        "td-with-reserved-attributes",
        lambda: presented(platform(), quote=td_with(TD_SEPT_VE_DISABLE | 1 << 9)),
        "(?i)reserved",
    ),
    Attack(
        "pck-certificate-revoked",
        lambda: presented(platform(), collateral=reissued(_FRESH, pck_ca=_serial(_CHAIN.pck))),
        "(?i)certificate chain|revoked",
    ),
    Attack(
        "pck-ca-revoked",
        lambda: presented(platform(), collateral=reissued(_FRESH, root=_serial(_CHAIN.pck_ca))),
        "(?i)certificate chain|revoked",
    ),
    Attack(
        "tcb-signing-certificate-revoked",
        lambda: presented(platform(), collateral=reissued(_FRESH, root=_serial(_CHAIN.tcb_signing))),
        "(?i)certificate chain|revoked",
    ),
    Attack(
        "root-revoked",
        lambda: presented(platform(), collateral=reissued(_FRESH, root=_serial(_CHAIN.root))),
        "(?i)revoked",
    ),
    Attack("root-of-another-vendor", _self_made_root, "root CA CRL"),
    Attack(
        "processor-of-another-vendor",
        lambda: presented(platform(), quote=presented(platform("attacker")).quote),
        "(?i)certificate chain",
    ),
    Attack(
        "collateral-of-another-vendor",
        lambda: presented(platform(), collateral=presented(platform("attacker")).collateral),
        "root CA CRL",
    ),
    Attack(
        "tcb-info-of-another-vendor",
        lambda: presented(
            platform(), collateral=mixed("tcb_info", presented(platform("attacker")).collateral)
        ),
        "(?i)certificate chain",
    ),
    Attack(
        "qe-identity-of-another-vendor",
        lambda: presented(
            platform(), collateral=mixed("qe_identity", presented(platform("attacker")).collateral)
        ),
        "(?i)certificate chain",
    ),
    Attack(
        "collateral-stale",
        lambda: presented(platform(), collateral=reissued(Window(NOW - 60 * DAY, NOW - 30 * DAY))),
        "(?i)expired",
    ),
    Attack(
        "collateral-from-the-future",
        lambda: presented(platform(), collateral=reissued(Window(NOW + DAY, NOW + 31 * DAY))),
        "(?i)future",
    ),
    *(
        Attack(f"{part}-stale", partial(_ended, part), "(?i)expired|certificate chain")
        for part in ("root_crl", "pck_crl", "tcb_info", "qe_identity")
    ),
    Attack(
        "pck-revocation-list-of-another-vendor",
        lambda: presented(
            platform(), collateral=taken("pck_crl", presented(platform("attacker")).collateral)
        ),
        "(?i)certificate chain",
    ),
    Attack(
        "tcb-info-altered",
        lambda: presented(
            processor(cpu_svn=microcode_for("OutOfDate")),
            collateral=edited("tcb_info", '"OutOfDate"', '"UpToDate"'),
        ),
        "Signature is invalid for tcb_info",
    ),
    Attack(
        "tcb-info-signature-altered",
        lambda: presented(
            platform(),
            collateral=taken("tcb_info_signature", reissued(Window(_FRESH.issued - DAY, _FRESH.next_update))),
        ),
        "Signature is invalid for tcb_info",
    ),
    Attack(
        "tcb-info-signed-by-a-processor",
        lambda: presented(platform(), collateral=signed_by(_CHAIN.pck, "tcb_info")),
        "Signature is invalid for tcb_info",
    ),
    Attack(
        "qe-identity-altered",
        lambda: presented(platform(), collateral=edited("qe_identity", '"isvprodid":2', '"isvprodid":3')),
        "Signature is invalid for qe_identity",
    ),
    Attack(
        "qe-identity-signed-by-a-processor",
        lambda: presented(platform(), collateral=signed_by(_CHAIN.pck, "qe_identity")),
        "Signature is invalid for qe_identity",
    ),
    Attack(
        "qe-identity-of-the-sgx-enclave",
        lambda: presented(platform(), collateral=mixed("qe_identity", honest(Layout.SGX_V3).collateral)),
        "QE Identity id",
    ),
    Attack(
        "tcb-info-of-sgx",
        lambda: presented(platform(), collateral=mixed("tcb_info", honest(Layout.SGX_V3).collateral)),
        "TCB info",
    ),
    Attack(
        "another-processor-family",
        lambda: presented(processor(fmspc=bytes.fromhex("c2015e000000")), collateral=honest().collateral),
        "(?i)fmspc",
    ),
    Attack(
        "quoting-enclave-not-the-identified-one",
        lambda: presented(platform(), quote=foreign_enclave()),
        "(?i)MRSIGNER",
    ),
    Attack(
        "signed-by-another-attestation-key",
        lambda: presented(platform(), quote=forge(platform(), signing_key=_mallory())),
        "report signature is invalid",
    ),
    Attack(
        "another-attestation-key-shown",
        lambda: presented(platform(), quote=forge(platform(), shown_key=_mallory(), signing_key=_mallory())),
        "hash mismatch",
    ),
    Attack(
        "qe-report-of-another-quote",
        lambda: presented(
            platform(),
            quote=forge(
                platform(),
                report=qe_report("tdx", platform().hardware, public_point(_mallory()), AUTH_DATA),
            ),
        ),
        "hash mismatch",
    ),
    Attack(
        "qe-report-signed-by-the-pck-ca",
        lambda: presented(
            platform(),
            quote=forge(
                platform(), chain=replace(_CHAIN, pck=Signer(_CHAIN.pck.certificate, _CHAIN.pck_ca.key))
            ),
        ),
        "Signature is invalid for qe_report",
    ),
    Attack(
        "pck-certificate-issued-by-a-processor",
        lambda: presented(
            platform(),
            quote=forge(
                platform(),
                chain=replace(
                    _CHAIN,
                    pck_ca=_CHAIN.pck,
                    pck=issue_pck(seeded("below"), _CHAIN.pck, platform().hardware, _FRESH.issued),
                ),
            ),
        ),
        "(?i)certificate chain",
    ),
    Attack(
        "pck-ca-left-out",
        lambda: presented(platform(), quote=forge(platform(), chain=replace(_CHAIN, pck_ca=_CHAIN.root))),
        "(?i)certificate chain",
    ),
    Attack(
        "root-renamed-alike",
        lambda: replace(honest(), root=issue_root(seeded("alike"), _FRESH.issued).der),
        "root CA CRL",
    ),
    Attack("bit-flipped-in-mrtd", lambda: presented(platform(), quote=flipped(48 + 136)), "signature"),
    Attack(
        "bit-flipped-in-report-data",
        lambda: presented(platform(), quote=flipped(_HONEST_REPORT - 1)),
        "signature",
    ),
    Attack("before-the-certificates", lambda: replace(honest(), now=NOW - 3 * DAY), "(?i)future"),
    Attack("after-the-collateral", lambda: replace(honest(), now=NOW + 31 * DAY), "(?i)expired"),
)
