"""An Azure guest rehearsed: a real (software) vTPM filled as the paravisor fills its own, a simulated SEV-SNP processor."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cloister import merkle
from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.reference_snp import observed_snp
from cloister.appraisal.result import AttestationResult
from cloister.attester.azure import AK_HANDLE, HCL_REPORT, AzureAttester
from cloister.attester.tpm_commands import Tpm
from cloister.encoding import decode_json
from cloister.endorsements.amd import encode_snp_endorsements
from cloister.errors import AppraisalRefused, BindingMismatch
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.hcl import AzureWire
from cloister.evidence.tpm_structures import parse_public
from handmade_hcl import jwk, processor, sealed_report
from handmade_tpm import NOW
from software_tpm import SoftwareTpm, software_tpms

NONCE = bytes(range(32))
KEYS = b'{"keys":"of this guest"}'
ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


@pytest.fixture(scope="module")
def vtpm() -> Iterator[SoftwareTpm]:
    with software_tpms() as (tpm,):
        tpm.tool(
            *("tpm2_createprimary", "-C", "e", "-G", "rsa2048:rsassa-sha256:null", "-a", ATTRIBUTES),
            *("-c", "ak.ctx"),
        )
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", f"{AK_HANDLE:#x}")
        tpm.tool("tpm2_flushcontext", "-t")
        with tpm.transport() as transport:
            key = parse_public(Tpm(transport).read_public(AK_HANDLE)).key
        assert isinstance(key, rsa.RSAPublicKey)
        # Azure's index has 2600 bytes; swtpm's have 2048 at most, so this guest names no endorsement key.
        data = json.dumps({"keys": [jwk(key)], "vm-configuration": {"secure-boot": True}}).encode()
        report = sealed_report(data)
        assert len(report) < 2048
        (tpm.directory / "report").write_bytes(report + bytes(2048 - len(report)))
        tpm.tool("tpm2_nvdefine", "-C", "o", f"{HCL_REPORT:#x}", "-s", "2048", "-a", "ownerread|ownerwrite")
        tpm.tool("tpm2_nvwrite", "-C", "o", f"{HCL_REPORT:#x}", "-i", "report")
        yield tpm


def _bundle(vtpm: SoftwareTpm) -> EvidenceBundle:
    endorsements = encode_snp_endorsements(processor().endorsements(NOW))
    with vtpm.transport() as transport:
        raw = AzureAttester(transport, endorsements=endorsements, pcrs=(0, 4, 7)).quote(
            report_data(merkle.root((NONCE,)), KEYS)
        )
    return EvidenceBundle(
        tee=raw.tee,
        quote=raw.quote,
        key_material=KEYS,
        nonce_proof=NonceProof(index=0, size=1, path=()),
        endorsements=raw.endorsements,
    )


def _policy(bundle: EvidenceBundle, **pcrs: str) -> Policy:
    values = decode_json(bundle.quote, AzureWire, what="evidence").quote.pcrs
    lines = {number: f'["{value.hex()}"]' for number, value in values.items()} | {
        name.removeprefix("pcr"): value for name, value in pcrs.items()
    }
    snp = processor()
    report = snp.report(bytes(64))
    tcb = report.reported_tcb
    return load_policy(
        f"""
format = "cloister/policy/v1"
max_age_seconds = 60
[roots]
simulated = "{snp.root_sha256}"
[snp]
measurement = ["{report.measurement.hex()}"]
products = ["milan"]
revocation = "required"
min_abi = "0.0"
hardening = "any"
[snp.tcb.milan]
bootloader = {tcb.bootloader}
tee = {tcb.tee}
snp = {tcb.snp}
microcode = {tcb.microcode}
firmware = "1.0.0"
[azure.pcrs]
"""
        + "\n".join(f"{number} = {value}" for number, value in lines.items()),
        name="tests",
    )


def _judge(bundle: EvidenceBundle, policy: Policy, nonce: bytes = NONCE) -> AttestationResult[bytes]:
    return appraise(bundle, nonce=nonce, policy=policy, now=NOW, decode=bytes, not_after=lambda _: None)


def test_a_guest_is_appraised_by_its_launch_and_its_pcrs(vtpm: SoftwareTpm) -> None:
    bundle = _bundle(vtpm)
    result = _judge(bundle, _policy(bundle))
    assert result.claims.tee == "az-snp-vtpm"
    assert {"measurement", "pcr0", "pcr4", "pcr7"} == set(result.claims.measurements)
    assert observed_snp(result.claims)["measurement"]


def test_another_boot_an_old_nonce_and_other_keys_are_refused(vtpm: SoftwareTpm) -> None:
    bundle = _bundle(vtpm)
    policy = _policy(bundle)
    with pytest.raises(AppraisalRefused, match="PCR 7 is 0000"):
        _judge(bundle, _policy(bundle, pcr7=f'["{"aa" * 32}"]'))
    with pytest.raises(BindingMismatch):
        _judge(bundle, policy, nonce=bytes(32))
    with pytest.raises(AppraisalRefused, match="PCR 4 was quoted"):
        _judge(bundle, _policy_without(bundle, "4"))


def _policy_without(bundle: EvidenceBundle, number: str) -> Policy:
    """The policy that decides every PCR but one."""
    policy = _policy(bundle)
    assert policy.azure is not None
    pcrs = {name: values for name, values in policy.azure.pcrs.items() if name != number}
    return msgspec.structs.replace(policy, azure=msgspec.structs.replace(policy.azure, pcrs=pcrs))


def test_a_bare_report_does_not_pass_for_the_guest_behind_the_vtpm(vtpm: SoftwareTpm) -> None:
    policy = _policy(_bundle(vtpm))
    assert policy.tees == ("az-snp-vtpm",)
