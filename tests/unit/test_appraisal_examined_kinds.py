"""Examinations of every further kind of evidence: simulated SEV-SNP, Azure's vTPM, a TPM of its own."""

from __future__ import annotations

import hashlib

import pytest

import simulated_snp
from cloister.appraisal.asked import Asked
from cloister.appraisal.examination import Examination, examine
from cloister.appraisal.given import Given
from cloister.appraisal.policy import Policy, load_policy
from cloister.encoding import encode_json
from cloister.endorsements.amd import encode_snp_endorsements
from cloister.endorsements.tpm import AK_CERTIFICATE_USAGE, TpmEndorsements, encode_tpm_endorsements
from cloister.errors import EXIT_POLICY, EXIT_VERIFICATION
from cloister.evidence.hcl import encode_evidence
from cloister.evidence.recognise import recognise
from handmade_hcl import processor, runtime_data, sealed_report
from handmade_tpm import NOW, PCRS, Quote, ec_key, rsa_key
from simulated_snp import Shown
from tpm_certificates import authority, leaf


def failed(found: Examination) -> list[int]:
    return [row.number for row in found.rows if row.state == "failed"]


def snp(shown: Shown, **asked: object) -> Examination:
    given = Given(snp=encode_snp_endorsements(shown.endorsed()))
    question = Asked(**{"now": simulated_snp.NOW, "given": given, **asked})  # type: ignore[arg-type]
    return examine(recognise(shown.quote()), question)


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_a_simulated_snp_report_needs_a_policy_that_names_its_root(product: str) -> None:
    shown = Shown(product=product)
    without = snp(shown)
    assert (failed(without), without.exit_code) == ([5], EXIT_VERIFICATION)
    root = simulated_snp.platform(product).root_sha256
    assert f'[roots] simulated = "{root}"' in str(without.error)
    found = snp(shown, policy=simulated_snp.policy(shown))
    assert (found.verdict, found.simulated) == ("matches", True)


def test_an_snp_report_against_the_policy_shows_what_it_is() -> None:
    found = snp(Shown(), policy=simulated_snp.policy(measurement=["ab" * 48]))
    assert (failed(found), found.exit_code) == ([14], EXIT_POLICY)
    assert found.claims is not None
    assert found.claims.tee == "snp"


def test_an_altered_snp_report_shows_nothing() -> None:
    shown = Shown()
    altered = bytearray(shown.quote())
    altered[0x50] ^= 1
    found = examine(
        recognise(bytes(altered)),
        Asked(
            now=simulated_snp.NOW,
            given=Given(snp=encode_snp_endorsements(shown.endorsed())),
            policy=simulated_snp.policy(),
        ),
    )
    assert (failed(found), found.claims) == ([7], None)


AK = rsa_key("hcl ak")
DATA = runtime_data(AK.public_key())
AZURE = encode_evidence(hcl_report=sealed_report(DATA), quote=Quote(key=AK, scheme="rsassa").wire)


def hcl_given() -> Given:
    return Given(snp=encode_snp_endorsements(processor().endorsements(NOW)))


def test_azure_evidence_of_a_simulated_guest_is_refused_without_a_policy() -> None:
    found = examine(recognise(AZURE), Asked(now=NOW, given=hcl_given()))
    assert (found.subject.kind, failed(found)) == ("azure-evidence", [5])
    assert processor().root_sha256 in str(found.error)


def test_an_hcl_report_is_read_to_its_end_however_it_was_padded() -> None:
    report = sealed_report(DATA)
    for padding in (b"", bytes(1), bytes(2600 - len(report))):
        assert recognise(report + padding).data == report
    assert recognise(report + b"\1").data == report + b"\1"
    found = examine(recognise(report), Asked(now=NOW, given=hcl_given()))
    assert (found.subject.kind, failed(found)) == ("hcl-report", [5])


def test_an_hcl_report_takes_no_policy() -> None:
    found = examine(
        recognise(sealed_report(DATA)), Asked(now=NOW, given=hcl_given(), policy=simulated_snp.policy())
    )
    assert (failed(found), found.exit_code) == ([2], EXIT_POLICY)


def tpm_policy(root: bytes) -> Policy:
    pcrs = "\n".join(f'{number} = ["{value.hex()}"]' for number, value in PCRS.items())
    text = (
        'format = "cloister/policy/v1"\nmax_age_seconds = 60\n'
        f'[roots]\ntpm = ["{hashlib.sha256(root).hexdigest()}"]\n'
        f'[tpm]\nrevocation = "unchecked"\n[tpm.pcrs]\n{pcrs}\n'
    )
    return load_policy(text, name="tpm.toml")


def test_a_tpm_quote_is_judged_by_a_policy_that_names_its_root_alone() -> None:
    root = authority("Cloud Root")
    chain = (leaf(ec_key("ak"), root, purpose=AK_CERTIFICATE_USAGE), root.der)
    given = Given(tpm=encode_tpm_endorsements(TpmEndorsements(ak_chain=chain)))
    subject = recognise(encode_json(Quote().wire))
    assert subject.kind == "tpm-quote"
    without = examine(subject, Asked(now=NOW, given=given))
    assert without.exit_code == EXIT_VERIFICATION
    assert "roots.tpm" in str(without.error)
    found = examine(subject, Asked(now=NOW, given=given, policy=tpm_policy(root.der)))
    assert (found.verdict, found.error) == ("matches", None)
    other = examine(subject, Asked(now=NOW, given=given, policy=tpm_policy(b"another root")))
    assert failed(other) == [5]
