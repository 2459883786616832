"""A receipt checked by who was not there: its evidence again, as of then, its signature, what it commits to. Pure.

The evidence holds the endorsements that its verification used, so nothing is fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cloister.appraisal.policy import Policy
from cloister.appraisal.result import AttestationResult
from cloister.channel.manifest_anchor import Anchored, Seen
from cloister.channel.receipt_file import Opening, ReceiptFile, require_time
from cloister.channel.receipts import (
    Receipt,
    check_receipt,
    commit_passage,
    commit_request,
    commit_response,
    parse_receipt,
)
from cloister.channel.verification import appraise_any
from cloister.errors import ChannelError, FormatError
from cloister.evidence.bundle import parse_bundle
from cloister.evidence.key_material import KeyMaterial


@dataclass(frozen=True, slots=True)
class Checked:
    """A receipt that holds, and by whose evidence."""

    receipt: Receipt
    result: AttestationResult[KeyMaterial]
    manifest: Seen | None
    """By which the workload was accepted, where it was by one."""


def check_file(file: ReceiptFile, accepts: Sequence[Policy] | Anchored) -> Checked:
    """Appraise the evidence as of then, and the receipt by its key.

    ``accepts`` is policies of which one has to be met, or an anchor that the manifest in the file has to hold against.
    Raises what appraisal raises, ManifestError, and ChannelError.
    """
    seen: Seen | None = None
    if isinstance(accepts, Anchored):
        if file.manifest is None:
            raise ChannelError(
                "the receipt came from a workload that was accepted by a policy, without a manifest",
                todo="check it with --policy",
            )
        taken = accepts.take(file.manifest)
        policies, seen = taken.policies, taken.seen
    else:
        policies = tuple(accepts)
    result = appraise_any(parse_bundle(file.evidence), policies, nonce=file.nonce, now=file.verified_at)
    material = result.require_fresh(file.verified_at)
    receipt = check_receipt(parse_receipt(file.receipt, file.signature), material)
    require_time(receipt, material, file.verified_at)
    return Checked(receipt, result, seen)


def check_content(
    file: ReceiptFile, signed: Receipt, *, request: bytes | None, response: bytes | None
) -> None:
    """Raise :class:`ChannelError` unless these bytes are what the receipt commits to; FormatError without its opening."""
    one = _opening(file)
    if request is not None and signed.request != commit_request(
        one.salt, one.method.encode(), one.path.encode(), request
    ):
        raise ChannelError("the request is not the one that was answered")
    if response is not None and signed.response != commit_response(
        one.salt, one.status, hashlib.sha256(response).digest()
    ):
        raise ChannelError("the answer is not the one that was given")


def check_passages(file: ReceiptFile, signed: Receipt, passages: Sequence[Sequence[bytes]]) -> None:
    """Raise :class:`ChannelError` unless the answer was made from exactly these, each told by its parts, in this order;
    FormatError without its opening.
    """
    found = tuple(commit_passage(_opening(file).salt, *parts) for parts in passages)
    if found != signed.passages:
        raise ChannelError("the passages are not those that the answer was made from")


def _opening(file: ReceiptFile) -> Opening:
    if file.opening is None:
        raise FormatError("this file cannot be opened: it was shared without its salt")
    return file.opening
