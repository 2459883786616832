"""Tree heads: what a broker signs about its log and state, and what witnesses co-sign (docs/spec/tree-head.md). Pure.

A head names the log, its size and root, and the root of the state tree after its last entry: one signature covers the
whole state. Witnesses sign the same bytes. Verification raises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cloister.encoding import Record, decode_json, encode_json, from_hex, labelled_hash
from cloister.errors import EXIT_VERIFICATION, BrokerError, FormatError, SignatureRefused
from cloister.manifest.owner_key import PublicKey
from cloister.manifest.signed import signed_message
from cloister.manifest.signers import Signer
from cloister.merkle import EMPTY_ROOT, MAX_TREE

HEAD_FORMAT: Final = "cloister/tree-head/v1"
LOG_LABEL: Final = "cloister/log-id/v1"
SIGNATURE_LABEL: Final = "cloister/tree-head-signature/v1"
MAX_HEAD: Final = 1024
MAX_SIGNED_HEAD: Final = 64 * 1024
MAX_COSIGNATURES: Final = 64


class RollbackFound(BrokerError):
    """A state or log that is older than what was seen of it."""

    exit_code = EXIT_VERIFICATION


class ForkFound(BrokerError):
    """Two histories of one log."""

    exit_code = EXIT_VERIFICATION


class HeadRefused(BrokerError):
    """A tree head that is malformed, of another log, or not signed as it must be."""

    exit_code = EXIT_VERIFICATION


class TreeHead(Record, frozen=True, kw_only=True):
    """What is signed. Digests are hexadecimal, ``time`` is Unix seconds."""

    format: Literal["cloister/tree-head/v1"] = HEAD_FORMAT
    log: str
    size: int
    root: str
    state: str
    time: int


class Cosignature(Record, frozen=True, kw_only=True):
    """One witness's signature of the same bytes."""

    key: str
    signature: bytes


class SignedHead(Record, frozen=True, kw_only=True):
    """A head as it travels: its exact bytes, the log's signature, and witnesses'."""

    head: bytes
    signature: bytes
    cosignatures: tuple[Cosignature, ...] = ()


def log_id(log_key: bytes) -> str:
    """The name of the log that this public key (32 bytes) signs, hexadecimal."""
    return labelled_hash(LOG_LABEL, log_key).hex()


def sign_head(head: TreeHead, key: Ed25519PrivateKey) -> SignedHead:
    """``head`` signed by the log's key."""
    data = encode_json(head)
    return SignedHead(head=data, signature=key.sign(_message(data)))


def verify_head(signed: SignedHead, *, log_key: bytes) -> TreeHead:
    """The head, if the log's key (32 bytes) signed it. Raises :class:`HeadRefused`."""
    head = parse_head(signed.head)
    if head.log != log_id(log_key):
        raise HeadRefused("the tree head is of another log", todo="compare the log keys")
    try:
        Ed25519PublicKey.from_public_bytes(log_key).verify(signed.signature, _message(signed.head))
    except (InvalidSignature, ValueError):
        raise HeadRefused(
            "the signature of the tree head does not hold", todo="do not believe this log"
        ) from None
    return head


def cosign(head: bytes, signer: Signer) -> Cosignature:
    """A witness's signature of these head bytes."""
    return Cosignature(key=signer.key, signature=signer.sign(signed_message("witness", head)))


def with_cosignatures(signed: SignedHead, cosignatures: tuple[Cosignature, ...]) -> SignedHead:
    """The same head with these co-signatures."""
    return SignedHead(head=signed.head, signature=signed.signature, cosignatures=cosignatures)


def verify_cosignature(head: bytes, cosignature: Cosignature, key: PublicKey) -> None:
    """Raise :class:`HeadRefused` unless ``key`` co-signed these head bytes."""
    if cosignature.key != key.text:
        raise HeadRefused("a co-signature is of another key than its witness's")
    try:
        key.verify(signed_message("witness", head), cosignature.signature)
    except SignatureRefused as error:
        raise HeadRefused(f"a co-signature does not hold ({error.what})") from None


def require_cosignatures(
    signed: SignedHead, *, keys: Mapping[str, PublicKey], threshold: int
) -> frozenset[str]:
    """The witnesses (by the names of ``keys``) who co-signed. Raises :class:`HeadRefused` if they are too few.

    A signature that does not hold, of a stranger, or a second one of the same witness refuses the whole.
    """
    if not 1 <= threshold <= len(keys):
        raise HeadRefused("a threshold is from 1 to the number of witnesses")
    if len({key.identity for key in keys.values()}) != len(keys):
        raise HeadRefused("two names of witnesses are one key, which would count twice")
    if len(signed.cosignatures) > MAX_COSIGNATURES:
        raise HeadRefused(f"a tree head has at most {MAX_COSIGNATURES} co-signatures")
    names = {key.text: name for name, key in keys.items()}
    found: set[str] = set()
    for one in signed.cosignatures:
        name = names.get(one.key)
        if name is None or name in found:
            raise HeadRefused("a co-signature is of a stranger, or one witness's twice")
        verify_cosignature(signed.head, one, keys[name])
        found.add(name)
    if len(found) < threshold:
        raise HeadRefused(
            f"{len(found)} witnesses co-signed the tree head, and {threshold} must", todo="ask again"
        )
    return frozenset(found)


def parse_head(data: bytes) -> TreeHead:
    """A head in its one form, its signature unchecked. Raises :class:`HeadRefused`."""
    try:
        head = decode_json(data, TreeHead, what="tree head", limit=MAX_HEAD)
        for name in ("log", "root", "state"):
            from_hex(getattr(head, name), 32, what=name)
        if encode_json(head) != data or not 0 <= head.size <= MAX_TREE or head.time < 0:
            raise FormatError("the tree head is not in its one form")
        if head.size == 0 and head.root != EMPTY_ROOT.hex():
            raise FormatError("the tree head gives a root to no entries")
    except FormatError as error:
        raise HeadRefused(error.what) from None
    return head


def parse_signed_head(data: bytes) -> SignedHead:
    """A signed head, unchecked. Raises :class:`HeadRefused`."""
    try:
        return decode_json(data, SignedHead, what="signed tree head", limit=MAX_SIGNED_HEAD)
    except FormatError as error:
        raise HeadRefused(error.what) from None


def encode_signed_head(signed: SignedHead) -> bytes:
    """The bytes that :func:`parse_signed_head` reads."""
    return encode_json(signed)


def _message(head: bytes) -> bytes:
    return f"{SIGNATURE_LABEL}\nsha256 {hashlib.sha256(head).hexdigest()}\n".encode("ascii")
