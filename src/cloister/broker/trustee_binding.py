"""How evidence of the Confidential Containers' guests binds nonce, key, devices and init-data (docs/spec/kbs.md). Pure.

The TEE's report data is a hash of the bound runtime data, whole, with zeros behind it; which hash was said at the
challenge. Devices bind their own part of it, and the TEE binds the devices' evidence, as the text that came.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cloister.broker.protocol import HashName, decode_nonce
from cloister.broker.trustee import BoundRuntime, GuestRuntime, parse_bound_runtime
from cloister.broker.trustee_evidence import read_additional
from cloister.encoding import encode_json
from cloister.errors import BindingMismatch, EvidenceError, StaleNonce
from cloister.evidence.binding import REPORT_DATA_SIZE, Bound
from cloister.evidence.bundle import EvidenceBundle
from cloister.evidence.sgx import SgxReport
from cloister.evidence.snp import SnpReport
from cloister.evidence.tdx import TdReport
from cloister.verifier.claims import Report

DEVICE_NONCE_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class TrusteeBinding:
    """A :class:`~cloister.evidence.binding.Binding` with the hash of the session."""

    hash: HashName

    def bind(self, bundle: EvidenceBundle, nonce: bytes) -> Bound:
        """The bundle's key material is the bound runtime data. Raises :class:`~cloister.errors.StaleNonce` and others."""
        runtime = parse_bound_runtime(bundle.key_material)
        if not hmac.compare_digest(decode_nonce(runtime.nonce), nonce):
            raise StaleNonce("the runtime data answers another nonce", todo="start again at /kbs/v0/auth")
        if read_additional(runtime.additional_evidence) != bundle.device_evidence:
            raise BindingMismatch("the device evidence is not what the runtime data names")
        return Bound(
            report_data(bundle.key_material, self.hash),
            device_nonce(runtime, self.hash),
            f"runtime data, {self.hash}",
        )


def report_data(bound: bytes, algorithm: HashName) -> bytes:
    """The 64 bytes that the TEE's evidence must carry: the hash, whole, and zeros."""
    return hashlib.new(algorithm, bound).digest().ljust(REPORT_DATA_SIZE, b"\0")


def device_nonce(bound: BoundRuntime, algorithm: HashName) -> bytes:
    """The 32-byte nonce of GPUs: the beginning of the hash of what they bind."""
    runtime = GuestRuntime(nonce=bound.nonce, tee_pubkey=bound.tee_pubkey)
    return hashlib.new(algorithm, encode_json(runtime)).digest()[:DEVICE_NONCE_SIZE]


def check_init_data(digest: bytes, report: Report) -> None:
    """Raise unless the verified ``report`` says that it was launched with init-data of ``digest``.

    A digest longer than the field is cut, a shorter one has zeros behind it: the launching host did the same.
    Raises :class:`~cloister.errors.BindingMismatch`.
    """
    if isinstance(report, TdReport):
        name, field = "MRCONFIGID", report.mr_config_id
    elif isinstance(report, SnpReport):
        name, field = "HOST_DATA", report.host_data
    elif isinstance(report, SgxReport):
        name, field = "CONFIGID", report.config_id
    else:
        raise EvidenceError("this kind of evidence has no field for init-data")
    if not hmac.compare_digest(digest[: len(field)].ljust(len(field), b"\0"), field):
        raise BindingMismatch(
            f"{name} is not the digest of the init-data that came with it",
            todo="the guest was launched with other init-data than it shows",
        )
