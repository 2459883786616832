"""A task's settings out of the federation, read strictly: each one's kind and bounds, and none that the task does not know.

Every party signed them, and none of them can be left out or misspelt in silence. Numbers are whole, as in the federation;
rates are counted in millionths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from cloister.errors import UsageError

MILLION: Final = 1_000_000
MAX_TEXT: Final = 255
MAX_TEXTS: Final = 256
T = TypeVar("T", bound=str)


class SettingsReader:
    """Takes settings one after another; :meth:`end` refuses what nobody took."""

    def __init__(self, settings: Mapping[str, int | str | tuple[str, ...]], *, task: str) -> None:
        self._left = dict(settings)
        self._known: list[str] = []
        self._task = task

    def number(self, name: str, default: int | None, *, low: int, high: int) -> int:
        """A whole number. Without a default it has to be there, as everywhere here."""
        found = self._take(name, default)
        if type(found) is not int or not low <= found <= high:
            raise self._refused(name, f"is no number from {low} to {high}")
        return found

    def millionths(self, name: str, default: int, *, low: int = 0, high: int = MILLION) -> float:
        """A number that is counted in millionths, as ``rate-ppm`` is."""
        return self.number(name, default, low=low, high=high) / MILLION

    def switch(self, name: str, default: int) -> bool:
        """0 or 1."""
        return bool(self.number(name, default, low=0, high=1))

    def text(self, name: str, default: str | None = None) -> str:
        """A text that can be shown; empty only as a default."""
        found = self._take(name, default)
        if not isinstance(found, str) or (found != default and not _is_text(found)):
            raise self._refused(name, f"is no text of 1 to {MAX_TEXT} letters")
        return found

    def choice(self, name: str, default: T, choices: tuple[T, ...]) -> T:
        """One of ``choices``."""
        found = self._take(name, default)
        for one in choices:
            if found == one:
                return one
        raise self._refused(name, f"is none of {', '.join(choices)}")

    def texts(self, name: str, default: tuple[str, ...] | None = None, *, least: int = 1) -> tuple[str, ...]:
        """Different texts."""
        found = self._take(name, default)
        if not isinstance(found, tuple) or not all(map(_is_text, found)):
            raise self._refused(name, f"is no list of texts of 1 to {MAX_TEXT} letters")
        if not least <= len(found) <= MAX_TEXTS or len(set(found)) != len(found):
            raise self._refused(name, f"has less than {least} texts, more than {MAX_TEXTS}, or one twice")
        return found

    def end(self) -> None:
        """Nothing more is known. Raises UsageError."""
        if self._left:
            name = min(self._left)
            raise UsageError(
                f"the task {self._task} has no setting {name[:80]!r}",
                todo=f"its settings are {', '.join(sorted(self._known))}",
            )

    def _take(
        self, name: str, default: int | str | tuple[str, ...] | None
    ) -> int | str | tuple[str, ...] | None:
        self._known.append(name)
        found = self._left.pop(name, default)
        if found is None:
            raise UsageError(
                f"the task {self._task} lacks its setting {name!r}", todo="add it to the federation"
            )
        return found

    def _refused(self, name: str, why: str) -> UsageError:
        return UsageError(f"the setting {name!r} of the task {self._task} {why}")


def _is_text(text: object) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= MAX_TEXT and text.isprintable()
