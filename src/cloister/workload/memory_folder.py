"""A private folder in this machine's memory, for what must lie under a path and on no disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_folder(name: str) -> Iterator[Path]:
    """A private folder in this machine's memory, gone at the end; those of processes that were killed go with it."""
    shared = Path("/dev/shm")  # noqa: S108 -- memory, and the folder in it is ours alone
    place = shared if shared.is_dir() else Path(tempfile.gettempdir())
    for left in place.glob(f"cloister-{name}-*"):
        pid = left.name.split("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and left.stat().st_uid == os.getuid():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"cloister-{name}-{os.getpid()}-", dir=place))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
