"""Drafts from evidence: decided as measured they accept it, undecided they accept nothing and say where."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

import simulated_evidence as attacks
import simulated_nvidia as gpus
import simulated_snp as snp_guest
import snp_vectors
from cloister.appraisal.dispatch import judge_platform, judge_workload
from cloister.appraisal.document import DECIDE, parse_document
from cloister.appraisal.draft_observed import draft_for_review, draft_from_claims
from cloister.appraisal.ear_claims import decode_claims, encode_claims
from cloister.appraisal.examined_cpu import REPORTED
from cloister.appraisal.given import Given
from cloister.appraisal.observation import NamedRoots, observe
from cloister.appraisal.policy import load_policy
from cloister.encoding import encode_json, parse_json
from cloister.endorsements.amd import encode_snp_endorsements
from cloister.endorsements.roots import AMD_ROOTS, INTEL_ROOT, simulated_root
from cloister.errors import CloisterError, FormatError, PolicyError, UsageError, VerificationError
from cloister.evidence.hcl import encode_evidence
from cloister.evidence.recognise import recognise
from cloister.evidence.tpm import read_quote
from cloister.verifier import azure, intel, snp
from cloister.verifier.claims import Claims
from cloister.verifier.tpm import pcr_measurements, quote_details
from cloister.verifier.trail import Trail
from ear_parts import ASKED, result
from handmade_hcl import processor, runtime_data, sealed_report
from handmade_tpm import NOW as TPM_NOW
from handmade_tpm import Quote, rsa_key
from intel_vectors import at, collateral, quote
from simulated_evidence import NOW


def genuine(name: str, document: str, day: str) -> Claims:
    return intel.verify(quote(name), collateral(document), root=INTEL_ROOT, now=at(day), rules=REPORTED)


def milan(name: str) -> Claims:
    now = snp_vectors.NOW
    return snp.verify(
        snp_vectors.report(name),
        snp_vectors.endorsements(name),
        roots=AMD_ROOTS,
        now=now,
        revocation_required=False,
    )


def azure_guest() -> Claims:
    key = rsa_key("hcl ak")
    evidence = encode_evidence(
        hcl_report=sealed_report(runtime_data(key.public_key())), quote=Quote(key=key, scheme="rsassa").wire
    )
    return azure.verify(
        evidence,
        encode_snp_endorsements(processor().endorsements(TPM_NOW)),
        roots=(simulated_root(processor().root_sha256),),
        now=TPM_NOW,
        revocation_required=True,
    )


def tpm_quote() -> Claims:
    """A quote's claims as the verifier makes them; chains are the business of its own tests."""
    parsed = read_quote(Quote().wire)
    return Claims(
        tee="tpm",
        root_sha256="ab" * 32,
        simulated=False,
        report=parsed,
        measurements=pcr_measurements(parsed),
        report_data=parsed.extra_data,
        debug=False,
        tcb_status=None,
        advisory_ids=(),
        tcb_evaluation_number=None,
        issued_at=TPM_NOW,
        collateral_expires=TPM_NOW + 60,
        hardware={"ek_sha256": "cd" * 32},
        details=quote_details(parsed),
    )


OBSERVED: dict[str, Callable[[], Claims]] = {
    "tdx": lambda: genuine("phala-dcap-qvl/tdx_quote", "tdx_quote_collateral", "2025-06-25"),
    "sgx, hardening needed": lambda: genuine(
        "phala-dcap-qvl/sgx_quote", "sgx_quote_collateral", "2025-06-25"
    ),
    "snp, vcek": lambda: milan(snp_vectors.COCO),
    "snp, vlek": lambda: milan(snp_vectors.VLEK),
    "simulated tdx": lambda: result("tdx").claims,
    "simulated sgx": lambda: result("sgx").claims,
    "simulated milan": lambda: snp_guest.claims_of(snp_guest.Shown()),
    "azure guest": azure_guest,
    "tpm": tpm_quote,
    "simulated turin": lambda: snp_guest.claims_of(snp_guest.Shown(product="turin", version=5)),
}


@cache
def observed(case: str) -> Claims:
    return OBSERVED[case]()


@pytest.mark.parametrize("case", OBSERVED)
def test_a_draft_decided_as_measured_accepts_what_was_measured(case: str) -> None:
    claims = observed(case)
    policy = load_policy(draft_from_claims(claims), name="p")
    assert policy.tees == (claims.tee,)
    assert next(root.simulated for root in policy.roots_of(claims.tee)) == claims.simulated
    judge_platform(claims, policy, Trail())
    judge_workload(claims, policy, Trail())


@pytest.mark.parametrize("case", OBSERVED)
def test_claims_of_every_kind_travel_in_a_token(case: str) -> None:
    claims = observed(case)
    travelled = parse_json(encode_json(encode_claims(claims)), what="claims")
    assert decode_claims(travelled) == replace(claims, measured_events=())


@pytest.mark.parametrize("case", OBSERVED)
def test_a_draft_for_review_accepts_nothing_until_every_line_is_decided(case: str) -> None:
    text = draft_for_review(observed(case), title="from evidence")
    marks = parse_document(text, name="draft.toml").marks
    lines = text.splitlines()
    assert len(marks) == text.count(f'"{DECIDE}: ') >= 2
    assert all(DECIDE in lines[mark.line - 1] for mark in marks)
    first = marks[0]
    with pytest.raises(
        PolicyError, match=rf"^policy: draft\.toml:{first.line}: max_age_seconds is not decided \(and "
    ):
        load_policy(text, name="draft.toml")
    # One decision after the other, as a person would take them.
    for mark in marks[:-1]:
        lines[mark.line - 1] = decided(lines[mark.line - 1], observed(case))
    last = marks[-1]
    with pytest.raises(
        PolicyError, match=rf"^policy: d:{last.line}: {re.escape(last.field)} is not decided; "
    ):
        load_policy("\n".join(lines), name="d")
    lines[last.line - 1] = decided(lines[last.line - 1], observed(case))
    text = "\n".join(lines).replace("[hardware]\n\n", "")
    assert load_policy(text, name="d") == load_policy(draft_from_claims(observed(case)), name="d")


def decided(line: str, claims: Claims) -> str:
    """The line with what the settled draft has in its place; empty where it has nothing."""
    name = line.partition(" = ")[0]
    accepted = draft_from_claims(claims).splitlines()
    return next((one for one in accepted if one.startswith(f"{name} = ")), "")


def test_numbers_words_and_relaxations_are_left_to_a_person_and_digests_are_not() -> None:
    table = tomllib.loads(draft_for_review(observed("snp, vlek")))
    assert table["snp"]["measurement"] == [observed("snp, vlek").measurements["measurement"].hex()]
    for field in ("revocation", "signing_keys", "min_abi", "max_vmpl"):
        assert table["snp"][field].startswith(f"{DECIDE}: measured "), field
    assert "VLEK is the cloud's key" in table["snp"]["signing_keys"]
    assert all(value.startswith(DECIDE) for value in table["snp"]["tcb"]["milan"].values())
    assert table["max_age_seconds"].startswith(DECIDE)
    table = tomllib.loads(draft_for_review(observed("sgx, hardening needed")))
    assert "ConfigurationAndSWHardeningNeeded" in table["tcb"]["accepted_statuses"]
    assert table["hardware"]["ppid"].startswith(f"{DECIDE}: measured ")
    assert tomllib.loads(draft_for_review(observed("tdx")))["tcb"]["accepted_statuses"] == ["UpToDate"]


def test_a_simulated_tee_stays_one_in_its_draft() -> None:
    table = tomllib.loads(draft_for_review(observed("simulated tdx")))
    assert table["roots"] == {"simulated": attacks.platform().root_sha256}


def test_gpus_are_drafted_beside_the_processor() -> None:
    devices = gpus.judge(gpus.show())
    claims = replace(observed("simulated tdx"), devices=devices)
    text = draft_for_review(claims)
    table = tomllib.loads(text)
    assert table["nvidia"]["gpus"] == f"{DECIDE}: measured 2"
    assert table["nvidia"]["driver_versions"] == [devices[0].driver_version]
    assert table["nvidia"]["rims"].startswith(f"{DECIDE}: required or unchecked")
    assert table["roots"]["simulated_device"] == gpus.machine().device_root_sha256
    assert devices[1].identity in table["hardware"]["device"]
    policy = load_policy(draft_from_claims(claims), name="p")
    assert policy.nvidia is not None
    assert policy.nvidia.gpus == 2


# Observation: evidence is verified before anybody drafts from it.

ROOTS = NamedRoots(simulated=attacks.platform().root_sha256)


def simulated_quote() -> tuple[bytes, Given]:
    evidence = attacks.platform().tee("tdx", launch=attacks.LAUNCH, clock=lambda: NOW).quote(bytes(64))
    return evidence.quote, Given(intel=evidence.endorsements)


def test_a_simulated_quote_is_observed_only_under_its_named_root() -> None:
    data, given = simulated_quote()
    claims = observe(recognise(data), roots=ROOTS, now=NOW, given=given)
    assert claims.simulated
    with pytest.raises(VerificationError, match="chain ends in root"):
        observe(recognise(data), roots=NamedRoots(), now=NOW, given=given)
    with pytest.raises(VerificationError, match="chain ends in root"):
        observe(recognise(data), roots=NamedRoots(simulated="00" * 32), now=NOW, given=given)


@pytest.mark.parametrize(
    ("roots", "error", "words"),
    [
        (NamedRoots(simulated="x"), FormatError, "simulated root"),
        (NamedRoots(simulated_device="00" * 32), UsageError, "without a simulated root"),
        (NamedRoots(simulated_rim="00" * 32), UsageError, "without a simulated root"),
        (NamedRoots(tpm="AA" * 32), FormatError, "tpm root"),
    ],
)
def test_roots_that_cannot_be_meant_are_refused(
    roots: NamedRoots, error: type[CloisterError], words: str
) -> None:
    data, given = simulated_quote()
    with pytest.raises(error, match=words):
        observe(recognise(data), roots=roots, now=NOW, given=given)


def test_what_is_no_evidence_of_a_tee_is_not_observed() -> None:
    data, given = simulated_quote()
    with pytest.raises(UsageError, match="no evidence of a TEE"):
        observe(recognise(given.intel), roots=ROOTS, now=NOW)
    with pytest.raises(UsageError, match="only a bundle"):
        observe(recognise(data), roots=ROOTS, now=NOW, given=given, nonce=ASKED)


def test_forged_and_debug_evidence_gives_no_draft() -> None:
    data, given = simulated_quote()
    altered = bytearray(data)
    altered[200] ^= 1
    with pytest.raises(CloisterError):
        observe(recognise(bytes(altered)), roots=ROOTS, now=NOW, given=given)
    debug = attacks.platform().tee("tdx", launch=(), debug=True, clock=lambda: NOW).quote(bytes(64))
    with pytest.raises(VerificationError, match="debug"):
        observe(recognise(debug.quote), roots=ROOTS, now=NOW, given=given)


def test_claims_that_no_policy_accepts_give_no_draft() -> None:
    claims: Any = replace(observed("simulated tdx"), tcb_status="Revoked")
    with pytest.raises(PolicyError, match="Revoked"):
        draft_for_review(claims)
