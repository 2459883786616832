"""Answers to the TEE's key: flattened JWE over joserfc (RFC 7516, 7518; docs/spec/kbs.md, section 4). Pure.

One algorithm for each key type and one content encryption. The protected header names the resource, so that one answer
cannot be passed off as another. Compression, foreign headers and unprotected headers are refused.
Trustee's guests parse the protected header and authenticate it as *they* would write it: ``alg``, ``enc``, then the
other members sorted, at every depth. So it is written in that order here, and any other reader does not care.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from joserfc import jwe
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from cloister.broker.protocol import MAX_ANSWER, EcKey, Jwe, TeeKey
from cloister.encoding import b64url_decode, convert, decode_json, encode_json, parse_json
from cloister.errors import FormatError

CONTENT: Final = "A256GCM"
RESOURCE_HEADER: Final = "cloister.resource"
ALGORITHMS: Final = ("ECDH-ES+A256KW", "RSA-OAEP-256", CONTENT)


class AnswerRefused(FormatError):
    """An answer that is not for this key or not for this resource."""

    layer = "broker"


@dataclass(frozen=True, slots=True)
class TeeKeyPair:
    """A fresh P-256 pair of one attestation session; the private half never leaves the TEE."""

    public: TeeKey
    _private: Any = field(repr=False)

    @classmethod
    def generate(cls) -> TeeKeyPair:
        private = ECKey.generate_key("P-256")
        public = {**private.as_dict(private=False), "alg": "ECDH-ES+A256KW"}
        return cls(
            convert({name: public[name] for name in ("kty", "crv", "alg", "x", "y")}, EcKey, what="TEE key"),
            private,
        )

    def decrypt(self, body: bytes, resource: str) -> bytes:
        """The content of an answer for ``resource`` (a ``kbs:///`` URI). Raises :class:`AnswerRefused`."""
        try:
            answer = decode_json(body, Jwe, what="resource answer", limit=MAX_ANSWER)
            header = parse_json(
                b64url_decode(answer.protected, what="JWE header"), what="JWE header", limit=4096
            )
        except FormatError as error:
            raise AnswerRefused(error.what) from None
        names = {"alg", "enc", "epk", RESOURCE_HEADER}
        if not isinstance(header, dict) or set(header) != names:
            raise AnswerRefused("a resource answer has other protected headers than it should")
        if header["alg"] != self.public.alg or header["enc"] != CONTENT:
            raise AnswerRefused("a resource answer uses another algorithm than was asked for")
        if header[RESOURCE_HEADER] != resource:
            raise AnswerRefused("the answer is another resource than the one that was asked for")
        parts = (answer.protected, answer.encrypted_key, answer.iv, answer.ciphertext, answer.tag)
        # The compact form of the same five parts has the same authenticated data (section 7.2.2 without `aad`).
        try:
            content = jwe.decrypt_compact(".".join(parts), self._private, registry=_registry()).plaintext
        except (JoseError, ValueError):
            raise AnswerRefused("a resource answer does not open with this session's key") from None
        if content is None:
            raise AnswerRefused("a resource answer is empty")
        return content


def encrypt(content: bytes, key: TeeKey, resource: str) -> bytes:
    """``content`` to ``key`` as the JSON body of an answer. Raises :class:`FormatError` on an impossible key."""
    header = {"alg": key.alg, "enc": CONTENT, RESOURCE_HEADER: resource}
    compact = jwe.encrypt_compact(header, content, _public(key), registry=_registry())
    protected, encrypted_key, iv, ciphertext, tag = compact.split(".")
    return encode_json(
        Jwe(protected=protected, encrypted_key=encrypted_key, iv=iv, ciphertext=ciphertext, tag=tag)
    )


def check_key(key: TeeKey) -> None:
    """Raise :class:`FormatError` unless ``key`` is a point on its curve (or a usable modulus)."""
    _public(key)


def key_digest(key: TeeKey) -> str:
    """SHA-256 of the canonical JWK, hexadecimal."""
    return hashlib.sha256(encode_json(key)).hexdigest()


def _public(key: TeeKey) -> Any:
    plain = parse_json(encode_json(key), what="TEE key")
    try:
        kind = _SortedEcKey if isinstance(key, EcKey) else RSAKey
        imported = kind.import_key(plain)
        _ = imported.public_key  # reading it makes joserfc build, and so check, the key
    except (JoseError, ValueError):
        raise FormatError("the TEE key is not a key of its kind") from None
    return imported


class _SortedEcKey(ECKey):
    """A key, and so the ephemeral key beside it, whose JWK has its members in the order of their names."""

    def as_dict(self, private: bool = False, **params: Any) -> Any:
        return dict(sorted(super().as_dict(private, **params).items()))


def _registry() -> Any:
    # joserfc's own table of headers does not know ours; they are checked above, one by one.
    return jwe.JWERegistry(algorithms=list(ALGORITHMS), strict_check_header=False)
