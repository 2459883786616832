"""Which paths are sealed, and real files for libraries that need some.

Sealed are ``sealed://`` and ``sealed::`` URLs and local paths at or below a folder that has an index and a signature, or
whose name ends in ``.sealed``. The name is enough: a host that takes the index away, or puts a file in the clear there, is
then refused and not believed. What lies behind a mount (``cloister mount``, a restored model) is plain already.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from cloister.errors import WorkloadError
from cloister.sealing.index import INDEX_NAME, SIGNATURE_NAME, SUFFIX

PRIVATE: Final = "CLOISTER_PRIVATE"
"""Names a folder in the private tmpfs, made by the launcher, for nobody else."""


def is_sealed(value: object) -> bool:
    """Whether a library's argument is a sealed path."""
    return sealed_url(value) is not None


def sealed_url(value: object) -> str | None:
    """The ``sealed:`` URL of a sealed path; None for everything else."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        return None
    if text.startswith(("sealed://", "sealed::")):
        return text
    path = Path(os.path.abspath(text))  # noqa: PTH100 -- without following links: names decide
    return f"sealed://{path}" if "://" not in text and _lies_sealed(path) else None


def _lies_sealed(path: Path) -> bool:
    private = os.environ.get(PRIVATE)
    if private and path.is_relative_to(private):
        return False
    for candidate in (path, *path.parents):
        if (candidate / INDEX_NAME).is_file() and (candidate / SIGNATURE_NAME).is_file():
            return True
        if os.path.ismount(candidate):
            return False
        if candidate.name.endswith(SUFFIX):
            return True
    return False


def as_url(value: Any) -> Any:
    """A sealed path as its URL, anything else as it is."""
    found = sealed_url(value)
    return value if found is None else found


def as_file(value: Any) -> Any:
    """A sealed path as the real path of its restored files, anything else as it is."""
    found = sealed_url(value)
    if found is None:
        return value
    real = restored(found)
    return Path(real) if isinstance(value, Path) else real


def as_name_or_file(value: Any) -> Any:
    """As :func:`as_file`, for arguments that may also be a name elsewhere: one that is relative and not there stays."""
    found = sealed_url(value)
    if found is None:
        return value
    explicit = isinstance(value, os.PathLike) or value.startswith(("sealed:", "/", ".")) or SUFFIX in value
    if not explicit:
        filesystem, inner = located(found)
        if not filesystem.exists(inner):
            return value
    return as_file(value)


def located(url: str) -> tuple[Any, str]:
    """The ``sealed`` filesystem of a URL, and its path in there."""
    from cloister.sealing.filesystem import SealedFileSystem  # noqa: PLC0415 -- fsspec loads when it is needed

    if url.startswith("sealed::"):
        from fsspec.core import url_to_fs  # noqa: PLC0415

        filesystem, path = url_to_fs(url)
        return filesystem, path
    make: Any = SealedFileSystem  # its metaclass gives it the access
    return make(), url.removeprefix("sealed://")


def restored(url: str) -> str:
    """Where the file or folder at ``url`` lies in the clear, in private memory; restored once for each version.

    Raises :class:`FileNotFoundError`, :class:`~cloister.errors.WorkloadError` without a private folder, and the errors
    of sealing; then nothing of it is there.
    """
    filesystem, path = located(url)
    place = filesystem.place(path)
    if not place.is_folder() and not filesystem.isfile(path):
        raise FileNotFoundError(f"{path} is in no sealed directory, or its index does not name it")
    version = place.index.digest if place.index is not None else secrets.token_bytes(32)
    label = hashlib.sha256(version + path.encode()).hexdigest()[:32]
    name = path.rstrip("/").rpartition("/")[2] or "restored"
    private = _private_folder()
    target = private / label
    with _alone(private / f"{label}.lock"):
        if not target.exists():
            stage = private / f"{label}.{secrets.token_hex(8)}.partial"
            stage.mkdir(mode=0o700)
            try:
                _restore(filesystem, place, path, stage / name)
                stage.rename(target)
            except BaseException:
                shutil.rmtree(stage, ignore_errors=True)
                raise
    return str(target / name)


def _restore(filesystem: Any, place: Any, path: str, target: Path) -> None:
    from cloister.sealing.restore import restore_directory  # noqa: PLC0415

    if place.index is None or not place.store.local:
        filesystem.get(path, str(target), recursive=place.is_folder())
        return
    wanted = [place.relative] if place.entry is not None else list(place.inside())
    whole = target if place.relative == "" else target.with_name(f"{target.name}.whole")
    whole.mkdir(mode=0o700)
    # Writable, as a program's own files are: `datasets` puts what it derives beside what it read.
    restore_directory(
        Path(place.directory.path), place.index, filesystem.keys, whole, paths=wanted, mode=0o600
    )
    if whole != target:
        (whole / place.relative).rename(target)
        shutil.rmtree(whole)


def _private_folder() -> Path:
    named = os.environ.get(PRIVATE)
    if not named:
        raise WorkloadError(
            "there is no private folder to restore sealed files to",
            todo="start the program with `cloister run`",
        )
    folder = Path(named)
    try:
        status = folder.stat()
        in_ram = _lies_in_memory(folder)
    except OSError as error:
        raise WorkloadError(f"the private folder cannot be used: {error.strerror}") from None
    if not in_ram:
        raise WorkloadError(f"{folder} does not lie in memory", todo="mount a private tmpfs there")
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise WorkloadError(f"{folder} is not a folder of this user alone", todo="its mode must be 0700")
    return folder


def _lies_in_memory(folder: Path) -> bool:
    from cloister.sealing.restore_memory import in_memory  # noqa: PLC0415

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return in_memory(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time restores a directory; the others wait for it and use what it made."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def gathered(url: str) -> Iterator[Path]:
    """A folder in private memory; what lies in it when the block ends well is sealed to ``url``, in one new version."""
    filesystem, path = located(url)
    stage = _private_folder() / f"{secrets.token_hex(16)}.writing"
    stage.mkdir(mode=0o700)
    try:
        yield stage
        with filesystem.transaction:
            for file in sorted(found for found in stage.rglob("*") if found.is_file()):
                filesystem.put_file(str(file), f"{path}/{file.relative_to(stage).as_posix()}")
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def open_sealed(url: str, mode: str) -> Any:
    """A file object for a sealed path."""
    filesystem, path = located(url)
    return filesystem.open(path, mode)
