"""Two small records of the state: how often a rule was used, and the newest index of each writable sealed tree."""

from __future__ import annotations

from cloister.broker.transaction import Stored, Transaction
from cloister.broker.wire import TreeVersion
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import FormatError, ManifestError, Superseded


class Counter(Record, frozen=True, kw_only=True):
    """How often a version of a rule was used; a new version counts anew. ``rule`` is its digest."""

    rule: str
    released: int


def counted(stored: Stored | None, rule: str) -> Counter:
    """The count of ``rule`` (a digest) that a ``counter`` record holds."""
    if stored is None:
        return Counter(rule=rule, released=0)
    counter = decode_json(stored.body, Counter, what="counter")
    return counter if counter.rule == rule else Counter(rule=rule, released=0)


def count(transaction: Transaction, path: str, rule: str, released: int) -> None:
    """Stage the count of ``rule`` on ``path``."""
    transaction.put("counter", path, encode_json(Counter(rule=rule, released=released)))


def parse_tree_version(data: bytes) -> TreeVersion:
    """What a workload says of a tree it wrote. Raises :class:`FormatError`."""
    said = decode_json(data, TreeVersion, what="tree version", limit=4096)
    from_hex(said.tree, 32, what="tree")
    from_hex(said.digest, 32, what="digest")
    if not 1 <= said.version < 1 << 53:
        raise FormatError("a tree's version counts from 1")
    return said


def advance(before: TreeVersion | None, said: TreeVersion) -> None:
    """Raise unless ``said`` may follow ``before``: the same tree, and the next version (or exactly the same again)."""
    if before is None or said == before:
        return
    if said.tree != before.tree:
        raise ManifestError(
            "another tree was recorded under this name", todo="seal it under a key of its own"
        )
    if said.version != before.version + 1:
        raise Superseded(
            f"version {said.version} of the tree does not follow {before.version}, which was recorded",
            todo="read the newest tree first; somebody else wrote it, or an old copy was put back",
        )
