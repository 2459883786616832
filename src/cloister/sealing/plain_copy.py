"""Everything a file system of ours shows (posix.py), walked through, or copied out in the clear: all or nothing.

For sealed trees: who reads one has the key, and so had everybody who could have written it, so names and links are looked at
again before they become files of this machine. Refuses names that lead elsewhere, and links that could. Holes stay holes.
What does not authenticate arrives as ``EIO`` and is told as what it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cloister.errors import FormatError, TamperedFile, UsageError
from cloister.sealing.posix import Files, Status
from cloister.sealing.staging import staged_inside
from cloister.sealing.workers import Progress, Tally

MAX_DEPTH = 128
"""Directories inside one another."""
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """One file, directory or link."""

    path: str
    status: Status


def walk(files: Files) -> Iterator[Found]:
    """All there is below the root, each directory before what it holds.

    Raises :class:`~cloister.errors.FormatError` for a name that cannot be, :class:`~cloister.errors.TamperedFile` for
    what does not authenticate.
    """
    waiting = [("", 0)]
    while waiting:
        folder, depth = waiting.pop()
        with _told(folder or "the root"):
            names = files.names(folder)
        for name in sorted(names):
            path = f"{folder}/{name}" if folder else name
            if name in ("", ".", "..") or "/" in name or "\0" in name or depth >= MAX_DEPTH:
                raise FormatError(f"the path {path[:80]!a} is not a plain relative path")
            with _told(path):
                status = files.status(path)
            yield Found(path, status)
            if status.kind == "directory":
                waiting.append((path, depth + 1))


def read_out(
    files: Files, path: str, write: Callable[[bytes], object], *, start: int = 0, end: int | None = None
) -> int:
    """Write bytes ``start`` to ``end`` of one file with ``write``; how many there were. Raises as :func:`walk`."""
    with _told(path):
        file = files.open(path, write=False)
    try:
        size = file.status.size
        stop = size if end is None else min(end, size)
        if start > size:
            raise UsageError(f"{path} has {size} bytes, so none from {start} on", todo="give another --range")
        for offset in range(start, stop, _PIECE):
            with _told(path):
                data = file.read(offset, min(_PIECE, stop - offset))
            write(data)
    finally:
        file.close()
    return max(0, stop - start)


def copy_out(files: Files, out: Path, *, progress: Progress | None = None) -> tuple[int, int]:
    """Copy all of it into ``out``, a new or empty folder; how many files, and bytes.

    Files are made 0600 (0700 if they may be run), folders 0700; times of change are kept. Raises as :func:`walk`, and
    :class:`~cloister.errors.UsageError` for what cannot be written.
    """
    found = list(walk(files))
    plain = [entry for entry in found if entry.status.kind == "file"]
    tally = Tally(sum(entry.status.size for entry in plain), progress)
    with staged_inside(out) as stage:
        try:
            for entry in found:
                if entry.status.kind == "directory":
                    (stage / entry.path).mkdir(mode=0o700)
            for entry in plain:
                _copy(files, entry, stage / entry.path, tally)
            for entry in found:  # last, so that nothing was ever written through one
                if entry.status.kind == "link":
                    (stage / entry.path).symlink_to(_inner_target(files, entry.path))
        except OSError as error:
            raise UsageError(f"cannot write in {out}: {error.strerror}") from None
    return len(plain), sum(entry.status.size for entry in plain)


def _copy(files: Files, entry: Found, target: Path, tally: Tally) -> None:
    mode = 0o700 if entry.status.mode & 0o100 else 0o600
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb", buffering=0) as plain:

        def write(data: bytes) -> None:
            if data.count(0) == len(data):
                plain.seek(len(data), os.SEEK_CUR)
            else:
                done = 0
                while done < len(data):
                    done += plain.write(data[done:])
            tally.add(len(data))

        size = read_out(files, entry.path, write)
        plain.truncate(size)
        os.utime(descriptor, ns=(entry.status.modified_ns, entry.status.modified_ns))
        os.fsync(descriptor)


def _inner_target(files: Files, path: str) -> str:
    """Where the link at ``path`` leads, if it stays inside whatever other links there are.

    Folders on the way to the link are real ones, so steps up are known if they come first, and only then.
    """
    with _told(path):
        target = files.read_link(path)
    parts = target.split("/")
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    if target.startswith("/") or not target or "\0" in target or up > path.count("/") or ".." in parts[up:]:
        raise FormatError(
            f"the link {path[:80]!a} leads, or could lead, out of its tree", todo="mount the tree"
        )
    return target


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EIO:
            raise TamperedFile(
                f"{path[:80]!a} does not authenticate", todo="get the tree from its owner"
            ) from None
        raise UsageError(f"cannot read {path[:80]!a}: {error.strerror or error}") from None
