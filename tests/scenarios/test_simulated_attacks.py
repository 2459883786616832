"""The named attacks of simulated_attacks.py, and those on a whole bundle, put to Cloister's own appraisal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from msgspec import structs

from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import Platform, Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.attester.simulation.collateral import EVALUATION_NUMBER, TCB_LADDER, microcode_for
from cloister.attester.simulation.hardware import enclave_measurements, td_measurements
from cloister.attester.simulation.quote import Layout
from cloister.errors import (
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EventLogMismatch,
    EvidenceError,
    StaleNonce,
    VerificationError,
)
from cloister.evidence.bundle import EvidenceBundle, NonceProof, TeeKind
from cloister.evidence.eventlog import LaunchEvent, encode_event_log
from simulated_attacks import ATTACKS, Attack
from simulated_evidence import (
    KEYS,
    LAUNCH,
    NONCE,
    NOW,
    REPORT_DATA,
    Presented,
    honest,
    platform,
    presented,
    processor,
    relaunch_advised,
    with_status,
)

ENCLAVE_QUOTE = b"\x03\x00"
"""How a version 3 quote begins; only SGX has it."""


def bundle(shown: Presented) -> EvidenceBundle:
    """``shown`` as it would travel."""
    sgx = shown.quote.startswith(ENCLAVE_QUOTE)
    return EvidenceBundle(
        tee="sgx" if sgx else "tdx",
        quote=shown.quote,
        key_material=KEYS,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=b"" if sgx else encode_event_log(LAUNCH),
        endorsements=shown.collateral.encode(),
    )


def policy(
    tee: TeeKind = "tdx",
    *,
    root: bytes | None = None,
    statuses: tuple[str, ...] = ("UpToDate",),
    evaluation: int = EVALUATION_NUMBER,
    vendor: bool = False,
    allowed: Platform | None = None,
) -> Policy:
    """The policy of a careful relying party of exactly this workload."""
    der = root or platform().chain.root.der
    late = any(status.startswith("OutOfDate") for status in statuses)
    text = draft_policy(
        tee=tee,
        measurements=td_measurements(LAUNCH) if tee == "tdx" else enclave_measurements(LAUNCH),
        events=LAUNCH if tee == "tdx" else (),
        min_tcb_evaluation_number=evaluation,
        accepted_statuses=statuses,
        platform=allowed,
        simulated_root=None if vendor else hashlib.sha256(der).hexdigest(),
        out_of_date_grace_seconds=365 * 86_400 if late else None,
    )
    return load_policy(text, name="scenario")


def judge(evidence: EvidenceBundle, rule: Policy, now: int = NOW) -> AttestationResult[bytes]:
    return appraise(
        evidence, nonce=NONCE, policy=rule, now=now, decode=lambda keys: keys, not_after=lambda _: None
    )


CHAIN, COLLATERAL, RULES = VerificationError, EndorsementError, AppraisalRefused

REFUSED: dict[str, type[CloisterError] | tuple[type[CloisterError], ...]] = {
    "platform-SWHardeningNeeded": RULES,
    "platform-ConfigurationNeeded": RULES,
    "platform-ConfigurationAndSWHardeningNeeded": RULES,
    "platform-OutOfDate": RULES,
    "platform-OutOfDateConfigurationNeeded": RULES,
    "platform-Revoked": CHAIN,
    "platform-below-every-level": CHAIN,
    "tdx-module-out-of-date": RULES,
    "tdx-module-revoked": CHAIN,
    "tdx-module-below-every-level": CHAIN,
    "tdx-relaunch-advised": RULES,
    "quoting-enclave-out-of-date": RULES,
    "quoting-enclave-revoked": CHAIN,
    "quoting-enclave-below-every-level": (COLLATERAL, CHAIN),  # dcap-qvl says it of the QE identity
    "multi-socket-platform-not-accepted": RULES,
    "cached-keys-not-accepted": RULES,
    "hyper-threading-not-accepted": RULES,
    "debug-td": CHAIN,
    "debug-enclave": CHAIN,
    "td-without-sept-ve-disable": CHAIN,
    "td-that-may-migrate": CHAIN,
    "td-with-reserved-attributes": CHAIN,
    "pck-certificate-revoked": CHAIN,
    "pck-ca-revoked": CHAIN,
    "tcb-signing-certificate-revoked": CHAIN,
    "root-revoked": CHAIN,
    "root-of-another-vendor": CHAIN,
    "processor-of-another-vendor": CHAIN,
    "collateral-of-another-vendor": COLLATERAL,
    "tcb-info-of-another-vendor": CHAIN,
    "qe-identity-of-another-vendor": CHAIN,
    "collateral-stale": COLLATERAL,
    "collateral-from-the-future": COLLATERAL,
    "root_crl-stale": COLLATERAL,
    "pck_crl-stale": (COLLATERAL, CHAIN),  # webpki reports it as part of the chain
    "tcb_info-stale": COLLATERAL,
    "qe_identity-stale": COLLATERAL,
    "pck-revocation-list-of-another-vendor": CHAIN,
    "tcb-info-altered": COLLATERAL,
    "tcb-info-signature-altered": COLLATERAL,
    "tcb-info-signed-by-a-processor": COLLATERAL,
    "qe-identity-altered": COLLATERAL,
    "qe-identity-signed-by-a-processor": COLLATERAL,
    "qe-identity-of-the-sgx-enclave": COLLATERAL,
    "tcb-info-of-sgx": COLLATERAL,
    "another-processor-family": COLLATERAL,
    "quoting-enclave-not-the-identified-one": CHAIN,
    "signed-by-another-attestation-key": CHAIN,
    "another-attestation-key-shown": CHAIN,
    "qe-report-of-another-quote": CHAIN,
    "qe-report-signed-by-the-pck-ca": CHAIN,
    "pck-certificate-issued-by-a-processor": CHAIN,
    "pck-ca-left-out": CHAIN,
    "root-renamed-alike": CHAIN,
    "bit-flipped-in-mrtd": CHAIN,
    "bit-flipped-in-report-data": CHAIN,
    "before-the-certificates": COLLATERAL,
    "after-the-collateral": COLLATERAL,
}


def test_every_attack_of_the_table_is_judged_here() -> None:
    assert list(REFUSED) == [attack.name for attack in ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_on_quote_or_collateral_is_refused_with_its_own_error(attack: Attack) -> None:
    shown = attack.present()
    evidence = bundle(shown)
    with pytest.raises(REFUSED[attack.name]):
        judge(evidence, policy(evidence.tee, root=shown.root), shown.now)


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.name)
def test_honest_evidence_of_every_layout_gives_its_keys(layout: Layout) -> None:
    result = judge(bundle(honest(layout)), policy(layout.kind))
    assert result.keys == KEYS
    assert result.claims.simulated
    assert result.claims.tcb_status == "UpToDate"
    assert result.claims.tcb_evaluation_number == EVALUATION_NUMBER


@pytest.mark.parametrize("status", [*TCB_LADDER[:-1], "TDRelaunchAdvised"])
def test_a_status_that_the_policy_names_is_accepted_and_stays_visible(status: str) -> None:
    shown = relaunch_advised() if status == "TDRelaunchAdvised" else with_status(status)
    result = judge(bundle(shown), policy(statuses=(status,)))
    assert result.claims.tcb_status == status


def test_a_multi_socket_platform_is_accepted_where_the_policy_says_so() -> None:
    shown = presented(processor(dynamic_platform=True, cached_keys=True, smt_enabled=True))
    allowed = Platform(allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True)
    result = judge(bundle(shown), policy(allowed=allowed))
    assert result.claims.details["dynamic_platform"] == "True"


def _launched(*events: LaunchEvent) -> EvidenceBundle:
    """The same workload's keys and nonce in a TEE that was launched with ``events``."""
    tee = platform().tee(launch=events, clock=lambda: NOW)
    evidence = tee.quote(REPORT_DATA)
    return structs.replace(bundle(honest()), quote=evidence.quote, event_log=evidence.event_log)


OTHER = LaunchEvent(name=LAUNCH[0].name, payload=b"\x22" * 32)

ON_THE_BUNDLE: dict[str, tuple[Callable[[], EvidenceBundle], type[CloisterError]]] = {
    "another-configuration-launched": (lambda: _launched(OTHER), AppraisalRefused),
    "nothing-launched": (_launched, AppraisalRefused),
    "more-launched-than-the-policy-knows": (
        lambda: _launched(*LAUNCH, LaunchEvent(name="cloister.program", payload=bytes(32))),
        AppraisalRefused,
    ),
    "the-expected-log-with-another-register": (
        lambda: structs.replace(_launched(OTHER), event_log=encode_event_log(LAUNCH)),
        EventLogMismatch,
    ),
    "the-event-log-left-out": (
        lambda: structs.replace(bundle(honest()), event_log=b""),
        AppraisalRefused,
    ),
    "keys-exchanged-after-the-quote": (
        lambda: structs.replace(bundle(honest()), key_material=b"mallory's"),
        BindingMismatch,
    ),
    "a-nonce-proof-that-leads-elsewhere": (
        lambda: structs.replace(bundle(honest()), nonce_proof=NonceProof(index=0, size=2, path=(bytes(32),))),
        BindingMismatch,
    ),
    "a-nonce-proof-out-of-its-tree": (
        lambda: structs.replace(bundle(honest()), nonce_proof=NonceProof(index=1, size=1, path=())),
        StaleNonce,
    ),
    "an-enclave-in-a-trust-domains-place": (lambda: bundle(honest(Layout.SGX_V3)), AppraisalRefused),
    "an-enclave-that-calls-itself-a-trust-domain": (
        lambda: structs.replace(bundle(honest(Layout.SGX_V3)), tee="tdx", event_log=encode_event_log(LAUNCH)),
        EvidenceError,
    ),
    "a-truncated-quote": (
        lambda: structs.replace(bundle(honest()), quote=honest().quote[:-1]),
        EvidenceError,
    ),
    "a-longer-quote": (
        lambda: structs.replace(bundle(honest()), quote=honest().quote + b"more"),
        EvidenceError,
    ),
    "no-collateral": (lambda: structs.replace(bundle(honest()), endorsements=b""), EndorsementError),
    "collateral-of-a-newer-processor-for-an-old-one": (
        lambda: bundle(presented(processor(cpu_svn=microcode_for("OutOfDate")))),
        AppraisalRefused,
    ),
}


@pytest.mark.parametrize("attack", ON_THE_BUNDLE)
def test_an_attack_on_the_bundle_is_refused_with_its_own_error(attack: str) -> None:
    build, error = ON_THE_BUNDLE[attack]
    with pytest.raises(error):
        judge(build(), policy())


def test_evidence_for_another_nonce_is_refused() -> None:
    with pytest.raises(CloisterError) as caught:
        appraise(
            bundle(honest()),
            nonce=bytes(32),
            policy=policy(),
            now=NOW,
            decode=lambda keys: keys,
            not_after=lambda _: None,
        )
    assert isinstance(caught.value, StaleNonce | BindingMismatch)


def test_a_policy_for_hardware_never_accepts_the_simulation() -> None:
    with pytest.raises(VerificationError, match="simulated"):
        judge(bundle(honest()), policy(vendor=True))


def test_the_root_of_one_deployment_is_not_that_of_another() -> None:
    with pytest.raises(VerificationError):
        judge(bundle(honest()), policy(root=platform("another").chain.root.der))


def test_collateral_older_than_the_policy_demands_is_refused() -> None:
    with pytest.raises(AppraisalRefused):
        judge(bundle(honest()), policy(evaluation=EVALUATION_NUMBER + 1))
