"""Whole directories or none: build beside (or inside) the place, then rename; clean up on errors and Ctrl-C.

Refuses a place that exists and is not an empty directory. A process that is killed outright leaves a folder
whose name ends in ``.partial`` and holds 16 random digits; nothing ever reads such a folder.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from cloister.errors import UsageError


@contextlib.contextmanager
def staged_beside(out: Path) -> Iterator[Path]:
    """A new folder next to ``out`` that becomes ``out`` by one rename when the block ends well."""
    refuse_occupied(out)
    stage = _new_folder(out.parent, f".{out.name[:100]}.")
    try:
        yield stage
        sync_folder(stage)
        try:
            stage.rename(out)
        except OSError as error:
            raise UsageError(
                f"cannot put {out} in place: {error.strerror}", todo="name a new folder"
            ) from None
        sync_folder(out.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextlib.contextmanager
def staged_inside(out: Path) -> Iterator[Path]:
    """A new folder inside ``out``, whose entries move up into ``out`` when the block ends well.

    For plaintext: it never lies outside ``out``, which may be a private tmpfs while its parent is a disk.
    """
    refuse_occupied(out)
    made = not out.exists()
    try:
        out.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {out}: {error.strerror}") from None
    names: list[str] = []
    stage = None
    try:
        stage = _new_folder(out, ".")
        yield stage
        names = sorted(entry.name for entry in stage.iterdir())
        _move_up(stage, names, out)
        stage.rmdir()
        sync_folder(out)
    except BaseException:
        if stage is not None:
            for name in names:
                if not os.path.lexists(
                    stage / name
                ):  # it has left the stage, so it is ours where it lies now
                    _remove(out / name)
            shutil.rmtree(stage, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                out.rmdir()
        raise


def refuse_occupied(out: Path) -> None:
    """Raise :class:`~cloister.errors.UsageError` unless ``out`` is absent or an empty directory."""
    try:
        occupied = out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir())))
    except OSError as error:
        raise UsageError(f"cannot look into {out}: {error.strerror}") from None
    if occupied:
        raise UsageError(f"{out} exists and is not an empty directory", todo="name a new one with --out")


def _new_folder(parent: Path, prefix: str) -> Path:
    stage = parent / f"{prefix}{secrets.token_hex(8)}.partial"
    try:
        stage.mkdir(mode=0o700)
    except OSError as error:
        raise UsageError(
            f"cannot create a folder in {parent}: {error.strerror}", todo="check --out"
        ) from None
    return stage


def _move_up(stage: Path, names: list[str], out: Path) -> None:
    for name in names:
        try:
            (stage / name).rename(out / name)
        except OSError as error:
            raise UsageError(
                f"cannot put {name} in {out}: {error.strerror}", todo="name a new folder"
            ) from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(directory: Path) -> None:
    """Wait until the names in ``directory`` are on the disk. Raises :class:`OSError`."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
