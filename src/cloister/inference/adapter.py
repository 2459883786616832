"""A LoRA adapter on disk: in a sealed directory, in a sealed tree as training wrote it, or (unprotected) in the clear.

Whichever it is, what is measured is what is served: the digest of the signed index, of the tree's newest journal, or of
both files. Only ``adapter_config.json`` and ``adapter_model.safetensors`` are read, whatever else lies beside them;
both go into memory and never onto a disk, and are parsed strictly (lora.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloister.encoding import labelled_hash
from cloister.errors import FormatError, InferenceError, UsageError
from cloister.inference.lora import (
    CONFIG_NAME,
    MAX_CONFIG,
    MAX_WEIGHTS,
    WEIGHTS_NAME,
    LoraAdapter,
    parse_adapter,
)
from cloister.sealing import KeySource
from cloister.sealing.descriptors import open_regular, read_into
from cloister.sealing.directory import unseal_to_memory
from cloister.sealing.index import INDEX_NAME, Index, check_path, open_index
from cloister.sealing.tree import SealedTree, is_tree
from cloister.sealing.tree_snapshot import TreeSnapshot, take_snapshot

PLAIN_LABEL: Final = "cloister/plain-adapter/v1"
_LIMITS: Final = {CONFIG_NAME: MAX_CONFIG, WEIGHTS_NAME: MAX_WEIGHTS}


class Adapter(Protocol):
    """One adapter, measured before it is opened."""

    @property
    def digest(self) -> bytes:
        """32 bytes: what is measured."""
        ...

    def open(self, keys: KeySource | None) -> LoraAdapter: ...


@dataclass(frozen=True, slots=True)
class SealedAdapter:
    """Two files of a sealed directory; ``folder`` is where in it, "" for its top."""

    directory: Path
    index: Index
    folder: str

    @property
    def digest(self) -> bytes:
        return self.index.digest

    def open(self, keys: KeySource | None) -> LoraAdapter:
        source = _asked(keys, self.directory)
        return parse_adapter(bytes(self._view(CONFIG_NAME, source)), self._view(WEIGHTS_NAME, source))

    def _view(self, name: str, keys: KeySource) -> memoryview:
        path = _inside(self.folder, name)
        size = self.index.entry(path).size
        _check_size(path, size, _LIMITS[name])
        descriptor = unseal_to_memory(self.directory, self.index, path, keys)
        try:
            return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class TreeAdapter:
    """Two files of a sealed tree, as it stood when it was measured."""

    snapshot: TreeSnapshot
    folder: str

    @property
    def digest(self) -> bytes:
        return self.snapshot.digest

    def open(self, keys: KeySource | None) -> LoraAdapter:
        with contextlib.closing(self.snapshot.open(_asked(keys, self.snapshot.directory))) as tree:
            config, weights = (self._content(tree, name) for name in _LIMITS)
        return parse_adapter(config, memoryview(weights))

    def _content(self, tree: SealedTree, name: str) -> bytes:
        path = _inside(self.folder, name)
        try:
            with contextlib.closing(tree.open(path, write=False)) as file:
                _check_size(path, file.status.size, _LIMITS[name])
                return file.read(0, file.status.size)
        except OSError as error:
            raise UsageError(
                f"{self.snapshot.directory} has no {path} that can be read: {error.strerror}",
                todo="name the adapter's folder with --adapter-folder",
            ) from None


@dataclass(frozen=True, slots=True)
class PlainAdapter:
    """Two files in the clear, already in memory: what was measured is what is parsed."""

    digest: bytes
    config: bytes
    weights: memoryview

    def open(self, keys: KeySource | None) -> LoraAdapter:
        return parse_adapter(self.config, self.weights)


def find_adapter(path: Path, *, folder: str, signers: Collection[bytes]) -> Adapter:
    """The adapter at ``path``, in its ``folder`` ("" for its top).

    Raises :class:`UsageError`, or what :func:`~cloister.sealing.index.open_index` raises.
    """
    if folder:
        try:
            check_path(folder)
        except FormatError as error:
            raise UsageError(error.what, todo="name a folder inside the adapter's directory") from None
    if not path.is_dir():
        raise UsageError(f"there is no directory {path}", todo="name the folder that holds the adapter")
    if (path / INDEX_NAME).exists():
        if not signers:
            raise UsageError(
                "a sealed adapter needs --index-signer: whose signature on its index to believe",
                todo="`cloister keys show index.key` prints the owner's",
            )
        return SealedAdapter(directory=path, index=open_index(path, signers=signers), folder=folder)
    if is_tree(path):
        return TreeAdapter(snapshot=take_snapshot(path), folder=folder)
    return _measure(path / folder)


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _check_size(path: str, size: int, limit: int) -> None:
    if not 0 < size <= limit:
        raise FormatError(f"{path} has {size} bytes, and 1 to {limit} are read")


def _measure(folder: Path) -> PlainAdapter:
    config, weights = (_read(folder / name, limit) for name, limit in _LIMITS.items())
    digests = (hashlib.sha256(data).digest() for data in (config, weights))
    return PlainAdapter(
        digest=labelled_hash(PLAIN_LABEL, *digests), config=bytes(config), weights=memoryview(weights)
    )


def _read(path: Path, limit: int) -> bytearray:
    with open_regular(path, UsageError) as descriptor:
        size = os.fstat(descriptor).st_size
        if size > limit:
            raise UsageError(f"{path} has {size} bytes, and at most {limit} are read")
        data = bytearray(size)
        with memoryview(data) as view:
            if read_into(descriptor, view, 0) != size:
                raise InferenceError(f"{path} changed while it was read", todo="launch again")
    return data


def _asked(keys: KeySource | None, path: Path) -> KeySource:
    if keys is None:
        raise UsageError(
            f"{path} is sealed and no key source was named",
            todo="pass --broker with --broker-policy, or an owner's --key-file",
        )
    return keys
