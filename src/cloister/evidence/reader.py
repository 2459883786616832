"""A cursor over bytes with fixed fields: it never reads past the end, never skips and never leaves a rest.

Only for little-endian vendor structures; our own formats are JSON or CBOR (encoding.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.errors import EvidenceError


class Reader:
    """Takes fields off ``data`` in order. Every failure is an :class:`~cloister.errors.EvidenceError`."""

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    @property
    def position(self) -> int:
        return self._at

    @property
    def remaining(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.remaining:
            raise EvidenceError(
                f"the {self._what} ends at byte {len(self._data)}, in the middle of a field of {size} bytes",
                todo="it was truncated or is of another format",
            )
        self._at += size
        return self._data[self._at - size : self._at]

    def u16(self) -> int:
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def zeros(self, size: int) -> None:
        """A reserved field: anything but zeros has a meaning that is not known here."""
        if self.take(size).strip(b"\0"):
            raise EvidenceError(f"the {self._what} has reserved bytes that are not zero before {self._at}")

    def end(self) -> None:
        """Nothing may follow."""
        if self.remaining:
            raise EvidenceError(f"the {self._what} has {self.remaining} bytes behind its end")


def bit_names(flags: bytes, names: Mapping[int, str]) -> frozenset[str]:
    """Names of the bits set in little-endian ``flags``; ``bit N`` for those that ``names`` does not have."""
    value = int.from_bytes(flags, "little")
    return frozenset(names.get(bit, f"bit {bit}") for bit in range(value.bit_length()) if value >> bit & 1)
