"""API keys: who may ask at all. Read from a file, never from the command line or the environment.

A key is looked up by comparing digests in constant time, over all keys, so that neither a prefix nor the number
of keys before the right one shows. That no keys are wanted is said explicitly with :meth:`ApiKeys.nobody_asks`;
an empty file is an error, and so is one that others may read.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cloister.errors import UsageError
from cloister.inference.api_errors import wrong_key
from cloister.sealing.descriptors import read_private

MIN_LENGTH: Final = 16
MAX_LENGTH: Final = 512
MAX_KEYS: Final = 4096
MAX_FILE: Final = MAX_KEYS * (MAX_LENGTH + 1)


class ApiKeys:
    """A set of accepted keys, held as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        digests = {_digest(_checked(key)) for key in keys}
        if not digests:
            raise UsageError(
                "the API key file holds no key",
                todo="write one key to a line, or pass --no-api-keys to answer anybody",
            )
        if len(digests) > MAX_KEYS:
            raise UsageError(f"{len(digests)} API keys, over the bound of {MAX_KEYS}")
        self._digests = tuple(sorted(digests))

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """One key a line; empty lines and those that start with ``#`` are left out. Raises UsageError."""
        data = read_private(path, what="the API key file", limit=MAX_FILE)
        if len(data) > MAX_FILE:
            raise UsageError(f"the API key file {path} is over {MAX_FILE} bytes long")
        try:
            lines = data.decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"the API key file {path} is not ASCII") from None
        return cls(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))

    @classmethod
    def of_digests(cls, digests: Iterable[bytes]) -> ApiKeys:
        """Keys of which only the SHA-256 is known here: those of users that are measured. Raises UsageError for none."""
        return cls._of(digests)

    def with_digests(self, digests: Iterable[bytes]) -> ApiKeys:
        """These keys and those."""
        return self._of([*self._digests, *digests])

    @classmethod
    def _of(cls, digests: Iterable[bytes]) -> ApiKeys:
        found = tuple(sorted(set(digests)))
        if not found or len(found) > MAX_KEYS:
            raise UsageError(f"{len(found)} API keys: between 1 and {MAX_KEYS} can be known")
        keys = cls.__new__(cls)
        keys._digests = found
        return keys

    @classmethod
    def nobody_asks(cls) -> ApiKeys:
        """Serve whoever reaches the port: the choice not to have keys."""
        keys = cls.__new__(cls)
        keys._digests = ()
        return keys

    @property
    def required(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: str | None) -> bytes | None:
        """Whose key it is: its digest (32 bytes), or None where nobody is asked. Raises RequestRefused (401).

        ``authorization`` is the header's value.
        """
        if not self._digests:
            return None
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise wrong_key(given=False)
        wanted = _digest(key.strip())
        found = False
        for digest in self._digests:
            # No early way out: every key is compared, whichever matches.
            found |= hmac.compare_digest(digest, wanted)
        if not found:
            raise wrong_key(given=True)
        return wanted

    def __repr__(self) -> str:
        return f"ApiKeys({len(self._digests)} keys)" if self._digests else "ApiKeys.nobody_asks()"


def _checked(key: str) -> str:
    if not MIN_LENGTH <= len(key) <= MAX_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        # The key itself is not in the text: what is refused may be one character away from a real one.
        raise UsageError(
            f"an API key must be {MIN_LENGTH} to {MAX_LENGTH} printable ASCII characters, no spaces"
        )
    return key


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
