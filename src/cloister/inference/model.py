"""The model on disk: a sealed directory with a signed index, or (without protection) a plain GGUF file.

A sealed model is opened into a memfd, never onto a disk. A plain file is measured by its digest all the same, so
that a client knows which model answers, and copied into memory too: what was measured is what computes, whatever
happens to the file. That the host can read it is the operator's choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cloister.encoding import labelled_hash
from cloister.errors import InferenceError, UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import frozen_memory, write_all
from cloister.sealing.directory import unseal_to_memory
from cloister.sealing.index import Index, open_index

PLAIN_LABEL = "cloister/plain-model/v1"
GGUF_MAGIC = b"GGUF"
_CHUNK: Final = 1 << 20


class Model(Protocol):
    """One model file, measured before it is opened."""

    @property
    def digest(self) -> bytes:
        """32 bytes: what is measured as the model index."""
        ...

    def open(self, keys: KeySource | None) -> int:
        """A file descriptor of the model in the clear, owned by the caller."""
        ...


@dataclass(frozen=True, slots=True)
class SealedModel:
    """A ``.gguf`` file of a sealed directory."""

    directory: Path
    index: Index
    path: str

    @property
    def digest(self) -> bytes:
        return self.index.digest

    def open(self, keys: KeySource | None) -> int:
        if keys is None:
            raise UsageError(
                f"{self.directory} is sealed and no key source was named",
                todo="pass --broker with --broker-policy, or an owner's --key-file",
            )
        return unseal_to_memory(self.directory, self.index, self.path, keys)


@dataclass(frozen=True, slots=True)
class PlainModel:
    """A ``.gguf`` file in the clear."""

    path: Path
    digest: bytes
    size: int

    def open(self, keys: KeySource | None) -> int:
        """A memfd that nobody can write any more. Raises InferenceError if the file is no longer what was measured."""
        try:
            return frozen_memory(self._fill)
        except OSError as error:
            raise InferenceError(
                f"{self.path} cannot be read into memory: {error.strerror}",
                todo="give the workload more memory",
            ) from None

    def _fill(self, descriptor: int) -> None:
        if self._copy(descriptor) != self.digest:
            raise InferenceError(
                f"{self.path} changed after it was measured",
                todo="launch again, so that it is measured anew",
            )

    def _copy(self, descriptor: int) -> bytes:
        """Copy at most ``size`` bytes; the digest of exactly the bytes that were copied."""
        hasher, done = hashlib.sha256(), 0
        with self.path.open("rb", buffering=0) as file:
            while part := file.read(min(_CHUNK, self.size - done)):
                hasher.update(part)
                write_all(descriptor, part, done)
                done += len(part)
        return labelled_hash(PLAIN_LABEL, hasher.digest())


def find_model(path: Path, *, signers: Collection[bytes]) -> Model:
    """The model at ``path``. Raises :class:`UsageError`, or what :func:`open_index` raises."""
    if path.is_dir():
        if not signers:
            raise UsageError(
                "a sealed model needs --index-signer: whose signature on its index to believe",
                todo="`cloister keys show index.key` prints the owner's",
            )
        index = open_index(path, signers=signers)
        names = sorted(name for name in index.files if name.endswith(".gguf"))
        if len(names) != 1:
            raise UsageError(
                f"{path} holds {len(names)} .gguf files, and one is served", todo="seal each model on its own"
            )
        return SealedModel(directory=path, index=index, path=names[0])
    if not path.is_file():
        raise UsageError(f"there is no model at {path}", todo="name a sealed directory or a .gguf file")
    return _measure(path)


def _measure(path: Path) -> PlainModel:
    try:
        with path.open("rb") as file:
            if file.read(4) != GGUF_MAGIC:
                raise UsageError(f"{path} is not a GGUF file", todo="name a sealed directory or a .gguf file")
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
            return PlainModel(path=path, digest=labelled_hash(PLAIN_LABEL, digest), size=file.tell())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", todo="check its permissions") from None
