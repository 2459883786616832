"""Seal and unseal single files, their segments in parallel.

Refuses links and special files, a source that changes while it is read, and to leave anything of a file behind
that did not seal or verify to its end (callers remove what they made; see staging.py). There is no call that
writes into a sealed body: suite 1 seals once. Format: docs/spec/sealed-file.md.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cloister import merkle
from cloister.errors import UsageError
from cloister.sealing import KeySource
from cloister.sealing.descriptors import create_new, open_regular, read_into, write_all
from cloister.sealing.envelope import (
    FILE_ID_SIZE,
    HEADER_SIZE,
    WRAP_SALT_SIZE,
    Header,
    encode_header,
    erase,
    new_header,
    parse_header,
)
from cloister.sealing.index import IndexEntry
from cloister.sealing.restore_body import open_whole, share_and_erase
from cloister.sealing.segments import (
    KEY_SIZE,
    PREFIX_SIZE,
    SALT_SIZE,
    SEGMENT_SIZE,
    Layout,
    SegmentCipher,
    new_preamble,
)
from cloister.sealing.workers import Tally

Entropy: TypeAlias = Callable[[int], bytes]


def seal_file(
    source: Path,
    target: Path,
    *,
    key_uri: str,
    kek: bytes,
    workers: int = 1,
    tally: Tally | None = None,
    entropy: Entropy = os.urandom,
) -> IndexEntry:
    """Seal ``source`` into the new file ``target``, synced to disk. ``kek`` is 32 bytes.

    Raises :class:`~cloister.errors.UsageError` if ``source`` is no regular file or changes meanwhile. On any
    error the caller removes ``target``.
    """
    file_id = entropy(FILE_ID_SIZE)
    data_key = bytearray(entropy(KEY_SIZE))
    header = new_header(
        key_uri=key_uri, kek=kek, data_key=data_key, file_id=file_id, salt=entropy(WRAP_SALT_SIZE)
    )
    preamble = new_preamble(entropy(SALT_SIZE), entropy(PREFIX_SIZE))
    cipher = SegmentCipher(data_key, preamble, header.associated_data, name=source.name)
    erase(data_key)
    with open_regular(source, UsageError) as plain, create_new(target, 0o644) as sealed:
        before = os.fstat(plain)
        layout = Layout(before.st_size)
        write_all(sealed, encode_header(header), 0)
        digests = _seal_segments(plain, sealed, layout, cipher, preamble, workers=workers, tally=tally)
        after = os.fstat(plain)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise UsageError(f"{source} changed while it was sealed", todo="seal again when it is at rest")
        os.fsync(sealed)
    return IndexEntry(id=file_id, size=layout.size, digest=merkle.root(digests))


def _seal_segments(
    plain: int,
    sealed: int,
    layout: Layout,
    cipher: SegmentCipher,
    preamble: bytes,
    *,
    workers: int,
    tally: Tally | None,
) -> list[bytes]:
    digests = [b""] * layout.segments
    held: list[bytearray] = []

    def make_worker() -> Callable[[int], None]:
        clear, block = bytearray(min(SEGMENT_SIZE, layout.size)), bytearray(layout.block(0).length)
        held.append(clear)

        def work(segment: int) -> None:
            here, there = layout.plain(segment), layout.block(segment)
            start = len(preamble) if segment == 0 else 0
            with (
                memoryview(clear)[: here.length] as text,
                memoryview(block)[: there.length] as whole,
                whole[start:] as out,
            ):
                if read_into(plain, text, here.start) != here.length:
                    raise UsageError(
                        f"{cipher.name} became shorter while it was sealed",
                        todo="seal again when it is at rest",
                    )
                whole[:start] = preamble[:start]
                cipher.seal_into(segment, segment == layout.segments - 1, text, out)
                digests[segment] = hashlib.sha256(whole).digest()
                write_all(sealed, whole, HEADER_SIZE + there.start)
            if tally is not None:
                tally.add(here.length)

        return work

    share_and_erase(layout.segments, make_worker, held, workers=workers)
    return digests


def unseal_into(
    source: Path,
    destination: int,
    keys: KeySource,
    *,
    name: str,
    expected: IndexEntry | None = None,
    workers: int = 1,
    tally: Tally | None = None,
) -> None:
    """Unseal a whole file into the file (or memfd) behind the descriptor ``destination``.

    Each segment is authenticated before it is written; when this returns, all were, and with ``expected`` also
    size, id and digest. What an error leaves in ``destination`` is the caller's to throw away.
    """
    open_whole(source, destination, keys, name=name, expected=expected, workers=workers, tally=tally)


def read_header(path: Path) -> Header:
    """The header of a sealed file, not yet authentic. Raises as :func:`~cloister.sealing.envelope.parse_header`."""
    with open_regular(path, UsageError) as descriptor:
        return parse_header(os.pread(descriptor, HEADER_SIZE, 0), name=path.name)
