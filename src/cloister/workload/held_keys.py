"""Keys that a process of ours holds: in memory that the kernel does not map for itself, where it offers that.

Each is asked for once and read from there when it is used. What works with a key makes copies for a moment (the interpreter,
the cryptographic library), and those lie in ordinary memory of the process, which is locked and in no core dump.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Final

from cloister.errors import KeyUnavailable
from cloister.sealing import KeySource
from cloister.workload.secret_memory import SecretMemory

KEY_SIZE: Final = 32
MAX_KEYS: Final = 1024


class HeldKeys:
    """A :class:`~cloister.sealing.KeySource` that asks another one once for each key. Thread-safe."""

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._memory = SecretMemory(MAX_KEYS * KEY_SIZE)
        self._places: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"HeldKeys({len(self._places)} keys)"

    def key(self, uri: str) -> bytes:
        """32 bytes. Raises what the other source raises, and :class:`~cloister.errors.KeyUnavailable`."""
        with self._lock:
            place = self._places.get(uri)
            if place is not None:
                return self._memory.read(place, KEY_SIZE)
            if len(self._places) == MAX_KEYS:
                raise KeyUnavailable(f"more than {MAX_KEYS} keys are in use", todo="seal under fewer keys")
            key = self._keys.key(uri)
            if len(key) != KEY_SIZE:
                raise KeyUnavailable(f"the key at {uri} is {len(key)} bytes long, not {KEY_SIZE}")
            place = len(self._places) * KEY_SIZE
            self._memory.write(key, place)
            self._places[uri] = place
            return key

    def forget_source(self) -> None:
        """From now on nobody is asked: only what is held is given."""
        self._keys = GivenKeys({})

    def close(self) -> None:
        """Erase them."""
        with self._lock:
            self._places.clear()
            self._memory.close()


class GivenKeys:
    """The keys that a launcher gave, as a :class:`~cloister.sealing.KeySource`."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)

    def __repr__(self) -> str:
        return f"GivenKeys({len(self._keys)} keys)"

    def key(self, uri: str) -> bytes:
        """32 bytes. Raises :class:`~cloister.errors.KeyUnavailable`."""
        try:
            return self._keys[uri]
        except KeyError:
            raise KeyUnavailable(
                f"the launcher gave no key for {uri}",
                todo="name the resource in the workload's configuration",
            ) from None


def held(keys: dict[str, bytes]) -> HeldKeys:
    """These keys, held; ``keys`` is empty afterwards, so that no other name leads to them."""
    made = HeldKeys(GivenKeys(keys))
    for uri in keys:
        made.key(uri)
    made.forget_source()
    keys.clear()
    return made
