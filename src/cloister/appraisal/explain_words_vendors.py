"""What each field of ``[snp]``, ``[azure]``, ``[tpm]`` and ``[nvidia]`` means, in words (explain_words.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Words:
    """About one field; ``{}`` stands for its values."""

    says: str
    """What a value requires, or accepts where ``relaxes``."""
    absent: str = ""
    """What is required without the field; empty where it says nothing."""
    risk: str = ""
    """What ``"any"``, ``"unchecked"``, ``true``, absence (``open``) or the value (``relaxes``) risks."""
    relaxes: bool = False
    """A value accepts more than the field's absence."""
    open: bool = False
    """Absence means that nobody checks."""


OWNER: Final = "whoever launched the workload can configure it at will through this field"

VENDOR_WORDS: Final[dict[str, Words]] = {
    "snp.measurement": Words("the guest's launch must measure {}"),
    "snp.products": Words("the processor must be {}"),
    "snp.revocation": Words(
        "AMD's revocation list must be at hand ({})", risk="a processor key that AMD revoked is accepted"
    ),
    "snp.tcb": Words("firmware and microcode must reach these versions: {}"),
    "snp.min_abi": Words("the guest must demand at least ABI {} of its firmware"),
    "snp.hardening": Words(
        "the guest must demand {}", risk="the machine may lack each of the newer protections"
    ),
    "snp.signing_keys": Words(
        "the report must be signed by a {}", risk="a VLEK is the cloud's key: it says nothing of the chip"
    ),
    "snp.max_vmpl": Words(
        "the report must come from privilege level {} or better",
        risk="less privileged software in the guest could have asked for it",
    ),
    "snp.alias_check": Words(
        "memory aliases (BadRAM) must have been looked for at boot ({})",
        risk="doctored memory modules could replay the guest's memory",
    ),
    "snp.allow_smt": Words(
        "hyper-threading may be on",
        absent="hyper-threading is off",
        risk="a sibling thread shares caches with the guest",
        relaxes=True,
    ),
    "snp.allow_migration_agent": Words(
        "a migration agent may move the guest",
        absent="no migration agent may move the guest",
        risk="the agent sees the guest's memory",
        relaxes=True,
    ),
    "snp.allow_multi_socket": Words(
        "the guest may span sockets",
        absent="the guest stays on one socket",
        risk="its traffic crosses the link between processors",
        relaxes=True,
    ),
    "snp.allow_cxl": Words(
        "CXL memory and devices may be used",
        absent="no CXL memory or device is used",
        risk="memory outside the processor's package holds guest data",
        relaxes=True,
    ),
    "snp.allow_masked_chip_id": Words(
        "the report may hide its chip",
        absent="the report says which chip made it",
        risk="a list of machines cannot be held against it",
        relaxes=True,
    ),
    "snp.host_data": Words("the host's data must be {}", absent="the host's data are zeros", risk=OWNER),
    "snp.id_key_digest": Words(
        "the ID block's key must be {}",
        absent="there is no ID block",
        risk="anybody may have signed the ID block",
    ),
    "snp.author_key_digest": Words(
        "the author key must be {}",
        absent="there is no author key",
        risk="anybody may have signed the ID key",
    ),
    "snp.family_id": Words("the family id must be {}", absent="the family id is zeros", risk=OWNER),
    "snp.image_id": Words("the image id must be {}", absent="the image id is zeros", risk=OWNER),
    "snp.min_guest_svn": Words(
        "the guest's security version must be at least {}", absent="the guest's security version is 0"
    ),
    "azure.pcrs": Words(
        "the guest's vTPM must have measured: {}", risk="what is measured there may be anything"
    ),
    "azure.events": Words(
        "exactly these launch events must have happened: {}",
        risk="launch events count only as far as the PCRs are pinned",
        open=True,
    ),
    "tpm.pcrs": Words("the TPM must have measured: {}", risk="what is measured there may be anything"),
    "tpm.revocation": Words(
        "revocation lists of the TPM's issuers must be at hand ({})",
        risk="a TPM key that was revoked is accepted",
    ),
    "tpm.events": Words(
        "exactly these launch events must have happened: {}",
        risk="launch events count only as far as the PCRs are pinned",
        open=True,
    ),
    "tpm.clock": Words("the TPM's clock must be {}", risk="the TPM may have lost count of its restarts"),
    "nvidia.gpus": Words("there must be exactly {} GPUs"),
    "nvidia.nvswitches": Words("there must be exactly {} NVSwitches"),
    "nvidia.architectures": Words("each GPU must be of {}"),
    "nvidia.modes": Words("the GPUs must run in mode {}"),
    "nvidia.revocation": Words(
        "NVIDIA's revocation answers (OCSP) must be at hand ({})",
        risk="a device that NVIDIA revoked is accepted",
    ),
    "nvidia.rims": Words(
        "every measurement must equal NVIDIA's reference values ({})",
        risk="changed firmware is not noticed, and confidential mode cannot be told from developer mode",
    ),
    "nvidia.driver_versions": Words(
        "the driver must be {}", risk="an old driver with known vulnerabilities is accepted"
    ),
    "nvidia.minimum_driver_version": Words("the driver must be at least {}"),
    "nvidia.vbios_versions": Words(
        "the VBIOS must be {}", risk="an old VBIOS with known vulnerabilities is accepted"
    ),
    "nvidia.minimum_vbios_version": Words("the VBIOS must be at least {}"),
    "nvidia.switch_bios_versions": Words(
        "the switches' BIOS must be {}", risk="an old BIOS with known vulnerabilities is accepted"
    ),
    "nvidia.rim_grace_days": Words(
        "a reference manifest counts for {} days after its signer's certificate ended",
        risk="NVIDIA may have replaced its values since",
    ),
}
