"""``cloister seal -``: standard input into one sealed file, on standard output or at --out; and one such file opened.

Half a stream is no sealed file: without its last segment every reader refuses it. A file at --out is there when it is
whole. One sealed file has no signature: whoever has its key could have made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import typer

if TYPE_CHECKING:
    from cloister.cli.sealing_progress import Phase
    from cloister.sealing import KeySource
    from cloister.sealing.index import IndexEntry
    from cloister.sealing.writer import Sink

_PIECE = 1 << 20


def seal_standard_input(
    out: str | None, uri: str, kek: bytes, *, verify: bool, as_json: bool, facts: dict[str, str]
) -> None:
    """Seal until the end of standard input; the outcome goes to standard error where the file is on standard output."""
    from cloister.cli.sealing_progress import progress_bars
    from cloister.errors import UsageError
    from cloister.sealing.check import check_file
    from cloister.sealing.key_file import KeyFile
    from cloister.sealing.workers import Tally, cpus

    if out is not None and "://" in out:
        raise UsageError("standard input is sealed into a file or to standard output", todo="pipe it there")
    if out is None and sys.stdout.isatty():
        raise UsageError("a sealed file is nothing for a terminal", todo="redirect the output, or give --out")
    verified = verify and out is not None
    with progress_bars("sealing", "verifying", quiet=as_json) as (sealing, verifying):
        if out is None:
            entry = _copy(sys.stdin.buffer, sys.stdout.buffer, uri, kek, sealing)
            sys.stdout.buffer.flush()
        else:
            with new_file(Path(out), mode=0o644) as (file, beside):
                entry = _copy(sys.stdin.buffer, file, uri, kek, sealing)
                file.flush()
                os.fsync(file.fileno())
                if verify:
                    tally = Tally(entry.size, verifying)
                    keys = KeyFile(kek, uri)
                    check_file(
                        beside, name=out, expected=entry, keys=keys, workers=cpus(), tally=tally, cold=True
                    )
    outcome = {
        "out": out, "bytes": entry.size, "file_id": entry.id.hex(), "digest": entry.digest.hex(), **facts,
        **sealing.facts(), "verified": verified, **(verifying.facts("verify_") if verified else {}),
    }  # fmt: skip
    line = f"sealed {entry.size:,} bytes: {sealing}" + (f"; verified: {verifying}" if verified else "")
    typer.echo(json.dumps(outcome) if as_json else line, err=out is None)


def unseal_to_file(sealed: Path, out: Path, keys: KeySource, *, workers: int | None, progress: Phase) -> int:
    """One sealed file in the clear at ``out``, a new file of mode 0600, all or nothing; its bytes."""
    from cloister.sealing.envelope import HEADER_SIZE
    from cloister.sealing.files import unseal_into
    from cloister.sealing.segments import layout_of_body
    from cloister.sealing.workers import Tally, cpus

    with new_file(out, mode=0o600) as (file, _):
        size = layout_of_body(max(0, sealed.stat().st_size - HEADER_SIZE), name=sealed.name).size
        tally = Tally(size, progress)
        unseal_into(sealed, file.fileno(), keys, name=sealed.name, workers=workers or cpus(), tally=tally)
        os.fsync(file.fileno())
    return size


@contextlib.contextmanager
def new_file(path: Path, *, mode: int) -> Iterator[tuple[BinaryIO, Path]]:
    """A file beside ``path`` that takes its name when the block ends well, and is gone when not.

    Raises :class:`~cloister.errors.UsageError` if ``path`` exists.
    """
    from cloister.errors import UsageError

    if os.path.lexists(path):
        raise UsageError(f"{path} exists", todo="name a new file with --out")
    beside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file, beside
        beside.rename(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def _copy(source: BinaryIO, sink: Sink, uri: str, kek: bytes, progress: Phase) -> IndexEntry:
    from cloister.errors import UsageError
    from cloister.sealing.envelope import erase
    from cloister.sealing.writer import SealedWriter

    clear = bytearray(_PIECE)
    try:
        with memoryview(clear) as view, SealedWriter(sink, key_uri=uri, kek=kek) as writer:
            while count := source.readinto(view):  # type: ignore[attr-defined]
                writer.write(view[:count])
                progress(writer.tell(), 0)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"the stream cannot be sealed: {error.strerror}") from None
    finally:
        erase(clear)
    return writer.entry
