"""Files of evidence as a command reads them: regular files and standard input, at most 1 MiB, and nothing else.

A directory, a device or a named pipe is refused at once instead of being read or waited for.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from cloister.cli.report_words import inert
from cloister.errors import EvidenceError, FormatError, UsageError
from cloister.evidence.recognise import MAX_INPUT, Recognised, recognise

STDIN: Final = "-"


def read_input(name: str, *, limit: int = MAX_INPUT) -> bytes:
    """The bytes of the file ``name``, or of standard input for ``-``.

    Raises :class:`~cloister.errors.UsageError` for what cannot be read or is over ``limit`` bytes.
    """
    shown = inert(name, limit=256)
    try:
        data = _read_stdin(limit) if name == STDIN else _read_file(name, limit)
    except OSError as error:
        raise UsageError(
            f"{shown} cannot be read ({error.strerror})", todo="name an existing file, or -"
        ) from None
    except ValueError:  # a NUL in the name
        raise UsageError("the file's name is not one", todo="name an existing file, or -") from None
    if len(data) > limit:
        raise UsageError(
            f"{shown} is over {limit} bytes long",
            todo="no evidence is: give the report, quote or bundle alone",
        )
    return data


def recognise_files(names: list[str] | None) -> list[Recognised]:
    """Each of ``names``, recognised by its content. An error says which file it is about."""
    found = []
    for name in names or ():
        try:
            found.append(recognise(read_input(name)))
        except (EvidenceError, FormatError) as error:
            raise UsageError(f"{inert(name, limit=256)}: {error.what}", todo=error.todo) from None
    return found


def _read_stdin(limit: int) -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- reads standard input, and that is a terminal", todo="pipe the evidence in")
    return sys.stdin.buffer.read(limit + 1)


def _read_file(name: str, limit: int) -> bytes:
    # Not blocking: opening a named pipe would wait for its other end.
    descriptor = os.open(Path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with os.fdopen(descriptor, "rb") as file:
        kind = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(kind):
            what = "a directory" if stat.S_ISDIR(kind) else "no regular file"
            raise UsageError(
                f"{inert(name, limit=256)} is {what}", todo="name a file; for a pipe give - and redirect it"
            )
        return file.read(limit + 1)


def read_logs(name: str | None) -> tuple[bytes, bytes]:
    """The log named by ``--event-log``: as a launch or dstack log, or as a firmware log; the other one is empty."""
    if name is None:
        return b"", b""
    log = recognise(read_input(name))
    if log.kind == "event-log":
        return b"", log.data
    if log.kind in ("launch-log", "dstack-log"):
        return log.data, b""
    raise UsageError(f"--event-log is {log.what}, no event log", todo="give the log that came with the quote")


def parse_nonce(text: str | None) -> bytes | None:
    """The 32 bytes of ``--nonce``. Raises :class:`~cloister.errors.UsageError`."""
    if text is None:
        return None
    try:
        value = bytes.fromhex(text.removeprefix("0x")) if text.isascii() else b""
    except ValueError:
        value = b""
    if len(value) != 32:
        raise UsageError(
            "--nonce is not 64 hexadecimal digits", todo="give the nonce that the evidence answers"
        )
    return value
