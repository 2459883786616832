"""Fields of sealed metadata: big-endian, fixed or length-prefixed, read strictly and never beyond the end.

Pure. Refuses what is cut off, and names that are no names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cloister.errors import FormatError

MAX_NAME: Final = 255
MAX_TARGET: Final = 4095
MAX_TIME: Final = (1 << 63) - 1
OBJECT_ID_SIZE: Final = 16


def name_bytes(name: str) -> bytes:
    """A file's name as it is stored. Raises :class:`~cloister.errors.FormatError` unless it is one."""
    try:
        data = name.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("a name is not Unicode") from None
    if not 0 < len(data) <= MAX_NAME or name in (".", "..") or "/" in name or "\0" in name:
        raise FormatError("a name cannot be one")
    return len(data).to_bytes(1) + data


def target_bytes(target: str) -> bytes:
    """Where a link leads, as it is stored. Raises :class:`~cloister.errors.FormatError`."""
    try:
        data = target.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("a link's target is not Unicode") from None
    if not 0 < len(data) <= MAX_TARGET or "\0" in target:
        raise FormatError("a link's target cannot be one")
    return len(data).to_bytes(2) + data


def time_bytes(time_ns: int) -> bytes:
    """Nanoseconds since 1970, before it negative: 8 bytes."""
    return time_ns.to_bytes(8, signed=True)


class Reader:
    """Reads fields out of what ``take`` gives: exactly so many bytes, or it raises."""

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self.take = take

    def number(self, size: int) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size))

    def time(self) -> int:
        """Nanoseconds since 1970."""
        return int.from_bytes(self.take(8), signed=True)

    def name(self) -> str:
        """A name. Raises :class:`~cloister.errors.FormatError`."""
        name = self._text(self.number(1))
        name_bytes(name)
        return name

    def target(self) -> str:
        """Where a link leads."""
        target = self._text(self.number(2))
        target_bytes(target)
        return target

    def _text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError("a name is not UTF-8") from None


class BytesReader(Reader):
    """Fields of a buffer."""

    def __init__(self, data: bytes) -> None:
        super().__init__(self._take)
        self._data = data
        self._at = 0

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise FormatError("a field ends behind the end")
        data = self._data[self._at : end]
        self._at = end
        return data

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self._at
