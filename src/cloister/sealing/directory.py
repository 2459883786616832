"""Whole directories: unseal one to a folder, or one of its files into memory; sealing one is seal.py.

Hands out nothing before all of it was verified; leaves nothing half-written.
Formats: docs/spec/sealed-file.md, docs/spec/index.md.
"""

from __future__ import annotations

import os
from pathlib import Path

from cloister.errors import SealingError, UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import frozen_memory
from cloister.sealing.files import unseal_into
from cloister.sealing.index import Index
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.restore_memory import frozen_pages
from cloister.sealing.seal import seal_directory
from cloister.sealing.staging import staged_inside
from cloister.sealing.workers import Progress, Tally, cpus, share_out

__all__ = ["seal_directory", "unseal_directory", "unseal_to_memory"]


def unseal_directory(
    directory: Path,
    index: Index,
    keys: KeySource,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Unseal every file of ``index`` into ``out``, a new or empty folder, all or nothing.

    ``index`` comes from :func:`~cloister.sealing.index.open_index` over ``directory``. Files are made 0600.
    Raises the errors of sealing (errors.py), and of ``keys``.
    """
    keys = RememberedKeys(keys)
    sizes = {path: entry.size for path, entry in index.files.items()}
    tally = Tally(index.size, progress)
    with staged_inside(out) as stage:

        def unseal(path: str, threads: int) -> None:
            entry, target = index.files[path], stage / path
            # The paths were checked when the index was: relative, plain, and no file is a folder of another.
            folder = stage
            for part in path.split("/")[:-1]:
                folder /= part
                folder.mkdir(mode=0o700, exist_ok=True)  # with `parents=True` the mode is not theirs
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                descriptor = os.open(target, flags, 0o600)
            except OSError as error:
                raise UsageError(f"cannot create {out / path}: {error.strerror}") from None
            try:
                source = directory / entry.file_name
                unseal_into(source, descriptor, keys, name=path, expected=entry, workers=threads, tally=tally)
                os.fsync(descriptor)
            except OSError as error:
                raise UsageError(f"cannot write {out / path}: {error.strerror}") from None
            finally:
                os.close(descriptor)

        share_out(sizes, unseal, workers=workers)


def unseal_to_memory(
    directory: Path,
    index: Index,
    path: str,
    keys: KeySource,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    huge: bool = False,
) -> int:
    """Unseal one file of ``index`` into anonymous memory; the answer is a memfd that nobody can write any more.

    With ``huge`` it is a file in huge pages where the kernel has them for us, just as nameless and frozen.
    Takes memory once the file's size, and 2 MiB for each worker; nothing touches a disk (unless the machine
    swaps). The descriptor is closed on exec and the caller's to close. It is returned only when every segment,
    size and digest were verified. Raises the errors of sealing (errors.py), and of ``keys``.
    """
    entry = index.entry(path)

    def fill(descriptor: int) -> None:
        unseal_into(
            directory / entry.file_name,
            descriptor,
            keys,
            name=path,
            expected=entry,
            workers=workers or cpus(),
            tally=Tally(entry.size, progress),
        )

    try:
        return frozen_pages(entry.size, fill) if huge else frozen_memory(fill)
    except OSError as error:
        raise SealingError(
            f"cannot hold the {entry.size} bytes of {path} in memory: {error.strerror}",
            todo="give the workload more memory",
        ) from None
