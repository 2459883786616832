"""Two small records of the state: how often a rule was used, and the newest index of each writable sealed tree."""

from __future__ import annotations

from typing import Final

from cloister.broker.transaction import Stored, Transaction
from cloister.broker.wire import TreeAdvance, TreeVersion
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import FormatError, ManifestError, Superseded

MAX_STEP: Final = 1 << 32
"""Versions of a tree from one that is recorded to the next."""


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
    """A version of a tree. Raises :class:`FormatError`."""
    said = decode_json(data, TreeVersion, what="tree version", limit=4096)
    _check(said)
    return said


def parse_tree_advance(data: bytes) -> TreeAdvance:
    """What a workload says of a tree it wrote. Raises :class:`FormatError`."""
    said = decode_json(data, TreeAdvance, what="tree version", limit=4096)
    _check(said.newest)
    if said.after is not None:
        _check(said.after)
    return said


def _check(version: TreeVersion) -> None:
    from_hex(version.tree, 32, what="tree")
    from_hex(version.digest, 32, what="digest")
    if not 1 <= version.version < 1 << 53:
        raise FormatError("a tree's version counts from 1")


def advance(before: TreeVersion | None, said: TreeAdvance) -> None:
    """Raise unless what was written may follow ``before``, which is recorded (or is exactly that, said again).

    It must have begun from ``before`` itself: of two who write copies of one tree, the second learns here that there is
    another. Versions may be skipped, since trees are recorded now and then, but not so many that none would be left.
    """
    newest = said.newest
    if newest == before:
        return
    if before is not None and newest.tree != before.tree:
        raise ManifestError(
            "another tree was recorded under this name", todo="seal it under a key of its own"
        )
    least = 0 if before is None else before.version
    far = before is not None and newest.version > least + MAX_STEP
    if said.after != before or newest.version <= least or far:
        raise Superseded(
            f"version {newest.version} of the tree does not follow {least}, which was recorded",
            todo="read the newest tree first; somebody else wrote it, or an old copy was put back",
        )
