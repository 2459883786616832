"""What the tests of sealed trees share: a tree in a folder, opened with the key of all sealing tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cloister.sealing.tree import SealedTree, create_tree, open_tree
from sealing_samples import KEK, URI, Keys

SEGMENT = 4096


def make(directory: Path, *, segment_size: int = SEGMENT) -> Path:
    directory.parent.mkdir(exist_ok=True)
    create_tree(directory, key_uri=URI, kek=KEK, segment_size=segment_size)
    return directory


def opened(directory: Path, **options: Any) -> SealedTree:
    return open_tree(directory, Keys(), **{"writable": True} | options)


@contextmanager
def writing(directory: Path, **options: Any) -> Iterator[SealedTree]:
    with closing(opened(directory, **options)) as tree:
        yield tree


@contextmanager
def reading(directory: Path, **options: Any) -> Iterator[SealedTree]:
    with closing(opened(directory, writable=False, **options)) as tree:
        yield tree


def put(tree: SealedTree, path: str, data: bytes, *, offset: int = 0) -> None:
    try:
        file = tree.open(path, write=True)
    except FileNotFoundError:
        file = tree.create(path, 0o600)
    with closing(file):
        file.write(offset, data)


def get(tree: SealedTree, path: str) -> bytes:
    with closing(tree.open(path, write=False)) as file:
        return file.read(0, file.status.size + 1)


def errno_of(act: Callable[[], object]) -> int:
    """The errno of what ``act`` raises; 0 if it raises nothing."""
    try:
        act()
    except OSError as error:
        return error.errno or -1
    return 0


def objects(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.data"))


def journal(directory: Path) -> Path:
    (found,) = directory.glob("journal-????????????????")
    return found
