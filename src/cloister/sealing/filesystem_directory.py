"""One sealed directory below ``sealed://``: its index as it stands, verified, and the next version of it.

Refuses an index that no accepted signer signed, one older than this process has seen, a second index of one version, and
changes without a signing key. Index and signature are two files, and a crash may fall between them: the new
signature lies beside the directory before the new index takes its place, and readers look there too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cloister.errors import CloisterError, FormatError, IndexMismatch, RolledBack, UsageError
from cloister.sealing.envelope import FILE_ID_SIZE
from cloister.sealing.filesystem_memory import AccessMemory, Seen
from cloister.sealing.filesystem_stores import Body, Store
from cloister.sealing.index import (
    INDEX_NAME,
    MAX_INDEX,
    SIGNATURE_NAME,
    SUFFIX,
    Index,
    IndexEntry,
    check_path,
    sign_index,
    verify_index,
)
from cloister.sealing.signing import SIGNATURE_SIZE, SigningKey

REMOTE_FRESH = 5.0
"""So many seconds an index from an object store is taken as the newest; a local one is looked at each time."""
_ATTEMPTS = 5
_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Pins:
    """What a reader knows beforehand of the directories it opens."""

    minimum_version: int = 1
    tree: bytes | None = None

    def check(self, index: Index, *, where: str) -> None:
        """Raises :class:`~cloister.errors.RolledBack` or :class:`~cloister.errors.IndexMismatch`."""
        if index.version < self.minimum_version:
            raise RolledBack(
                f"the index of {where} is version {index.version}, at least {self.minimum_version} is asked for",
                todo="an old copy was put in place of the newest: get the newest from its owner",
            )
        if self.tree is not None and index.tree != self.tree:
            raise IndexMismatch(f"{where} is another sealed directory than the one asked for")


class SealedDirectory:
    """The sealed directory at ``path`` of ``store``, or the place where one shall be."""

    def __init__(
        self,
        store: Store,
        identity: str,
        path: str,
        memory: AccessMemory,
        *,
        pins: Pins,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.store = store
        self.path = path
        self._memory = memory
        self._pins = pins
        self._clock = clock
        self._pause = pause
        self._entropy = entropy
        self._identity = identity
        self._seen: Seen = memory.seen(identity, path)

    def index(self, *, fresh: bool = False) -> Index | None:
        """The newest index, verified; None where there is no sealed directory. Raises the errors of sealing."""
        with self._seen.lock:
            known = self._seen.index
            if known is not None and not self._seen.removed and not fresh and self._current():
                self._pins.check(known, where=self._name)
                return known
            stamp = self._stamp()
            found = self._load()
            if found is None:
                if known is not None and not self._seen.removed:
                    raise RolledBack(
                        f"{self._name} had an index, and it is gone",
                        todo="get the directory again from its owner",
                    )
                self._memory.absent(self._identity, self.path)
                return None
            self._pins.check(found, where=self._name)
            self._seen.accept(found, where=self._name)
            self._seen.stamp, self._seen.read_at = stamp, self._clock()
            return found

    def stale(self) -> None:
        """Read the index again at the next occasion."""
        with self._seen.lock:
            self._seen.stamp, self._seen.read_at = None, float("-inf")

    def body_path(self, entry: IndexEntry) -> str:
        """Where the sealed body of ``entry`` lies."""
        return f"{self.path}/{entry.file_name}"

    def check_writable(self) -> SigningKey:
        """The key that will sign. Raises :class:`~cloister.errors.UsageError`."""
        key = self._memory.access.signing_key
        if key is None:
            raise UsageError(
                f"this process may not write to {self._name}: it has no key to sign an index with",
                todo="give the workload an output key and a signing key",
            )
        above, slash, name = self.path.rpartition("/")
        if not slash or not name or above.endswith(":/"):
            raise UsageError(f"{self.path} cannot become a sealed directory", todo="name a folder below it")
        return key

    def publish(
        self,
        added: Mapping[str, tuple[IndexEntry, Body]],
        *,
        removed: Iterable[str] = (),
        moved: Mapping[str, str] | None = None,
    ) -> None:
        """The next version of the index: files that came, went, or have another path. Bodies that are out go last.

        ``added`` replaces what is at its path, ``moved`` (old → new) too. Raises :class:`FileNotFoundError` for a path
        that is not there, :class:`~cloister.errors.FormatError` for one that cannot be.
        """
        key = self.check_writable()
        with self._seen.lock, self.store.locked(self.path):
            before = self.index(fresh=True)
            if before is None:
                self._refuse_occupied()
            files = dict(before.files) if before is not None else {}
            for path in removed:
                _take(files, path)
            for old, new in (moved or {}).items():
                files[new] = _take(files, old)
            for path, (entry, _) in added.items():
                files[path] = entry
            for path in [*added, *(moved or {}).values()]:
                check_path(path)
            if files:
                self._advance(files, added, before, key)
            else:
                self._vanish(before)
            kept = {entry.file_name for entry in files.values()}
            for entry in before.files.values() if before is not None else ():
                if entry.file_name not in kept:
                    self.store.remove(self.body_path(entry))
        if not files:
            with suppress(OSError):
                self.store.remove_directory(self.path)

    def _advance(
        self,
        files: dict[str, IndexEntry],
        added: Mapping[str, tuple[IndexEntry, Body]],
        before: Index | None,
        key: SigningKey,
    ) -> None:
        last = before or self._seen.index
        tree = self._pins.tree or self._entropy(32) if last is None else last.tree
        version = self._pins.minimum_version if last is None else last.version + 1
        # Signed before a body is put in place: a path that cannot be in an index leaves the directory as it was.
        data, signature = sign_index(files, key=key, tree=tree, version=version)
        if self.store.local:
            self._sweep(before)
        kept: list[str] = []
        try:
            for entry, body in added.values():
                kept.append(self.body_path(entry))
                body.keep(kept[-1])
            self.store.write(self._beside, signature, directory=self.path)
            self.store.write(f"{self.path}/{INDEX_NAME}", data, directory=self.path)
        except BaseException:
            # Locally the index is there or it is not. An object store may have taken a put that it did not confirm.
            for path in kept if self.store.local else ():
                self.store.remove(path)
            raise
        self.store.write(f"{self.path}/{SIGNATURE_NAME}", signature, directory=self.path)
        self.store.remove(self._beside)
        self._seen.accept(verify_index(data, signature, signers=[key.public_key]), where=self._name)
        self._seen.stamp, self._seen.read_at = self._stamp(), self._clock()

    def _vanish(self, before: Index | None) -> None:
        # An index names at least one file, so a directory without files is none. Its version is remembered.
        self.store.remove(f"{self.path}/{INDEX_NAME}")
        self.store.remove(f"{self.path}/{SIGNATURE_NAME}")
        self.store.remove(self._beside)
        if before is not None:
            self._seen.removed = True

    def _sweep(self, before: Index | None) -> None:
        """Remove bodies of a writer that was killed before its index was in place; we hold the lock, so it is gone."""
        wanted = {entry.file_name for entry in before.files.values()} if before is not None else set()
        for path, is_directory in self.store.names(self.path):
            name = path.rsplit("/", 1)[-1]
            if name not in wanted and not is_directory and _is_body(name):
                self.store.remove(path)

    def _refuse_occupied(self) -> None:
        for path, _ in self.store.names(self.path) if self.store.is_directory(self.path) else ():
            name = path.rsplit("/", 1)[-1]
            if not _is_body(name) and name != SIGNATURE_NAME:
                raise UsageError(
                    f"{self.path} holds other files and is no sealed directory",
                    todo="write into a new folder, for example …/name.sealed/",
                )

    def _load(self) -> Index | None:
        """Index and signature may be from two moments while another process writes: look again, a few times."""
        refusal: CloisterError | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_PAUSE)
            try:
                data = self.store.read(f"{self.path}/{INDEX_NAME}", MAX_INDEX)
            except FileNotFoundError:
                return None
            signed = False
            for signature in self._signatures():
                signed = True
                try:
                    return verify_index(data, signature, signers=self._memory.signers)
                except (IndexMismatch, FormatError) as error:
                    refusal = refusal or error
            if not signed:
                return None
        assert refusal is not None  # noqa: S101 -- for the type checker: each attempt returned or set it
        raise refusal

    def _signatures(self) -> Iterator[bytes]:
        for path in (f"{self.path}/{SIGNATURE_NAME}", self._beside):
            # An object store says "not permitted" of what is not there to whoever may not list.
            with suppress(FileNotFoundError, PermissionError):
                yield self.store.read(path, SIGNATURE_SIZE)

    def _current(self) -> bool:
        if self.store.local:
            return self._seen.stamp is not None and self._seen.stamp == self._stamp()
        return self._clock() - self._seen.read_at < REMOTE_FRESH

    def _stamp(self) -> object | None:
        stamps = tuple(self.store.stamp(f"{self.path}/{name}") for name in (INDEX_NAME, SIGNATURE_NAME))
        return None if None in stamps else stamps

    @property
    def _beside(self) -> str:
        above, _, name = self.path.rpartition("/")
        return f"{above}/.{name}.{SIGNATURE_NAME}.next"

    @property
    def _name(self) -> str:
        return self.path.rsplit("/", 1)[-1].split("?", 1)[0]


def _take(files: dict[str, IndexEntry], path: str) -> IndexEntry:
    try:
        return files.pop(path)
    except KeyError:
        raise FileNotFoundError(path) from None


def _is_body(name: str) -> bool:
    stem = name.removesuffix(SUFFIX)
    return name.endswith(SUFFIX) and len(stem) == 2 * FILE_ID_SIZE and not set(stem) - set("0123456789abcdef")
