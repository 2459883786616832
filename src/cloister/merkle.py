"""Merkle trees and inclusion proofs as RFC 6962 (section 2.1) and RFC 9162 hash them, over SHA-256.

Used wherever one signature has to serve many: the nonces of a window under one quote, later the audit log.
Verification raises; it never returns a bool.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cloister.errors import FormatError

DIGEST_SIZE = 32
MAX_LEAVES = 1 << 20


def leaf_hash(leaf: bytes) -> bytes:
    """SHA-256(0x00 ‖ leaf), 32 bytes."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two smaller than ``size`` (size > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


def root(leaves: Sequence[bytes]) -> bytes:
    """The tree head over ``leaves`` (1 to 2^20 of them). Raises :class:`FormatError` on an empty tree."""
    if not 1 <= len(leaves) <= MAX_LEAVES:
        raise FormatError(f"a tree has 1 to {MAX_LEAVES} leaves, not {len(leaves)}")
    return _root([leaf_hash(leaf) for leaf in leaves])


def _root(hashes: Sequence[bytes]) -> bytes:
    if len(hashes) == 1:
        return hashes[0]
    k = _split(len(hashes))
    return _node(_root(hashes[:k]), _root(hashes[k:]))


def inclusion_proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of leaf ``index``, lowest sibling first (RFC 6962, section 2.1.1)."""
    if not 0 <= index < len(leaves) <= MAX_LEAVES:
        raise FormatError(f"there is no leaf {index} in a tree of {len(leaves)}")
    return inclusion_proofs(leaves)[1][index]


def inclusion_proofs(leaves: Sequence[bytes]) -> tuple[bytes, tuple[tuple[bytes, ...], ...]]:
    """The tree head and every leaf's audit path, in one pass over the tree. Raises :class:`FormatError`."""
    if not 1 <= len(leaves) <= MAX_LEAVES:
        raise FormatError(f"a tree has 1 to {MAX_LEAVES} leaves, not {len(leaves)}")
    head, paths = _all_paths([leaf_hash(leaf) for leaf in leaves])
    return head, tuple(tuple(path) for path in paths)


def _all_paths(hashes: Sequence[bytes]) -> tuple[bytes, list[list[bytes]]]:
    if len(hashes) == 1:
        return hashes[0], [[]]
    k = _split(len(hashes))
    (left, left_paths), (right, right_paths) = _all_paths(hashes[:k]), _all_paths(hashes[k:])
    for path in left_paths:
        path.append(right)
    for path in right_paths:
        path.append(left)
    return _node(left, right), left_paths + right_paths


def root_of_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The head that ``path`` leads to from ``leaf`` (RFC 9162, section 2.1.3.2).

    Raises :class:`FormatError` when the path cannot be one of a tree of ``size`` leaves.
    """
    if not 1 <= size <= MAX_LEAVES or not 0 <= index < size:
        raise FormatError(f"leaf {index} of {size} cannot be in a tree")
    node, last, digest = index, size - 1, leaf_hash(leaf)
    for sibling in path:
        if len(sibling) != DIGEST_SIZE or last == 0:
            raise FormatError("the inclusion proof does not fit its tree")
        if node & 1 or node == last:
            digest = _node(sibling, digest)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            digest = _node(digest, sibling)
        node >>= 1
        last >>= 1
    if last != 0:
        raise FormatError("the inclusion proof does not fit its tree")
    return digest


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], head: bytes) -> None:
    """Raise :class:`FormatError` unless ``leaf`` is number ``index`` of the tree with this ``head``."""
    if not hmac.compare_digest(root_of_inclusion(leaf, index, size, path), head):
        raise FormatError("the inclusion proof leads to another tree head")
