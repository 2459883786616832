"""Every captured SEV-SNP report and certificate at its time, with the outcome that its source states."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from cloister.appraisal.dispatch import judge_platform, judge_workload
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.reference_snp import observed_snp
from cloister.attester import RawEvidence
from cloister.endorsements.amd import (
    encode_snp_endorsements,
    endorsements_for,
    parse_cert_chain,
    parse_snp_endorsements,
    vendor_intermediates,
)
from cloister.endorsements.roots import AMD_ROOTS, vendor_certificate
from cloister.endorsements.x509 import read_certificate
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EndorsementError,
    EvidenceError,
    VerificationError,
)
from cloister.evidence.snp import TcbVersion, parse_report
from cloister.verifier.amd_chain import read_chain, read_signing_key, verify_chain
from cloister.verifier.claims import Claims
from cloister.verifier.snp import verify
from cloister.verifier.trail import Trail
from shared_data import vectors
from simulated_snp import policy_text
from snp_vectors import COCO, DEBUG, MILAN, NOW, VLEK, at, chain, endorsements, report, signing_key

TCB = TcbVersion(bootloader=3, tee=0, snp=8, microcode=115)
READ = {
    MILAN: (2, "vcek", 0, None, TCB, (1, 52, 4), "smt", "smt_en"),
    COCO: (2, "vcek", 0, None, TCB, (1, 52, 4), "smt", "smt_en"),
    VLEK: (
        3,
        "vlek",
        1,
        "milan",
        TcbVersion(bootloader=4, tee=0, snp=24, microcode=217),
        (1, 55, 29),
        "smt",
        "alias_check_complete, ecc_en, smt_en, tsme_en",
    ),
    DEBUG: (
        2,
        "vcek",
        0,
        None,
        TcbVersion(bootloader=2, tee=0, snp=5, microcode=68),
        (1, 49, 3),
        "debug, smt",
        "smt_en",
    ),
}


def verified(name: str, *, now: int = NOW, key: str | None = None) -> Claims:
    return verify(
        report(name), endorsements(key or name), roots=AMD_ROOTS, now=now, revocation_required=False
    )


@pytest.mark.parametrize("name", READ)
def test_every_captured_report_is_read(name: str) -> None:
    found = parse_report(report(name))
    version, signer, vmpl, product, tcb, firmware, policy, platform = READ[name]
    assert (found.version, found.signing_key, found.vmpl, found.product) == (version, signer, vmpl, product)
    assert (found.reported_tcb, found.current_version, found.committed_version) == (tcb, firmware, firmware)
    assert ", ".join(sorted(found.policy_flags)) == policy
    assert ", ".join(sorted(found.platform_flags)) == platform
    assert found.debug is (name == DEBUG)
    assert found.report_id_ma == b"\xff" * 32
    assert (found.launch_mitigations, found.current_mitigations) == (None, None)
    assert found.signed == report(name)[:672]


def test_the_captured_identity_block_is_read() -> None:
    found = parse_report(report(COCO))
    assert (found.guest_svn, found.family_id[0], found.image_id[0]) == (4, 1, 2)
    assert found.id_key_digest.hex().startswith("0356215882a825279a85b300b0b742931d113bf7e32dde2e")
    assert not found.author_key_enabled
    assert found.minimum_abi == (0, 31)
    assert found.current_tcb == TcbVersion(bootloader=3, tee=0, snp=8, microcode=206)


@pytest.mark.parametrize("name", [MILAN, COCO, VLEK])
def test_a_captured_report_verifies_with_nothing_but_its_own_certificate(name: str) -> None:
    claims = verified(name)
    found = parse_report(report(name))
    assert claims.tee == "snp"
    assert not claims.simulated
    assert claims.root_sha256 == AMD_ROOTS[0].sha256
    assert claims.measurements == {"measurement": found.measurement}
    assert claims.report_data == found.report_data
    assert claims.details["product"] == "milan"
    assert claims.details["revocation"] == "not checked"
    assert claims.hardware == ({} if name == VLEK else {"chip_id": found.chip_id.hex()})
    certificate = read_certificate(signing_key(name))
    assert (claims.issued_at, claims.collateral_expires) == (certificate.not_before, certificate.not_after)
    assert [check.number for check in claims.checks] == [3, 4, 5, 6, 7, 8, 9]


def test_the_captured_vlek_names_its_cloud() -> None:
    assert verified(VLEK).details["csp_id"] == "CN=cc-us-east-2.amazonaws.com"


REFUSED = {
    "a debug guest": (DEBUG, DEBUG, NOW, VerificationError, "debugging"),
    "a legacy VCEK that is not AMD's": (COCO, "legacy", NOW, VerificationError, "signature of SEV-VCEK"),
    "the VCEK of another chip": (COCO, MILAN, NOW, VerificationError, "signature of the SEV-SNP report"),
    "a VCEK for a VLEK's report": (VLEK, MILAN, NOW, VerificationError, "signature of the SEV-SNP report"),
    "Turin's VCEK and chain": (MILAN, "turin", NOW, VerificationError, "signature of the SEV-SNP report"),
    "before the VCEK": (MILAN, MILAN, at("2023-04-03"), EndorsementError, "SEV-VCEK holds from"),
    "after the VCEK": (MILAN, MILAN, at("2030-04-04"), EndorsementError, "SEV-VCEK ended"),
    "after the VLEK": (VLEK, VLEK, at("2025-12-11"), EndorsementError, "SEV-VLEK ended"),
    "no time": (MILAN, MILAN, -1, EndorsementError, "no time"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_captured_report_is_refused_with_what_is_not_its_own(case: str) -> None:
    name, key, now, error, says = REFUSED[case]
    with pytest.raises(error, match=says):
        verified(name, now=now, key=key)


def test_without_a_revocation_list_a_captured_report_is_refused_by_default() -> None:
    with pytest.raises(EndorsementError, match="no revocation list"):
        verify(report(MILAN), endorsements(MILAN), roots=AMD_ROOTS, now=NOW, revocation_required=True)


def test_the_debug_report_is_genuine_but_for_debug() -> None:
    read = read_chain(parse_snp_endorsements(endorsements(DEBUG)))
    verify_chain(read, AMD_ROOTS)
    assert read_signing_key(read).tcb == parse_report(report(DEBUG)).reported_tcb


@pytest.mark.parametrize("now", [at("2024-11-07"), at("2031-11-05")])
def test_the_turin_vcek_chains_and_states_its_chip_and_firmware(now: int) -> None:
    intermediate, root = chain("virtee-sev/cert_chain_turin", 2)
    read = read_chain(parse_snp_endorsements(endorsements("turin")))
    assert (read.root.der, read.intermediate.der) == (root, intermediate)
    verify_chain(read, AMD_ROOTS)
    key = read_signing_key(read)
    assert (key.product, key.product_name, key.kind) == ("turin", "Turin", "vcek")
    assert key.tcb == TcbVersion(fmc=0, bootloader=0, tee=0, snp=0, microcode=9)
    assert key.hwid == bytes.fromhex("1e550a8ee5cf9f4d")
    assert read.signing_key.not_before <= now < read.signing_key.not_after


@pytest.mark.parametrize("number", [0, 1, 2], ids=["milan", "genoa", "turin"])
def test_the_shipped_chains_are_those_that_others_captured(number: int) -> None:
    product = ("milan", "genoa", "turin")[number]
    ask, ark, asvk = chain(f"coco-trustee/{product}_ask_ark_asvk.pem", 3)
    assert vendor_certificate(AMD_ROOTS[number]) == ark
    assert vendor_intermediates(AMD_ROOTS[number].sha256) == (ask, asvk)
    assert chain(f"virtee-sev/snp_{product}_ask.pem", 1) == (ask,)
    assert chain(f"virtee-sev/snp_{product}_ark.pem", 1) == (ark,)


@pytest.mark.parametrize(
    "name",
    [
        "virtee-sev/cert_chain_milan",
        "virtee-sev/cert_chain_turin",
        "google-go-sev-guest/ask_ark_milan.pem",
        "google-go-sev-guest/ask_ark_milan_vlek.pem",
        "google-go-sev-guest/ask_ark_genoa.pem",
        "google-go-sev-guest/ask_ark_turin_vcek.pem",
    ],
)
def test_a_chain_as_amds_service_sends_it_is_read(name: str) -> None:
    intermediate, root = parse_cert_chain(vectors(name).read_bytes())
    assert root in {vendor_certificate(vendor) for vendor in AMD_ROOTS}
    assert any(intermediate in vendor_intermediates(vendor.sha256) for vendor in AMD_ROOTS)


def test_a_root_in_the_old_format_is_refused() -> None:
    """ark.cert.bad: AMD's certificate format of SEV before SNP, and damaged."""
    bad = vectors("virtee-sev/ark.cert.bad").read_bytes()
    with pytest.raises(EndorsementError, match="malformed"):
        read_certificate(bad)
    with pytest.raises(EndorsementError, match="not PEM"):
        parse_cert_chain(bad)
    document = parse_snp_endorsements(endorsements(MILAN))
    damaged = type(document)(signing_key=document.signing_key, intermediate=document.intermediate, root=bad)
    with pytest.raises(EndorsementError, match="malformed"):
        verify(
            report(MILAN),
            encode_snp_endorsements(damaged),
            roots=AMD_ROOTS,
            now=NOW,
            revocation_required=False,
        )


def judged(claims: Claims, policy: Policy) -> None:
    judge_platform(claims, policy, Trail())
    judge_workload(claims, policy, Trail())


def _hardware_policy(name: str, **changes: object) -> str:
    return policy_text({**observed_snp(verified(name)), **changes})


@pytest.mark.parametrize("name", [MILAN, COCO, VLEK])
def test_the_fields_observed_from_a_captured_report_accept_it(name: str) -> None:
    judged(verified(name), load_policy(_hardware_policy(name), name="observed"))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        (VLEK, {"signing_keys": ["vcek"]}, "signed by a VLEK"),
        (VLEK, {"max_vmpl": 0}, "VMPL 1, above 0"),
        (MILAN, {"alias_check": "required"}, "ALIAS_CHECK_COMPLETE"),
        (MILAN, {"allow_smt": False}, "hyper-threading"),
        (MILAN, {"allow_multi_socket": False}, "several sockets"),
        (COCO, {"min_abi": "0.32"}, "ABI 0.31"),
        (COCO, {"min_guest_svn": 5}, "guest_svn is 4"),
    ],
)
def test_a_captured_report_is_refused_by_a_stricter_policy(
    name: str, changes: dict[str, object], says: str
) -> None:
    claims, policy = verified(name), load_policy(_hardware_policy(name, **changes), name="stricter")
    with pytest.raises(AppraisalRefused, match=says):
        judged(claims, policy)


@pytest.mark.parametrize("name", [MILAN, VLEK])
def test_every_byte_of_a_captured_report_matters(name: str) -> None:
    genuine, documents = report(name), endorsements(name)
    for offset in range(len(genuine)):
        altered = bytearray(genuine)
        altered[offset] ^= 1 << offset % 8
        with pytest.raises((EvidenceError, VerificationError)):
            verify(bytes(altered), documents, roots=AMD_ROOTS, now=NOW, revocation_required=False)


@pytest.mark.parametrize("part", ["signing_key", "intermediate", "root"])
def test_no_altered_certificate_is_believed(part: str) -> None:
    """Sampled, seeded: each byte of three certificates would take minutes of RSA."""
    document = parse_snp_endorsements(endorsements(MILAN))
    whole = {name: getattr(document, name) for name in ("signing_key", "intermediate", "root")}
    offsets = random.Random(part).sample(range(len(whole[part])), 200)
    for offset in offsets:
        altered = bytearray(whole[part])
        altered[offset] ^= 1 << offset % 8
        shown = encode_snp_endorsements(type(document)(**{**whole, part: bytes(altered)}))
        with pytest.raises(CloisterError):
            verify(report(MILAN), shown, roots=AMD_ROOTS, now=NOW, revocation_required=False)


def test_a_bare_certificate_of_nobody_has_no_chain() -> None:
    with pytest.raises(EndorsementError, match="none of AMD's known intermediates"):
        endorsements_for(vectors("phala-dcap-qvl/TrustedRootCA.der").read_bytes())


def test_the_guides_example_runs_on_a_captured_report() -> None:
    """As it stands there, but for the time and the list, which nobody captured."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "amd-sev-snp.md").read_text()
    first, second = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = first.replace("int(time.time())", str(NOW)).replace("required=True", "required=False")
    names = {
        "vcek_der": signing_key(MILAN),
        "crl_der": b"",
        "report": report(MILAN),
        "print": lambda *_: None,
    }
    exec(code, names)  # noqa: S102 -- the page's own lines
    assert names["claims"] == verified(MILAN)
    names = {"time": time, "digest": bytes(32), "report_data": bytes(64), "print": lambda *_: None}
    exec(second, names)  # noqa: S102
    assert isinstance(names["evidence"], RawEvidence)
