"""What the tests of ``sealed://`` share: an access, filesystems made with it, and a process that has none registered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cloister.sealing import access as registry
from cloister.sealing.access import Access
from cloister.sealing.filesystem import SealedFileSystem
from sealing_samples import OWNER, STRANGER, URI, Keys, patterned

BIG = patterned(20_000_000, 7)
FILES = {"big.bin": BIG, "sub/a.txt": b"alpha", "sub/deep/b.txt": b"beta", "empty": b""}
SMALL = {"a.txt": b"alpha", "b.txt": b"beta"}
WORKLOAD = STRANGER
SIGNERS = [OWNER.public_key, WORKLOAD.public_key]


def access(**changes: Any) -> Access:
    settings: dict[str, Any] = {
        "keys": Keys(),
        "signers": frozenset([OWNER.public_key]),
        "signing_key": WORKLOAD,
        "output_key": URI,
        **changes,
    }
    return Access(**settings)


def opened(given: Access | None = None, **options: Any) -> Any:
    make: Any = SealedFileSystem
    return make(access=given or access(), **options)


@pytest.fixture(autouse=True)
def nothing_registered() -> Iterator[None]:
    registry.forget()
    fsspec.register_implementation("sealed", SealedFileSystem, clobber=True)
    yield
    registry.forget()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
