"""A sealed file as a Python file object: random access, several segments at once, straight into the reader's buffer.

Only the segments that a read touches are fetched and opened. No byte is handed out that did not authenticate and, unless
``verify="segments"`` was asked for, none before the whole body was compared with the digest in its signed index.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from cloister import merkle
from cloister.errors import IndexMismatch, TruncatedFile
from cloister.sealing.envelope import HEADER_SIZE, erase
from cloister.sealing.filesystem_memory import AccessMemory
from cloister.sealing.filesystem_pool import room, share_out
from cloister.sealing.filesystem_stores import Source
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedBody
from cloister.sealing.segments import SEGMENT_SIZE

Verify = Literal["whole", "segments"]

CACHED_SEGMENTS: Final = 16
"""Decrypted segments that one open file keeps, 1 MiB each."""
READ_AHEAD: Final = 8
"""Segments that are opened together when a file is read from front to back."""
BUFFER: Final = 1 << 17
"""Bytes that are taken out of a segment at once for readers who ask for little."""

_Job = tuple[int, bytearray | memoryview]
_Look = Callable[[int, memoryview], None]


class SegmentReader:
    """Opens segments of one sealed file into buffers. Thread-safe."""

    def __init__(
        self,
        source: Source,
        memory: AccessMemory,
        *,
        name: str,
        expected: IndexEntry | None,
        verify: Verify,
        threads: int | None = None,
    ) -> None:
        """Reads the header and asks for one key. Without ``expected`` the last segment has to vouch for the size."""
        self.name = name
        self._source = source
        self._memory = memory
        self._expected = expected
        self._threads = threads or len(os.sched_getaffinity(0))
        self._body = SealedBody(source.read_into, source.size, memory, name=name, expected=expected)
        self.layout = self._body.layout
        self._whole = expected is not None and verify == "whole"
        self._marks: tuple[bytes, ...] | None = None
        self._cache: OrderedDict[int, bytearray] = OrderedDict()
        self._spare: list[bytearray] = []
        self._next = 0
        self._lock = threading.Lock()
        if expected is None:
            self._load([self.layout.segments - 1])

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill ``view`` from plaintext byte ``offset`` on; the answer is how many bytes there were."""
        with self._lock:
            end = min(offset + len(view), self.layout.size)
            if offset >= end:
                return 0
            if self._whole and self._marks is None:
                self._marks = self._memory.checked(self._expected) if self._expected is not None else None
            if self._whole and self._marks is None:
                if offset == 0 and end == self.layout.size:
                    self._read_whole(view[:end])
                    return end
                self._check_whole()
            self._read(view[: end - offset], offset, end)
            return end - offset

    def close(self) -> None:
        """Erase the plaintext that is held."""
        with self._lock:
            for buffer in (*self._cache.values(), *self._spare):
                erase(buffer)
            self._cache.clear()
            self._spare.clear()
            self._source.close()

    def _read(self, view: memoryview, offset: int, end: int) -> None:
        first, last = self.layout.segment_at(offset), self.layout.segment_at(end - 1)
        jobs: list[_Job] = []
        partial: list[int] = []
        for segment in range(first, last + 1):
            span = self.layout.plain(segment)
            if segment in self._cache:
                self._copy(segment, view, offset, end)
            elif span.start >= offset and span.start + span.length <= end:
                jobs.append((segment, view[span.start - offset :][: span.length]))
            else:
                partial.append(segment)
        self._load(self._ahead(partial), jobs)
        for segment in partial:
            self._copy(segment, view, offset, end)
        self._next = last + 1

    def _copy(self, segment: int, view: memoryview, offset: int, end: int) -> None:
        """What the cache has of a segment, as far as the read of ``offset`` to ``end`` asks for it."""
        span = self.layout.plain(segment)
        start, stop = max(span.start, offset), min(span.start + span.length, end)
        with memoryview(self._cache[segment]) as held:
            view[start - offset : stop - offset] = held[start - span.start : stop - span.start]

    def _ahead(self, wanted: list[int]) -> list[int]:
        """``wanted``, and what follows where the file is read from front to back."""
        if not wanted or wanted[-1] != self._next:
            return wanted
        following = range(wanted[-1] + 1, min(wanted[-1] + READ_AHEAD, self.layout.segments))
        return wanted + [segment for segment in following if segment not in self._cache]

    def _load(self, segments: Sequence[int], jobs: Sequence[_Job] = ()) -> None:
        """Open segments into the cache, and others to where their ``jobs`` say."""
        while self._cache and len(self._cache) + len(segments) > CACHED_SEGMENTS:
            self._spare.append(self._cache.popitem(last=False)[1])
        buffers = {
            segment: self._spare.pop() if self._spare else bytearray(SEGMENT_SIZE) for segment in segments
        }
        cached = [
            (segment, memoryview(buffer)[: self.layout.plain(segment).length])
            for segment, buffer in buffers.items()
        ]
        self._open(sorted([*jobs, *cached], key=lambda job: job[0]))
        self._cache.update(buffers)

    def _open(self, jobs: Sequence[_Job]) -> None:
        marks = self._marks

        def check(segment: int, block: memoryview) -> None:
            if marks is not None and self._memory.marks.of(segment, block) != marks[segment]:
                raise IndexMismatch(
                    f"{self.name} changed while it was read", todo="get it again from its owner"
                )

        self._each(jobs, check)

    def _read_whole(self, view: memoryview) -> None:
        jobs: list[_Job] = []
        for segment in range(self.layout.segments):
            span = self.layout.plain(segment)
            jobs.append((segment, view[span.start :][: span.length]))
        try:
            self._check_digest(jobs)
        except BaseException:
            view[:] = bytes(len(view))
            raise

    def _check_whole(self) -> None:
        """Compare the body with its signed digest; what is small enough stays in the cache meanwhile."""
        count = self.layout.segments
        if count > CACHED_SEGMENTS:
            self._check_digest([(segment, bytearray()) for segment in range(count)], opening=False)
            return
        buffers = {segment: bytearray(SEGMENT_SIZE) for segment in range(count)}
        self._check_digest(
            [(n, memoryview(buffer)[: self.layout.plain(n).length]) for n, buffer in buffers.items()]
        )
        self._cache.update(buffers)

    def _check_digest(self, jobs: Sequence[_Job], *, opening: bool = True) -> None:
        assert self._expected is not None  # noqa: S101 -- for the type checker: there is no digest without an entry
        digests, marks = [b""] * len(jobs), [b""] * len(jobs)

        def look(segment: int, block: memoryview) -> None:
            digests[segment] = hashlib.sha256(block).digest()
            marks[segment] = self._memory.marks.of(segment, block)

        self._each(jobs, look, opening=opening)
        if merkle.root(digests) != self._expected.digest:
            raise IndexMismatch(
                f"{self.name} has another content than its index names", todo="get it again from its owner"
            )
        self._marks = tuple(marks)
        self._memory.remember(self._expected, self._marks)

    def _each(self, jobs: Sequence[_Job], look: _Look, *, opening: bool = True) -> None:
        """Fetch the block of each job, ``look`` at it, and decrypt it into the job's buffer."""
        groups = self._groups(jobs)
        if not groups:
            return

        size = max(map(len, groups)) * SEGMENT_SIZE

        def work(number: int) -> None:
            group = groups[number]
            start = self.layout.block(group[0][0]).start
            last = self.layout.block(group[-1][0])
            with room(size) as held, held[: last.start + last.length - start] as blocks:
                if self._source.read_into(blocks, HEADER_SIZE + start) != len(blocks):
                    raise TruncatedFile(f"{self.name} became shorter while it was read", todo="get it again")
                for segment, out in group:
                    span = self.layout.block(segment)
                    with blocks[span.start - start :][: span.length] as block:
                        look(segment, block)
                        if opening:
                            self._body.open_block(segment, block, out)

        share_out(len(groups), work, threads=self._threads)

    def _groups(self, jobs: Sequence[_Job]) -> list[list[_Job]]:
        """Neighbouring segments that one read fetches."""
        groups: list[list[_Job]] = []
        for job in jobs:
            if groups and len(groups[-1]) < self._source.span and groups[-1][-1][0] + 1 == job[0]:
                groups[-1].append(job)
            else:
                groups.append([job])
        return groups


class _Raw(io.RawIOBase):
    """Positions over a :class:`SegmentReader`."""

    mode = "rb"

    def __init__(self, reader: SegmentReader, name: str) -> None:
        self._reader = reader
        self._position = 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            count = self._reader.read_into(view, self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._reader.layout.size}[whence]
        if origin + offset < 0:
            raise ValueError("a position in a file is not negative")
        self._position = origin + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


class SealedFile(io.BufferedReader):
    """A sealed file open for reading, as fsspec and the libraries above it know files."""

    def __init__(self, reader: SegmentReader, *, fs: Any, path: str, details: dict[str, Any]) -> None:
        super().__init__(_Raw(reader, path), BUFFER)
        self.fs = fs
        self.path = path
        self.details = details
        self.size = reader.layout.size
        """Bytes of plaintext."""

    def info(self) -> dict[str, Any]:
        """As :meth:`SealedFileSystem.info`."""
        return self.details

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to ``size`` bytes; a read of everything is one pass over the file."""
        if size is None or size < 0:
            # BufferedReader would grow a buffer by small steps; asked for a number it reads into its answer.
            size = max(0, self.size - self.tell())
        return super().read(size)
