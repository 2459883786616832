"""Logs and witnesses for tests: real keys, real trees, real signatures."""

from __future__ import annotations

import functools
import hashlib

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister import merkle
from cloister.broker.tree_head import SignedHead, TreeHead, log_id, sign_head
from cloister.broker.witness import CosignRequest, Memory
from cloister.manifest.owner_key import PublicKey, parse_public_key
from cloister.manifest.signers import Ed25519Signer

NOW = 1_790_000_000


class Log:
    """A log and its key. The same ``name`` is the same key, so two of them can be a fork."""

    def __init__(self, size: int = 0, *, name: str = "log", mark: str = "") -> None:
        self.key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())
        self.public: bytes = self.key.public_key().public_bytes_raw()
        self.id = log_id(self.public)
        self.tree = merkle.Tree()
        self.grow(size, mark=mark)

    def grow(self, count: int = 1, *, mark: str = "") -> Log:
        for _ in range(count):
            self.tree.append(merkle.leaf_hash(f"{mark}{self.tree.size}".encode()))
        return self

    def copy(self) -> Log:
        """The same log, which may go its own way."""
        other = Log()
        other.key, other.public, other.id = self.key, self.public, self.id
        other.tree.append_many([self.tree.leaf(number) for number in range(self.tree.size)])
        return other

    def head(self, size: int | None = None, *, time: int | None = None, state: str = "") -> SignedHead:
        size = self.tree.size if size is None else size
        head = TreeHead(
            log=self.id,
            size=size,
            root=self.tree.root(size).hex(),
            state=state or hashlib.sha256(self.tree.root(size)).hexdigest(),
            time=NOW + size if time is None else time,
        )
        return sign_head(head, self.key)

    def request(self, old: int, size: int | None = None) -> CosignRequest:
        """An honest request of a witness that stands at ``old``."""
        size = self.tree.size if size is None else size
        proof = self.tree.consistency(old, size) if old <= size else ()
        return CosignRequest(head=self.head(size), old_size=old, proof=proof)

    @property
    def memory(self) -> Memory:
        """A witness that knows nothing of it yet."""
        return Memory(log_key=self.public.hex())


@functools.cache
def signer(name: str) -> Ed25519Signer:
    """The same witness for the same name, always."""
    return Ed25519Signer(hashlib.sha256(f"witness {name}".encode()).digest())


def witness_keys(*names: str) -> dict[str, PublicKey]:
    return {name: parse_public_key(signer(name).key) for name in names}
