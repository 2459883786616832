"""Tree heads that this machine has seen, kept over visits: what a log that was cut or rewritten cannot extend.

One file for each log, replaced at once and never by an older head. A file that cannot be read is an error, not a first
visit: whoever could damage it could otherwise make a broker's past forgotten.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cloister.broker.tree_head import MAX_SIGNED_HEAD, SignedHead, TreeHead, verify_head
from cloister.encoding import Record, decode_json, encode_json, from_hex
from cloister.errors import CloisterError, UsageError

FORMAT: Final = "cloister/kept-head/v1"
MAX_FILES: Final = 4096
MAX_FILE: Final = MAX_SIGNED_HEAD + 8192


class KeptHead(Record, frozen=True, kw_only=True):
    """What was verified at the last visit. ``seen`` is Unix seconds; digests are hexadecimal."""

    format: Literal["cloister/kept-head/v1"] = FORMAT
    broker: str
    """The address at which it was."""
    origin: str
    log_key: str
    signed: SignedHead
    manifest_version: int
    manifest: str
    seen: int

    @property
    def head(self) -> TreeHead:
        """The head, its signature checked again. Raises :class:`~cloister.broker.tree_head.HeadRefused`."""
        return verify_head(self.signed, log_key=from_hex(self.log_key, 32, what="log key"))


@dataclass(frozen=True, slots=True)
class Heads:
    """The kept heads in ``directory``, which is made when the first is kept."""

    directory: Path

    def of(self, log: str) -> KeptHead | None:
        """The head of this log (64 hexadecimal digits), or None. Raises :class:`UsageError` if it cannot be read."""
        from_hex(log, 32, what="log")
        return self._read(self.path(log))

    def at(self, broker: str, origin: str) -> list[KeptHead]:
        """The heads of every log that this application showed at this address."""
        try:
            names = sorted(self.directory.glob("*.json"))
        except OSError as error:
            raise _unreadable(self.directory, error.strerror or "") from None
        if len(names) > MAX_FILES:
            raise UsageError(
                f"{self.directory} holds over {MAX_FILES} files", todo="remove what is not yours"
            )
        found = [self._read(name) for name in names]
        return [one for one in found if one and (one.broker, one.origin) == (broker, origin)]

    def keep(self, kept: KeptHead) -> None:
        """Keep it, unless one that is longer is kept already. Raises :class:`UsageError`."""
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.directory) as folder:
                before = self.of(kept.head.log)
                if before is not None and before.head.size > kept.head.size:
                    return
                handle, name = tempfile.mkstemp(prefix=".head-", dir=self.directory)
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(encode_json(kept))
                        file.flush()
                        os.fsync(file.fileno())
                    Path(name).replace(self.path(kept.head.log))
                    os.fsync(folder)
                finally:
                    Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot keep the tree head in {self.directory} ({error.strerror})", todo="set XDG_STATE_HOME"
            ) from None

    def path(self, log: str) -> Path:
        """The file of this log."""
        return self.directory / f"{log}.json"

    def _read(self, path: Path) -> KeptHead | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, error.strerror or "") from None
        try:
            kept = decode_json(data, KeptHead, what="the kept head", limit=MAX_FILE)
            if path.stem != kept.head.log:
                raise _unreadable(path, "it is of another log than its name")
        except UsageError:
            raise
        except CloisterError as error:
            raise _unreadable(path, error.what) from None
        return kept


def default_heads(environment: dict[str, str], home: Path) -> Heads:
    """Where this user's heads are: ``$XDG_STATE_HOME/cloister/heads``, or below ``~/.local/state``."""
    named = Path(environment.get("XDG_STATE_HOME", ""))
    return Heads((named if named.is_absolute() else home / ".local" / "state") / "cloister" / "heads")


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(folder)


def _unreadable(path: Path, why: str) -> UsageError:
    return UsageError(
        f"the kept tree head {path} cannot be read ({why})",
        todo="find out who changed it; remove it only if you know: the broker's past is then not compared",
    )
