"""TPM 2.0 quotes. SKELETON: the dataclass is the contract; parse_quote is to be written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TpmQuote:
    """One TPMS_ATTEST of type quote with its signature and the PCR values it covers."""

    extra_data: bytes
    """The qualifying data: what the quote binds."""
    firmware_version: int
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    qualified_signer: bytes
    bank: str
    """Hash of the quoted bank: ``sha256`` or ``sha384``."""
    pcrs: Mapping[int, bytes]
    """The values of the selected PCRs, whose digest was compared with the quoted one."""
    ak_public: bytes
    """The attestation key's TPMT_PUBLIC, as the TPM marshals it."""
    attest: bytes
    """The signed TPMS_ATTEST."""
    signature: bytes
    """The TPMT_SIGNATURE."""


def parse_quote(data: bytes) -> TpmQuote:
    """Decode the JSON form of a quote (docs/spec/tpm.md). Raises :class:`~cloister.errors.EvidenceError`."""
    raise NotImplementedError
