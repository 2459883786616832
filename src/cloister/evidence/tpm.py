"""TPM 2.0 quotes on the wire (docs/spec/tpm.md): what the TPM signed, the key it signed with, the PCR values.

Strict JSON around the TPM's own structures. The values must be exactly those that the signed digest covers; the
signature itself, and whose key it is, is the verifier's to say.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import EvidenceError, FormatError
from cloister.evidence.tpm_structures import PCRS, TpmPublic, parse_attest, parse_public, parse_signature

FORMAT: Final = "cloister/tpm-quote/v1"
MAX_QUOTE = 64 * 1024
BANKS: Final = {"sha256": 32, "sha384": 48}
"""The banks that may be quoted, with the sizes of their values in bytes."""
QUALIFYING_DATA_SIZE: Final = 32


class TpmQuoteWire(Record, frozen=True, kw_only=True):
    """The JSON form; ``bytes`` are standard base64."""

    format: Literal["cloister/tpm-quote/v1"] = FORMAT
    attest: bytes
    """TPMS_ATTEST."""
    signature: bytes
    """TPMT_SIGNATURE."""
    ak_public: bytes
    """TPMT_PUBLIC of the attestation key."""
    pcrs: dict[str, bytes]
    """PCR number, in decimal, -> value."""


@dataclass(frozen=True, slots=True)
class TpmQuote:
    """One TPMS_ATTEST of type quote with its signature and the PCR values it covers."""

    extra_data: bytes
    """The qualifying data: what the quote binds."""
    firmware_version: int
    clock: int
    """Milliseconds that this TPM has been powered since its clock was reset."""
    reset_count: int
    restart_count: int
    safe: bool
    """The clock never showed this value before."""
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

    @property
    def attestation_key(self) -> TpmPublic:
        """The parsed ``ak_public``."""
        return parse_public(self.ak_public)


def parse_quote(data: bytes) -> TpmQuote:
    """Decode the JSON form of a quote (docs/spec/tpm.md). Raises :class:`~cloister.errors.EvidenceError`."""
    try:
        wire = decode_json(data, TpmQuoteWire, what="TPM quote", limit=MAX_QUOTE)
    except FormatError as error:
        raise EvidenceError(error.what, todo="it was truncated or is of another format") from None
    return read_quote(wire)


def read_quote(wire: TpmQuoteWire) -> TpmQuote:
    """The structures inside ``wire``. Raises :class:`~cloister.errors.EvidenceError`."""
    parse_public(wire.ak_public)
    hash_name = parse_signature(wire.signature).hash
    info = parse_attest(wire.attest)
    if info.bank not in BANKS:
        raise EvidenceError(f"the quoted PCRs are of bank {info.bank}, not {' or '.join(BANKS)}")
    if len(info.extra_data) != QUALIFYING_DATA_SIZE:
        raise EvidenceError(
            f"the quote's qualifying data has {len(info.extra_data)} bytes, not {QUALIFYING_DATA_SIZE}",
            todo="it was made for another purpose",
        )
    pcrs = _values(wire.pcrs, info.pcrs, BANKS[info.bank])
    # Part 1, section 20.2: the digest is over the values in ascending order, by the signature's hash.
    digest = hashlib.new(hash_name, b"".join(pcrs[number] for number in info.pcrs)).digest()
    if not hmac.compare_digest(digest, info.pcr_digest):
        raise EvidenceError(
            "the PCR values are not those that the TPM quoted",
            todo="they were altered, or read at another time",
        )
    return TpmQuote(
        extra_data=info.extra_data,
        firmware_version=info.firmware_version,
        clock=info.clock,
        reset_count=info.reset_count,
        restart_count=info.restart_count,
        safe=info.safe,
        qualified_signer=info.qualified_signer,
        bank=info.bank,
        pcrs=pcrs,
        ak_public=wire.ak_public,
        attest=wire.attest,
        signature=wire.signature,
    )


def encode_quote(*, attest: bytes, signature: bytes, ak_public: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    """The canonical wire form."""
    values = {str(number): value for number, value in pcrs.items()}
    return encode_json(TpmQuoteWire(attest=attest, signature=signature, ak_public=ak_public, pcrs=values))


def pcr_number(name: str) -> int | None:
    """The number that ``name`` (decimal, no leading zeros) spells, or None where there is no such PCR."""
    if re.fullmatch(r"0|[1-9][0-9]?", name, re.ASCII) and int(name) < PCRS:
        return int(name)
    return None


def _values(values: Mapping[str, bytes], selected: tuple[int, ...], size: int) -> dict[int, bytes]:
    pcrs: dict[int, bytes] = {}
    for name, value in values.items():
        number = pcr_number(name)
        if number is None:
            raise EvidenceError(f"{name[:16]!r} is no PCR: they are 0 to {PCRS - 1}")
        if len(value) != size:
            raise EvidenceError(f"PCR {number} has {len(value)} bytes, not the {size} of its bank")
        pcrs[number] = value
    if not selected:
        raise EvidenceError("the quote covers no PCR", todo="select those that the policy decides")
    if tuple(sorted(pcrs)) != selected:
        raise EvidenceError(
            f"values came for PCRs {_list(tuple(sorted(pcrs)))}, the quote covers {_list(selected)}"
        )
    return pcrs


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers)) or "none"
