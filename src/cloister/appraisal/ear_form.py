"""The form of an EAR token: its header, its claims, and strict reading of both (docs/spec/ear.md).

Names are those that Veraison and Trustee deploy (``ear.status``); draft-ietf-rats-ear-04 spells them with underscores
under a profile of its own. Other headers, fields and algorithms are refused, critical ones among them.
"""

from __future__ import annotations

from typing import Any, Final, Literal, get_args

from msgspec import field

from cloister.appraisal.ear_trust import NAMES, VALUES, Status
from cloister.encoding import Record, b64url_decode, decode_json, encode_json
from cloister.errors import EXIT_VERIFICATION, CloisterError, FormatError

PROFILE: Final = "tag:github.com,2023:veraison/ear"
MAX_TOKEN: Final = 256 * 1024
MAX_TIME: Final = 253_402_300_799
"""The last second of the year 9999: what is later is no time."""
_MAX_HEADER = 1024

Algorithm = Literal["ES384", "Ed25519"]


class TokenRefused(CloisterError):
    """A token that is malformed, forged, meant for others or in contradiction with itself."""

    layer = "token"
    exit_code = EXIT_VERIFICATION


class Header(Record, frozen=True, kw_only=True):
    """The protected header: exactly these three, so no ``crit``, ``jwk``, ``jku``, ``x5c`` or ``b64``."""

    alg: str
    kid: str
    typ: str


class VerifierId(Record, frozen=True, kw_only=True):
    """``ear.verifier-id``: who appraised, and with what."""

    developer: str
    build: str


class Submodule(Record, frozen=True, kw_only=True):
    """One attester: the CPU or one device."""

    status: Status = field(name="ear.status")
    vector: dict[str, int] = field(name="ear.trustworthiness-vector")
    policy: str | None = field(name="ear.appraisal-policy-id", default=None)


class EarBody(Record, frozen=True, kw_only=True):
    """The private claim ``cloister``: what a relying party needs to act without the evidence."""

    format: Literal["cloister/ear/v1"] = "cloister/ear/v1"
    simulated: bool
    verified_at: int
    claims: dict[str, Any]
    """By ear_claims.py."""
    policy_digest: str | None = None
    """None: nobody appraised it."""
    key_material: str | None = None
    """base64url of the exact bytes that the evidence binds."""
    key_material_sha256: str | None = None
    notice: str | None = None
    """In a simulation's token, so that whoever looks at it sees what it is."""


class Ear(Record, frozen=True, kw_only=True):
    """The claims of a token. Times are Unix seconds."""

    eat_profile: Literal["tag:github.com,2023:veraison/ear"]
    iat: int
    exp: int
    verifier: VerifierId = field(name="ear.verifier-id")
    submods: dict[str, Submodule]
    cloister: EarBody
    eat_nonce: str | None = None
    aud: str | None = None

    def encode(self) -> bytes:
        """The JWT's payload: canonical JSON without what is absent."""
        return encode_json(_present(self))

    @classmethod
    def parse(cls, payload: bytes) -> Ear:
        """Read a payload strictly. Raises :class:`TokenRefused`."""
        try:
            ear = decode_json(payload, cls, what="the token", limit=MAX_TOKEN)
        except FormatError as error:
            raise TokenRefused(error.what) from None
        if not all(0 <= time <= MAX_TIME for time in (ear.iat, ear.exp, ear.cloister.verified_at)):
            raise TokenRefused("the token holds a time that is none")
        for name, submodule in ear.submods.items():
            vector = submodule.vector
            if set(vector) != set(NAMES) or not set(vector.values()) <= VALUES:
                raise TokenRefused(
                    f"the token's trustworthiness vector of {name[:40]!r} has other values than it may"
                )
        return ear


def parse_token(token: str) -> Header:
    """The header of a compact JWS that may be verified at all. Raises :class:`TokenRefused`."""
    if len(token) > MAX_TOKEN:
        raise TokenRefused(f"the token is longer than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise TokenRefused(
            "this is no signed token", todo="an EAR is three parts of base64url with dots between"
        )
    try:
        for part in parts[1:]:
            b64url_decode(part, what="a part of the token")
        header = decode_json(
            b64url_decode(parts[0], what="the token's header"),
            Header,
            what="the token's header",
            limit=_MAX_HEADER,
        )
    except FormatError as error:
        raise TokenRefused(error.what) from None
    if header.typ != "JWT":
        raise TokenRefused("the token's typ is not JWT")
    if header.alg not in get_args(Algorithm):
        raise TokenRefused(
            "the token's alg is neither ES384 nor Ed25519", todo="no other is accepted, none least of all"
        )
    return header


def _present(record: Record) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, wire in zip(record.__struct_fields__, record.__struct_encode_fields__, strict=True):
        value = getattr(record, name)
        if isinstance(value, Record):
            plain[wire] = _present(value)
        elif name == "submods":
            plain[wire] = {key: _present(item) for key, item in value.items()}
        elif value is not None:
            plain[wire] = value
    return plain
