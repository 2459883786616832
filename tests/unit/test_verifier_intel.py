"""The Intel verifier on the simulated vendor: every attack is refused by our own errors, whatever is broken."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re

import dcap_qvl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulated_evidence as attacks
from cloister.attester.simulated import collateral_window
from cloister.attester.simulation.chain import issue_crl
from cloister.attester.simulation.collateral import TCB_LADDER, assemble_collateral, qe_identity, tcb_info
from cloister.attester.simulation.quote import Layout
from cloister.endorsements.pck import read_pck
from cloister.endorsements.roots import INTEL_ROOT, simulated_root
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EndorsementError,
    EvidenceError,
    VerificationError,
)
from cloister.evidence.quote import parse_quote
from cloister.verifier import dcap, intel
from cloister.verifier.claims import Claims
from cloister.verifier.rules import TCB_STATUSES, IntelRules
from cloister.verifier.trail import Trail
from simulated_attacks import ATTACKS, Attack
from simulated_evidence import NOW, Presented

STRICT = IntelRules(min_tcb_evaluation_number=1)
LAX = IntelRules(
    min_tcb_evaluation_number=1,
    accepted_statuses=frozenset(TCB_STATUSES),
    out_of_date_grace=1 << 32,
    allow_dynamic_platform=True,
    allow_cached_keys=True,
    allow_smt=True,
)


def judge(shown: Presented, rules: IntelRules = STRICT, trail: Trail | None = None) -> Claims:
    root = simulated_root(hashlib.sha256(shown.root).hexdigest())
    return intel.verify(
        shown.quote, shown.collateral.encode(), root=root, now=shown.now, rules=rules, trail=trail
    )


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.name)
def test_honest_evidence_gives_claims(layout: Layout) -> None:
    claims = judge(attacks.honest(layout))
    assert (claims.tee, claims.tcb_status, claims.debug) == (layout.kind, "UpToDate", False)
    assert claims.simulated is True
    assert claims.root_sha256 == attacks.platform().root_sha256
    assert claims.report_data == attacks.REPORT_DATA
    assert claims.issued_at <= NOW < claims.collateral_expires
    assert claims.events == {}
    tee = attacks.platform().tee(layout.kind, launch=attacks.LAUNCH)
    assert dict(claims.measurements) == dict(tee.measurements)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_by_our_own_error(attack: Attack) -> None:
    with pytest.raises((VerificationError, EndorsementError, AppraisalRefused, EvidenceError)) as refusal:
        judge(attack.present())
    assert len(str(refusal.value).splitlines()) == 1
    assert refusal.value.todo


STOPS = {
    # the number of the check that an attack fails, where it is not 7 (chain, revocation and signatures)
    4: ("debug-td", "debug-enclave"),
    5: ("root-of-another-vendor", "processor-of-another-vendor", "root-renamed-alike"),
    6: (
        "collateral-of-another-vendor",
        "collateral-stale",
        "collateral-from-the-future",
        "root_crl-stale",
        "pck_crl-stale",
        "tcb_info-stale",
        "qe_identity-stale",
        "qe-identity-of-the-sgx-enclave",
        "tcb-info-of-sgx",
        "another-processor-family",
        "before-the-certificates",
        "after-the-collateral",
    ),
    8: ("quoting-enclave-below-every-level", "quoting-enclave-not-the-identified-one"),
    9: (
        "platform-SWHardeningNeeded",
        "platform-ConfigurationNeeded",
        "platform-ConfigurationAndSWHardeningNeeded",
        "platform-OutOfDate",
        "platform-OutOfDateConfigurationNeeded",
        "platform-Revoked",
        "platform-below-every-level",
        "tdx-module-out-of-date",
        "tdx-module-revoked",
        "tdx-module-below-every-level",
        "tdx-relaunch-advised",
        "quoting-enclave-out-of-date",
        "quoting-enclave-revoked",
    ),
    11: (
        "multi-socket-platform-not-accepted",
        "cached-keys-not-accepted",
        "hyper-threading-not-accepted",
        "td-without-sept-ve-disable",
        "td-that-may-migrate",
        "td-with-reserved-attributes",
    ),
}
NUMBERS = {name: number for number, names in STOPS.items() for name in names}
CLASSES = {4: VerificationError, 5: VerificationError, 6: EndorsementError, 8: VerificationError}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_stops_the_trail_at_its_check(attack: Attack) -> None:
    shown, trail = attack.present(), Trail()
    with pytest.raises(CloisterError) as refusal:
        judge(shown, trail=trail)
    assert trail.stopped == (NUMBERS.get(attack.name, 7), refusal.value)
    number, error = trail.stopped
    assert isinstance(error, CLASSES.get(number, CloisterError))
    # What passed before is there in order, and nothing of its own number or behind it.
    passed = [check.number for check in trail.passed]
    assert passed == sorted(passed)
    assert all(before < number for before in passed)
    assert {3, 4, 5} & set(range(number)) <= set(passed)
    # Rules are asked last: whoever is refused by one is genuine.
    assert ({7, 8} <= set(passed)) == isinstance(error, AppraisalRefused)


def test_every_check_is_on_the_trail_of_honest_evidence() -> None:
    trail = Trail()
    trail.found(1, "before")
    claims = judge(attacks.honest(), trail=trail)
    assert [check.number for check in claims.checks] == list(range(3, 12))
    assert trail.passed[1:] == claims.checks
    assert trail.stopped is None


def test_the_machine_is_named_for_allow_lists() -> None:
    claims = judge(attacks.honest())
    identity = read_pck(attacks.platform().chain.pck.der)
    assert claims.hardware == {"ppid": identity.ppid, "pck_sha256": identity.spki_sha256}
    assert claims.hardware["ppid"] == attacks.platform().hardware.ppid.hex()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_the_laxest_rules_accept_only_what_is_genuine(attack: Attack) -> None:
    with pytest.raises(CloisterError) as strict:
        judge(attack.present())
    if isinstance(strict.value, AppraisalRefused):  # genuine, and a policy may decide to accept it
        judge(attack.present(), LAX)
        return
    with pytest.raises((VerificationError, EndorsementError, EvidenceError)):
        judge(attack.present(), LAX)


@pytest.mark.parametrize("status", TCB_LADDER[:-1])
def test_a_status_is_accepted_by_name_only(status: str) -> None:
    shown = attacks.with_status(status)
    rules = dataclasses.replace(STRICT, accepted_statuses=frozenset({status}), out_of_date_grace=1 << 32)
    assert judge(shown, rules).tcb_status == status
    others = frozenset(TCB_STATUSES) - {status}
    with pytest.raises(AppraisalRefused, match=status):
        judge(shown, dataclasses.replace(rules, accepted_statuses=others))


def test_up_to_date_must_be_accepted_too() -> None:
    # dcap-qvl's strict policy accepts UpToDate whatever is added to it; our own check does not.
    with pytest.raises(AppraisalRefused, match="UpToDate is not accepted"):
        judge(attacks.honest(), dataclasses.replace(STRICT, accepted_statuses=frozenset({"OutOfDate"})))


@pytest.mark.parametrize("rules", [LAX, dataclasses.replace(LAX, accepted_statuses=frozenset({"Revoked"}))])
def test_a_revoked_platform_is_never_accepted(rules: IntelRules) -> None:
    with pytest.raises(VerificationError, match="Revoked"):
        judge(attacks.with_status("Revoked"), rules)


def test_an_out_of_date_platform_is_accepted_for_its_grace_only() -> None:
    rules = dataclasses.replace(STRICT, accepted_statuses=frozenset({"OutOfDate"}), out_of_date_grace=60)
    with pytest.raises(AppraisalRefused, match="out_of_date_grace_seconds"):
        judge(attacks.with_status("OutOfDate"), rules)


def test_a_rejected_advisory_outweighs_an_accepted_status() -> None:
    shown = attacks.with_status("SWHardeningNeeded")
    rules = dataclasses.replace(STRICT, accepted_statuses=frozenset({"SWHardeningNeeded"}))
    (advisory,) = judge(shown, rules).advisory_ids
    with pytest.raises(AppraisalRefused, match=advisory):
        judge(shown, dataclasses.replace(rules, rejected_advisories=frozenset({advisory})))


def test_a_lower_evaluation_number_is_refused() -> None:
    number = judge(attacks.honest()).tcb_evaluation_number
    judge(attacks.honest(), IntelRules(min_tcb_evaluation_number=number))
    with pytest.raises(AppraisalRefused, match=f"minimum {number + 1}"):
        judge(attacks.honest(), IntelRules(min_tcb_evaluation_number=number + 1))


def evaluated(*, tcb: int, qe: int) -> Presented:
    """Collateral whose two documents have different evaluation numbers."""
    vendor, window = attacks.platform(), collateral_window(NOW)
    collateral = assemble_collateral(
        vendor.chain,
        tcb_info("tdx", vendor.hardware, window, evaluation=tcb),
        qe_identity("tdx", window, evaluation=qe),
        root_crl=issue_crl(vendor.chain.root, window),
        pck_crl=issue_crl(vendor.chain.pck_ca, window),
    )
    return dataclasses.replace(attacks.honest(), collateral=collateral)


@pytest.mark.parametrize(("tcb", "qe"), [(16, 17), (17, 16), (16, 16)])
def test_the_evaluation_number_is_the_lower_of_both_documents(tcb: int, qe: int) -> None:
    shown = evaluated(tcb=tcb, qe=qe)
    assert judge(shown, IntelRules(min_tcb_evaluation_number=16)).tcb_evaluation_number == 16
    trail = Trail()
    with pytest.raises(AppraisalRefused, match=r"(?i)eval"):
        judge(shown, IntelRules(min_tcb_evaluation_number=17), trail)
    assert trail.stopped is not None
    assert trail.stopped[0] == 10


OLD_ENCLAVE = dataclasses.replace(STRICT, accepted_statuses=frozenset({"UpToDate", "OutOfDate"}))


def test_the_grace_and_the_advisories_cover_the_quoting_enclave_too() -> None:
    shown = attacks.presented(attacks.processor(qe_svn=3))
    rules = dataclasses.replace(OLD_ENCLAVE, out_of_date_grace=400 * 86400)
    claims = judge(shown, rules)
    assert (claims.tcb_status, claims.advisory_ids) == ("OutOfDate", ("SIMULATED-SA-00001",))
    with pytest.raises(AppraisalRefused, match="QE TCB too old"):
        judge(shown, dataclasses.replace(rules, out_of_date_grace=60))
    with pytest.raises(AppraisalRefused, match="SIMULATED-SA-00001"):
        judge(shown, dataclasses.replace(rules, rejected_advisories=frozenset({"SIMULATED-SA-00001"})))


def test_a_revoked_certificate_is_named() -> None:
    attack = next(attack for attack in ATTACKS if attack.name == "pck-certificate-revoked")
    with pytest.raises(VerificationError, match="is revoked"):
        judge(attack.present())


def test_a_simulated_quote_is_refused_under_intels_root() -> None:
    shown = attacks.honest()
    with pytest.raises(VerificationError, match=r"chain ends in root .*, not in Intel SGX Root CA"):
        intel.verify(shown.quote, shown.collateral.encode(), root=INTEL_ROOT, now=NOW, rules=LAX)


def test_the_environment_cannot_turn_simulation_on(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = attacks.honest()
    for name in ("CLOISTER_SIMULATED", "CLOISTER_INSECURE", "CLOISTER_ROOT", "CLOISTER_SIMULATED_ROOT"):
        monkeypatch.setenv(name, attacks.platform().root_sha256)
    with pytest.raises(VerificationError, match="Intel SGX Root CA"):
        intel.verify(shown.quote, shown.collateral.encode(), root=INTEL_ROOT, now=NOW, rules=LAX)


def test_a_simulated_tee_is_announced_loudly_and_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intel, "_announced", type(intel._announced)())
    with caplog.at_level(logging.WARNING, logger="cloister.verifier"):
        judge(attacks.honest())
        judge(attacks.honest())
    (record,) = [record for record in caplog.records if record.name == "cloister.verifier"]
    assert record.levelno == logging.WARNING
    assert "SIMULATED TEE" in record.getMessage()


def broken_collateral() -> dict[str, str]:
    """Every field missing, empty, of another type, not hexadecimal, and too deep; and documents that are none."""
    honest = json.loads(attacks.honest().collateral)
    cases = {
        "not-json": "{",
        "a-list": "[]",
        "not-utf-8": "\udcff",
        "unknown-field": json.dumps({**honest, "extra": ""}),
        "a-field-twice": attacks.honest().collateral.rstrip().removesuffix("}") + ', "tcb_info": ""}',
        "too-large": json.dumps({**honest, "tcb_info": " " * (512 * 1024)}),
        "lone-surrogate": json.dumps({**honest, "tcb_info": "\ud800"}),
        "nul": json.dumps({**honest, "tcb_info": "\0"}),
    }
    for field in honest:
        cases[f"{field}-missing"] = json.dumps({k: v for k, v in honest.items() if k != field})
        cases[f"{field}-null"] = json.dumps({**honest, field: None})
        cases[f"{field}-number"] = json.dumps({**honest, field: 1})
        if field != "pck_crl_issuer_chain":  # dcap-qvl takes the CRL's issuer from the quote's own chain
            cases[f"{field}-empty"] = json.dumps({**honest, field: ""})
            cases[f"{field}-junk"] = json.dumps({**honest, field: "zz"})
            cases[f"{field}-short"] = json.dumps(
                {**honest, field: honest[field][: len(honest[field]) // 8 * 2]}
            )
    return cases


@pytest.mark.parametrize("case", broken_collateral())
def test_broken_collateral_is_refused_by_our_own_error(case: str) -> None:
    shown = attacks.honest()
    root = simulated_root(attacks.platform().root_sha256)
    document = broken_collateral()[case].encode("utf-8", "surrogateescape")
    with pytest.raises((EndorsementError, VerificationError)):
        intel.verify(shown.quote, document, root=root, now=NOW, rules=LAX)


def test_missing_collateral_says_what_to_do() -> None:
    root = simulated_root(attacks.platform().root_sha256)
    with pytest.raises(EndorsementError, match="PCCS"):
        intel.verify(attacks.honest().quote, b"", root=root, now=NOW, rules=LAX)


@given(st.integers())
def test_any_time_is_answered_by_claims_or_our_own_error(now: int) -> None:
    shown = dataclasses.replace(attacks.honest(), now=now)
    try:
        judge(shown)
    except CloisterError:
        return


@pytest.mark.parametrize("now", [-1, 1 << 41, 1 << 80])
def test_what_is_no_time_is_refused(now: int) -> None:
    with pytest.raises(EndorsementError, match="is no time"):
        judge(dataclasses.replace(attacks.honest(), now=now))


@given(st.sampled_from(list(Layout)), st.data())
def test_a_flipped_bit_in_any_quote_is_refused(layout: Layout, data: st.DataObject) -> None:
    shown = attacks.honest(layout)
    place = data.draw(st.integers(0, len(shown.quote) - 1))
    bit = data.draw(st.integers(0, 7))
    altered = bytearray(shown.quote)
    altered[place] ^= 1 << bit
    with pytest.raises(CloisterError):
        judge(dataclasses.replace(shown, quote=bytes(altered)), LAX)


@given(st.data())
def test_collateral_altered_anywhere_never_raises_a_foreign_error(data: st.DataObject) -> None:
    shown = attacks.honest()
    document = bytearray(shown.collateral.encode())
    document[data.draw(st.integers(0, len(document) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    root = simulated_root(attacks.platform().root_sha256)
    try:
        intel.verify(shown.quote, bytes(document), root=root, now=NOW, rules=STRICT)
    except (EndorsementError, VerificationError, AppraisalRefused):
        return


class PanicException(BaseException):
    pass


@pytest.mark.parametrize(
    "foreign", [PanicException("boom"), RuntimeError("boom"), ValueError(""), MemoryError()]
)
def test_whatever_dcap_raises_comes_out_as_ours(
    foreign: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, _root: bytes) -> None:
            raise foreign

    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", Broken)
    with pytest.raises(VerificationError):
        judge(attacks.honest())


def test_ctrl_c_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __init__(self, _root: bytes) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(dcap_qvl, "QuoteVerifier", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge(attacks.honest())


def test_two_readings_of_one_quote_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    true_run = dcap.run_dcap

    def misread(*args: object, **kwargs: object) -> dcap.Verdict:
        verdict = true_run(*args, **kwargs)  # type: ignore[arg-type]
        return dataclasses.replace(verdict, report={**verdict.report, "rt_mr3": "00" * 48})

    monkeypatch.setattr(intel, "run_dcap", misread)
    with pytest.raises(VerificationError, match="disagree about rt_mr3"):
        judge(attacks.honest())


CARELESS = {
    # what a careless dcap-qvl could let through: (changes of its verdict, error)
    "an unknown status": ({"status": "Fine"}, AppraisalRefused),
    "a revoked platform": ({"status": "Revoked"}, AppraisalRefused),
    "a status that the policy does not accept": ({"status": "OutOfDate"}, AppraisalRefused),
    "a low evaluation number": ({"evaluation_number": 0}, AppraisalRefused),
    "collateral from the future": ({"issued_at": NOW + 1}, EndorsementError),
    "collateral that ends now": ({"expires": NOW}, EndorsementError),
    "another platform's PPID": ({"ppid": "00" * 16}, VerificationError),
    "another platform's FMSPC": ({"fmspc": "00" * 6}, VerificationError),
}


@pytest.mark.parametrize("case", CARELESS)
def test_what_dcap_lets_through_is_looked_at_once_more(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, error = CARELESS[case]
    true_run = dcap.run_dcap

    def careless(*args: object, **kwargs: object) -> dcap.Verdict:
        return dataclasses.replace(true_run(*args, **kwargs), **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(intel, "run_dcap", careless)
    with pytest.raises(error):
        judge(attacks.honest())


@pytest.mark.parametrize("offset", [64, 112], ids=["mr-signer-seam", "seam-attributes"])
def test_a_tdx_module_of_someone_else_is_refused(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    quote = bytearray(attacks.honest().quote)
    quote[48 + offset] = 1
    verdict = dcap.run_dcap

    def signed_anyway(parsed: object, *args: object, **kwargs: object) -> dcap.Verdict:
        return verdict(parse_quote(attacks.honest().quote), *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(intel, "run_dcap", signed_anyway)
    with pytest.raises(VerificationError, match="TDX module"):
        judge(dataclasses.replace(attacks.honest(), quote=bytes(quote)))


def test_the_legacy_entry_of_dcap_is_never_used() -> None:
    from pathlib import Path

    import cloister

    for source in Path(cloister.__file__).parent.rglob("*.py"):
        text = source.read_text()
        assert "verify_with_root_ca" not in text
        assert "dcap_qvl.verify(" not in text
        assert not re.search(r"from dcap_qvl import .*\bverify\b", text)
