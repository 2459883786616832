"""Examinations: the table of seventeen checks, the four verdicts, and what no question can turn into permission."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cloister.appraisal.appraise import appraise
from cloister.appraisal.asked import Asked
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.ear import EarSigner, VerifierId, issue_ear
from cloister.appraisal.examination import Examination, examine
from cloister.appraisal.given import Given, gather
from cloister.appraisal.policy import Policy, load_policy
from cloister.encoding import b64url_encode
from cloister.endorsements.amd import endorsements_for, parse_snp_endorsements
from cloister.errors import (
    EXIT_POLICY,
    EXIT_VERIFICATION,
    AppraisalRefused,
    BindingMismatch,
    CloisterError,
    EndorsementError,
    EvidenceError,
    StaleNonce,
    UsageError,
    VerificationError,
)
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof, encode_bundle
from cloister.evidence.key_material import KeyMaterial, encode_key_material, parse_key_material
from cloister.evidence.recognise import Recognised, recognise
from cloister.merkle import root
from cloister.verifier.trail import CHECKS
from intel_vectors import at, collateral, quote
from shared_data import vectors
from simulated_evidence import LAUNCH, NONCE, NOW, platform

KEYS = encode_key_material(KeyMaterial(ohttp_keys=b"keys", not_after=NOW + 600, replica="replica-1"))


def simulated_bundle(*, nonce: bytes = NONCE, keys: bytes = KEYS, debug: bool = False) -> EvidenceBundle:
    """What the simulated TEE answers to ``nonce``."""
    tee = platform().tee("tdx", launch=LAUNCH, clock=lambda: NOW, debug=debug)
    raw = tee.quote(report_data(root([nonce]), keys))
    return EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=keys,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        event_log=raw.event_log,
        endorsements=raw.endorsements,
    )


def simulated_policy(**changes: str) -> Policy:
    """The policy that accepts the simulated workload; ``changes`` replace text in it."""
    text = draft_policy(
        tee="tdx",
        measurements=platform().tee("tdx", launch=LAUNCH).measurements,
        events=LAUNCH,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )
    for old, new in changes.items():
        text = text.replace(old, new)
    return load_policy(text, name="test")


def shown(bundle: EvidenceBundle) -> Recognised:
    return recognise(encode_bundle(bundle))


def states(examination: Examination) -> dict[int, str]:
    assert [row.number for row in examination.rows] == list(CHECKS)
    return {row.number: row.state for row in examination.rows}


def failed(examination: Examination) -> list[int]:
    return [number for number, state in states(examination).items() if state == "failed"]


def test_a_bundle_with_nonce_and_policy_is_accepted_with_all_checks() -> None:
    found = examine(shown(simulated_bundle()), Asked(now=NOW, policy=simulated_policy(), nonce=NONCE))
    assert (found.verdict, found.exit_code, found.error) == ("accepted", 0, None)
    assert set(states(found).values()) == {"passed"}
    assert found.simulated
    assert found.claims is not None
    assert found.claims.events == {"cloister.config": b"\x11" * 32}


def test_a_recorded_bundle_matches_the_policy_and_its_freshness_was_not_asked() -> None:
    found = examine(shown(simulated_bundle()), Asked(now=NOW, policy=simulated_policy()))
    assert found.verdict == "matches"
    assert [number for number, state in states(found).items() if state == "not asked"] == [1, 12, 17]
    assert "recorded evidence may be old" in found.rows[0].outcomes[0]


def test_a_bare_quote_matches_a_policy_but_is_never_accepted() -> None:
    bundle = simulated_bundle()
    asked = Asked(
        now=NOW,
        policy=simulated_policy(),
        given=Given(intel=bundle.endorsements),
        event_log=bundle.event_log,
    )
    found = examine(recognise(bundle.quote), asked)
    assert (found.verdict, failed(found)) == ("matches", [])
    assert states(found)[12] == "not asked"


def test_without_a_policy_genuine_evidence_is_reported_and_not_appraised() -> None:
    found = examine(
        recognise(quote("phala-dcap-qvl/sgx_quote")),
        Asked(now=at("2025-06-25"), given=Given(intel=collateral("sgx_quote_collateral"))),
    )
    assert (found.verdict, found.exit_code) == ("genuine", 0)
    assert found.claims is not None
    assert found.claims.tcb_status == "ConfigurationAndSWHardeningNeeded"
    assert states(found)[14] == "not asked"
    assert not found.simulated


REFUSED: dict[str, tuple[EvidenceBundle, Asked, int, type[CloisterError], str, int]] = {
    "simulated, without a policy": (
        simulated_bundle(),
        Asked(now=NOW),
        5,
        VerificationError,
        f'[roots] simulated = "{platform().root_sha256}"',
        EXIT_VERIFICATION,
    ),
    "simulated, without a policy, for the right nonce": (
        simulated_bundle(),
        Asked(now=NOW, nonce=NONCE),
        5,
        VerificationError,
        "chain ends in root",
        EXIT_VERIFICATION,
    ),
    "debug": (
        simulated_bundle(debug=True),
        Asked(now=NOW, policy=simulated_policy()),
        4,
        VerificationError,
        "debug",
        EXIT_VERIFICATION,
    ),
    "another nonce": (
        simulated_bundle(nonce=bytes(32)),
        Asked(now=NOW, policy=simulated_policy(), nonce=NONCE),
        12,
        BindingMismatch,
        "binds other keys, devices or another nonce",
        EXIT_VERIFICATION,
    ),
    "another nonce, without a policy": (
        simulated_bundle(nonce=bytes(32)),
        Asked(now=NOW, nonce=NONCE),
        5,
        VerificationError,
        "chain ends in root",
        EXIT_VERIFICATION,
    ),
    "a nonce of another length": (
        simulated_bundle(),
        Asked(now=NOW, policy=simulated_policy(), nonce=b"short"),
        1,
        StaleNonce,
        "a nonce is 32 bytes",
        EXIT_VERIFICATION,
    ),
    "another measurement": (
        simulated_bundle(),
        Asked(
            now=NOW,
            policy=simulated_policy(
                **{platform().tee("tdx", launch=LAUNCH).measurements["mrtd"].hex(): "ab" * 48}
            ),
            nonce=NONCE,
        ),
        14,
        AppraisalRefused,
        "mrtd is",
        EXIT_POLICY,
    ),
    "another event": (
        simulated_bundle(),
        Asked(now=NOW, policy=simulated_policy(**{"11" * 32: "22" * 32}), nonce=NONCE),
        15,
        AppraisalRefused,
        "launch event 'cloister.config'",
        EXIT_POLICY,
    ),
    "keys that ended": (
        simulated_bundle(
            keys=encode_key_material(KeyMaterial(ohttp_keys=b"k", not_after=NOW - 1, replica="r"))
        ),
        Asked(now=NOW, policy=simulated_policy(), nonce=NONCE),
        17,
        EvidenceError,
        "the attested keys ended",
        EXIT_VERIFICATION,
    ),
    "years later": (
        simulated_bundle(),
        Asked(now=NOW + 40 * 86400, policy=simulated_policy(), nonce=NONCE),
        6,
        EndorsementError,
        "expired",
        EXIT_VERIFICATION,
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_its_check_its_error_and_its_exit_code(name: str) -> None:
    bundle, asked, number, error, part, code = REFUSED[name]
    found = examine(shown(bundle), asked)
    assert found.verdict == "refused"
    assert isinstance(found.error, error), found.error
    assert part in str(found.error)
    assert failed(found) == [number], found.rows
    assert found.exit_code == code
    after = [row for row in found.rows if row.number > number]
    assert all(row.state == "not asked" for row in after)


def test_genuine_evidence_that_the_policy_refuses_still_shows_what_it_measured() -> None:
    bundle, asked, *_ = REFUSED["another measurement"]
    found = examine(shown(bundle), asked)
    assert found.claims is not None
    assert found.claims.measurements == platform().tee("tdx", launch=LAUNCH).measurements


def test_forged_evidence_shows_no_claims() -> None:
    bundle = simulated_bundle()
    forged = bytearray(bundle.quote)
    forged[600] ^= 1  # in the report data
    altered = EvidenceBundle(
        **{name: getattr(bundle, name) for name in bundle.__struct_fields__} | {"quote": bytes(forged)}
    )
    found = examine(shown(altered), Asked(now=NOW, policy=simulated_policy(), nonce=NONCE))
    assert (found.verdict, found.claims) == ("refused", None)


def test_a_bundle_of_another_policy_root_is_refused() -> None:
    policy = simulated_policy(**{platform().root_sha256: "ab" * 32})
    found = examine(shown(simulated_bundle()), Asked(now=NOW, policy=policy, nonce=NONCE))
    assert failed(found) == [5]


def test_a_quote_report_whose_wrapper_lies_is_refused() -> None:
    subject = recognise(vectors("dstack/quote-report.json").read_bytes())
    lying = dataclasses.replace(subject, parts={**subject.parts, "report_data": b"\x99" * 64})
    asked = Asked(now=at("2026-03-01"), given=Given(intel=collateral("tdx_quote_outdated_collateral")))
    assert examine(subject, asked).verdict == "genuine"
    found = examine(lying, asked)
    assert failed(found) == [3]
    assert "another report data" in str(found.error)


def test_a_dstack_log_is_replayed_and_a_lying_one_is_refused() -> None:
    subject = recognise(vectors("dstack/quote-report.json").read_bytes())
    asked = Asked(now=at("2026-03-01"), given=Given(intel=collateral("tdx_quote_outdated_collateral")))
    assert states(examine(subject, asked))[13] == "passed"
    lying = subject.parts["event_log"].replace(b"LIUM_MINER_HOTKEY", b"LIUM_MINER_HOTKEX")
    found = examine(dataclasses.replace(subject, parts={"event_log": lying}), asked)
    assert failed(found) == [13]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("phala-dcap-qvl/TrustedRootCA.der", "an endorsement, not evidence"),
        ("phala-dcap-qvl/quote_collateral.json", "an endorsement, not evidence"),
        ("google-go-tdx-guest/pckcrl", "an endorsement, not evidence"),
        ("coco-trustee/example.token.json", "without its signature"),
        ("coco-trustee/CCEL_data_gcp", "proves nothing by itself"),
    ],
)
def test_what_is_no_evidence_is_a_wrong_question(name: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        examine(recognise(vectors(name).read_bytes()), Asked(now=NOW))


def test_a_nonce_that_nobody_could_look_at_is_a_wrong_question() -> None:
    with pytest.raises(UsageError, match="a nonce is given"):
        examine(recognise(quote("phala-dcap-qvl/sgx_quote")), Asked(now=NOW, nonce=NONCE))


SNP = {
    "milan": ("virtee-sev/report_milan.hex", ("virtee-sev/vcek_milan.der", "virtee-sev/cert_chain_milan")),
    "milan, root not given": (
        "virtee-sev/report_milan.hex",
        ("virtee-sev/vcek_milan.der", "virtee-sev/snp_milan_ask.pem"),
    ),
    "milan of trustee": (
        "coco-trustee/snp/test-report.bin",
        ("coco-trustee/snp/test-vcek.der", "coco-trustee/milan_ask_ark_asvk.pem"),
    ),
    "milan with a VLEK": (
        "coco-trustee/snp/test-vlek-report.bin",
        ("coco-trustee/snp/test-vlek.der", "coco-trustee/milan_ask_ark_asvk.pem"),
    ),
}


def given(*names: str) -> Given:
    return gather([recognise(vectors(name).read_bytes()) for name in names])


@pytest.mark.parametrize("name", SNP)
def test_an_snp_report_is_genuine_with_certificates_given_as_files(name: str) -> None:
    report, certificates = SNP[name]
    asked = Asked(now=at("2025-06-01"), given=given(*certificates))  # the VLEK held for the year 2025
    found = examine(recognise(vectors(report).read_bytes()), asked)
    assert (found.verdict, found.error) == ("genuine", None)


@pytest.mark.parametrize(
    ("report", "certificates", "number"),
    [
        (
            "coco-trustee/snp/test-report.bin",
            ("coco-trustee/snp/test-vcek-invalid-legacy.der", "coco-trustee/milan_ask_ark_asvk.pem"),
            None,
        ),
        (
            "google-go-sev-guest/attestation.bin",
            ("google-go-sev-guest/vcek.testcer", "google-go-sev-guest/ask_ark_milan.pem"),
            4,
        ),
    ],
    ids=["the wrong VCEK", "debug"],
)
def test_an_snp_report_that_is_not_genuine_is_refused(
    report: str, certificates: tuple[str, ...], number: int | None
) -> None:
    found = examine(recognise(vectors(report).read_bytes()), Asked(now=NOW, given=given(*certificates)))
    assert found.exit_code == EXIT_VERIFICATION
    assert number is None or failed(found) == [number]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml", "genuine"),
        ("nvidia-nvtrust/1010_0200_882_96005E0001_PROD.swidtag", "genuine"),
        ("nvidia-attestation-sdk/incorrect_signature_driver_rim.xml", "refused"),
        ("nvidia-attestation-sdk/incorrect_cert_chain_driver_rim.xml", "refused"),
    ],
)
def test_a_reference_manifest_alone_is_judged_by_its_signature_and_chain(name: str, verdict: str) -> None:
    found = examine(recognise(vectors(name).read_bytes()), Asked(now=at("2025-06-01")))
    assert found.verdict == verdict, found.error


def test_a_policy_cannot_accept_what_is_not_a_tee() -> None:
    name = "nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml"
    found = examine(
        recognise(vectors(name).read_bytes()), Asked(now=at("2025-06-01"), policy=simulated_policy())
    )
    assert (failed(found), found.exit_code) == ([2], EXIT_POLICY)


GIVEN_REFUSED = {
    "two chips": (("virtee-sev/vcek_milan.der", "coco-trustee/snp/test-vcek.der"), "two SEV-SNP chips"),
    "two collaterals": (
        ("phala-dcap-qvl/quote_collateral.json", "phala-dcap-qvl/sgx_quote_collateral.json"),
        "two documents",
    ),
    "a reply of the PCS": (("coco-trustee/tcbInfo.json",), "no issuer chain"),
    "a quote": (("phala-dcap-qvl/sgx_quote",), "is no endorsement"),
}


@pytest.mark.parametrize("name", GIVEN_REFUSED)
def test_endorsements_that_cannot_be_meant_are_refused(name: str) -> None:
    names, part = GIVEN_REFUSED[name]
    with pytest.raises(UsageError, match=part):
        given(*names)


def test_a_chips_certificate_alone_is_completed_from_the_package() -> None:
    document = given("virtee-sev/vcek_milan.der").snp
    assert parse_snp_endorsements(document) == endorsements_for(
        vectors("virtee-sev/vcek_milan.der").read_bytes()
    )


def test_certificates_and_a_list_become_one_document() -> None:
    document = parse_snp_endorsements(given(*SNP["milan with a VLEK"][1]).snp)
    assert document.signing_key == vectors("coco-trustee/snp/test-vlek.der").read_bytes()


def token(**changes: object) -> str:
    """A token of the simulated workload's result, as a verifier would sign it."""
    policy = simulated_policy()
    result = appraise(
        simulated_bundle(),
        nonce=NONCE,
        policy=policy,
        now=NOW,
        decode=parse_key_material,
        not_after=lambda material: material.not_after,
    )
    verifier = VerifierId(developer="https://verifier.example", build="1")
    arguments = {
        "signer": SIGNER,
        "verifier_id": verifier,
        "now": NOW,
        "policy": policy,
        "nonce": NONCE,
    } | changes
    return issue_ear(result, **arguments)  # type: ignore[arg-type]


SIGNER = EarSigner.generate()
TOKENS: dict[str, tuple[dict[str, object], Asked, str, int | None]] = {
    "with nonce and policy": ({}, Asked(now=NOW, policy=simulated_policy(), nonce=NONCE), "accepted", None),
    "with a policy": ({}, Asked(now=NOW, policy=simulated_policy()), "matches", None),
    "for an audience": (
        {"audience": "https://me.example"},
        Asked(now=NOW, policy=simulated_policy()),
        "matches",
        None,
    ),
    "simulated, without a policy": ({}, Asked(now=NOW), "refused", 2),
    "of another policy": (
        {},
        Asked(now=NOW, policy=simulated_policy(**{"11" * 32: "22" * 32})),
        "refused",
        2,
    ),
    "of another nonce": (
        {"nonce": bytes(32)},
        Asked(now=NOW, policy=simulated_policy(), nonce=NONCE),
        "refused",
        1,
    ),
    "signed by another": (
        {"signer": EarSigner.generate()},
        Asked(now=NOW, policy=simulated_policy()),
        "refused",
        7,
    ),
    "that ended": ({}, Asked(now=NOW + 7200, policy=simulated_policy()), "refused", 17),
}


@pytest.mark.parametrize("name", TOKENS)
def test_a_token_is_as_good_as_the_key_that_was_named(name: str) -> None:
    changes, asked, verdict, number = TOKENS[name]
    subject = recognise(token(**changes).encode())
    found = examine(subject, dataclasses.replace(asked, token_keys=(SIGNER.public_pem,)))
    assert found.verdict == verdict, found.error
    assert failed(found) == ([] if number is None else [number])
    if verdict != "refused":
        assert found.facts["verifier"] == "https://verifier.example"
        assert found.simulated


def test_a_token_without_a_named_key_is_a_wrong_question() -> None:
    with pytest.raises(UsageError, match="--ear KEY"):
        examine(recognise(token().encode()), Asked(now=NOW, policy=simulated_policy()))


@pytest.mark.parametrize(
    "payload", [b"[]", b"{}", b'{"cloister":[]}', b'{"ear.verifier-id":{"developer":1}}']
)
def test_a_token_of_another_form_is_refused(payload: bytes) -> None:
    header, _, signature = token().split(".")
    forged = f"{header}.{b64url_encode(payload)}.{signature}"
    asked = Asked(now=NOW, policy=simulated_policy(), token_keys=(SIGNER.public_pem,))
    assert examine(recognise(forged.encode()), asked).exit_code == EXIT_VERIFICATION


DEVICES = {
    "one H100": ("nvidia-attestation-sdk/hopper_evidence.json", 1, "gpu"),
    "four H100": ("nvidia-attestation-sdk/multi_gpu_hopper.json", 4, "gpu"),
    "a switch": ("nvidia-attestation-sdk/switch_evidence_ls10.json", 1, "nvswitch"),
    "eight H100": ("nvidia-nvtrust/gpu_evidence.json", 8, "gpu"),
    "four switches": ("nvidia-nvtrust/switch_evidence.json", 4, "nvswitch"),
}


@pytest.mark.parametrize("name", DEVICES)
def test_devices_alone_are_genuine_and_bound_to_nothing(name: str) -> None:
    file, count, kind = DEVICES[name]
    found = examine(recognise(vectors(file).read_bytes()), Asked(now=NOW))
    assert (found.verdict, found.error) == ("genuine", None)
    assert [device.kind for device in found.devices] == [kind] * count
    assert states(found)[16] == "passed"
    assert all(state == "not asked" for number, state in states(found).items() if number != 16)


def test_a_bare_report_needs_the_certificates_of_its_device() -> None:
    subject = recognise(vectors("coco-trustee/nvidia/hopperAttestationReport.txt").read_bytes())
    found = examine(subject, Asked(now=NOW))
    assert (failed(found), found.exit_code) == ([3], EXIT_VERIFICATION)
    chain = given("coco-trustee/nvidia/hopper_cert_chain_case1.txt")
    assert examine(subject, Asked(now=NOW, given=chain)).verdict == "genuine"


def test_devices_that_answer_another_nonce_are_refused() -> None:
    subject = recognise(vectors("nvidia-attestation-sdk/hopper_evidence.json").read_bytes())
    right = bytes.fromhex(json.loads(subject.data)[0]["nonce"])
    assert states(examine(subject, Asked(now=NOW, nonce=right)))[1] == "passed"
    assert failed(examine(subject, Asked(now=NOW, nonce=bytes(32)))) == [16]
