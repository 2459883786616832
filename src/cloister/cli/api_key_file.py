"""API keys in private files: a service's, which its user was given, and the local proxy's own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.errors import UsageError

MAX_KEY_FILE: Final = 64 * 1024
MIN_OWN_KEY: Final = 16


def read_api_key(path: Path) -> str:
    """The first API key of a private file. Raises :class:`UsageError`."""
    from cloister.sealing.descriptors import read_private

    data = read_private(path, what="the API key file", limit=MAX_KEY_FILE)
    try:
        lines = [line.strip() for line in data.decode("ascii").splitlines()]
    except UnicodeDecodeError:
        raise UsageError(f"the API key file {path} is not ASCII") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not keys[0].isprintable() or " " in keys[0]:
        raise UsageError(f"the API key file {path} holds no key", todo="write the key to its first line")
    return keys[0]


def own_key(path: Path) -> str:
    """The key in this private file, which is made where there is none. Raises :class:`UsageError`."""
    from cloister.manifest.storage import write_whole

    try:
        there = path.exists()
    except OSError:
        there = True  # and cannot be looked at, which reading it says
    if not there:
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"{path.parent} cannot be made ({error.strerror})", todo="pass --key-file"
            ) from None
        try:
            write_whole(path, f"{secrets.token_urlsafe(32)}\n".encode(), replace=False, mode=0o600)
        except UsageError:
            if not path.exists():  # else another proxy made it a moment ago
                raise
    key = read_api_key(path)
    if len(key) < MIN_OWN_KEY:
        raise UsageError(
            f"the proxy's own key in {path} has under {MIN_OWN_KEY} characters, and can be guessed",
            todo="remove the file: another is made",
        )
    return key


def own_key_path(environment: Mapping[str, str], home: Path) -> Path:
    """Where this user's proxies have their key: below ``$XDG_CONFIG_HOME``, or ``~/.config``."""
    named = Path(environment.get("XDG_CONFIG_HOME", ""))
    return (named if named.is_absolute() else home / ".config") / "cloister" / "proxy.key"
