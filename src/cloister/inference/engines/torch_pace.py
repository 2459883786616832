"""How many tokens of prompts a step reads beside those it decodes: so many that the streams keep their pace.

A step that reads takes longer than one that only decodes; the surplus is owed to the running streams and paid back with
steps that only decode. Reading has at least ``SHARE`` of the time while streams run, more where more requests wait for
their first token than have it. Nothing is known of the machine: both speeds are measured as it goes.
"""

from __future__ import annotations

from typing import Final

CHUNK: Final = 512
"""Tokens of prompts in one step, at most: a stop is noticed between steps."""
MIN_CHUNK: Final = 32
SHARE: Final = 0.33
MAX_SHARE: Final = 0.9
STALL_SECONDS: Final = 0.25
"""What reading adds to a step while streams run, about; up to ``MAX_STALLS`` times as much where more wait than run."""
MAX_STALLS: Final = 4
_NEW: Final = 0.3
"""The weight of the newest measurement in a running mean."""


class Pace:
    """Decides, and learns from what each step took."""

    def __init__(self, *, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._decode: float | None = None
        """Seconds of a step that only decodes."""
        self._token: float | None = None
        """Seconds that a prompt's token adds."""
        self._owed = 0.0
        self._share = SHARE

    def allowance(self, *, decoding: int, reading: int) -> int:
        """Tokens of prompts in the next step, with ``decoding`` rows that decode and ``reading`` that wait to be read."""
        if not reading:
            return 0
        self._share = min(MAX_SHARE, max(SHARE, reading / (reading + decoding)))
        if not decoding:
            self._owed = 0.0
            return self._chunk
        if self._owed > 0:
            return 0
        if self._token is None:
            return max(MIN_CHUNK, self._chunk // 4)
        stall = STALL_SECONDS * min(MAX_STALLS, max(1.0, reading / decoding))
        return max(MIN_CHUNK, min(self._chunk, int(stall / self._token)))

    def took(self, seconds: float, *, decoding: int, read: int) -> None:
        """Learn from a step that decoded ``decoding`` tokens and read ``read``."""
        if read:
            surplus = max(0.0, seconds - ((self._decode or 0.0) if decoding else 0.0))
            self._token = _mean(self._token, surplus / read)
            if decoding:
                self._owed += surplus
        else:
            self._decode = _mean(self._decode, seconds)
            self._owed = max(0.0, self._owed - seconds * self._share / (1 - self._share))


def _mean(known: float | None, new: float) -> float:
    return new if known is None else known + _NEW * (new - known)
