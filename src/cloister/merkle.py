"""Merkle trees and inclusion proofs as RFC 6962 (section 2.1) and RFC 9162 hash them, over SHA-256.

Used wherever one signature has to serve many: the nonces of a window under one quote, the entries of an audit log, the
records of a state. Verification raises; it never returns a bool.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Sequence

from cloister.errors import FormatError

DIGEST_SIZE = 32
MAX_LEAVES = 1 << 20
"""Of a tree whose leaves are given all at once."""
MAX_TREE = 1 << 32
"""Leaves of a :class:`Tree`, and of trees whose proofs are checked."""
EMPTY_ROOT = hashlib.sha256(b"").digest()
"""The root over no leaves (RFC 6962, section 2.1)."""


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
    if not 1 <= size <= MAX_TREE or not 0 <= index < size:
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


def verify_consistency(old_size: int, new_size: int, old: bytes, new: bytes, path: Sequence[bytes]) -> None:
    """Raise :class:`FormatError` unless the tree with head ``new`` extends that with head ``old``.

    RFC 9162, section 2.1.4.2; a tree of no leaves is extended by any, and then there is no path.
    """
    if not 0 <= old_size <= new_size <= MAX_TREE:
        raise FormatError(f"a tree of {new_size} leaves cannot extend one of {old_size}")
    if old_size in (0, new_size):
        wanted = EMPTY_ROOT if old_size == 0 else new
        if path or not hmac.compare_digest(old, wanted):
            raise FormatError("the consistency proof does not fit its trees")
        return
    steps = [old, *path] if old_size & (old_size - 1) == 0 else list(path)
    if not steps or any(len(step) != DIGEST_SIZE for step in steps):
        raise FormatError("the consistency proof does not fit its trees")
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node >>= 1
        last >>= 1
    first = second = steps[0]
    for step in steps[1:]:
        if last == 0:
            raise FormatError("the consistency proof does not fit its trees")
        if node & 1 or node == last:
            first, second = _node(step, first), _node(step, second)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            second = _node(second, step)
        node >>= 1
        last >>= 1
    if last != 0:
        raise FormatError("the consistency proof does not fit its trees")
    if not (hmac.compare_digest(first, old) and hmac.compare_digest(second, new)):
        raise FormatError("the consistency proof leads to other tree heads")


class Tree:
    """A tree that grows, in memory: every complete node once, 64 bytes a leaf. Not thread-safe.

    Roots and proofs are those of RFC 6962 for any size it has had; leaves may be exchanged (:meth:`set`), which a log never
    does and a tree over the records of a state does.
    """

    def __init__(self) -> None:
        self._levels: list[bytearray] = [bytearray()]

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0]) // DIGEST_SIZE

    def leaf(self, index: int) -> bytes:
        """The hash of a leaf. Raises :class:`FormatError` if there is none."""
        if not 0 <= index < self.size:
            raise FormatError(f"there is no leaf {index} in a tree of {self.size}")
        return self._get(0, index)

    def append(self, leaf: bytes) -> int:
        """Add the hash of a leaf (:func:`leaf_hash`); its index."""
        if len(leaf) != DIGEST_SIZE or self.size >= MAX_TREE:
            raise FormatError(
                f"a tree has at most {MAX_TREE} leaves, each of {DIGEST_SIZE} bytes when hashed"
            )
        index = self.size
        self._levels[0] += leaf
        level, number, digest = 0, index, leaf
        while number & 1:
            digest = _node(self._get(level, number - 1), digest)
            level, number = level + 1, number >> 1
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += digest
        return index

    def append_many(self, leaves: Iterable[bytes]) -> None:
        """Add the hashes of several leaves: all of them, or on :class:`FormatError` none."""
        hashes = list(leaves)
        if self.size + len(hashes) > MAX_TREE or any(len(leaf) != DIGEST_SIZE for leaf in hashes):
            raise FormatError(
                f"a tree has at most {MAX_TREE} leaves, each of {DIGEST_SIZE} bytes when hashed"
            )
        for leaf in hashes:
            self.append(leaf)

    def set(self, index: int, leaf: bytes) -> None:
        """Exchange the hash of a leaf."""
        if not 0 <= index < self.size or len(leaf) != DIGEST_SIZE:
            raise FormatError(f"there is no leaf {index} in a tree of {self.size}")
        self._put(0, index, leaf)
        for level in range(1, len(self._levels)):
            index >>= 1
            if index >= len(self._levels[level]) // DIGEST_SIZE:
                return
            pair = (self._get(level - 1, 2 * index), self._get(level - 1, 2 * index + 1))
            self._put(level, index, _node(*pair))

    def truncate(self, size: int) -> None:
        """Forget the leaves from ``size`` on."""
        if not 0 <= size <= self.size:
            raise FormatError(f"a tree of {self.size} leaves cannot be cut to {size}")
        for level, nodes in enumerate(self._levels):
            del nodes[(size >> level) * DIGEST_SIZE :]

    def root(self, size: int | None = None) -> bytes:
        """The root over the first ``size`` leaves, or all of them. Raises :class:`FormatError`."""
        size = self._checked(size)
        return EMPTY_ROOT if size == 0 else self._span(0, size)

    def inclusion(self, index: int, size: int | None = None) -> tuple[bytes, ...]:
        """The audit path of a leaf in the tree of the first ``size`` (RFC 6962, section 2.1.1)."""
        size = self._checked(size)
        if not 0 <= index < size:
            raise FormatError(f"there is no leaf {index} in a tree of {size}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._span(middle, end))
                end = middle
            else:
                path.append(self._span(start, middle))
                start = middle
        return tuple(reversed(path))

    def consistency(self, old: int, new: int | None = None) -> tuple[bytes, ...]:
        """The proof that the tree of the first ``new`` leaves extends that of ``old`` (RFC 6962, section 2.1.2)."""
        new = self._checked(new)
        if not 0 <= old <= new:
            raise FormatError(f"a tree of {new} leaves cannot extend one of {old}")
        if old in (0, new):
            return ()
        path: list[bytes] = []
        start, end, whole = 0, new, True
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                path.append(self._span(middle, end))
                end = middle
            else:
                path.append(self._span(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._span(start, end))
        return tuple(reversed(path))

    def _checked(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise FormatError(f"there is no tree of {size} leaves here, only of {self.size}")
        return size

    def _span(self, start: int, end: int) -> bytes:
        """The node over leaves ``start`` to ``end`` (exclusive); ``start`` is aligned as RFC 6962 splits."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self._get(level, start >> level)
        middle = start + _split(count)
        return _node(self._span(start, middle), self._span(middle, end))

    def _get(self, level: int, index: int) -> bytes:
        return bytes(self._levels[level][index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE])

    def _put(self, level: int, index: int, digest: bytes) -> None:
        self._levels[level][index * DIGEST_SIZE : (index + 1) * DIGEST_SIZE] = digest


class Frontier:
    """The root over leaves that pass by once, in the memory of one path: for whoever checks a log and keeps none of it."""

    def __init__(self) -> None:
        self.size = 0
        """How many leaves passed by."""
        self._peaks: list[bytes] = []
        """The roots of the complete subtrees so far, the largest first."""

    def append(self, leaf: bytes) -> None:
        """Take the hash of the next leaf. Raises :class:`FormatError`."""
        if len(leaf) != DIGEST_SIZE or self.size >= MAX_TREE:
            raise FormatError(
                f"a tree has at most {MAX_TREE} leaves, each of {DIGEST_SIZE} bytes when hashed"
            )
        number = self.size
        while number & 1:
            leaf = _node(self._peaks.pop(), leaf)
            number >>= 1
        self._peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The root over all of them."""
        if not self._peaks:
            return EMPTY_ROOT
        digest = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            digest = _node(peak, digest)
        return digest
