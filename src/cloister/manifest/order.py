"""An order: one act of owners on one broker, such as putting a resource or destroying a key (docs/spec/rule.md). Pure.

An order names the broker and the version that it makes, so it works once and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cloister.encoding import Record
from cloister.errors import ManifestError
from cloister.manifest.acceptance import AcceptedManifest
from cloister.manifest.manifest import named_keys
from cloister.manifest.names import check_digest, check_names, check_number, check_path
from cloister.manifest.quorum import Quorum, require_quorum
from cloister.manifest.signed import Signed, decode_canonical, verified_signers

MAX_ORDER = 4096
Action = Literal["put", "destroy", "rotate-key", "destroy-key", "reset-tree"]
_ACCEPTED = object()


class Order(Record, frozen=True, kw_only=True):
    """An order that passed :func:`parse_order`: well formed, signed by nobody yet."""

    format: Literal["cloister/order/v1"] = "cloister/order/v1"
    application: str
    broker: str
    """The broker's state id, hexadecimal."""
    action: Action
    subject: str
    """A resource, or the repository whose key it is about."""
    version: int
    """Of the subject after this order."""
    content_sha256: str
    """Of what is put; otherwise empty."""


def parse_order(data: bytes) -> Order:
    """Read and check. Raises :class:`~cloister.errors.ManifestError`."""
    order = decode_canonical(data, Order, what="the order", limit=MAX_ORDER)
    check_names([order.application], "an application")
    check_names([order.broker], "a broker")
    check_path(order.subject, what="the subject of an order", parts=range(1, 4))
    if order.action in ("put", "destroy", "reset-tree"):
        check_path(order.subject, what="a resource", parts=range(3, 4))
    check_number(order.version, what="the version that an order makes", low=1)
    if order.action == "put":
        check_digest(order.content_sha256, what="the digest of what is put")
    elif order.content_sha256:
        raise ManifestError(f"an order to {order.action} carries no content")
    return order


@dataclass(frozen=True, slots=True)
class AcceptedOrder:
    """An order that its quorum signed. Made by :func:`accept_order` alone."""

    order: Order
    digest: str
    """SHA-256 of the document, hexadecimal."""
    signed: Signed
    signers: frozenset[str]
    _seal: object = field(repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self._seal != (_ACCEPTED, self.order, self.digest, self.signed, self.signers):
            raise TypeError("an AcceptedOrder is made by accept_order(), never by hand")


def accept_order(signed: Signed, *, manifest: AcceptedManifest, broker: str, quorum: Quorum) -> AcceptedOrder:
    """Accept an order to ``broker`` (its state id) that ``quorum``, of the manifest's owners, has to give.

    Whether its version is the next is for the caller, who knows the subject. Raises :class:`~cloister.errors.ManifestError`.
    """
    order = parse_order(signed.document)
    if order.application != manifest.manifest.application:
        raise ManifestError(
            f"this is an order of {order.application}, and {manifest.manifest.application} is in force"
        )
    if order.broker != broker:
        raise ManifestError("the order was given to another broker", todo="sign it for this one")
    signers = verified_signers("order", signed, named_keys(manifest.manifest.owners, "an owner"))
    require_quorum(quorum, signers, f"the order to {order.action} {order.subject}")
    digest = signed.digest
    return AcceptedOrder(order, digest, signed, signers, (_ACCEPTED, order, digest, signed, signers))
