"""Whole directories: seal one under one key, unseal one to a folder, or one of its files into memory.

Refuses links, special files and names that cannot stand in an index; hands out nothing before all of it was
verified; leaves nothing half-written. Formats: docs/spec/sealed-file.md, docs/spec/index.md.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from cloister.errors import FormatError, SealingError, UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import frozen_memory
from cloister.sealing.files import Entropy, rewrap_file, seal_file, unseal_into
from cloister.sealing.index import (
    INDEX_NAME,
    SIGNATURE_NAME,
    Index,
    IndexEntry,
    check_path,
    sign_index,
    verify_index,
)
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.signing import SigningKey
from cloister.sealing.staging import staged_beside, staged_inside
from cloister.sealing.uri import parse_key_uri
from cloister.sealing.workers import Progress, Tally, share

_LARGE = 4 * SEGMENT_SIZE
"""Files over this share their segments among the workers, smaller ones are shared out whole."""

_PartialWork: TypeAlias = Callable[[str, int], None]


class _Remembered:
    """Asks a key source once for each URI: behind it may be a broker and a quote."""

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys
        self._known: dict[str, bytes] = {}
        self._asking = threading.Lock()

    def key(self, uri: str) -> bytes:
        with self._asking:
            if uri not in self._known:
                self._known[uri] = self._keys.key(uri)
            return self._known[uri]


def seal_directory(
    source: Path,
    out: Path,
    *,
    key_uri: str,
    kek: bytes,
    signing_key: SigningKey,
    after: Index | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    entropy: Entropy = os.urandom,
) -> Index:
    """Seal every file below ``source`` into the new sealed directory ``out``, all or nothing.

    ``kek`` is the 32-byte key that the broker holds at ``key_uri``. ``after`` is the index that this one
    supersedes: it keeps the tree and counts the version on. ``workers`` defaults to the number of CPUs.
    Raises :class:`~cloister.errors.UsageError`.
    """
    with _as_usage():
        uri = str(parse_key_uri(key_uri))
        sizes = _files_below(source)
    if out.resolve().is_relative_to(source.resolve()):
        raise UsageError(f"{out} lies inside {source}", todo="name a folder outside with --out")
    tally = Tally(sum(sizes.values()), progress)
    entries: dict[str, IndexEntry] = {}
    with staged_beside(out) as stage:

        def seal(path: str, threads: int) -> None:
            beside = stage / entropy(16).hex()
            entry = seal_file(
                source / path, beside, key_uri=uri, kek=kek, workers=threads, tally=tally, entropy=entropy
            )
            beside.rename(stage / entry.file_name)
            entries[path] = entry

        _share_out(list(sizes), sizes, seal, workers=workers)
        tree = entropy(32) if after is None else after.tree
        version = 1 if after is None else after.version + 1
        with _as_usage():
            data, signature = sign_index(entries, key=signing_key, tree=tree, version=version)
        _write_new(stage / INDEX_NAME, data)
        _write_new(stage / SIGNATURE_NAME, signature)
        stage.chmod(0o755)
    return verify_index(data, signature, signers=[signing_key.public_key])


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
    keys = _Remembered(keys)
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

        _share_out(list(sizes), sizes, unseal, workers=workers)


def unseal_to_memory(
    directory: Path,
    index: Index,
    path: str,
    keys: KeySource,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Unseal one file of ``index`` into anonymous memory; the answer is a memfd that nobody can write any more.

    Takes memory once the file's size, and 2 MiB for each worker; nothing touches a disk (unless the machine
    swaps). The descriptor is
    closed on exec and the caller's to close. It is returned only when every segment, size and digest were
    verified. Raises the errors of sealing (errors.py), and of ``keys``.
    """
    entry = index.entry(path)

    def fill(descriptor: int) -> None:
        os.truncate(descriptor, entry.size)
        # Written rather than mapped: the kernel then need not zero each page and fault it in, which took
        # half of the time; and bytes that did not authenticate never reach the memfd.
        unseal_into(
            directory / entry.file_name,
            descriptor,
            keys,
            name=path,
            expected=entry,
            workers=workers or _cpus(),
            tally=Tally(entry.size, progress),
        )

    try:
        return frozen_memory(fill)
    except OSError as error:
        raise SealingError(
            f"cannot hold the {entry.size} bytes of {path} in memory: {error.strerror}",
            todo="give the workload more memory",
        ) from None


def rewrap_directory(directory: Path, index: Index, keys: KeySource, *, new_uri: str, new_kek: bytes) -> None:
    """Put every file of a sealed directory under another key or URI; the index and its digest stay.

    Each file is replaced by one rename. Interrupted between two of them, both keys are still needed; running it
    again with both finishes it. Raises as :func:`~cloister.sealing.files.rewrap_file`.
    """
    remembered = _Remembered(keys)
    for entry in index.files.values():
        sealed = directory / entry.file_name
        rewrap_file(sealed, remembered, new_uri=new_uri, new_kek=new_kek, expected=entry)


@contextlib.contextmanager
def _as_usage() -> Iterator[None]:
    """What an index cannot name is, when sealing, a wrong argument and no hostile document."""
    try:
        yield
    except FormatError as error:
        raise UsageError(error.what, todo=error.todo) from None


def _files_below(source: Path) -> dict[str, int]:
    """Path → size of every file below ``source``, sorted; refuses what an index cannot name."""
    if not source.is_dir():
        raise UsageError(f"there is no directory {source}", todo="name the folder to seal")
    found: dict[str, int] = {}
    for root, folders, names in os.walk(source, onerror=_raise):
        for name in sorted([*folders, *names]):
            path = Path(root, name)
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(
                    f"{path} is a link or a special file, and only plain files are sealed",
                    todo="copy the folder with `cp -rL` first",
                )
            relative = path.relative_to(source).as_posix()
            check_path(relative)
            found[relative] = status.st_size
    if not found:
        raise UsageError(f"{source} holds no file", todo="name the folder to seal")
    return dict(sorted(found.items()))


def _raise(error: OSError) -> None:
    raise UsageError(f"cannot read {error.filename}: {error.strerror}")


def _share_out(
    paths: Sequence[str], sizes: dict[str, int], work: _PartialWork, *, workers: int | None
) -> None:
    """Small files one to a thread, then each large one with all threads."""
    threads = workers or _cpus()
    small = [path for path in paths if sizes[path] <= _LARGE]
    if small:
        share(len(small), lambda: lambda number: work(small[number], 1), workers=threads)
    for path in paths:
        if sizes[path] > _LARGE:
            work(path, threads)


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _write_new(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
