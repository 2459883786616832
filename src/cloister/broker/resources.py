"""Resources: keys and other secrets, sealed (docs/spec/broker-state.md). What does not open is refused, never skipped
over.

Each version of a resource has a data key of its own. That is wrapped twice: under the state key, then under the
repository's key-encryption key in its key store. So neither a stolen database nor a key store alone opens anything,
and an owner who ends the key-encryption key ends the resource. Rotation wraps data keys anew and touches no body.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.broker.audit import Fact
from cloister.broker.journal import Journal
from cloister.broker.keystores import KeyDescription, Keystore
from cloister.broker.keystores.versions import MAX_OWNER
from cloister.broker.state_key import KEY_SIZE, StateKey, seal, unseal
from cloister.broker.transaction import Stored, Transaction
from cloister.encoding import labelled_hash
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError

RECORD_LABEL: Final = "cloister/broker-record/v2"
WRAP_LABEL: Final = "cloister/broker-data-key/v1"
MAX_RESOURCE: Final = 64 * 1024
LOCAL: Final = "local"
REWRAPPED_AT_ONCE: Final = 256
MAX_REWRAPS: Final = 5

Entropy = Callable[[int], bytes]


class Resources:
    """Sealed resources by path (``repository/type/tag``). Thread-safe.

    ``stores`` by their names, ``local`` among them; ``placed`` says which repository's key is in which store.
    """

    def __init__(
        self,
        journal: Journal,
        state_key: StateKey,
        stores: Mapping[str, Keystore],
        *,
        placed: Mapping[str, str] | None = None,
        entropy: Entropy = os.urandom,
    ) -> None:
        self._journal = journal
        self._cipher = state_key.cipher(WRAP_LABEL)
        self._stores = stores
        self._placed = dict(placed or {})
        self._entropy = entropy
        for repository, store in self._placed.items():
            if store not in stores:
                raise UsageError(
                    f"the repository {repository} is placed in {store}, which is no key store here"
                )

    def read(self, path: str) -> tuple[int, bytes] | None:
        """Version and content; None where there is nothing or it was destroyed. Raises :class:`KeystoreError`."""
        stored = self._journal.read("resource", path)
        if stored is None or not stored.body:
            return None
        aad = associated_data(path, stored.version)
        return stored.version, unseal(AESGCM(self._data_key(path, stored, aad)), stored.body, aad)

    def version(self, path: str) -> int:
        """The newest version, 0 before the first; a destroyed resource counts on."""
        held = self._journal.held("resource", path)
        return 0 if held is None else held.version

    def prepare(self, path: str, content: bytes, *, owner: str, now: int) -> Callable[[Transaction], int]:
        """Seal the next version; what is returned stores it in a transaction, or raises if another came before it.

        Everything that a key store has to do happens here: if it is unreachable nothing was changed.
        """
        if not 1 <= len(content) <= MAX_RESOURCE:
            raise UsageError(f"a resource is 1 to {MAX_RESOURCE} bytes long, not {len(content)}")
        version = self.version(path) + 1
        aad = associated_data(path, version)
        data_key = self._entropy(KEY_SIZE)
        repository = repository_of(path)
        self.ensure_key(repository, owner=owner, now=now)
        epoch = self._epoch(repository)
        wrapped = self._wrap(path, data_key, aad)
        body = seal(AESGCM(data_key), content, aad, self._entropy)

        def store(transaction: Transaction) -> int:
            if transaction.version("resource", path) != version - 1:
                raise UsageError(
                    f"{path} was changed by somebody else just now", todo="look, and put it again"
                )
            if transaction.version("key", self._placed_name(repository)) != epoch:
                raise UsageError(f"the key of {repository} was changed just now", todo="put it again")
            return transaction.put("resource", path, body, wrapped)

        return store

    @staticmethod
    def shred(transaction: Transaction, path: str) -> int:
        """Replace a resource by nothing: its data key is gone. The version that records this."""
        if not transaction.version("resource", path):
            raise UsageError(f"there is no resource {path}", todo="check the path")
        return transaction.put("resource", path, b"", b"")

    def has_key(self, repository: str) -> bool:
        """Was a key-encryption key made for this repository?"""
        if self._placed.get(repository, LOCAL) == LOCAL:
            return self._journal.held("key", repository) is not None
        try:
            self._store_of(repository).describe(repository)
        except KeystoreError as error:
            if error.exit_code != KeystoreError.exit_code:
                raise
            return False
        return True

    def ensure_key(self, repository: str, *, owner: str, now: int) -> None:
        """Make the repository's key-encryption key if it has none."""
        if self.has_key(repository):
            return
        try:
            self._store_of(repository).generate(repository, owner=owner[:MAX_OWNER], now=now)
        except KeystoreError:
            if not self.has_key(repository):  # another thread or replica may have been first
                raise

    def describe(self, repository: str) -> tuple[str, tuple[KeyDescription, ...]]:
        """The name of the key store and every version of the repository's key."""
        return self._placed.get(repository, LOCAL), self._store_of(repository).describe(repository)

    def rotate(self, repository: str, *, now: int, number: int) -> tuple[KeyDescription, int]:
        """Key-encryption key ``number``, and every data key of the repository wrapped under it; how many those were.

        If the key store fails in the middle, the rest is still wrapped under the version before, which is retired and
        still unwraps: rotating again, or :meth:`rewrap`, finishes it.
        """
        described = self._store_of(repository).rotate(repository, now=now, number=number)
        return described, self.rewrap(repository)

    def rewrap(self, repository: str) -> int:
        """Wrap every data key of a repository under the newest key-encryption key."""
        paths = [path for path in self._journal.names("resource") if repository_of(path) == repository]
        return sum(
            self._rewrap(repository, paths[start : start + REWRAPPED_AT_ONCE])
            for start in range(0, len(paths), REWRAPPED_AT_ONCE)
        )

    def destroy_key(self, repository: str, version: int) -> KeyDescription:
        """Shred one version of a repository's key; what it alone wrapped is lost for good."""
        store = self._store_of(repository)
        if any(one.version == version and one.state == "retired" for one in store.describe(repository)):
            self._begin_destruction(repository, version)
            self.rewrap(repository)  # what was put while the key was rotated may still be under this version
        return store.destroy(repository, version)

    def _begin_destruction(self, repository: str, version: int) -> None:
        """From here on nothing is stored that another replica wrapped before: it may be under this version.

        The embedded store's own record tells that by itself: it changes with every rotation.
        """
        name = self._placed_name(repository)
        if name == repository:
            return

        def work(transaction: Transaction) -> None:
            transaction.put("key", name, b"")
            reason = f"version {version} is going to be destroyed"
            transaction.log(Fact("key", "done", resource=f"key:{name}", reason=reason))

        self._journal.transact(work)

    def _epoch(self, repository: str) -> int:
        held = self._journal.held("key", self._placed_name(repository))
        return 0 if held is None else held.version

    def _rewrap(self, repository: str, paths: Sequence[str]) -> int:
        for _ in range(MAX_REWRAPS):
            epoch = self._epoch(repository)
            wrapped: dict[str, tuple[int, bytes]] = {}
            for path in paths:
                stored = self._journal.read("resource", path)
                if stored is None or not stored.body:
                    continue
                aad = associated_data(path, stored.version)
                wrapped[path] = (stored.version, self._wrap(path, self._data_key(path, stored, aad), aad))
            done = self._exchange(repository, wrapped, epoch)
            if done is not None:
                return done
        raise KeystoreUnavailable(
            f"the key of {repository} is being changed by others all the time", todo="rotate it again"
        )

    def _exchange(self, repository: str, wrapped: Mapping[str, tuple[int, bytes]], epoch: int) -> int | None:
        """None if the key was changed meanwhile: what was wrapped may be under a version that is destroyed by now."""

        def work(transaction: Transaction) -> int | None:
            if transaction.version("key", self._placed_name(repository)) != epoch:
                return None
            current = [
                path
                for path, (version, _) in wrapped.items()
                if transaction.version("resource", path) == version
            ]
            for path in current:
                transaction.rewrap("resource", path, wrapped[path][1])
            if current:
                reason = f"{len(current)} data keys wrapped anew"
                transaction.log(Fact("key", "done", resource=f"key:{self._name(repository)}", reason=reason))
            return len(current)

        return self._journal.transact(work)

    def _wrap(self, path: str, data_key: bytes, aad: bytes) -> bytes:
        repository = repository_of(path)
        name = self._placed.get(repository, LOCAL).encode()
        inner = seal(self._cipher, data_key, aad, self._entropy)
        return bytes([len(name)]) + name + self._stores[name.decode()].wrap(repository, inner, aad)

    def _data_key(self, path: str, stored: Stored, aad: bytes) -> bytes:
        length = stored.wrapped[0] if stored.wrapped else 0
        name = stored.wrapped[1 : 1 + length].decode("ascii", "replace")
        store = self._stores.get(name)
        if store is None:
            raise KeystoreError(
                f"the key of {path} is in the key store {name[:64]!r}, which this broker does not know",
                todo="start it with the --keystores file that names it",
            )
        inner = store.unwrap(repository_of(path), stored.wrapped[1 + length :], aad)
        return unseal(self._cipher, inner, aad)

    def _store_of(self, repository: str) -> Keystore:
        return self._stores[self._placed.get(repository, LOCAL)]

    def _placed_name(self, repository: str) -> str:
        """The record of the embedded store's key, or of another store's, which counts destructions."""
        return repository if self._placed.get(repository, LOCAL) == LOCAL else self._name(repository)

    def _name(self, repository: str) -> str:
        return f"{self._placed.get(repository, LOCAL)}/{repository}"


def repository_of(path: str) -> str:
    """The first part of a path, which names its key-encryption key."""
    return path.partition("/")[0]


def associated_data(path: str, version: int) -> bytes:
    """What ties a sealed resource to its place: 32 bytes."""
    return labelled_hash(RECORD_LABEL, path.encode(), version.to_bytes(8, "big"))
