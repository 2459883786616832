"""``[tpm]`` and ``[azure]`` of a policy: what a TPM must have measured (docs/reference/policy-tpm.md)."""

from __future__ import annotations

from typing import Literal

from cloister.appraisal.values import Values, check_some
from cloister.encoding import Record, from_hex
from cloister.errors import FormatError
from cloister.evidence.eventlog import MAX_PAYLOAD
from cloister.evidence.tpm import BANKS, pcr_number

_DIGITS = {2 * size: size for size in BANKS.values()}


class TpmReference(Record, frozen=True, kw_only=True):
    """``[tpm]``: a TPM quote of its own; roots are ``roots.tpm``. Its presence accepts the kind."""

    pcrs: dict[str, Values]
    """PCR number -> accepted values (64 hexadecimal digits each; 96 in bank SHA-384), or "any".

    Every PCR that was quoted must be decided here; each that has a list must have been quoted.
    """
    revocation: Literal["required", "unchecked"]
    """``required``: a revocation list of each issuer must be among the endorsements."""
    events: dict[str, Values] | None = None
    """Launch events that must have happened: name -> accepted payloads, hexadecimal, or "any".

    Where there is such a table, an event that it does not name is refused.
    """
    clock: Literal["safe", "any"] = "safe"
    """``any`` accepts a TPM whose clock may have gone back since an unclean power-off."""


class AzureReference(Record, frozen=True, kw_only=True):
    """``[azure]``: the vTPM of an Azure SEV-SNP guest, beside ``[snp]``. Its presence accepts the kind."""

    pcrs: dict[str, Values]
    """As in ``[tpm]``."""
    events: dict[str, Values] | None = None
    """As in ``[tpm]``."""


def check_tpm(tpm: TpmReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    _check_pcrs(tpm.pcrs)
    _check_events(tpm.events)


def check_azure(azure: AzureReference) -> None:
    """Raise :class:`~cloister.errors.FormatError` unless the table can be meant."""
    _check_pcrs(azure.pcrs)
    _check_events(azure.events)


def _check_pcrs(pcrs: dict[str, Values]) -> None:
    if not pcrs:
        raise FormatError("pcrs is an empty table", todo="say what each quoted PCR must be")
    for name, values in pcrs.items():
        if pcr_number(name) is None:
            raise FormatError(f"pcrs names {name[:16]!r}", todo="PCRs are 0 to 23, in decimal")
        if values == "any":
            continue
        check_some(f"pcrs.{name}", values)
        for value in values:
            if len(value) not in _DIGITS:
                raise FormatError(f"pcrs.{name} lists a value of {len(value)} digits, not 64 or 96")
            from_hex(value, _DIGITS[len(value)], what=f"pcrs.{name}")
    if all(values == "any" for values in pcrs.values()):
        raise FormatError(
            'pcrs says "any" for every PCR: this would accept whatever was booted',
            todo="list the accepted values of those that measure your image",
        )


def _check_events(events: dict[str, Values] | None) -> None:
    if events is None:
        return
    if not events:
        raise FormatError(
            "events is an empty table", todo="leave it out, or name the events that must happen"
        )
    for name, payloads in events.items():
        if not 1 <= len(name) <= 64:
            raise FormatError(f"events names {name[:64]!r}: names have 1 to 64 characters")
        if payloads == "any":
            continue
        check_some(f"events.{name}", payloads)
        for payload in payloads:
            if len(payload) > 2 * MAX_PAYLOAD:
                raise FormatError(f"events.{name} has a payload over {MAX_PAYLOAD} bytes")
            from_hex(payload, len(payload) // 2, what=f"events.{name}")
