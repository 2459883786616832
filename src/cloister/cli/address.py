"""Addresses as options have them."""

from __future__ import annotations

from cloister.errors import UsageError


def host_and_port(text: str, *, option: str, example: str) -> tuple[str, int]:
    """Of ``HOST:PORT``. Raises :class:`UsageError`."""
    host, _, number = text.rpartition(":")
    port = int(number) if number.isascii() and number.isdecimal() and len(number) < 6 else -1
    if not host or not 0 <= port <= 65535:
        raise UsageError(f"{option} {text[:64]!r} is no HOST:PORT", todo=f"for example {example}")
    return host.removeprefix("[").removesuffix("]"), port
