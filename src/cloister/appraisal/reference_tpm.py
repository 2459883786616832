"""``[tpm]`` and ``[azure]`` of a policy: what a TPM must have measured. SKELETON, to be completed."""

from __future__ import annotations

from typing import Literal

from cloister.appraisal.values import Values
from cloister.encoding import Record


class TpmReference(Record, frozen=True, kw_only=True):
    """``[tpm]``: a TPM quote of its own; roots are ``roots.tpm``. Its presence accepts the kind."""

    pcrs: dict[str, Values]
    """PCR number -> accepted values (64 hexadecimal digits each; bank SHA-256)."""
    revocation: Literal["required", "unchecked"]


class AzureReference(Record, frozen=True, kw_only=True):
    """``[azure]``: the vTPM of an Azure SEV-SNP guest, beside ``[snp]``. Its presence accepts the kind."""

    pcrs: dict[str, Values]


def check_tpm(tpm: TpmReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""


def check_azure(azure: AzureReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
