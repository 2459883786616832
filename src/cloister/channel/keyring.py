"""The sealed channel's private keys: shown under evidence, rotated within an hour, then erased.

A *generation* is one key pair of each KEM with one end of life. The newest generation is shown; older ones still
open requests until their ``not_after``, so that nobody who verified in time is turned away. Key identifiers are
random and not drawn again soon: a rotated key is unknown rather than wrong. Age is measured on the wall clock
and on the machine's own ticks, whichever says older, because the host can hold back the first.

It refuses requests to keys it does not hold (any more), requests it has seen (replay.py), and to work in a forked
copy of its process, which would hold the same keys and see only half of the requests. Private keys are never
written, shown or copied.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.channel.hpke import Kem, KeyPair
from cloister.channel.ohttp import KeyConfig, ServerKey, encode_key_configs
from cloister.channel.replay import DEFAULT_CAPACITY, ReplayTable
from cloister.errors import UnknownKey, UsageError
from cloister.evidence.key_material import BrokerIdentity, KeyMaterial, encode_key_material

MAX_LIFETIME = 3600
"""Seconds from making a key pair to erasing it, at the most."""

MAX_GENERATIONS = 8
"""Live generations; beyond, the oldest ends early. Bounds what replay tables can hold when many requests come."""
_REMEMBERED_IDS = 128
"""Of 256 identifiers, this many retired ones are not drawn again yet."""


def seconds_since_boot() -> float:
    """Of the machine's own clock, suspended time included; nobody outside can turn it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class _Generation:
    keys: tuple[ServerKey, ...]
    tables: dict[int, ReplayTable]
    born: int
    born_ticks: float
    not_after: int
    material: bytes
    receipt_key: Ed25519PrivateKey | None


class KeyRing:
    """The keys of one replica, in the memory of one process. Safe to use from several threads.

    ``replica`` is the routing hint that evidence carries; ``lifetime`` in seconds (at most an hour); a new
    generation is shown after half of it. ``shown`` gives further fields of the key material, read when keys are made:
    :meth:`rotate` when they changed. With ``receipts`` a key that signs them is shown too. ``ticks`` is a clock in seconds
    that the host cannot turn.
    """

    def __init__(
        self,
        *,
        replica: str = "",
        kems: Sequence[Kem] = (Kem.X_WING, Kem.X25519),
        lifetime: int = MAX_LIFETIME,
        capacity: int = DEFAULT_CAPACITY,
        tls_spki_sha256: str | None = None,
        shown: Callable[[], BrokerIdentity] = BrokerIdentity,
        receipts: bool = False,
        now: Callable[[], int] = lambda: int(time.time()),
        ticks: Callable[[], float] = seconds_since_boot,
    ) -> None:
        if not 2 <= lifetime <= MAX_LIFETIME:
            raise UsageError(f"keys live 2 to {MAX_LIFETIME} seconds, not {lifetime}")
        if not kems or len(set(kems)) != len(kems):
            raise UsageError("a key ring has one key pair for each of one or more KEMs")
        self.replica = replica or secrets.token_hex(8)
        self._kems = tuple(kems)
        self._lifetime = lifetime
        self._capacity = capacity
        self._tls_spki_sha256 = tls_spki_sha256
        self._shown = shown
        self._receipts = receipts
        self._now = now
        self._ticks = ticks
        self._retired: deque[int] = deque(maxlen=_REMEMBERED_IDS)
        self._lock = threading.RLock()
        self._generations: list[_Generation] = []  # newest last
        self._closed = False
        self._process = os.getpid()
        self._show(now())

    def material(self, now: int | None = None) -> bytes:
        """The exact key-material bytes to hash and to send, of keys with at least half of their life left."""
        with self._lock:
            return self._current(now).material

    def configs(self, now: int | None = None) -> bytes:
        """``application/ohttp-keys`` of the current keys (RFC 9458, section 3.2), preferred first."""
        with self._lock:
            return encode_key_configs([key.config for key in self._current(now).keys])

    def find(self, key_id: int, now: int | None = None) -> ServerKey:
        """The live key of this identifier. Raises :class:`UnknownKey`."""
        with self._lock:
            self._current(now)
            for generation in self._generations:
                for key in generation.keys:
                    if key.config.key_id == key_id:
                        return key
        raise UnknownKey(f"no key {key_id} is held here", todo="verify the workload again and seal anew")

    def signer(self, key_id: int) -> Callable[[bytes], bytes] | None:
        """Signs receipts of requests that were sealed to this key; None where none are given, or the key is gone.

        Who has it can sign until it lets go: an answer that runs past the keys' end still gets its receipt.
        """
        with self._lock:
            for generation in self._generations:
                if key_id in generation.tables and generation.receipt_key is not None:
                    return generation.receipt_key.sign
        return None

    def admit(self, key_id: int, enc: bytes) -> None:
        """Record a request's encapsulated key, once its first chunk was opened and before it is acted on.

        Raises :class:`~cloister.errors.ReplayedRequest`, and :class:`UnknownKey` if the key went meanwhile.
        """
        with self._lock:
            self._require_open()
            for generation in self._generations:
                table = generation.tables.get(key_id)
                if table is not None:
                    table.admit(enc)
                    return
        raise UnknownKey(f"key {key_id} was just erased", todo="verify the workload again and seal anew")

    def rotate(self, now: int | None = None, *, revoke: bool = False) -> None:
        """Show a new generation from now on. The ones before keep their ends, or with ``revoke`` end here."""
        with self._lock:
            self._require_open()
            for generation in list(self._generations) if revoke else ():
                self._erase(generation)
            self._show(self._now() if now is None else now)

    def sweep(self, now: int | None = None) -> int:
        """Erase what is over, make what is due; the seconds until there is something to do again (≥ 1)."""
        with self._lock:
            self._require_open()
            now, ticks = self._now() if now is None else now, self._ticks()
            for generation in list(self._generations):
                spent = any(table.full for table in generation.tables.values())
                if spent or self._age(generation, now, ticks) >= self._lifetime:
                    self._erase(generation)
            newest = self._generations[-1] if self._generations else None
            if newest is None or self._due(newest, now, ticks):
                self._show(now)
            oldest, newest = self._generations[0], self._generations[-1]
            until_end = self._lifetime - self._age(oldest, now, ticks)
            until_due = self._lifetime / 2 - self._age(newest, now, ticks)
            return max(1, int(min(until_end, until_due)))

    def close(self) -> None:
        """Erase every private key: the process ends or gives up serving."""
        with self._lock:
            self._closed = True
            for generation in list(self._generations):
                self._erase(generation)

    def _require_open(self) -> None:
        if os.getpid() != self._process:
            raise UnknownKey(
                "this key ring belongs to another process", todo="make one in each process, after it forked"
            )
        if self._closed:
            raise UnknownKey("this key ring was closed", todo="start the workload again")

    def _current(self, now: int | None) -> _Generation:
        self.sweep(now)
        return self._generations[-1]

    def _due(self, generation: _Generation, now: int, ticks: float) -> bool:
        old = 2 * self._age(generation, now, ticks) >= self._lifetime
        return old or any(table.nearly_full for table in generation.tables.values())

    @staticmethod
    def _age(generation: _Generation, now: int, ticks: float) -> float:
        return max(now - generation.born, ticks - generation.born_ticks)

    def _show(self, now: int) -> None:
        self._generations.append(self._make(now))
        for generation in self._generations[:-MAX_GENERATIONS]:
            self._erase(generation)

    def _erase(self, generation: _Generation) -> None:
        self._generations.remove(generation)
        generation.receipt_key = None
        for key in generation.keys:
            self._retired.append(key.config.key_id)
            key.pair.erase()

    def _make(self, now: int) -> _Generation:
        taken = set(self._retired)
        taken.update(key.config.key_id for generation in self._generations for key in generation.keys)
        keys = []
        for kem in self._kems:
            # At most 2 x 9 identifiers are live and 128 remembered, so some of the 256 are always free.
            key_id = secrets.choice([number for number in range(256) if number not in taken])
            taken.add(key_id)
            pair = KeyPair.generate(kem)
            keys.append(ServerKey(KeyConfig(key_id, kem, pair.public_key), pair))
        not_after = now + self._lifetime
        shown = self._shown()
        receipt_key = Ed25519PrivateKey.generate() if self._receipts else None
        material = KeyMaterial(
            ohttp_keys=encode_key_configs([key.config for key in keys]),
            not_after=not_after,
            replica=self.replica,
            tls_spki_sha256=self._tls_spki_sha256,
            mesh_root_sha256=shown.mesh_root_sha256,
            manifest_sha256=shown.manifest_sha256,
            receipt_public_key=None
            if receipt_key is None
            else receipt_key.public_key().public_bytes_raw().hex(),
        )
        return _Generation(
            keys=tuple(keys),
            tables={key.config.key_id: ReplayTable(self._capacity) for key in keys},
            born=now,
            born_ticks=self._ticks(),
            not_after=not_after,
            material=encode_key_material(material),
            receipt_key=receipt_key,
        )
