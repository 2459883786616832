"""Whose prompt lies in which of llama.cpp's slots: what one tenant asked is never reused for another.

llama.cpp keeps what a slot computed last, and a request that says so (``cache_prompt``) skips the beginning that it
has in common with it: how fast its answer starts tells what lay there. So a request is sent into a slot of its own
choice (``id_slot``), and may reuse what lies there only where the same tenant wrote it and nobody else since.

Some requests cannot be sent into a slot: embeddings, and several choices or prompts in one. They take whatever slot
llama.cpp gives them, at any time until they end. While one of them runs nothing is reused, and what lay in a slot
while one ran belongs to nobody afterwards. It starts only when every request that was promised reuse has begun,
since llama.cpp might otherwise let it in before. (tools/server/server-context.cpp: ``get_available_slot``,
``launch_slots_with_parent_task``, ``SLOT_STATE_STARTED``.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from cloister.inference.api_errors import shutting_down

Text = str | Sequence[int]
"""A prompt as it was asked: characters, or tokens."""
WORTH_KEEPING: Final = 0.1
"""Part of a prompt that has to lie in a tenant's slot already for it to go there again; below it, another slot."""


@dataclass(slots=True)
class Place:
    """A slot that one request holds. ``mine`` says that what lies in it was written for this request's tenant."""

    slot: int
    tenant: bytes | None
    text: Text
    frame: bytes
    known: int
    """Length of the beginning of ``text`` that lies in the slot already."""
    mine: bool
    epoch: int
    promised: bool = False


@dataclass(slots=True)
class _Slot:
    owner: bytes | None = None
    text: Text = ""
    frame: bytes = b""
    used: int = 0
    free: bool = True


class Slots:
    """The slots of one server. ``keeping``: whether what a request leaves is kept for its tenant's next one."""

    def __init__(self, count: int, *, keeping: bool) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._keeping = keeping
        self._change = threading.Condition()
        self._epoch = 0
        """Counts beginnings and ends of requests that take any slot."""
        self._roaming = 0
        self._waiting = 0
        self._promised = 0
        self._uses = 0
        self._closed = False

    @contextmanager
    def place(self, tenant: bytes | None, text: Text, frame: bytes = b"") -> Iterator[Place]:
        """A free slot for one request; waits for one. Raises RequestRefused when the engine shuts down.

        ``frame`` is all of the request that may change its tokens, but for ``text``. What the request leaves is kept
        if this ends without an error.
        """
        place = self._take(tenant, text, frame)
        try:
            yield place
        except BaseException:
            place.mine = False
            raise
        finally:
            self._give_back(place)

    @contextmanager
    def roaming(self) -> Iterator[None]:
        """For a request that llama.cpp may put into any slot."""
        with self._change:
            self._waiting += 1
            try:
                self._change.wait_for(lambda: self._promised == 0 or self._closed)
            finally:
                self._waiting -= 1
            self._roaming += 1
            self._forget()
        try:
            yield
        finally:
            with self._change:
                self._roaming -= 1
                self._forget()

    def may_reuse(self, place: Place) -> bool:
        """Whether the request that is sent next may reuse what lies in the slot: a promise until :meth:`begun`."""
        with self._change:
            if place.epoch != self._epoch or self._roaming or self._waiting:
                place.mine = False
                place.epoch = self._epoch
            if place.mine and not place.promised:
                place.promised = True
                self._promised += 1
            return place.mine

    def begun(self, place: Place) -> None:
        """llama.cpp has put the request into the slot: from here on, what lies there is its own prompt."""
        with self._change:
            self._kept_promise(place)
            place.mine = True

    def close(self) -> None:
        """Nobody waits for a slot any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _take(self, tenant: bytes | None, text: Text, frame: bytes) -> Place:
        with self._change:
            self._change.wait_for(lambda: self._closed or any(slot.free for slot in self._slots))
            if self._closed:
                raise shutting_down()
            free = [number for number, slot in enumerate(self._slots) if slot.free]
            own = [n for n in free if tenant is not None and self._slots[n].owner == tenant]
            known = {n: common_length(self._slots[n].text, text) for n in own}
            best = max(own, key=lambda n: known[n], default=None)
            mine = best is not None and known[best] >= max(1, WORTH_KEEPING * len(text))
            if best is None or not mine:
                # What belongs to nobody first, then what was asked for the longest time ago.
                best = min(free, key=lambda n: (self._slots[n].owner is not None, self._slots[n].used))
            slot = self._slots[best]
            slot.free = False
            if not mine:
                slot.owner, slot.text = None, ""
            same = known[best] if mine and slot.frame == frame else 0
            return Place(best, tenant, text, frame, same, mine, self._epoch)

    def _give_back(self, place: Place) -> None:
        with self._change:
            self._kept_promise(place)
            kept = place.mine and place.epoch == self._epoch and not self._roaming
            slot = self._slots[place.slot]
            slot.free = True
            self._uses += 1
            slot.used = self._uses
            slot.owner = place.tenant if kept and self._keeping else None
            slot.text = place.text if slot.owner is not None else ""
            slot.frame = place.frame
            self._change.notify_all()

    def _kept_promise(self, place: Place) -> None:
        if place.promised:
            place.promised = False
            self._promised -= 1
            self._change.notify_all()

    def _forget(self) -> None:
        self._epoch += 1
        for slot in self._slots:
            slot.owner, slot.text = None, ""


def common_length(one: Text, other: Text) -> int:
    """Length of the common beginning; none between characters and tokens."""
    if isinstance(one, str) != isinstance(other, str):
        return 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
