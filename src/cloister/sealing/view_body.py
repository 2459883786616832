"""One file of a sealed directory under a view: checked as a whole once, then opened segment by segment, in any order.

Before the first segment is opened the body is compared with the digest that the owner signed, and every block is
marked: one that is read again has to be the same, or it is refused. Thread-safe; its descriptor is open only while somebody
reads. Format: docs/spec/sealed-file.md.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister import merkle
from cloister.errors import IndexMismatch, TruncatedFile
from cloister.sealing import KeySource
from cloister.sealing.descriptors import read_into
from cloister.sealing.envelope import HEADER_SIZE
from cloister.sealing.index import IndexEntry
from cloister.sealing.reader import SealedBody
from cloister.sealing.segments import SEGMENT_SIZE
from cloister.sealing.workers import share

Verify: TypeAlias = Literal["whole", "segments"]
"""Whether a body is compared with its signed digest before anything of it is handed out, or only each segment
authenticated under the data key."""


class ViewedBody:
    """One sealed file: its descriptor while somebody reads, its cipher and block digests as long as it is remembered."""

    def __init__(self, place: Path, path: str, entry: IndexEntry, keys: KeySource, verify: Verify) -> None:
        self.path = path
        self.entry = entry
        self._place = place
        self._keys = keys
        self._verify = verify
        self._descriptor = -1
        self._readers = 0
        self._sealed: SealedBody | None = None
        # What was checked is marked, so that it is known again: by a MAC of a key that never leaves this object, each
        # nonce used for one block. It takes a tenth of the time of another SHA-256.
        self._marker = AESGCM(AESGCM.generate_key(256))
        self._marks: list[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Nobody reads."""
        return self._readers == 0

    @property
    def sealed(self) -> SealedBody:
        """Its layout and cipher; there from the first :meth:`acquire` on."""
        if self._sealed is None:
            raise ValueError("the file was not opened")
        return self._sealed

    def acquire(self) -> None:
        """One reader more; the first opens, and the first ever checks. Raises the errors of sealing and of the keys."""
        with self._lock:
            if self._readers == 0:
                self._open()
            self._readers += 1

    def release(self) -> None:
        """One reader less."""
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def fill(self, segment: int, block: bytearray, clear: bytearray) -> None:
        """Open one segment into the start of ``clear`` by way of ``block``. Raises the errors of sealing."""
        sealed = self.sealed
        span = sealed.layout.block(segment)
        with (
            memoryview(block)[: span.length] as whole,
            memoryview(clear)[: sealed.layout.plain(segment).length] as out,
        ):
            # Copied out of the file once, then compared and opened: who changes the file meanwhile gains nothing.
            self._read_block(sealed, segment, whole)
            if self._marks is not None:
                self._compare(segment, whole, self._marks[segment])
            sealed.open_block(segment, whole, out)

    def _compare(self, segment: int, block: memoryview, mark: bytes) -> None:
        try:
            self._marker.decrypt(_nonce(segment), mark, block)
        except InvalidTag:
            raise IndexMismatch(
                f"segment {segment} of {self.path} is another than when it was checked",
                todo="get the file again from its owner",
            ) from None

    def _open(self) -> None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self._place, flags)
        except OSError as error:
            raise IndexMismatch(f"cannot open {self._place.name}: {error.strerror}") from None
        try:
            found = os.fstat(self._descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise IndexMismatch(f"{self._place.name} is not a regular file")
            if self._sealed is None:
                sealed = SealedBody(
                    self._read_into, found.st_size, self._keys, name=self.path, expected=self.entry
                )
                self._check(sealed)
                self._sealed = sealed
        except BaseException:
            os.close(self._descriptor)
            self._descriptor = -1
            raise

    def _check(self, sealed: SealedBody) -> None:
        if self._verify == "segments":
            last = sealed.layout.segments - 1  # at least its end has to be its end
            with memoryview(bytearray(sealed.layout.plain(last).length)) as out:
                sealed.open_segment(last, bytearray(SEGMENT_SIZE), out)
            return
        count = sealed.layout.segments
        digests, marks = [b""] * count, [b""] * count

        def make_worker() -> Callable[[int], None]:
            block = bytearray(sealed.layout.block(0).length)

            def work(segment: int) -> None:
                with memoryview(block)[: sealed.layout.block(segment).length] as whole:
                    self._read_block(sealed, segment, whole)
                    digests[segment] = hashlib.sha256(whole).digest()
                    marks[segment] = self._marker.encrypt(_nonce(segment), b"", whole)

            return work

        share(count, make_worker, workers=len(os.sched_getaffinity(0)))
        if merkle.root(digests) != self.entry.digest:
            raise IndexMismatch(
                f"{self.path} has another content than its index names", todo="get it again from its owner"
            )
        self._marks = marks

    def _read_block(self, sealed: SealedBody, segment: int, whole: memoryview) -> None:
        if self._read_into(whole, HEADER_SIZE + sealed.layout.block(segment).start) != len(whole):
            raise TruncatedFile(f"{self.path} became shorter while it was read", todo="get it again")

    def _read_into(self, buffer: memoryview, offset: int) -> int:
        return read_into(self._descriptor, buffer, offset)


def _nonce(segment: int) -> bytes:
    return segment.to_bytes(12, "big")
