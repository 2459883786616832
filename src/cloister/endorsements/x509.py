"""X.509 certificates and revocation lists (RFC 5280) as records: read strictly, believed not at all.

Signatures, names, dates and roles are checked in verifier/certificates.py. Only versions 3 (certificates) and 2
(lists) are read, as every vendor of TEEs makes them; what is longer than 16 KiB or has an extension twice is refused.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from cloister.endorsements.der import (
    BIT_STRING,
    IA5_STRING,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    PRINTABLE_STRING,
    SEQUENCE,
    SET,
    UTF8_STRING,
    Der,
)
from cloister.errors import EndorsementError

MAX_CERTIFICATE = 16 * 1024
MAX_LIST = 192 * 1024
MAX_EXTENSIONS = 64
MAX_PEM_CERTIFICATES = 8

BASIC_CONSTRAINTS: Final = "2.5.29.19"
KEY_USAGE: Final = "2.5.29.15"
_COMMON_NAME: Final = "2.5.4.3"
_KEY_CERT_SIGN, _CRL_SIGN = 5, 6
_PEM: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----\r?\n([A-Za-z0-9+/=\r\n]+)\r?\n-----END CERTIFICATE-----(?:\r?\n)*"
)


@dataclass(frozen=True, slots=True)
class Extension:
    """``value`` is the content of extnValue, DER as a rule."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says. Times are Unix seconds, both included; names are whole DER."""

    der: bytes
    signed: bytes
    """The TBSCertificate, which the issuer signed."""
    serial: int
    issuer: bytes
    not_before: int
    not_after: int
    subject: bytes
    common_name: str
    """The subject's CN, for people and for AMD's chains: 64 printable characters at most, empty where it has none."""
    public_key: bytes
    """SubjectPublicKeyInfo, DER."""
    extensions: Mapping[str, Extension]
    """By dotted object identifier."""
    algorithm: bytes
    """AlgorithmIdentifier of the signature, DER."""
    signature: bytes

    @property
    def is_authority(self) -> bool:
        """It may sign certificates: basicConstraints has CA set."""
        return self.path_length is not None

    @property
    def path_length(self) -> int | None:
        """How many authorities may stand between it and a leaf; None where it is no authority at all."""
        extension = self.extensions.get(BASIC_CONSTRAINTS)
        if extension is None:
            return None
        content = Der(extension.value, "certificate's basicConstraints").enter(SEQUENCE)
        if content.peek() is None or not content.boolean():
            return None
        length = 255 if content.peek() is None else content.integer()
        content.end()
        return max(0, min(length, 255))

    def may(self, usage: int) -> bool:
        """keyUsage has bit ``usage`` set, or there is no such extension."""
        extension = self.extensions.get(KEY_USAGE)
        if extension is None:
            return True
        content = Der(extension.value, "certificate's keyUsage").element(BIT_STRING)[1]
        return len(content) > 1 + usage // 8 and bool(content[1 + usage // 8] >> (7 - usage % 8) & 1)

    @property
    def may_sign_certificates(self) -> bool:
        return self.is_authority and self.may(_KEY_CERT_SIGN)

    @property
    def may_sign_lists(self) -> bool:
        return self.may(_CRL_SIGN)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What a CRL says."""

    der: bytes
    signed: bytes
    issuer: bytes
    this_update: int
    next_update: int
    revoked: frozenset[int]
    """Serial numbers of certificates of its issuer."""
    algorithm: bytes
    signature: bytes


@lru_cache(maxsize=128)
def read_certificate(der: bytes, *, limit: int = MAX_CERTIFICATE) -> Certificate:
    """Read, not verify. Raises :class:`~cloister.errors.EndorsementError`."""
    if len(der) > limit:
        raise EndorsementError(f"a certificate of {len(der)} bytes is over its bound of {limit}")
    outer = Der(der, "certificate")
    signed, algorithm, signature = _envelope(outer)
    body = Der(signed, "certificate").enter(SEQUENCE)
    if body.enter(0xA0).integer() != 2:
        raise body.fail("it is not of version 3")
    serial = body.integer()
    if body.element(SEQUENCE)[0] != algorithm:
        raise body.fail("it names two signature algorithms")
    issuer = body.element(SEQUENCE)[0]
    validity = body.enter(SEQUENCE)
    not_before, not_after = validity.time(), validity.time()
    validity.end()
    subject = body.element(SEQUENCE)[0]
    public_key = body.element(SEQUENCE)[0]
    extensions: dict[str, Extension] = {}
    if not body.done:
        extensions = _extensions(body.enter(0xA3))
    body.end()
    return Certificate(
        der=der,
        signed=signed,
        serial=serial,
        issuer=issuer,
        not_before=not_before,
        not_after=not_after,
        subject=subject,
        common_name=common_name(subject),
        public_key=public_key,
        extensions=MappingProxyType(extensions),  # what is read once is shared from then on
        algorithm=algorithm,
        signature=signature,
    )


@lru_cache(maxsize=16)
def read_revocation_list(der: bytes) -> RevocationList:
    """Read, not verify. A list with critical extensions (delta, indirect, partial) is refused, not misread.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    if len(der) > MAX_LIST:
        raise EndorsementError(f"a revocation list of {len(der)} bytes is over its bound of {MAX_LIST}")
    outer = Der(der, "revocation list")
    signed, algorithm, signature = _envelope(outer)
    body = Der(signed, "revocation list").enter(SEQUENCE)
    if body.peek() == INTEGER and body.integer() != 1:
        raise body.fail("it is not of version 2")
    if body.element(SEQUENCE)[0] != algorithm:
        raise body.fail("it names two signature algorithms")
    issuer = body.element(SEQUENCE)[0]
    this_update, next_update = body.time(), body.time()
    revoked: set[int] = set()
    if body.peek() == SEQUENCE:
        entries = body.enter(SEQUENCE)
        while not entries.done:
            entry = entries.enter(SEQUENCE)
            revoked.add(entry.integer())
            entry.time()
            if not entry.done:
                _no_critical(_extensions(entry, wrapped=False), entry)
            entry.end()
    if not body.done:
        _no_critical(_extensions(body.enter(0xA0)), body)
    body.end()
    return RevocationList(
        der=der,
        signed=signed,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        revoked=frozenset(revoked),
        algorithm=algorithm,
        signature=signature,
    )


def read_pem_certificates(pem: bytes, *, what: str, count: int | None = None) -> tuple[bytes, ...]:
    """The certificates (DER) of a PEM file that holds nothing else; exactly ``count`` of them if given.

    Raises :class:`~cloister.errors.EndorsementError`.
    """
    limit = 2 * MAX_CERTIFICATE * MAX_PEM_CERTIFICATES
    try:
        text = pem[: limit + 1].decode("ascii")
    except UnicodeDecodeError:
        raise EndorsementError(f"{what} is not PEM", todo="fetch it again") from None
    found: list[bytes] = []
    at = 0
    while at < len(text) <= limit and len(found) < MAX_PEM_CERTIFICATES:
        match = _PEM.match(text, at)
        if match is None:
            break
        try:
            found.append(base64.b64decode(re.sub(r"\s", "", match.group(1)), validate=True))
        except (binascii.Error, ValueError):
            break
        at = match.end()
    if not found or at != len(text):
        raise EndorsementError(f"{what} is not PEM certificates and nothing else", todo="fetch it again")
    if count is not None and len(found) != count:
        raise EndorsementError(f"{what} holds {len(found)} certificates, not {count}", todo="fetch it again")
    return tuple(found)


def common_name(name: bytes) -> str:
    """CN of a DER ``name``, in at most 64 printable characters; empty where there is none, or more than one.

    Raises :class:`~cloister.errors.EndorsementError` where it is no name.
    """
    parts = Der(name, "certificate's name").enter(SEQUENCE)
    found: list[str] = []
    while not parts.done:
        attribute = parts.enter(SET).enter(SEQUENCE)
        if attribute.peek() != OBJECT_IDENTIFIER or attribute.oid() != _COMMON_NAME:
            continue
        tag = attribute.peek()
        if tag in (UTF8_STRING, PRINTABLE_STRING, IA5_STRING):
            text = attribute.element(tag)[1].decode("utf-8", "replace")
            found.append("".join(char if char.isprintable() else "?" for char in text[:64]))
    return found[0] if len(found) == 1 else ""


def _envelope(outer: Der) -> tuple[bytes, bytes, bytes]:
    """The three parts of everything that is signed: what is signed, by which algorithm, the signature."""
    inner = outer.enter(SEQUENCE)
    outer.end()
    signed, algorithm = inner.element(SEQUENCE)[0], inner.element(SEQUENCE)[0]
    signature = inner.bits()
    inner.end()
    return signed, algorithm, signature


def _extensions(holder: Der, *, wrapped: bool = True) -> dict[str, Extension]:
    entries = holder.enter(SEQUENCE)
    if wrapped:
        holder.end()
    found: dict[str, Extension] = {}
    while not entries.done:
        entry = entries.enter(SEQUENCE)
        name = entry.oid()
        critical = entry.boolean() if entry.peek() == 0x01 else False
        value = entry.element(OCTET_STRING)[1]
        entry.end()
        if name in found or len(found) >= MAX_EXTENSIONS:
            raise entries.fail(f"extension {name} stands there twice, or there are too many")
        found[name] = Extension(critical, value)
    return found


def _no_critical(extensions: Mapping[str, Extension], where: Der) -> None:
    for name, extension in extensions.items():
        if extension.critical:
            raise where.fail(f"critical extension {name} is not understood")
