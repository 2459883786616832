"""One SQLCipher database with sqlite-vec, and transactions in it.

Pages are encrypted with AES-256 and authenticated with HMAC-SHA-512 under a key that is given raw. Of what SQLite says in
errors nothing is handed on, since it may quote what somebody wrote.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from cloister.errors import KnowledgeError, UsageError

KEY_SIZE: Final = 32
CACHE_KIB: Final = 256 * 1024
_ADVICE: Final = "look at the disk, the key, and the newest backup"


class Database:
    """One connection, whose turns a lock gives. Threads may share it."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, key: bytes) -> Self:
        """The database at ``path``, which is made where there is none. Every page is read and its tag checked.

        Raises UsageError, KnowledgeError.
        """
        if len(key) != KEY_SIZE:
            raise UsageError(f"the key of an index has {KEY_SIZE} bytes")
        return cls(_connected(path, key))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def turn(self) -> Iterator[Any]:
        """A transaction: what it did is there when it ends, or nothing of it is. Raises KnowledgeError."""
        from sqlcipher3 import dbapi2  # noqa: PLC0415 -- of the extra alone

        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            except dbapi2.Error as error:
                raise _failed(error) from None
            except UnicodeEncodeError:
                raise UsageError("a text has halves of characters, which no text has") from None


def _connected(path: Path, key: bytes) -> Any:
    """Without what SQLite would keep beside an encrypted database: statements, temporary files, a journal that stays."""
    import sqlite_vec  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415 -- of the extra alone
    from sqlcipher3 import dbapi2  # noqa: PLC0415 -- as above

    try:
        database = dbapi2.connect(str(path), isolation_level=None, check_same_thread=False)
    except dbapi2.Error as error:
        raise _failed(error) from None
    try:
        database.execute("PRAGMA cipher_log_level = NONE")  # it would write to standard error
        database.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
        for pragma in (
            # It would wipe what SQLite frees, for ten times the time; what this process holds is in the clear anyway.
            "cipher_memory_security = OFF", "foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY",
            f"cache_size = -{CACHE_KIB}", "trusted_schema = OFF",
        ):  # fmt: skip
            database.execute(f"PRAGMA {pragma}")
        database.enable_load_extension(True)
        sqlite_vec.load(database)
        database.enable_load_extension(False)
        database.execute("SELECT count(*) FROM sqlite_master")  # with the wrong key this is where it fails
        # Also of pages that no question reads: what was changed is not used.
        if database.execute("PRAGMA cipher_integrity_check").fetchall():
            raise KnowledgeError("the index cannot be used: it is damaged", todo=_ADVICE)
    except dbapi2.Error as error:
        database.close()
        raise _failed(error) from None
    except BaseException:
        database.close()
        raise
    return database


def _failed(error: Exception) -> KnowledgeError:
    """Of SQLite's words none that could hold a document's."""
    known = {
        "NotADB": "it is no index, or under another key",
        "Corrupt": "it is damaged",
        "Full": "there is no space",
    }
    name = str(getattr(error, "sqlite_errorname", "") or type(error).__name__)
    reason = next(
        (words for mark, words in known.items() if mark.lower() in name.lower().replace("_", "")), name
    )
    return KnowledgeError(f"the index cannot be used: {reason}", todo=_ADVICE)
