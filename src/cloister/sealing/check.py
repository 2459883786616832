"""Checking sealed files where they lie: digests against the index, and with a key every segment, without writing plaintext.

Without a key it finds a body that is not the one the index names; with one also a header that does not open under it
and segments that do not authenticate. Refuses links and special files. Plaintext goes into one buffer for each worker,
which is erased.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from cloister import merkle
from cloister.errors import IndexMismatch, TruncatedFile
from cloister.sealing import KeySource
from cloister.sealing.descriptors import ReadInto, open_regular, reader_of
from cloister.sealing.envelope import HEADER_SIZE, erase, parse_header
from cloister.sealing.index import IndexEntry, check_size
from cloister.sealing.reader import SealedBody
from cloister.sealing.remembered import RememberedKeys
from cloister.sealing.segments import SEGMENT_SIZE, Layout, layout_of_body
from cloister.sealing.workers import Progress, Tally, share, share_out


def check_files(
    directory: Path,
    files: Mapping[str, IndexEntry],
    *,
    keys: KeySource | None,
    workers: int | None = None,
    progress: Progress | None = None,
    cold: bool = False,
) -> None:
    """Check every file of an index (path → entry) in ``directory``; without ``keys`` their digests only.

    ``cold`` first asks the kernel to forget what it holds of the files, so that the disk is read.
    Raises the errors of sealing (errors.py), and of ``keys``.
    """
    remembered = None if keys is None else RememberedKeys(keys)
    sizes = {path: entry.size for path, entry in files.items()}
    tally = Tally(sum(sizes.values()), progress)

    def check(path: str, threads: int) -> None:
        entry = files[path]
        check_file(
            directory / entry.file_name,
            name=path,
            expected=entry,
            keys=remembered,
            workers=threads,
            tally=tally,
            cold=cold,
        )

    share_out(sizes, check, workers=workers)


def check_file(
    sealed: Path,
    *,
    name: str,
    expected: IndexEntry | None,
    keys: KeySource | None,
    workers: int = 1,
    tally: Tally | None = None,
    cold: bool = False,
) -> IndexEntry:
    """Check one sealed file; the answer is what it is. ``expected`` None checks it on its own, against no index.

    Raises the errors of sealing (errors.py), and of ``keys``.
    """
    with open_regular(sealed, IndexMismatch) as descriptor:
        if cold:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return check_body(
            reader_of(descriptor),
            os.fstat(descriptor).st_size,
            name=name,
            expected=expected,
            keys=keys,
            workers=workers,
            tally=tally,
        )


def check_body(
    read_into: ReadInto,
    size: int,
    *,
    name: str,
    expected: IndexEntry | None,
    keys: KeySource | None,
    workers: int = 1,
    tally: Tally | None = None,
) -> IndexEntry:
    """As :func:`check_file`, for ``size`` bytes of a sealed file that can be read by position, wherever it lies."""
    if expected is not None:
        check_size(size, expected, name=name)
    file_id, layout, digests = _digests(
        read_into, size, keys, name=name, expected=expected, workers=workers, tally=tally
    )
    found = IndexEntry(id=file_id, size=layout.size, digest=merkle.root(digests))
    if expected is not None and found != expected:
        raise IndexMismatch(
            f"{name} has another content than its index names", todo="get it again from its owner"
        )
    return found


def _digests(
    read_into: ReadInto,
    size: int,
    keys: KeySource | None,
    *,
    name: str,
    expected: IndexEntry | None,
    workers: int,
    tally: Tally | None,
) -> tuple[bytes, Layout, list[bytes]]:
    held: list[bytearray] = []
    if keys is None:
        start = bytearray(min(HEADER_SIZE, size))
        read_into(memoryview(start), 0)
        file_id = parse_header(bytes(start), name=name).file_id
        if expected is not None and file_id != expected.id:
            raise IndexMismatch(f"{name} is another file than its index names", todo="get it from its owner")
        layout = layout_of_body(size - HEADER_SIZE, name=name)
    else:
        body = SealedBody(read_into, size, keys, name=name, expected=expected)
        file_id, layout = body.header.file_id, body.layout
    digests = [b""] * layout.segments

    def make_worker() -> Callable[[int], None]:
        block = bytearray(min(SEGMENT_SIZE, layout.body_size))
        clear = bytearray(0 if keys is None else min(SEGMENT_SIZE, layout.size))
        held.append(clear)

        def work(segment: int) -> None:
            span = layout.plain(segment)
            if keys is None:
                place = layout.block(segment)
                with memoryview(block)[: place.length] as whole:
                    if read_into(whole, HEADER_SIZE + place.start) != place.length:
                        raise TruncatedFile(f"{name} became shorter while it was read", todo="get it again")
                    digests[segment] = hashlib.sha256(whole).digest()
            else:
                with memoryview(clear)[: span.length] as out:
                    digests[segment] = body.open_segment(segment, block, out)
            if tally is not None:
                tally.add(span.length)

        return work

    try:
        share(layout.segments, make_worker, workers=workers)
    finally:
        for buffer in held:
            erase(buffer)
    return file_id, layout, digests
