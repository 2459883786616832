"""Wire records of the KBS attestation protocol, and their strict readers (docs/spec/kbs.md). Pure.

The form of the evidence is what the session's profile says, never what the bytes look like. What only guests of the
Confidential Containers send is in trustee.py.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final, Literal

from cloister.encoding import Record, b64url_decode, decode_json, encode_json
from cloister.errors import BrokerError, FormatError
from cloister.evidence.binding import NONCE_SIZE
from cloister.evidence.bundle import EvidenceBundle, TeeKind
from cloister.sealing.uri import KeyUri, parse_key_uri

VERSION: Final = "0.4.0"
"""The only version spoken, as in Trustee: 0.1 to 0.3 have other records and, 0.1, RSA with PKCS #1 v1.5."""
PROFILE: Final = "cloister/evidence/v1"
PREFIX: Final = "/kbs/v0"
AUTH_PATH: Final = f"{PREFIX}/auth"
ATTEST_PATH: Final = f"{PREFIX}/attest"
RESOURCE_PATH: Final = f"{PREFIX}/resource/"
COOKIE: Final = "kbs-session-id"
PROBLEM_PREFIX: Final = "urn:cloister:problem:"

MAX_AUTH = 16 * 1024
MAX_ATTEST = 2 << 20
MAX_TOKEN = 8 * 1024
MAX_ANSWER = 1 << 20

HashName = Literal["sha256", "sha384", "sha512"]

_PURPOSE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_COORDINATE = {"P-256": 32, "P-384": 48, "P-521": 66}


class Unsupported(BrokerError):
    """Another protocol version, TEE or evidence profile; ``kind`` is which."""

    def __init__(self, kind: Literal["version", "tee", "profile"], what: str) -> None:
        super().__init__(
            what,
            todo=f"this broker speaks version {VERSION} with profile {PROFILE}, or as Trustee's guests do",
        )
        self.kind = kind


class BadResource(FormatError):
    """A path that names no resource."""


class AuthRequest(Record, frozen=True, kw_only=True, rename={"extra_params": "extra-params"}):
    """``POST /kbs/v0/auth``."""

    version: str
    tee: str
    extra_params: dict[str, Any] | str = ""


class ChallengeParameters(
    Record,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename={"selected_hash_algorithm": "selected-hash-algorithm"},
):
    """Empty, or for a guest that named hash algorithms the one that binds its runtime data."""

    selected_hash_algorithm: HashName | None = None


class Challenge(Record, frozen=True, kw_only=True, rename={"extra_params": "extra-params"}):
    """Its answer. ``nonce`` is 32 bytes in standard base64."""

    nonce: str
    extra_params: ChallengeParameters = ChallengeParameters()


class EcKey(Record, frozen=True, kw_only=True, tag_field="kty", tag="EC"):
    """A public key on a NIST curve (RFC 7518, section 6.2.1); coordinates in base64url."""

    crv: Literal["P-256", "P-384", "P-521"]
    alg: Literal["ECDH-ES+A256KW"] = "ECDH-ES+A256KW"
    x: str
    y: str


class RsaKey(Record, frozen=True, kw_only=True, tag_field="kty", tag="RSA"):
    """An RSA public key (RFC 7518, section 6.3.1)."""

    alg: Literal["RSA-OAEP-256"] = "RSA-OAEP-256"
    n: str
    e: str


TeeKey = EcKey | RsaKey


class RuntimeData(Record, frozen=True, kw_only=True, omit_defaults=True, rename={"tee_pubkey": "tee-pubkey"}):
    """What the quote binds: the challenge and the key that answers are encrypted to."""

    nonce: str
    tee_pubkey: TeeKey
    purpose: str | None = None
    """What the workload says it wants resources for: its own word, bound in its quote."""


class TeeEvidence(Record, frozen=True, kw_only=True):
    """Our profile: one evidence bundle, nothing beside it."""

    primary_evidence: EvidenceBundle
    additional_evidence: Literal[""] = ""


class Attestation(
    Record,
    frozen=True,
    kw_only=True,
    rename={"init_data": "init-data", "runtime_data": "runtime-data", "tee_evidence": "tee-evidence"},
):
    """``POST /kbs/v0/attest``."""

    runtime_data: RuntimeData
    tee_evidence: TeeEvidence
    init_data: None = None


class TokenAnswer(Record, frozen=True, kw_only=True):
    """What a successful attestation gets."""

    token: str


class Jwe(Record, frozen=True, kw_only=True):
    """A flattened JWE (RFC 7516, section 7.2.2) without ``aad`` and unprotected headers."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str


class Problem(Record, frozen=True, kw_only=True):
    """RFC 9457, exactly these members."""

    type: str
    title: str
    status: int
    detail: str


def parse_auth(body: bytes) -> AuthRequest:
    """A request of our version. Raises :class:`FormatError` or :class:`Unsupported`."""
    request = decode_json(body, AuthRequest, what="KBS request", limit=MAX_AUTH)
    if request.version != VERSION:
        raise Unsupported("version", "another version of the KBS protocol was asked for")
    return request


def auth_request(tee: TeeKind) -> bytes:
    """The request that a workload of ours sends."""
    return encode_json(AuthRequest(version=VERSION, tee=tee, extra_params={"profile": PROFILE}))


def parse_challenge(body: bytes) -> tuple[str, bytes]:
    """The nonce as text (it is echoed as such) and as 32 bytes. Raises :class:`FormatError`."""
    challenge = decode_json(body, Challenge, what="KBS challenge", limit=MAX_AUTH)
    if challenge.extra_params != ChallengeParameters():
        raise FormatError("the challenge selects a hash algorithm, which our profile has none of")
    return challenge.nonce, decode_nonce(challenge.nonce)


def encode_nonce(nonce: bytes) -> str:
    """Standard base64, as Trustee writes it."""
    return base64.b64encode(nonce).decode("ascii")


def decode_nonce(text: str) -> bytes:
    """Undo :func:`encode_nonce`, canonically. Raises :class:`FormatError`."""
    try:
        nonce = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError("a KBS nonce is not base64") from None
    if len(nonce) != NONCE_SIZE or encode_nonce(nonce) != text:
        raise FormatError(f"a KBS nonce is {NONCE_SIZE} bytes in canonical base64")
    return nonce


def parse_attestation(body: bytes) -> tuple[RuntimeData, EvidenceBundle]:
    """The bundle and the runtime data it carries. Raises :class:`FormatError`.

    ``runtime-data`` and the bundle's key material must be the same bytes: nobody can read two documents.
    """
    attestation = decode_json(body, Attestation, what="KBS attestation", limit=MAX_ATTEST)
    bundle = attestation.tee_evidence.primary_evidence
    if encode_json(attestation.runtime_data) != bundle.key_material:
        raise FormatError("runtime-data is not what the evidence carries")
    return parse_runtime_data(bundle.key_material), bundle


def parse_runtime_data(data: bytes) -> RuntimeData:
    """Runtime data in its one canonical form. Raises :class:`FormatError`."""
    runtime = decode_json(data, RuntimeData, what="runtime data", limit=MAX_AUTH)
    if encode_json(runtime) != data:
        raise FormatError("runtime data is not canonical JSON (RFC 8785)")
    return check_runtime_data(runtime)


def check_runtime_data(runtime: RuntimeData) -> RuntimeData:
    """``runtime`` if its values can be meant: nonce, purpose, sizes of the key. Raises :class:`FormatError`."""
    decode_nonce(runtime.nonce)
    if runtime.purpose is not None and not _PURPOSE.fullmatch(runtime.purpose):
        raise FormatError("a purpose is 1 to 64 of A-Z a-z 0-9 . _ -, and does not start with a dot")
    key = runtime.tee_pubkey
    if isinstance(key, EcKey):
        for name, value in (("x", key.x), ("y", key.y)):
            b64url_decode(value, what=f"coordinate {name} of the TEE key", length=_COORDINATE[key.crv])
    else:
        modulus = int.from_bytes(b64url_decode(key.n, what="modulus of the TEE key"), "big")
        exponent = int.from_bytes(b64url_decode(key.e, what="exponent of the TEE key"), "big")
        if not 2048 <= modulus.bit_length() <= 4096 or not 3 <= exponent < 1 << 32 or exponent % 2 == 0:
            raise FormatError("an RSA TEE key has 2,048 to 4,096 bits and a small odd exponent")
    return runtime


def resource_path(uri: KeyUri) -> str:
    """``repository/type/tag``: the name of a resource in the store and at the end of its URL."""
    return f"{uri.repository}/{uri.type}/{uri.tag}"


def parse_resource_path(raw_path: bytes, query: bytes = b"") -> KeyUri:
    """The resource that a request's undecoded path names. Raises :class:`BadResource`.

    Nothing is decoded or normalised: a percent sign, ``..`` or a byte over 127 names nothing.
    """
    prefix = RESOURCE_PATH.encode()
    if query or not raw_path.startswith(prefix) or not raw_path.isascii():
        raise BadResource("this path names no resource")
    try:
        return parse_key_uri("kbs:///" + raw_path.removeprefix(prefix).decode("ascii"))
    except FormatError:
        raise BadResource("this path names no resource") from None
