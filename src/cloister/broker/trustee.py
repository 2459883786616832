"""What guests of the Confidential Containers say (docs/spec/kbs.md, section 6): records, runtime data, init-data. Pure.

Runtime data travels as a part of the request, in any order of its members, and counts in its one canonical form
(RFC 8785). Refused are other members, a name that stands twice, and RSA with PKCS #1 v1.5.
"""

from __future__ import annotations

import hashlib
import tomllib
from typing import Any, Final, Literal

from cloister.appraisal.positions import find_positions
from cloister.broker.protocol import (
    MAX_ATTEST,
    HashName,
    RuntimeData,
    TeeKey,
    Unsupported,
    check_runtime_data,
)
from cloister.encoding import Record, convert, decode_json, encode_json
from cloister.errors import FormatError
from cloister.evidence.bundle import TeeKind

PROFILE: Final = "trustee"
TEES: Final[tuple[TeeKind, ...]] = ("tdx", "sgx", "snp")
"""What is verified of them. Azure's vTPM form names no TPM public area, which our verifier needs."""
HASHES: Final[tuple[HashName, ...]] = ("sha384", "sha512", "sha256")
"""In the order of preference; the first is what a guest uses that was told none."""
SUPPORTED: Final = "supported-hash-algorithms"
MAX_INIT_DATA: Final = 128 * 1024
"""Bytes of a body of init-data."""
_MAX_NAMES = 16


class GuestRuntime(Record, frozen=True, kw_only=True, rename={"tee_pubkey": "tee-pubkey"}):
    """Runtime data as it travels, and in canonical form what devices bind."""

    nonce: str
    tee_pubkey: TeeKey


class BoundRuntime(
    Record,
    frozen=True,
    kw_only=True,
    rename={"additional_evidence": "additional-evidence", "tee_pubkey": "tee-pubkey"},
):
    """What the TEE's own evidence binds, in canonical form: so it binds the devices' evidence too."""

    additional_evidence: str
    nonce: str
    tee_pubkey: TeeKey


class CompositeEvidence(Record, frozen=True, kw_only=True):
    """Evidence of the TEE, an object of its kind, and of devices, JSON inside a text (or an empty text)."""

    primary_evidence: dict[str, Any]
    additional_evidence: str


class InitData(Record, frozen=True, kw_only=True):
    """What the host injected at launch, as plain text."""

    format: Literal["toml"]
    body: str


class GuestAttestation(
    Record,
    frozen=True,
    kw_only=True,
    rename={"init_data": "init-data", "runtime_data": "runtime-data", "tee_evidence": "tee-evidence"},
):
    """``POST /kbs/v0/attest`` of such a guest."""

    runtime_data: GuestRuntime
    tee_evidence: CompositeEvidence
    init_data: InitData | None = None


class InitDocument(Record, frozen=True, kw_only=True):
    """The body of init-data, version 0.1.0."""

    version: Literal["0.1.0"]
    algorithm: HashName
    data: dict[str, str]


def select_hash(parameters: dict[str, Any] | str) -> HashName:
    """The hash for a guest that sent these ``extra-params``. Raises :class:`Unsupported`.

    A guest that names none uses SHA-384. Names that are unknown here are passed over.
    """
    if parameters in ("", {}):
        return HASHES[0]
    names = parameters.get(SUPPORTED) if isinstance(parameters, dict) and len(parameters) == 1 else None
    if not isinstance(names, list) or len(names) > _MAX_NAMES:
        raise Unsupported("profile", "no evidence profile that is known here was asked for")
    offered = {name.lower() for name in names if isinstance(name, str)}
    for name in HASHES:
        if name in offered:
            return name
    raise Unsupported("profile", "none of the guest's hash algorithms is known here")


def parse_guest_attestation(body: bytes) -> GuestAttestation:
    """The request, and its runtime data checked. Raises :class:`~cloister.errors.FormatError`."""
    attestation = decode_json(body, GuestAttestation, what="KBS attestation", limit=MAX_ATTEST)
    plain_runtime(attestation.runtime_data)
    return attestation


def plain_runtime(runtime: GuestRuntime | BoundRuntime) -> RuntimeData:
    """The same as our own workloads say it. Raises :class:`~cloister.errors.FormatError`."""
    return check_runtime_data(RuntimeData(nonce=runtime.nonce, tee_pubkey=runtime.tee_pubkey))


def bound_runtime(runtime: GuestRuntime, additional_evidence: str) -> bytes:
    """The exact bytes whose hash the TEE's evidence carries."""
    return encode_json(
        BoundRuntime(
            additional_evidence=additional_evidence, nonce=runtime.nonce, tee_pubkey=runtime.tee_pubkey
        )
    )


def parse_bound_runtime(data: bytes) -> BoundRuntime:
    """Undo :func:`bound_runtime`. Raises :class:`~cloister.errors.FormatError`."""
    runtime = decode_json(data, BoundRuntime, what="bound runtime data", limit=MAX_ATTEST)
    if encode_json(runtime) != data:
        raise FormatError("bound runtime data is not canonical JSON (RFC 8785)")
    return runtime


def init_data_digest(init_data: InitData) -> bytes:
    """The hash of the body, as plain bytes, by the algorithm that it names. Raises :class:`~cloister.errors.FormatError`."""
    body = init_data.body.encode()
    if len(body) > MAX_INIT_DATA:
        raise FormatError(f"init-data is {len(body)} bytes long, over its bound of {MAX_INIT_DATA}")
    try:
        # First, because tomllib takes quadratic time over what is nested very deep, and nobody was attested yet.
        find_positions(init_data.body)
        table = tomllib.loads(init_data.body)
    except (tomllib.TOMLDecodeError, RecursionError):
        raise FormatError("init-data is not TOML") from None
    return hashlib.new(convert(table, InitDocument, what="init-data").algorithm, body).digest()
