"""Sealed files: a header, a wrapped data key and authenticated segments; a signed index over a directory."""

from __future__ import annotations

from typing import Protocol


class KeySource(Protocol):
    """Who has keys implements this. ``uri`` is ``kbs:///repository/type/tag``; the answer is 32 bytes.

    Raises :class:`~cloister.errors.KeyUnavailable` (or the broker's own refusal).
    """

    def key(self, uri: str) -> bytes: ...
