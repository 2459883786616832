"""A sealed file as a stream of its plaintext: to a pipe, in order, no byte before its segment authenticated.

The size is known to be genuine before the first byte goes out. That the whole body is the one the index names is known
at its end only: what went out before a mismatch was made by somebody who has the key, and the error says so. A range
of a file that an index names costs as much as the whole file, since its digest is over the whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cloister import merkle
from cloister.errors import IndexMismatch, UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import open_regular, reader_of
from cloister.sealing.envelope import erase
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedBody
from cloister.sealing.segments import SEGMENT_SIZE


def stream_file(
    sealed: Path,
    write: Callable[[memoryview], object],
    keys: KeySource,
    *,
    name: str,
    expected: IndexEntry | None,
    start: int = 0,
    end: int | None = None,
) -> int:
    """Write plaintext bytes ``start`` to ``end`` (to the end of the file if None) with ``write``; how many there were.

    ``expected`` None reads a file on its own, against no index. Raises the errors of sealing (errors.py), of ``keys``
    and of ``write``; :class:`~cloister.errors.IndexMismatch` may come after all was written.
    """
    with open_regular(sealed, IndexMismatch) as descriptor:
        size = os.fstat(descriptor).st_size
        body = SealedBody(reader_of(descriptor), size, keys, name=name, expected=expected)
        layout = body.layout
        stop = layout.size if end is None else min(end, layout.size)
        if start > layout.size:
            raise UsageError(
                f"{name} has {layout.size} bytes, so none from {start} on", todo="give another --range"
            )
        block = bytearray(layout.block(0).length)
        clear = bytearray(SEGMENT_SIZE)
        digests: list[bytes] = []
        try:
            with memoryview(clear) as whole:
                last = layout.plain(layout.segments - 1)
                body.open_segment(layout.segments - 1, block, whole[: last.length])
                for segment in range(layout.segments):
                    span = layout.plain(segment)
                    wanted = start < span.start + span.length and span.start < stop
                    if not wanted and expected is None:
                        continue
                    digests.append(body.open_segment(segment, block, whole[: span.length]))
                    if wanted:
                        write(whole[max(start - span.start, 0) : min(stop - span.start, span.length)])
        finally:
            erase(clear)
    if expected is not None and merkle.root(digests) != expected.digest:
        raise IndexMismatch(
            f"{name} has another content than its index names, and what was written is not its owner's",
            todo="throw it away and get the file again from its owner",
        )
    return max(0, stop - start)
