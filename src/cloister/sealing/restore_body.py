"""One sealed body opened whole into a file: its segments in parallel, in and out of buffers that stay in the caches.

Each block of ciphertext is copied out of the sealed file once, then hashed and opened: who changes the file meanwhile
gains nothing. A segment is written only when it was authenticated. It is written and not decrypted into a mapping: the
kernel then need not clear and map pages first, and where it may it takes as much in one page as is written in one call.
What an error leaves in the file is the
caller's to throw away.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cloister import merkle
from cloister.errors import IndexMismatch
from cloister.sealing import KeySource
from cloister.sealing.descriptors import open_regular, read_into, reader_of, write_all
from cloister.sealing.envelope import erase
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedBody
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.workers import Tally, share

_PAGE: Final = 256 << 10
"""Bytes written in one call, and so the largest page that the kernel may take for them. Larger ones are hardly faster, and
have to be broken out of memory that lies free in one piece, which a virtual machine's host takes back first."""


def open_whole(
    source: Path,
    destination: int,
    keys: KeySource,
    *,
    name: str,
    expected: IndexEntry | None,
    workers: int,
    tally: Tally | None,
) -> None:
    """Open the sealed file ``source`` into the empty file behind ``destination``; the errors are those of sealing.

    When this returns every segment was authenticated, and with ``expected`` also size, id and digest.
    """
    with _opened(source, keys, name=name, expected=expected) as body:
        digests = _open_segments(body, destination, hashed=True, workers=workers, tally=tally)
    if expected is not None:
        check_digest(digests, expected, name=name)


def open_early(
    source: Path,
    destination: int,
    keys: KeySource,
    *,
    name: str,
    expected: IndexEntry,
    workers: int,
    tally: Tally | None,
) -> SealedBody:
    """As :func:`open_whole`, all but the digest: the answer is what :func:`confirm_digest` takes, without its file."""
    with _opened(source, keys, name=name, expected=expected) as body:
        _open_segments(body, destination, hashed=False, workers=workers, tally=tally)
    return body


def confirm_digest(
    body: SealedBody, opened: int, expected: IndexEntry, *, workers: int, tally: Tally | None
) -> None:
    """Raise :class:`~cloister.errors.IndexMismatch` unless what was opened is what the index's owner signed.

    ``opened`` is where :func:`open_early` put it. The sealed file is not looked at again: it may be another one by
    now. Sealing gives one ciphertext for one key, nonce and plaintext, so it is done again, block by block, into a buffer,
    and hashed there.
    """
    layout = body.layout
    digests = [b""] * layout.segments
    held: list[bytearray] = []

    def make_worker() -> Callable[[int], None]:
        clear, block = bytearray(min(SEGMENT_SIZE, layout.size)), bytearray(layout.block(0).length)
        held.append(clear)

        def work(segment: int) -> None:
            span = layout.plain(segment)
            with memoryview(clear)[: span.length] as text:
                if read_into(opened, text, span.start) != span.length:
                    raise IndexMismatch(f"{body.name} became shorter after it was opened")
                digests[segment] = body.digest_again(segment, text, block)
            if tally is not None:
                tally.add(span.length)

        return work

    share_and_erase(layout.segments, make_worker, held, workers=workers)
    check_digest(digests, expected, name=body.name)


def check_digest(digests: list[bytes], expected: IndexEntry, *, name: str) -> None:
    """Raise :class:`~cloister.errors.IndexMismatch` unless the blocks are those that the index names."""
    if merkle.root(digests) != expected.digest:
        raise IndexMismatch(
            f"{name} has another content than its index names", todo="get it again from its owner"
        )


def share_and_erase(
    count: int, make_worker: Callable[[], Callable[[int], None]], held: list[bytearray], *, workers: int
) -> None:
    """Share the jobs out, then erase the buffers in which the workers ``held`` plaintext."""
    try:
        share(count, make_worker, workers=workers)
    finally:
        for buffer in held:
            erase(buffer)


@contextlib.contextmanager
def _opened(source: Path, keys: KeySource, *, name: str, expected: IndexEntry | None) -> Iterator[SealedBody]:
    with open_regular(source, IndexMismatch) as descriptor:
        size = os.fstat(descriptor).st_size
        yield SealedBody(reader_of(descriptor), size, keys, name=name, expected=expected)


def _open_segments(
    body: SealedBody, destination: int, *, hashed: bool, workers: int, tally: Tally | None
) -> list[bytes]:
    layout = body.layout
    digests = [b""] * layout.segments
    held: list[bytearray] = []

    def make_worker() -> Callable[[int], None]:
        clear, block = bytearray(min(SEGMENT_SIZE, layout.size)), bytearray(layout.block(0).length)
        held.append(clear)

        def work(segment: int) -> None:
            span = layout.plain(segment)
            with memoryview(clear)[: span.length] as out:
                digests[segment] = body.open_segment(segment, block, out, hashed=hashed)
                _write(destination, out, span.start)
            if tally is not None:
                tally.add(span.length)

        return work

    share_and_erase(layout.segments, make_worker, held, workers=workers)
    return digests


def _write(destination: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        end = min(len(data), (offset + done) // _PAGE * _PAGE + _PAGE - offset)
        with data[done:end] as piece:
            write_all(destination, piece, offset + done)
        done = end
