"""Receipts of answers: what was asked and answered, committed to under a salt and signed by a key in the evidence. Pure.

The client draws the salt and sends it inside the seal. A receipt without it says that this workload answered *something* at
that time; with the salt and the bytes it proves what (docs/spec/receipt.md). Short prompts could be guessed from a plain
digest, and cannot from a commitment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from msgspec import Meta

from cloister.encoding import (
    Record,
    b64url_decode,
    b64url_encode,
    decode_json,
    encode_json,
    from_hex,
    labelled_hash,
)
from cloister.errors import ChannelError, FormatError
from cloister.evidence.key_material import KeyMaterial

FORMAT: Final = "cloister/receipt/v1"
HEADER: Final = b"cloister-receipt"
"""Of a request inside the seal: the salt. Of an answer: a trailer, the receipt."""
EXTENSION: Final = "cloister.receipt"
"""Name of the ASGI extension by which an application commits to what an answer was made from: a :class:`Draft`."""
SALT_SIZE: Final = 32
MAX_RECEIPT: Final = 32 * 1024
MAX_PASSAGES: Final = 64
_REQUEST: Final = "cloister/receipt-request/v1"
_RESPONSE: Final = "cloister/receipt-response/v1"
_PASSAGE: Final = "cloister/receipt-passage/v1"
_SIGNED: Final = "cloister/receipt-signature/v1"

Sign = Callable[[bytes], bytes]


class Receipt(Record, frozen=True, kw_only=True):
    """What is signed."""

    format: Literal["cloister/receipt/v1"] = FORMAT
    request_id: str
    """As the client drew it for this request: 32 lower-case hexadecimal digits."""
    request: str
    """Commitment to method, path and body, 64 hexadecimal digits."""
    response: str
    """Commitment to status and body."""
    passages: Annotated[tuple[str, ...], Meta(max_length=MAX_PASSAGES)] = ()
    """Commitments to what the answer was made from, in the order of its numbers."""
    manifest_sha256: str | None = None
    """Of the signed manifest that the workload showed at the end of the answer."""
    began: int
    """Unix seconds, by the workload's clock."""
    ended: int


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt with its exact bytes; not yet verified."""

    receipt: Receipt
    content: bytes
    signature: bytes


def commit_request(salt: bytes, method: bytes, path: bytes, body: bytes) -> str:
    """``path`` with its query, as it was sealed."""
    return labelled_hash(_REQUEST, salt, method, path, hashlib.sha256(body).digest()).hex()


def commit_response(salt: bytes, status: int, body_sha256: bytes) -> str:
    """``body_sha256`` of all data of the answer, however it was streamed."""
    return labelled_hash(_RESPONSE, salt, status.to_bytes(2, "big"), body_sha256).hex()


def commit_passage(salt: bytes, *parts: bytes) -> str:
    """What the application says a passage is: its place and text."""
    return labelled_hash(_PASSAGE, salt, *parts).hex()


def parse_salt(value: bytes) -> bytes:
    """The salt of a request's field. Raises :class:`FormatError`."""
    return b64url_decode(value.decode("ascii", "replace"), what="the receipt's salt", length=SALT_SIZE)


def encode_salt(salt: bytes) -> bytes:
    return b64url_encode(salt).encode("ascii")


@dataclass(slots=True)
class Draft:
    """A receipt in the making, on the workload's side; of one answer."""

    salt: bytes = field(repr=False)
    sign: Sign = field(repr=False)
    request_id: str
    request: str
    began: int
    _passages: list[str] = field(default_factory=list)

    def passage(self, *parts: bytes) -> None:
        """Commit to one more thing that the answer is made from. Raises ValueError for too many."""
        if len(self._passages) >= MAX_PASSAGES:
            raise ValueError("a receipt has no room for more passages")
        self._passages.append(commit_passage(self.salt, *parts))

    def trailer(self, status: int, body_sha256: bytes, *, manifest: bytes | None, ended: int) -> bytes:
        """The value of the answer's trailer."""
        content = encode_json(
            Receipt(
                request_id=self.request_id,
                request=self.request,
                response=commit_response(self.salt, status, body_sha256),
                passages=tuple(self._passages),
                manifest_sha256=None if manifest is None else hashlib.sha256(manifest).hexdigest(),
                began=self.began,
                ended=max(self.began, ended),
            )
        )
        signature = self.sign(labelled_hash(_SIGNED, content))
        return f"{b64url_encode(content)}.{b64url_encode(signature)}".encode("ascii")


def parse_trailer(value: bytes) -> SignedReceipt:
    """What an answer's trailer says. Raises :class:`FormatError`."""
    content, mark, signature = value.decode("ascii", "replace").partition(".")
    if not mark:
        raise FormatError("the receipt has no signature")
    return parse_receipt(
        b64url_decode(content, what="the receipt"),
        b64url_decode(signature, what="the receipt's signature", length=64),
    )


def parse_receipt(content: bytes, signature: bytes) -> SignedReceipt:
    """Strict. Raises :class:`FormatError`."""
    receipt = decode_json(content, Receipt, what="the receipt", limit=MAX_RECEIPT)
    for digest in (receipt.request, receipt.response, *receipt.passages):
        from_hex(digest, 32, what="a commitment of the receipt")
    from_hex(receipt.request_id, 16, what="the receipt's request id")
    if receipt.manifest_sha256 is not None:
        from_hex(receipt.manifest_sha256, 32, what="the receipt's manifest")
    if not 0 <= receipt.began <= receipt.ended:
        raise FormatError("the receipt ends before it begins")
    return SignedReceipt(receipt, content, signature)


def check_receipt(signed: SignedReceipt, material: KeyMaterial) -> Receipt:
    """The receipt, signed by the key that attested ``material`` shows. Raises :class:`ChannelError`."""
    if material.receipt_public_key is None:
        raise ChannelError("this workload shows no key for receipts", todo="ask its operator for a newer one")
    key = Ed25519PublicKey.from_public_bytes(
        from_hex(material.receipt_public_key, 32, what="the receipts' key")
    )
    try:
        key.verify(signed.signature, labelled_hash(_SIGNED, signed.content))
    except InvalidSignature:
        raise ChannelError(
            "the receipt is not signed by the key in the evidence", todo="do not rely on it"
        ) from None
    return signed.receipt
