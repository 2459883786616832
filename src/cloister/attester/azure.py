"""Azure's SEV-SNP guests as an attester: the paravisor's report out of the vTPM, and a quote by the vTPM's own key.

Never run on Azure: made by its documentation, and tested against a software TPM that is filled as Azure fills its own.
AMD's certificates are given from outside (Azure serves them inside each guest at its metadata address).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from cloister.attester import RawEvidence
from cloister.attester.tpm import qualifying_data, take_quote
from cloister.attester.tpm_commands import Tpm
from cloister.attester.tpm_transport import TpmTransport
from cloister.encoding import decode_json
from cloister.errors import AttesterError
from cloister.evidence.hcl import HEADER_SIZE, SIGNATURE, encode_evidence
from cloister.evidence.tpm import TpmQuoteWire

HCL_REPORT: Final = 0x01400001
"""NV index of the paravisor's report."""
AK_HANDLE: Final = 0x81000003
"""The vTPM's attestation key, made by the paravisor at boot (HCLAkPub)."""


class AzureAttester:
    """An :class:`~cloister.attester.Attester` over Azure's vTPM. Safe for several threads."""

    def __init__(
        self, transport: TpmTransport, *, endorsements: bytes = b"", pcrs: Iterable[int] = range(24)
    ) -> None:
        self._tpm = Tpm(transport)
        self._endorsements = endorsements
        self._pcrs = tuple(sorted(set(pcrs)))
        self._lock = threading.Lock()

    def quote(self, report_data: bytes) -> RawEvidence:
        """A quote over the digest of ``report_data`` (64 bytes) beside the report that names its key.

        Raises :class:`~cloister.errors.AttesterError`.
        """
        data = qualifying_data(report_data)
        with self._lock:
            for handle, what in ((HCL_REPORT, "paravisor's report"), (AK_HANDLE, "attestation key")):
                if not self._tpm.exists(handle):
                    raise AttesterError(
                        f"this TPM has no {what} ({handle:#010x})",
                        todo="run it in a confidential VM of Azure",
                    )
            report = self._tpm.read_nv(HCL_REPORT)
            public = self._tpm.read_public(AK_HANDLE)
            quote = take_quote(self._tpm, AK_HANDLE, public, data, bank="sha256", pcrs=self._pcrs)
        wire = decode_json(quote, TpmQuoteWire, what="TPM quote")
        return RawEvidence(
            tee="az-snp-vtpm",
            quote=encode_evidence(hcl_report=_without_padding(report), quote=wire),
            endorsements=self._endorsements,
        )


def _without_padding(report: bytes) -> bytes:
    """The report by the size in its header; the NV index is larger and filled up with zeros."""
    size = int.from_bytes(report[8:12], "little")
    if report[:4] != SIGNATURE or not HEADER_SIZE <= size <= len(report) or report[size:].strip(b"\0"):
        raise AttesterError("the paravisor's report is malformed", todo="its form may have changed")
    return report[:size]
