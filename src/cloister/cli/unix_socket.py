"""A Unix socket that only this user may open: taken, and removed by who made it alone."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from cloister.errors import NetworkError


def take_socket(path: Path) -> socket.socket:
    """A Unix socket at ``path`` that only this user may open. Raises :class:`NetworkError`.

    What a server that is gone left there is replaced; nothing else is.
    """
    taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and not _answers(path):
            path.unlink()
        before = os.umask(0o177)  # rights from its first moment
        try:
            taken.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        taken.close()
        reason = "something is there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise NetworkError(
            f"cannot listen at {path}: {reason}", todo="stop what listens there, or name another"
        ) from None
    return taken


def identity_of(path: Path | None) -> tuple[int, int] | None:
    """Which file is there now."""
    try:
        found = None if path is None else path.stat(follow_symlinks=False)
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)


def remove_socket(path: Path, mine: tuple[int, int] | None) -> None:
    """Unless another has taken its place."""
    if mine is not None and identity_of(path) == mine:
        path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(2.0)
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return False
        except TimeoutError:  # somebody is there, and busy
            return True
    return True
