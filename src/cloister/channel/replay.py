"""Which encapsulated keys one private key has already seen.

The table belongs to its key and dies with it, so it needs no clock (the host owns the clock) and forgets
nothing: when it is full it refuses, and the ring retires the key (keyring.py). It stores digests only.
"""

from __future__ import annotations

import hashlib
import threading

from cloister.errors import ReplayedRequest, UnknownKey

DEFAULT_CAPACITY = 1 << 18
"""Requests per key: about 30 MB at the most, 72 a second for an hour."""


class ReplayTable:
    """SHA-256 digests of every ``enc`` that was admitted. Safe to use from several threads."""

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        if capacity < 1:
            raise ValueError("a replay table holds at least one entry")
        self._capacity = capacity
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()

    def admit(self, enc: bytes) -> None:
        """Record ``enc``. Raises :class:`ReplayedRequest` the second time, :class:`UnknownKey` when full."""
        digest = hashlib.sha256(enc).digest()
        with self._lock:
            if digest in self._seen:
                raise ReplayedRequest(
                    "this sealed request was already answered", todo="seal it again; never send bytes twice"
                )
            if len(self._seen) >= self._capacity:
                raise UnknownKey("the key has seen all the requests it may", todo="verify the workload again")
            self._seen.add(digest)

    @property
    def nearly_full(self) -> bool:
        """Three quarters are used: time to show another key."""
        return 4 * len(self._seen) >= 3 * self._capacity

    @property
    def full(self) -> bool:
        return len(self._seen) >= self._capacity
