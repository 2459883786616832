"""What a whole tree is at one moment, in 32 bytes: the hash chain over all transactions there ever were.

Pure. A head is compared, never trusted for being well-formed: who opens a tree gives the newest one that somebody else
remembers (the broker), and a tree that is older, or that went another way since, is refused. Format:
docs/spec/sealed-tree.md.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cloister.encoding import labelled_hash

FIRST_VERSION: Final = 1
"""Of a tree that was just made."""
_LABEL: Final = "cloister/sealed-tree-chain/v1"


@dataclass(frozen=True, slots=True)
class Head:
    """One version of one tree."""

    tree: str
    """The tree's id, 32 bytes, hexadecimal."""
    version: int
    """1 for a new tree, one more with each commit."""
    digest: str
    """The chain at that version, 32 bytes, hexadecimal."""


def first_link(tree_id: bytes) -> bytes:
    """The chain of a new tree, 32 bytes."""
    return labelled_hash(_LABEL, tree_id)


def next_link(link: bytes, record: bytes | memoryview) -> bytes:
    """The chain behind ``record``, whose bytes are those that are stored."""
    return labelled_hash(_LABEL, link, hashlib.sha256(record).digest())
