"""Which repository's key is in which key store: the broker's ``--keystores`` file (docs/how-to/key-stores.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloister.broker.keystores import Keystore
from cloister.broker.keystores.opening import MAX_CONFIGURATION, open_keystores, read_repositories
from cloister.errors import UsageError


@dataclass(frozen=True, slots=True)
class Stores:
    """Key stores by name, and the store of each repository that is not in the embedded one."""

    stores: Mapping[str, Keystore]
    placed: Mapping[str, str]


def no_stores() -> Stores:
    """Everything in the embedded store."""
    return Stores({}, {})


def read_stores(path: Path) -> Stores:
    """Read the file and open its stores. Raises :class:`UsageError`."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIGURATION + 1).decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})", todo="check --keystores") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    return Stores(open_keystores(text), read_repositories(text))
