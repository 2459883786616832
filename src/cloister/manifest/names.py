"""Names in manifests, rules and orders: of owners, workloads, applications and resources. Pure.

One spelling each: nothing is unescaped, folded or completed, and no name begins with a dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cloister.errors import ManifestError

_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
MAX_TIME: Final = 2**53 - 1


def check_names(names: Iterable[str], what: str) -> None:
    """Raise :class:`~cloister.errors.ManifestError` on what is no name."""
    for name in names:
        if not _NAME.fullmatch(name):
            raise ManifestError(
                f"{name[:80]!r} is not a name of {what}",
                todo="use 1 to 64 of A-Z a-z 0-9 . _ - and no dot in front",
            )


def check_path(path: str, *, what: str, parts: range) -> None:
    """Raise unless ``path`` has that many names joined by ``/``."""
    names = path.split("/") if len(path) <= 255 else []
    if len(names) not in parts or not all(_NAME.fullmatch(name) for name in names):
        form = (
            "repository/type/tag"
            if parts.start == 3
            else "repository, repository/type or repository/type/tag"
        )
        raise ManifestError(f"{path[:80]!r} is not {what}", todo=f"write {form}")


def check_digest(text: str, *, what: str) -> None:
    """Raise unless ``text`` is a SHA-256 in hexadecimal."""
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ManifestError(f"{what} must be 64 lower-case hexadecimal digits")


def check_number(value: int, *, what: str, low: int, high: int = MAX_TIME) -> None:
    """Raise unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ManifestError(f"{what} must be from {low} to {high}")


def check_succession(version: int, previous: str, *, what: str) -> None:
    """Version 1 names no predecessor, every other exactly one."""
    check_number(version, what=f"the version of {what}", low=1)
    if version == 1:
        if previous:
            raise ManifestError(f"version 1 of {what} has no predecessor", todo='write previous = ""')
    else:
        check_digest(previous, what=f"the predecessor of {what}")
