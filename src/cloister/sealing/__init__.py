"""Sealed files: a header, a wrapped data key and authenticated segments; a signed index over a directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from cloister.sealing.opening import open as open  # noqa: A004 -- what `__getattr__` gives


class KeySource(Protocol):
    """Who has keys implements this. ``uri`` is ``kbs:///repository/type/tag``; the answer is 32 bytes.

    Raises :class:`~cloister.errors.KeyUnavailable` (or the broker's own refusal).
    """

    def key(self, uri: str) -> bytes: ...


def __getattr__(name: str) -> Any:
    # PEP 562: `cloister.sealing.open` needs fsspec, and nothing else here does.
    if name == "open":
        from cloister.sealing.opening import open as opened  # noqa: PLC0415

        return opened
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
