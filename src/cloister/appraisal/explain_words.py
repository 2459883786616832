"""What each field of a policy means, in words for an auditor. A test holds that no field is without them.

Words say what a field requires, what its absence means, and which risk its relaxation has. They decide nothing; the
checks are in reference_*.py and judge_*.py.
"""

from __future__ import annotations

from typing import Final

from cloister.appraisal.explain_words_vendors import OWNER, VENDOR_WORDS, Words

_OTHER_CODE = "code that you did not choose could run and show the rest as you expect it"
_SIMULATED = "no hardware protects what this policy accepts: never for real data"
_MACHINE = "whoever extracted the key of any one genuine machine can pass for yours (TEE.fail, Battering RAM)"

WORDS: Final[dict[str, Words]] = {
    "max_age_seconds": Words("a result is used for at most {} seconds, then the workload is verified again"),
    "roots.vendor": Words(
        "certificate chains end in the embedded roots of {}",
        absent="certificate chains end in the embedded roots of the vendors whose tables stand here",
    ),
    "roots.simulated": Words(
        "SIMULATED TEE: chains end in the simulated root {}", risk=_SIMULATED, relaxes=True
    ),
    "roots.simulated_device": Words(
        "SIMULATED GPUs: chains end in the simulated root {}", risk=_SIMULATED, relaxes=True
    ),
    "roots.simulated_rim": Words(
        "SIMULATED reference manifests: signers end in the root {}", risk=_SIMULATED, relaxes=True
    ),
    "roots.tpm": Words("chains of TPM keys end in {}: a root that you chose, which no vendor stands for"),
    "tcb.min_evaluation_number": Words("Intel's TCB data must be at least evaluation number {}"),
    "tcb.accepted_statuses": Words(
        "the platform's TCB status must be {}",
        risk="known vulnerabilities of a status other than UpToDate stay open on the platform",
    ),
    "tcb.rejected_advisories": Words(
        "a platform open to one of these advisories is refused: {}",
        risk="advisories of an accepted status are not looked at",
        open=True,
    ),
    "tcb.out_of_date_grace_seconds": Words(
        "a platform out of date is accepted for {} seconds after the date of its TCB level",
        absent="a platform out of date is refused",
        risk="its known vulnerabilities are open all the while",
        relaxes=True,
    ),
    "platform.allow_dynamic_platform": Words(
        "processors may be added to the machine",
        absent="the machine's processors are fixed",
        risk="a processor added later shares the platform's keys",
        relaxes=True,
    ),
    "platform.allow_cached_keys": Words(
        "the platform's keys may be held by Intel's registration service",
        absent="the platform's keys are not held by anybody",
        risk="Intel's service can certify the machine again",
        relaxes=True,
    ),
    "platform.allow_smt": Words(
        "hyper-threading may be on",
        absent="hyper-threading is off",
        risk="a sibling thread shares caches with the workload",
        relaxes=True,
    ),
    "hardware.ppid": Words("the Intel platform (PPID) must be one of {}", risk=_MACHINE, open=True),
    "hardware.pck_sha256": Words(
        "the Intel platform's certificate key must be one of {}", risk=_MACHINE, open=True
    ),
    "hardware.chip_id": Words("the AMD chip must be one of {}", risk=_MACHINE, open=True),
    "hardware.ek_sha256": Words("the TPM's endorsement key must be one of {}", risk=_MACHINE, open=True),
    "hardware.device": Words("each GPU and switch must be one of {}", risk=_MACHINE, open=True),
    "tdx.mrtd": Words("the firmware (MRTD) must measure {}"),
    "tdx.rtmr0": Words(
        "RTMR0 (virtual hardware and firmware configuration) must be {}",
        risk="the host can give the guest other virtual devices and tables",
    ),
    "tdx.rtmr1": Words("RTMR1 (boot loader and kernel) must be {}", risk=_OTHER_CODE),
    "tdx.rtmr2": Words("RTMR2 (kernel command line, initial file system) must be {}", risk=_OTHER_CODE),
    "tdx.rtmr3": Words(
        "RTMR3 (launch events: configuration, program, model) must be {}",
        risk="the launch counts only as far as the events below say",
    ),
    "tdx.events": Words(
        "exactly these launch events must have happened: {}",
        risk="launch events count only as far as RTMR3 is pinned",
        open=True,
    ),
    "tdx.firmware_events": Words(
        "these firmware events must have happened: {}",
        risk="what firmware and loader measured counts only as far as RTMR0 to RTMR2 are pinned",
        open=True,
    ),
    "tdx.attributes": Words(
        "these optional attributes may be set: {}",
        absent="no optional attribute of the trust domain is set",
        risk="each is a feature that the guest's owner has to want",
        relaxes=True,
    ),
    "tdx.required_attributes": Words("these attributes must be set: {}"),
    "tdx.xfam": Words("XFAM must be {}", absent="XFAM names known processor features only"),
    "tdx.mr_seam": Words(
        "the TDX module must measure {}", absent="the TDX module is one that Intel's TCB info covers"
    ),
    "tdx.mr_config_id": Words("MRCONFIGID must be {}", absent="MRCONFIGID is zeros", risk=OWNER),
    "tdx.mr_owner": Words("MROWNER must be {}", absent="MROWNER is zeros", risk=OWNER),
    "tdx.mr_owner_config": Words("MROWNERCONFIG must be {}", absent="MROWNERCONFIG is zeros", risk=OWNER),
    "tdx.service_td": Words(
        "the trust domain may be bound to service TD {}",
        absent="the trust domain is bound to no service TD",
        risk="a service TD can reach into the guest, for instance to migrate it",
        relaxes=True,
    ),
    "sgx.mrenclave": Words("the enclave (MRENCLAVE) must measure {}"),
    "sgx.mrsigner": Words(
        "the enclave's signer (MRSIGNER) must be {}: any enclave of theirs, of this product and version, is accepted"
    ),
    "sgx.isv_prod_id": Words("the signer's product must be {}"),
    "sgx.min_isv_svn": Words("the product's security version must be at least {}"),
    "sgx.attributes": Words(
        "these optional attributes may be set: {}",
        absent="no optional attribute of the enclave is set",
        risk="each is a feature that the enclave's owner has to want",
        relaxes=True,
    ),
    "sgx.required_attributes": Words("these attributes must be set: {}"),
    "sgx.xfrm": Words("XFRM must be {}", absent="XFRM names known processor features only"),
    "sgx.misc_select": Words(
        "these MISCSELECT bits may be set: {}",
        absent="no MISCSELECT bit is set",
        risk="the enclave's exceptions show more to the host",
        relaxes=True,
    ),
    "sgx.config_id": Words("CONFIGID must be {}", absent="CONFIGID is zeros", risk=OWNER),
    "sgx.min_config_svn": Words("CONFIGSVN must be at least {}", absent="CONFIGSVN is 0"),
    "sgx.family_id": Words("ISVFAMILYID must be {}", absent="ISVFAMILYID is zeros", risk=OWNER),
    "sgx.ext_prod_id": Words("ISVEXTPRODID must be {}", absent="ISVEXTPRODID is zeros", risk=OWNER),
    **VENDOR_WORDS,
}

TITLES: Final = {
    "": "Results",
    "roots": "Whom it believes",
    "tcb": "How up to date an Intel platform must be",
    "platform": "What an Intel platform may be",
    "hardware": "Which machines may run it",
    "tdx": "Intel TDX: the trust domain",
    "sgx": "Intel SGX: the enclave",
    "snp": "AMD SEV-SNP: the guest and its machine",
    "azure": "Azure: the vTPM of an SEV-SNP guest",
    "tpm": "TPM 2.0",
    "nvidia": "NVIDIA GPUs and switches",
}

NEVER: Final = (
    "a workload in debug mode, of any kind",
    "evidence that does not answer the verifier's own fresh nonce, or does not bind the keys that came with it",
    "a certificate chain that ends in another root, or is signed by a key that a revocation list at hand names",
    "a platform whose TCB status is Revoked, and endorsements that ended or were issued after now",
    "a trust domain without SEPT_VE_DISABLE, one that can be migrated or profiled, or a TDX module not signed by Intel",
    "an event log that does not replay to the signed registers",
    "simulated and hardware evidence in one bundle; device evidence without an [nvidia] table",
    "one GPU shown twice, or GPUs that answer another nonce than the processor's evidence",
    "anything that no table of this policy names",
)
"""What no policy can accept, whatever it says."""
