"""A sealed directory opened into private memory, as files at their paths: for programs that map them or know no seals.

All of it or nothing. :func:`restore_directory` returns when every file is the one that the index's owner signed.
:func:`restore_early` returns when every segment was authenticated under its data key, which is sooner; its :class:`Restored`
must be confirmed before anything that depends on the files leaves this machine (docs/spec/sealed-file.md says why).
Refused: a target that is a link, has something in it, or could lie on a disk. Sealed files may change meanwhile: what no
longer is what the index names is an error.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from cloister.errors import SealingError, UsageError
from cloister.sealing import KeySource
from cloister.sealing.index import Index
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.restore_body import open_early, open_whole
from cloister.sealing.restore_confirm import Restored, Unconfirmed
from cloister.sealing.restore_memory import in_memory
from cloister.sealing.workers import Progress, Tally, share_out

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PAGE: Final = 4096
_OF_A_FILE: Final = 2048
"""Bytes of the kernel's own tables for a file, generously."""


def restore_directory(
    directory: Path,
    index: Index,
    keys: KeySource,
    target: Path,
    *,
    paths: Iterable[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    mode: int = 0o400,
    owner: tuple[int, int] | None = None,
    anywhere: bool = False,
) -> None:
    """Open the sealed ``directory`` into ``target``, an empty folder of a private tmpfs, and confirm all of it.

    ``index`` comes from :func:`~cloister.sealing.index.open_index` over ``directory``; ``paths`` are those of its files that
    are wanted, all by default. Files get ``mode`` and ``owner`` (user and group id), folders the same rights and those to
    enter. ``anywhere`` allows a target on a disk. Takes memory once the files' size, and 2 MiB for each of the ``workers``.
    Raises the errors of sealing (errors.py), and of ``keys``; ``target`` is empty then.
    """
    work = _Restoring(directory, index, RememberedKeys(keys), mode=mode, owner=owner, early=False)
    work.run(target, paths=paths, workers=workers, progress=progress, anywhere=anywhere)


def restore_early(
    directory: Path,
    index: Index,
    keys: KeySource,
    target: Path,
    *,
    paths: Iterable[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
    mode: int = 0o400,
    owner: tuple[int, int] | None = None,
    anywhere: bool = False,
) -> Restored:
    """As :func:`restore_directory`, but the digests that the owner signed are left to :meth:`Restored.confirm`."""
    work = _Restoring(directory, index, RememberedKeys(keys), mode=mode, owner=owner, early=True)
    return work.run(target, paths=paths, workers=workers, progress=progress, anywhere=anywhere)


def room_for(index: Index) -> int:
    """Bytes that a tmpfs needs to hold every file of ``index``: whole pages, and the kernel's tables."""
    return sum(-(-entry.size // _PAGE) * _PAGE + _OF_A_FILE for entry in index.files.values()) + (4 << 20)


class _Restoring:
    def __init__(
        self,
        directory: Path,
        index: Index,
        keys: KeySource,
        *,
        mode: int,
        owner: tuple[int, int] | None,
        early: bool,
    ) -> None:
        if not mode & 0o400 or not 0 <= mode <= 0o777:
            raise UsageError(f"files of mode {mode:o} are of no use to their owner")
        self._directory = directory
        self._index = index
        self._keys = keys
        self._mode = mode
        self._owner = owner
        self._early = early
        self._files: list[Unconfirmed] = []
        self._adding = threading.Lock()

    def run(
        self,
        target: Path,
        *,
        paths: Iterable[str] | None,
        workers: int | None,
        progress: Progress | None,
        anywhere: bool,
    ) -> Restored:
        wanted = sorted(self._index.files) if paths is None else sorted(set(paths))
        entries = {path: self._index.entry(path) for path in wanted}
        sizes = {path: entry.size for path, entry in entries.items()}
        tally = Tally(sum(sizes.values()), progress)
        root = _empty_folder(target, anywhere=anywhere)
        try:
            folders = _folders_of(wanted)
            for folder in folders:
                with _inside(root, folder) as (place, name):
                    os.mkdir(name, 0o700, dir_fd=place)
            share_out(sizes, lambda path, threads: self._open(root, path, threads, tally), workers=workers)
            for folder in reversed(folders):
                self._hand_over_folder(root, folder)
        except BaseException as error:
            _clear(root)
            os.close(root)
            if isinstance(error, OSError):
                raise SealingError(
                    f"cannot put files into {target}: {error.strerror}", todo="give the workload more memory"
                ) from None
            raise
        restored = Restored(self._files, remove=lambda: _clear(root), release=lambda: os.close(root))
        if not self._early:
            restored.confirm()  # nothing is left to confirm
        return restored

    def _open(self, root: int, path: str, threads: int, tally: Tally) -> None:
        entry = self._index.files[path]
        source = self._directory / entry.file_name
        with _inside(root, path) as (place, name):
            descriptor = os.open(name, _NEW, 0o600, dir_fd=place)
        try:
            if self._early:
                body = open_early(
                    source, descriptor, self._keys, name=path, expected=entry, workers=threads, tally=tally
                )
                with self._adding:
                    self._files.append(Unconfirmed(body, entry, lambda: _reopen(root, path)))
            else:
                open_whole(
                    source, descriptor, self._keys, name=path, expected=entry, workers=threads, tally=tally
                )
            os.fchmod(descriptor, self._mode)
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)
        finally:
            os.close(descriptor)

    def _hand_over_folder(self, root: int, folder: str) -> None:
        with _inside(root, folder) as (place, name):
            descriptor = os.open(name, _FOLDER, dir_fd=place)
        try:
            os.fchmod(descriptor, self._mode | (self._mode & 0o444) >> 2)
            if self._owner is not None:
                os.fchown(descriptor, *self._owner)
        finally:
            os.close(descriptor)


def _empty_folder(target: Path, *, anywhere: bool) -> int:
    try:
        root = os.open(target, _FOLDER)
    except OSError as error:
        raise UsageError(
            f"{target} is no folder to restore to: {error.strerror}", todo="name an empty folder of a tmpfs"
        ) from None
    try:
        if not anywhere and not in_memory(root):
            raise UsageError(
                f"{target} does not lie in memory: what is restored there could stay on a disk",
                todo="mount a private tmpfs on it",
            )
        with os.scandir(root) as found:
            occupied = any(found)
        if occupied:
            raise UsageError(f"{target} is not empty", todo="name an empty folder of a tmpfs")
    except BaseException:
        os.close(root)
        raise
    return root


def _folders_of(paths: Iterable[str]) -> list[str]:
    """Every folder above one of the paths, each after those above it."""
    found = set[str]()
    for path in paths:
        parts = path.split("/")[:-1]
        found.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    return sorted(found)


@contextlib.contextmanager
def _inside(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The folder that ``path`` lies in below ``root``, and its name there. No link on the way is followed."""
    *folders, name = path.split("/")
    place = os.dup(root)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=place)
            os.close(place)
            place = below
        yield place, name
    finally:
        os.close(place)


def _reopen(root: int, path: str) -> int:
    with _inside(root, path) as (place, name):
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)


def _clear(root: int) -> None:
    """Remove what is below ``root``, which we made; folders may have lost the rights that this takes."""
    for name in os.listdir(root):
        try:
            descriptor = os.open(name, _FOLDER, dir_fd=root)
        except OSError:
            os.unlink(name, dir_fd=root)
            continue
        try:
            os.fchmod(descriptor, 0o700)
            _clear(descriptor)
        finally:
            os.close(descriptor)
        os.rmdir(name, dir_fd=root)
