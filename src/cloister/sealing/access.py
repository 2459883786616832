"""Who has keys registers here, once for a process: where keys come from, whose indexes are believed, who signs outputs.

``cloister run`` does it for the programs it starts, an application may do it for itself. Nothing registers by being
imported, and what is not registered is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from cloister.errors import UsageError
from cloister.sealing import KeySource
from cloister.sealing.signing import SigningKey


@dataclass(frozen=True, slots=True)
class Access:
    """What reading and writing sealed files takes."""

    keys: KeySource
    signers: frozenset[bytes]
    """Ed25519 public keys whose signature on an index is believed, 32 bytes each. Empty: no index is."""
    signing_key: SigningKey | None = field(default=None, repr=False)
    """What signs the index of a sealed directory that this process writes."""
    output_key: str | None = None
    """The key URI under which new files are sealed, unless the writer names another."""

    def __deepcopy__(self, memo: object) -> Access:
        # Libraries copy the options they are given; a copy would be another access, and keys in one more place.
        return self

    def __reduce__(self) -> NoReturn:
        raise UsageError(
            "access to sealed files is never pickled: it stands for keys",
            todo="register it in each process with cloister.sealing.access.register",
        )


_lock = threading.Lock()
_registered: Access | None = None
_provider: Callable[[], Access] | None = None


def register(access: Access) -> None:
    """From now on this process opens sealed files with ``access``. Another may take its place."""
    global _registered  # noqa: PLW0603 -- one process, one access: fsspec and hooks have no other way to be told
    with _lock:
        _registered = access


def register_later(provider: Callable[[], Access]) -> None:
    """As :func:`register`, with an access that is made when it is first asked for."""
    global _provider  # noqa: PLW0603
    with _lock:
        _provider = provider


def registered() -> Access:
    """What was registered. Raises :class:`~cloister.errors.UsageError`, and what a provider raises."""
    global _registered  # noqa: PLW0603
    with _lock:
        if _registered is None and _provider is not None:
            _registered = _provider()
    if _registered is None:
        raise UsageError(
            "this process has no access to sealed files",
            todo="start it with `cloister run`, or call cloister.sealing.access.register",
        )
    return _registered


def forget() -> None:
    """As if nothing had been registered."""
    global _registered, _provider  # noqa: PLW0603
    with _lock:
        _registered = _provider = None
