"""Who signed a document, and who is still missing: for people who collect signatures. Pure; nothing here accepts anything.

What a signature is worth is decided in acceptance.py, rule.py and order.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.encoding import parse_json
from cloister.errors import FormatError, ManifestError, SignatureRefused
from cloister.manifest.acceptance import required_of_successor
from cloister.manifest.manifest import Manifest, governing, parse_manifest
from cloister.manifest.order import Order, parse_order
from cloister.manifest.owner_key import parse_public_key
from cloister.manifest.quorum import Quorum
from cloister.manifest.rule import Rule, parse_rule
from cloister.manifest.signed import MAX_DOCUMENT, Kind, Signed, shown, signed_message
from cloister.manifest.words import manifest_in_words, order_in_words, rule_in_words

Document = Manifest | Rule | Order


@dataclass(frozen=True, slots=True)
class Standing:
    """One signature."""

    name: str
    """The owner's, or empty for a key that nobody here names."""
    key: str
    refusal: str
    """Why it does not hold; empty if it does."""


@dataclass(frozen=True, slots=True)
class Demand:
    """One quorum that has to sign, and the names that did not yet."""

    what: str
    quorum: Quorum
    missing: tuple[str, ...]
    """Empty once the quorum is met."""


def read_document(signed: Signed) -> tuple[Kind, Document]:
    """The document, read as what its format says. Raises :class:`~cloister.errors.ManifestError`."""
    try:
        plain = parse_json(signed.document, what="the document", limit=MAX_DOCUMENT)
    except FormatError as error:
        raise ManifestError(error.what) from None
    found = plain.get("format") if isinstance(plain, dict) else None
    if found == "cloister/manifest/v1":
        return "manifest", parse_manifest(signed.document)
    if found == "cloister/rule/v1":
        return "rule", parse_rule(signed.document)
    if found == "cloister/order/v1":
        return "order", parse_order(signed.document)
    raise ManifestError("the document is neither a manifest nor a rule nor an order")


def in_words(document: Document) -> list[str]:
    """What it says, in sentences."""
    if isinstance(document, Manifest):
        return manifest_in_words(document)
    return rule_in_words(document) if isinstance(document, Rule) else order_in_words(document)


def standings(kind: Kind, signed: Signed, owners: Mapping[str, str]) -> list[Standing]:
    """Each signature by itself."""
    names = {key: name for name, key in owners.items()}
    message, found = signed_message(kind, signed.document), []
    for one in signed.signatures:
        refusal = ""
        try:
            parse_public_key(one.key).verify(message, one.signature)
        except (ManifestError, SignatureRefused) as error:
            refusal = error.what
        found.append(Standing(names.get(one.key, ""), shown(one.key), refusal))
    return found


def demands(document: Document, standing: list[Standing], base: Manifest | None) -> list[Demand]:
    """The quorums that have to sign ``document``.

    ``base`` is the predecessor of a manifest, and for rules and orders the manifest in force; without it only what a first
    manifest needs can be told.
    """
    signers = {one.name for one in standing if one.name and not one.refusal}
    return [_demand(what, quorum, signers) for what, quorum in _quorums(document, base)]


def _quorums(document: Document, base: Manifest | None) -> list[tuple[str, Quorum]]:
    if isinstance(document, Manifest):
        if base is not None:
            return required_of_successor(base, document)
        if document.version > 1:
            return []
        entries = [
            (f"what decides about {prefix}", one) for prefix, one in sorted(document.resources.items())
        ]
        return [("version 1", document.update), *entries]
    if base is None:
        return []
    path = document.resource if isinstance(document, Rule) else document.subject
    entry = governing(base, path)
    if entry is None:
        raise ManifestError(f"the manifest of {base.application} names no owners for {path}")
    return [(f"what is below {entry[0]}", entry[1])]


def _demand(what: str, quorum: Quorum, signers: set[str]) -> Demand:
    missing = tuple(name for name in quorum.owners if name not in signers)
    met = len(quorum.owners) - len(missing) >= quorum.threshold
    return Demand(what, quorum, () if met else missing)
