"""The model on disk: a sealed directory with a signed index, or (without protection) a GGUF file or a folder in the clear.

A sealed model is opened into memory, never onto a disk. The engine may load it while another process still compares it
with the digests that its owner signed; nothing of the workload is to be seen from outside before it was confirmed. Plain
files are measured by their digests all the same, so that a client knows which model answers, and copied into memory too:
what was measured is what computes, whatever happens to the files. That the host can read them is the operator's choice.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from cloister.encoding import labelled_hash
from cloister.errors import InferenceError, UsageError
from cloister.inference.model_files import ModelFiles, ModelKind, wanted
from cloister.sealing import KeySource
from cloister.sealing.descriptors import open_regular, write_all
from cloister.sealing.index import INDEX_NAME, Index, open_index
from cloister.sealing.restore_confirm import memory_early
from cloister.sealing.restore_memory import frozen_pages

PLAIN_LABEL = "cloister/plain-model/v1"
FOLDER_LABEL = "cloister/plain-model-folder/v1"
GGUF_MAGIC = b"GGUF"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model in memory."""

    files: ModelFiles
    """In the clear; the caller's to close."""
    confirm: Callable[[], None]
    """Returns when the model is what was measured. What uses it may run before, and nothing of that may leave; where this
    raises, the workload ends. To be called once."""
    discard: Callable[[], None]
    """Lets go of what is held to confirm it. Nothing after that; to be called in any case."""


class Model(Protocol):
    """One model, measured before it is opened."""

    @property
    def digest(self) -> bytes:
        """32 bytes: what is measured as the model index."""
        ...

    @property
    def kind(self) -> ModelKind: ...

    def open(self, keys: KeySource | None) -> OpenedModel:
        """The model in the clear, to be confirmed."""
        ...


@dataclass(frozen=True, slots=True)
class SealedModel:
    """The files of one model in a sealed directory."""

    directory: Path
    index: Index
    kind: ModelKind
    names: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        return self.index.digest

    def open(self, keys: KeySource | None) -> OpenedModel:
        if keys is None:
            raise UsageError(
                f"{self.directory} is sealed and no key source was named",
                todo="pass --broker with --broker-policy, or an owner's --key-file",
            )
        descriptors, restored = memory_early(self.directory, self.index, self.names, keys)
        # Engines hold Python's lock while they load, so no thread of this process could do it meanwhile.
        restored.begin()
        return OpenedModel(ModelFiles(self.kind, descriptors), restored.confirm, restored.discard)


@dataclass(frozen=True, slots=True)
class Measured:
    """A plain file as it was measured."""

    path: Path
    sha256: bytes
    size: int


@dataclass(frozen=True, slots=True)
class PlainModel:
    """Files in the clear: one GGUF file, or what engines read of a folder."""

    digest: bytes
    kind: ModelKind
    measured: Mapping[str, Measured]

    def open(self, keys: KeySource | None) -> OpenedModel:
        """Confirmed already. Raises InferenceError if a file is no longer what was measured."""
        with contextlib.ExitStack() as undo:
            descriptors = dict[str, int]()
            for name, file in self.measured.items():
                try:
                    descriptors[name] = frozen_pages(file.size, partial(_copied, file))
                except OSError as error:
                    raise InferenceError(
                        f"{file.path} cannot be read into memory: {error.strerror}",
                        todo="give the workload more memory",
                    ) from None
                undo.callback(os.close, descriptors[name])
            undo.pop_all()
        return OpenedModel(ModelFiles(self.kind, descriptors), _nothing, _nothing)


def _copied(file: Measured, descriptor: int) -> None:
    """Copy exactly the bytes that were measured, at most as many."""
    hasher, done = hashlib.sha256(), 0
    with file.path.open("rb", buffering=0) as source:
        while part := source.read(min(_CHUNK, file.size - done)):
            hasher.update(part)
            write_all(descriptor, part, done)
            done += len(part)
    if hasher.digest() != file.sha256:
        raise InferenceError(
            f"{file.path} changed after it was measured", todo="launch again, so that it is measured anew"
        )


def _nothing() -> None:
    """A plain model is compared with its digest while it is copied."""


def find_model(path: Path, *, signers: Collection[bytes]) -> Model:
    """The model at ``path``. Raises :class:`UsageError`, or what :func:`open_index` raises."""
    if path.is_dir():
        return _sealed(path, signers) if (path / INDEX_NAME).exists() else _folder(path)
    if not path.is_file():
        raise UsageError(
            f"there is no model at {path}", todo="name a sealed directory, a model's folder or a .gguf file"
        )
    file = _measure(path)
    with path.open("rb") as head:
        if head.read(4) != GGUF_MAGIC:
            raise UsageError(f"{path} is not a GGUF file", todo="name a sealed directory or a .gguf file")
    return PlainModel(labelled_hash(PLAIN_LABEL, file.sha256), "gguf", {"model.gguf": file})


def _sealed(path: Path, signers: Collection[bytes]) -> SealedModel:
    if not signers:
        raise UsageError(
            "a sealed model needs --index-signer: whose signature on its index to believe",
            todo="`cloister keys show index.key` prints the owner's",
        )
    index = open_index(path, signers=signers)
    kind, names = wanted(index.files, what=str(path))
    return SealedModel(path, index, kind, names)


def _folder(path: Path) -> PlainModel:
    try:
        kind, names = wanted((file.name for file in path.iterdir() if file.is_file()), what=str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror})", todo="check its permissions") from None
    measured = {name: _measure(path / name) for name in sorted(names)}
    digests = (part for name, file in measured.items() for part in (name.encode(), file.sha256))
    return PlainModel(labelled_hash(FOLDER_LABEL, *digests), kind, measured)


def _measure(path: Path) -> Measured:
    with open_regular(path, UsageError) as descriptor, open(descriptor, "rb", closefd=False) as file:
        try:
            digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror})", todo="check its permissions"
            ) from None
        return Measured(path, digest, file.tell())
