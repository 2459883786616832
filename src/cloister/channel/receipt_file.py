"""A receipt with the evidence that vouches for its key: a file from which an auditor needs nothing else, offline. Pure.

The private part (salt, method, path, status) opens the commitments for who has the bytes; it is left out when the file goes
to somebody who shall not be able to guess what was said. Checked by receipt_check.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from cloister.channel.exchange import AnswerReader, PlainRequest
from cloister.channel.headers import RECEIPT_HEADER, first
from cloister.channel.receipts import (
    SALT_SIZE,
    Receipt,
    SignedReceipt,
    check_receipt,
    commit_request,
    commit_response,
    parse_trailer,
)
from cloister.encoding import Record, decode_json, encode_json
from cloister.errors import ChannelError, FormatError
from cloister.evidence.key_material import KeyMaterial

FORMAT: Final = "cloister/receipt-file/v1"
MAX_FILE: Final = 4 << 20
SKEW: Final = 300
"""Seconds by which the clocks of client and workload may differ."""


class Opening(Record, frozen=True, kw_only=True):
    """What opens the commitments, together with the bytes of request and answer."""

    salt: bytes
    method: str
    path: str
    status: Annotated[int, Meta(ge=100, le=599)]


class ReceiptFile(Record, frozen=True, kw_only=True):
    """What lies in the file."""

    format: Literal["cloister/receipt-file/v1"] = FORMAT
    receipt: bytes
    signature: bytes
    evidence: bytes
    """The bundle as it came."""
    nonce: bytes
    verified_at: int
    """Unix seconds at which the client appraised it."""
    manifest: bytes | None = None
    """The signed manifest, as it came, by which the workload was accepted, where it was by one."""
    opening: Opening | None = None

    def encode(self) -> bytes:
        return encode_json(self) + b"\n"

    def shared(self) -> ReceiptFile:
        """The same without what opens the commitments."""
        return msgspec.structs.replace(self, opening=None)


def parse_file(data: bytes) -> ReceiptFile:
    """Strict. Raises :class:`FormatError`."""
    file = decode_json(data, ReceiptFile, what="the receipt's file", limit=MAX_FILE)
    if len(file.nonce) != 32 or (file.opening is not None and len(file.opening.salt) != SALT_SIZE):
        raise FormatError("the receipt's file has a nonce or a salt of another length")
    return file


def require_time(receipt: Receipt, material: KeyMaterial, verified_at: int) -> None:
    """Raise :class:`ChannelError` for a receipt of a time at which its key was not attested."""
    if not verified_at - SKEW <= receipt.ended <= material.not_after + SKEW:
        raise ChannelError(
            "the receipt was signed at a time at which its key was not attested", todo="do not rely on it"
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """Evidence as it was appraised."""

    evidence: bytes
    nonce: bytes
    verified_at: int
    manifest: bytes | None = None
    """By which it was accepted."""


@dataclass(frozen=True, slots=True)
class Promised:
    """What a request's receipt has to be, on the client's side."""

    salt: bytes = field(repr=False)
    request: PlainRequest
    material: KeyMaterial
    shown: Shown

    def take(self, answer: AnswerReader) -> ReceiptFile | None:
        """The receipt of an answer that was read to its end; None where a refusal comes without one.

        Raises :class:`ChannelError`, :class:`FormatError`.
        """
        status = 0 if answer.head is None else answer.head.status
        value = first(answer.trailers, RECEIPT_HEADER)
        if value is None:
            if status >= 400:
                return None
            raise ChannelError(
                "the answer came without a receipt", todo="ask without, or ask its operator for a newer one"
            )
        signed = parse_trailer(value)
        receipt = check_receipt(signed, self.material)
        asked = commit_request(self.salt, self.request.method, self.request.path, self.request.body)
        answered = commit_response(self.salt, status, answer.body_sha256)
        if (receipt.request_id.encode(), receipt.request, receipt.response) != (
            self.request.request_id,
            asked,
            answered,
        ):
            raise ChannelError("the receipt is of another request or answer", todo="do not rely on it")
        require_time(receipt, self.material, self.shown.verified_at)
        return self._file(signed, status)

    def _file(self, signed: SignedReceipt, status: int) -> ReceiptFile:
        return ReceiptFile(
            receipt=signed.content,
            signature=signed.signature,
            evidence=self.shown.evidence,
            nonce=self.shown.nonce,
            verified_at=self.shown.verified_at,
            manifest=self.shown.manifest,
            opening=Opening(
                salt=self.salt,
                method=self.request.method.decode("ascii"),
                path=self.request.path.decode("ascii"),
                status=status,
            ),
        )
