"""The keys of a tree, one for each purpose, all derived from its data key.

Refuses nothing and hands out no key bytes. What is sealed under one purpose opens under no other, and an object's segments
under no other object's key. Format: docs/spec/sealed-tree.md.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.sealing.envelope import erase, framed
from cloister.sealing.segments import KEY_SIZE
from cloister.sealing.xaes import Xaes

LABEL = "cloister/sealed-tree/v1"


class TreeKeys:
    """Derives; :meth:`erase` when the tree is closed."""

    def __init__(self, tree_id: bytes, data_key: bytearray) -> None:
        """``data_key`` is 32 bytes and from now on ours to erase."""
        self.tree_id = tree_id
        self._data_key = data_key
        self.records = self._derived(b"record")
        self.checkpoints = self._derived(b"checkpoint")

    def of_object(self, object_id: bytes) -> Xaes:
        """For the segments of one object."""
        return self._derived(b"segment", object_id)

    def _derived(self, *purpose: bytes) -> Xaes:
        key = bytearray(KEY_SIZE)
        HKDF(SHA256(), KEY_SIZE, self.tree_id, framed(LABEL, *purpose)).derive_into(self._data_key, key)
        try:
            return Xaes(key)
        finally:
            erase(key)

    def erase(self) -> None:
        """Overwrite the data key."""
        erase(self._data_key)
