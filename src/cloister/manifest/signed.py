"""A document and its signatures, as they travel and are stored (docs/spec/signed-document.md). Pure.

A signature covers the kind of the document and its digest, so a rule's signature is never a manifest's. A signature that
does not verify, of a key that nobody named, or of one key twice refuses the whole: nothing is skipped over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal, TypeVar

from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import FormatError, ManifestError, SignatureRefused
from cloister.manifest.owner_key import PublicKey, parse_public_key
from cloister.manifest.signers import Signer

T = TypeVar("T")

Kind = Literal[
    "manifest",
    "rule",
    "order",
    "request",
    "witness",
    "share",
    "federation",
    "delegation",
    "departure",
    "inquiry",
]

MAX_DOCUMENT: Final = 1 << 20
MAX_SIGNATURES: Final = 64
MAX_SIGNED: Final = 3 << 19
"""Bytes of a signed document: the document in base64, and the signatures."""


class Signature(Record, frozen=True, kw_only=True):
    """One key's signature."""

    key: str
    signature: bytes


class Signed(Record, frozen=True, kw_only=True):
    """A document with signatures that nobody has checked yet."""

    format: Literal["cloister/signed/v1"] = "cloister/signed/v1"
    document: bytes
    signatures: tuple[Signature, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the document, hexadecimal: its name everywhere."""
        return hashlib.sha256(self.document).hexdigest()


def signed_message(kind: Kind, document: bytes) -> bytes:
    """The bytes that a key signs."""
    digest = hashlib.sha256(document).hexdigest()
    return f"cloister/{kind}-signature/v1\nsha256 {digest}\n".encode("ascii")


def sign(
    kind: Kind, document: bytes, signers: Iterable[Signer], *, existing: Iterable[Signature] = ()
) -> Signed:
    """``document`` signed by ``signers``, beside ``existing`` signatures; of one key the newer stays."""
    message = signed_message(kind, document)
    by_key = {one.key: one for one in existing}
    for signer in signers:
        by_key[signer.key] = Signature(key=signer.key, signature=signer.sign(message))
    return Signed(document=document, signatures=tuple(by_key[key] for key in sorted(by_key)))


def verified_signers(kind: Kind, signed: Signed, keys: Mapping[str, PublicKey]) -> frozenset[str]:
    """The names in ``keys`` whose keys signed. Raises :class:`~cloister.errors.SignatureRefused`."""
    if len(signed.document) > MAX_DOCUMENT:
        raise SignatureRefused(f"a signed document is longer than {MAX_DOCUMENT} bytes")
    if len(signed.signatures) > MAX_SIGNATURES:
        raise SignatureRefused(f"a document carries more than {MAX_SIGNATURES} signatures")
    message = signed_message(kind, signed.document)
    # By identity, not by text: the same key in its SSH form is the same person.
    names = {key.identity: name for name, key in keys.items()}
    if len(names) != len(keys):
        raise SignatureRefused("two names that may sign are one key")
    found: set[str] = set()
    for one in signed.signatures:
        name = names.get(_identity(one.key))
        if name is None or keys[name].text != one.key:
            raise SignatureRefused(
                f"a signature is of a key that may not sign this {kind}: {shown(one.key)}",
                todo="remove it, or have the key named by the owners",
            )
        if name in found:
            raise SignatureRefused(f"{name} signed twice", todo="keep one signature of each key")
        try:
            keys[name].verify(message, one.signature)
        except SignatureRefused as error:
            raise SignatureRefused(
                f"the signature of {name} does not hold: {error.what}",
                todo=error.todo or "have it signed again",
            ) from None
        found.add(name)
    return frozenset(found)


def parse_signed(data: bytes) -> Signed:
    """Read a signed document; its signatures are not checked. Raises :class:`~cloister.errors.ManifestError`."""
    signed = decode_canonical(data, Signed, what="the signed document", limit=MAX_SIGNED)
    if len(signed.document) > MAX_DOCUMENT:
        raise ManifestError(f"a signed document is longer than {MAX_DOCUMENT} bytes")
    if len(signed.signatures) > MAX_SIGNATURES:
        raise ManifestError(f"a document carries more than {MAX_SIGNATURES} signatures")
    return signed


def encode_signed(signed: Signed) -> bytes:
    """The bytes that :func:`parse_signed` reads."""
    return encode_json(signed)


def decode_canonical(data: bytes, kind: type[T], *, what: str, limit: int) -> T:
    """Read a record out of canonical JSON, where each record has one spelling. Raises ManifestError."""
    try:
        value = decode_json(data, kind, what=what, limit=limit)
        again = encode_json(value)
    except FormatError as error:
        raise ManifestError(error.what, todo=error.todo) from None
    if again != data:
        raise ManifestError(
            f"{what} is not canonical JSON (RFC 8785)", todo="write it with `cloister manifest`"
        )
    return value


def shown(key: str) -> str:
    """A key's text for a person: one bounded line that steers no terminal."""
    text = "".join(char if char.isprintable() and char.isascii() else "?" for char in key[:90])
    return text if len(key) <= 90 else f"{text}…"


def _identity(key: str) -> str:
    try:
        return parse_public_key(key).identity
    except ManifestError as error:
        raise SignatureRefused(error.what, todo=error.todo) from None
