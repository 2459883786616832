"""A key source that asks another one once for each URI: behind that one may be a broker and a quote.

Nothing is remembered of a refusal. The keys live as long as the object does.
"""

from __future__ import annotations

import threading

from cloister.sealing import KeySource


class RememberedKeys:
    """A :class:`~cloister.sealing.KeySource`. Thread-safe: whoever asks for a key that is being asked for waits."""

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys
        self._known: dict[str, bytes] = {}
        self._asking = threading.Lock()

    def key(self, uri: str) -> bytes:
        """As the other source answers, and its errors."""
        with self._asking:
            if uri not in self._known:
                self._known[uri] = self._keys.key(uri)
            return self._known[uri]
