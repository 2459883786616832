"""Key URIs: ``kbs:///repository/type/tag``, the Confidential Containers form with an empty authority.

One spelling for each key: nothing is unescaped, normalised or completed, so that two parties who compare URIs
as text compare keys. Refuses an authority, queries, percent signs, dots in front, and anything but three parts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloister.errors import FormatError

MAX_URI = 255
"""Upper bound of a key URI in bytes, as the sealed file's header has it."""

_PART = r"([A-Za-z0-9_-][A-Za-z0-9._-]{0,63})"
_URI = re.compile(rf"kbs:///{_PART}/{_PART}/{_PART}")


@dataclass(frozen=True, slots=True)
class KeyUri:
    """The three names of a resource; ``str()`` gives the URI back."""

    repository: str
    type: str
    tag: str

    def __str__(self) -> str:
        return f"kbs:///{self.repository}/{self.type}/{self.tag}"


def parse_key_uri(text: str) -> KeyUri:
    """Parse a key URI strictly. Raises :class:`~cloister.errors.FormatError`."""
    match = _URI.fullmatch(text) if len(text) <= MAX_URI else None
    if match is None:
        raise FormatError(
            f"{text[:MAX_URI]!r} is not a key URI",
            todo="write kbs:///repository/type/tag, each part of A-Z a-z 0-9 . _ - and at most 64 long",
        )
    return KeyUri(*match.groups())
