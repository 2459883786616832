"""SEV-SNP reports, byte by byte: the inverse of evidence/snp.py. Little-endian throughout.

Source: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (56860), attestation report. Only the layout; what a
report says, and who may sign it, is decided elsewhere.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from cloister.evidence.snp import REPORT_SIZE, SIGNED_SIZE, SnpReport, TcbVersion

_ECDSA_P384_SHA384: Final = 1
_SIGNERS: Final = {"vcek": 0, "vlek": 1}


def encode_tcb(tcb: TcbVersion) -> bytes:
    """TCB_VERSION, 8 bytes; with an FMC as Turin has it."""
    if tcb.fmc is None:
        return bytes([tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode])
    return bytes([tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode])


def encode_signed(report: SnpReport) -> bytes:
    """The 672 bytes that are signed; ``signed`` and ``signature`` of ``report`` are not looked at."""
    flags = report.author_key_enabled | report.mask_chip_key << 1 | _SIGNERS[report.signing_key] << 2
    head = struct.pack(
        "<IIQ16s16sII8sQI4x",
        report.version,
        report.guest_svn,
        report.policy,
        report.family_id,
        report.image_id,
        report.vmpl,
        _ECDSA_P384_SHA384,
        encode_tcb(report.current_tcb),
        report.platform_info,
        flags,
    )
    body = struct.pack(
        "<64s48s32s48s48s32s32s8s3s21x64s8s4s4s8s",
        report.report_data,
        report.measurement,
        report.host_data,
        report.id_key_digest,
        report.author_key_digest,
        report.report_id,
        report.report_id_ma,
        encode_tcb(report.reported_tcb),
        bytes(report.cpuid or (0, 0, 0)),
        report.chip_id,
        encode_tcb(report.committed_tcb),
        bytes(report.current_version[::-1]),
        bytes(report.committed_version[::-1]),
        encode_tcb(report.launch_tcb),
    )
    mitigations = struct.pack("<QQ", report.launch_mitigations or 0, report.current_mitigations or 0)
    return (head + body + mitigations).ljust(SIGNED_SIZE, b"\0")


def sign_report(signed: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """``signed`` (672 bytes) with its signature: r and s, 72 bytes each, and zeros."""
    signature = key.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    r, s = utils.decode_dss_signature(signature)
    return (signed + r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(REPORT_SIZE, b"\0")
