"""Requests signed by a person's key: how owners, operators and auditors ask a broker (docs/spec/broker-admin.md).

The signature covers the broker, method, path with query, body and a nonce of the broker, which is spent by its first
use. Who signed is looked up in the manifest in force; there are no passwords and no tokens. What a role may ask is
decided by whoever serves it.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Literal

from cloister.encoding import Record, b64url_decode, b64url_encode, decode_json, encode_json, from_hex
from cloister.errors import BrokerError, FormatError, ManifestError, SessionRefused
from cloister.manifest.manifest import Manifest
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.signed import signed_message
from cloister.manifest.signers import Signer

FORMAT: Final = "cloister/request/v1"
SCHEME: Final = "Cloister"
NONCE_SIZE: Final = 32
NONCE_SECONDS: Final = 60
MAX_NONCES: Final = 65_536
MAX_HEADER: Final = 8192

Role = Literal["owner", "operator", "auditor"]
EVERYBODY: Final[frozenset[Role]] = frozenset(("owner", "operator", "auditor"))


class NotAllowed(BrokerError):
    """A signature that does not hold, or of somebody whose role may not ask this."""

    exit_code = SessionRefused.exit_code


class TooManyNonces(BrokerError):
    """Too many nonces were given out: come back when some have ended."""


class RequestDocument(Record, frozen=True, kw_only=True):
    """What is signed."""

    format: Literal["cloister/request/v1"] = FORMAT
    broker: str
    method: str
    path: str
    body_sha256: str
    nonce: str


class Credential(Record, frozen=True, kw_only=True):
    """What travels: ``Authorization: Cloister <base64url of this>``."""

    key: str
    nonce: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Person:
    """Who signed a request."""

    name: str
    role: Role


class Nonces:
    """Nonces that were given out and not used. Thread-safe; times are arguments."""

    def __init__(self, *, entropy: Callable[[int], bytes] = os.urandom, limit: int = MAX_NONCES) -> None:
        self._entropy = entropy
        self._limit = limit
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}

    def draw(self, now: int) -> str:
        """A nonce for one request within a minute, hexadecimal. Raises :class:`TooManyNonces`."""
        nonce = self._entropy(NONCE_SIZE).hex()
        with self._lock:
            if len(self._open) >= self._limit:
                self._open = {one: end for one, end in self._open.items() if now < end}
            if len(self._open) >= self._limit:
                raise TooManyNonces("too many requests are being prepared", todo="try again in a minute")
            self._open[nonce] = now + NONCE_SECONDS
        return nonce

    def spend(self, nonce: str, now: int) -> None:
        """Use a nonce up. Raises :class:`NotAllowed`."""
        with self._lock:
            end = self._open.pop(nonce, 0)
        if now >= end:
            raise NotAllowed(
                "the request's nonce is unknown, spent or expired", todo="ask for another and sign again"
            )


def credential(signer: Signer, *, broker: str, method: str, path: str, body: bytes, nonce: str) -> str:
    """The value of the ``Authorization`` header of one request."""
    document = _document(broker, method, path, body, nonce)
    signature = signer.sign(signed_message("request", document))
    return (
        f"{SCHEME} {b64url_encode(encode_json(Credential(key=signer.key, nonce=nonce, signature=signature)))}"
    )


def require_person(
    header: str,
    *,
    broker: str,
    method: str,
    path: str,
    body: bytes,
    manifest: Manifest,
    roles: Collection[Role],
    nonces: Nonces,
    now: int,
) -> Person:
    """Who signed this request, if that is somebody of these roles. Raises :class:`NotAllowed`."""
    scheme, _, value = header.partition(" ")
    if scheme != SCHEME or len(value) > MAX_HEADER:
        raise NotAllowed("this needs a signed request", todo="ask with `cloister owner` or `cloister audit`")
    try:
        given = decode_json(b64url_decode(value, what="credential"), Credential, what="credential")
        from_hex(given.nonce, NONCE_SIZE, what="nonce")
    except FormatError as error:
        raise NotAllowed(error.what) from None
    nonces.spend(given.nonce, now)
    person = _find(given.key, manifest, roles)
    document = _document(broker, method, path, body, given.nonce)
    try:
        parse_public_key(given.key).verify(signed_message("request", document), given.signature)
    except ManifestError:
        raise NotAllowed(
            "the signature of the request does not hold", todo="sign exactly what is sent"
        ) from None
    return person


def _find(key: str, manifest: Manifest, roles: Collection[Role]) -> Person:
    tables: dict[Role, dict[str, str]] = {
        "owner": manifest.owners,
        "operator": manifest.operators,
        "auditor": manifest.auditors,
    }
    for role, people in tables.items():
        for name, known in people.items():
            if known == key and role in roles:
                return Person(name, role)
    raise NotAllowed(
        f"the key is of nobody who may ask this ({', '.join(sorted(roles))})",
        todo="sign with a key that the manifest in force names",
    )


def _document(broker: str, method: str, path: str, body: bytes, nonce: str) -> bytes:
    return encode_json(
        RequestDocument(
            broker=broker,
            method=method,
            path=path,
            body_sha256=hashlib.sha256(body).hexdigest(),
            nonce=nonce,
        )
    )
