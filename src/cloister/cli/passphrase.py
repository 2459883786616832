"""A passphrase out of a file that only its owner can read; never out of an argument or the environment."""

from __future__ import annotations

from pathlib import Path

from cloister.broker.state_key import MAX_PASSPHRASE, MIN_PASSPHRASE
from cloister.errors import UsageError
from cloister.sealing.descriptors import read_private


def read_passphrase(path: Path) -> bytes:
    """The passphrase, without one trailing newline. Raises :class:`UsageError`; never shows its content."""
    text = read_private(path, what="the passphrase file", limit=MAX_PASSPHRASE + 1)
    passphrase = text.removesuffix(b"\n")
    if not MIN_PASSPHRASE <= len(passphrase) <= MAX_PASSPHRASE:
        raise UsageError(
            f"the passphrase in {path} must be {MIN_PASSPHRASE} to {MAX_PASSPHRASE} bytes long",
            todo="for example: openssl rand -base64 24",
        )
    return passphrase
