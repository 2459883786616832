"""The folder that `serve` and `seal` take: the chosen files and ``optimized.json``, whole or not there.

What was converted is moved, what was given is linked, or copied where links cannot be. Everything is on the disk before the
folder gets its name.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from cloister.errors import UsageError
from cloister.inference.model_files import CHOICE_NAME
from cloister.inference.optimized import Choice, write_choice
from cloister.inference.optimizer.forms import Given
from cloister.sealing.staging import staged_beside


def write_folder(out: Path, chosen: Path, given: Given, choice: Choice) -> None:
    """Put the files at ``chosen`` (the given model's, or one that was made) and ``choice`` into the new folder ``out``.

    Raises :class:`UsageError`.
    """
    data = write_choice(choice)
    with staged_beside(out) as stage:
        try:
            if chosen == given.path:
                for name in given.files:
                    _linked(given.place(name), stage / name)
            else:
                chosen.rename(stage / chosen.name)
                _synced(stage / chosen.name)
            (stage / CHOICE_NAME).write_bytes(data)
            _synced(stage / CHOICE_NAME)
        except OSError as error:
            raise UsageError(
                f"cannot write {out}: {error.strerror}", todo="make room on the disk, or name another --out"
            ) from None


def _linked(source: Path, target: Path) -> None:
    source = source.resolve()  # a cache of models holds links
    with contextlib.suppress(OSError):  # another disk, or not ours
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    _synced(target)


def _synced(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
