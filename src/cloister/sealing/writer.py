"""Sealing a stream: plaintext of unknown length in, a sealed file of suite 1 out, onto anything that takes bytes in order.

For uploads and pipes: header first, then segments, and the last segment, which alone makes the file whole, when
:meth:`SealedWriter.close` is called. Refuses to go on after an error, and never writes a last segment for what was
aborted, so that half a file is a truncated one to every reader. It holds one segment of plaintext and one of ciphertext.
Format: docs/spec/sealed-file.md.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from cloister import merkle
from cloister.errors import FormatError, UsageError
from cloister.sealing.envelope import FILE_ID_SIZE, WRAP_SALT_SIZE, encode_header, erase, new_header
from cloister.sealing.index import IndexEntry
from cloister.sealing.segments import (
    KEY_SIZE,
    MAX_SIZE,
    PREAMBLE_SIZE,
    PREFIX_SIZE,
    SALT_SIZE,
    SEGMENT_SIZE,
    TAG_SIZE,
    Buffer,
    SegmentCipher,
    new_preamble,
)


class Sink(Protocol):
    """Where sealed bytes go: any binary file open for writing. ``write`` tells how many bytes it took."""

    def write(self, data: memoryview, /) -> int | None: ...


class SealedWriter:
    """A sequential writer, file-like as far as a pipe is. Not thread-safe.

    As a context manager it closes when the block ends well and aborts when it does not. ``out`` stays the caller's to
    flush and close. Nothing is closed by being forgotten: a writer that is dropped leaves a truncated file.
    """

    def __init__(
        self,
        out: Sink,
        *,
        key_uri: str,
        kek: Buffer,
        name: str = "the sealed stream",
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """``kek`` is the 32-byte key at ``key_uri``; ``name`` is for errors. Writes the header.

        Raises :class:`~cloister.errors.UsageError` for a key URI that is none, and what ``out`` raises.
        """
        self._file_id = entropy(FILE_ID_SIZE)
        data_key = bytearray(entropy(KEY_SIZE))
        salt = entropy(WRAP_SALT_SIZE)
        try:
            header = new_header(key_uri=key_uri, kek=kek, data_key=data_key, file_id=self._file_id, salt=salt)
            preamble = new_preamble(entropy(SALT_SIZE), entropy(PREFIX_SIZE))
            self._cipher = SegmentCipher(data_key, preamble, header.associated_data, name=name)
        except FormatError as error:
            raise UsageError(error.what, todo=error.todo) from None
        finally:
            erase(data_key)
        self._out = out
        self._entry: IndexEntry | None = None
        self._finished = False
        self._size = 0
        self._digests: list[bytes] = []
        self._block = bytearray(SEGMENT_SIZE)
        self._block[:PREAMBLE_SIZE] = preamble
        self._start = PREAMBLE_SIZE
        """Where in its block the present segment begins: behind the preamble in the first, at once in the others."""
        self._clear = bytearray(SEGMENT_SIZE - TAG_SIZE)
        self._filled = 0
        with memoryview(encode_header(header)) as view:
            self._send(view)

    @property
    def closed(self) -> bool:
        """True once it was closed or aborted."""
        return self._finished

    @property
    def entry(self) -> IndexEntry:
        """File id, size and digest of what was sealed. Raises :class:`~cloister.errors.UsageError` before the end."""
        if self._entry is None:
            raise UsageError("the sealed stream is not at its end", todo="close it first")
        return self._entry

    @property
    def file_name(self) -> str:
        """What the file is called in a sealed directory, known from the start: ``<file id>.sealed``."""
        return IndexEntry(id=self._file_id, size=0, digest=b"").file_name

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        """Bytes of plaintext so far."""
        return self._size

    def flush(self) -> None:
        """Nothing: a segment goes out when it is full, and cannot go out twice."""

    def write(self, data: Buffer) -> int:
        """Take all of ``data``. Raises :class:`~cloister.errors.UsageError` over the format's bound, or once ended.

        What ``out`` raises comes through, and ends the writer as :meth:`abort` does.
        """
        self._must_be_open()
        with memoryview(data) as whole, whole.cast("B") as view:
            if self._size + len(view) > MAX_SIZE:
                self.abort()
                raise UsageError(f"a sealed file holds at most {MAX_SIZE} bytes", todo="split the stream")
            done = 0
            while done < len(view):
                capacity = SEGMENT_SIZE - TAG_SIZE - self._start
                # Only now is it known that the full segment before is not the last.
                if self._filled == capacity:
                    self._seal(last=False)
                    capacity = SEGMENT_SIZE - TAG_SIZE
                count = min(capacity - self._filled, len(view) - done)
                self._clear[self._filled : self._filled + count] = view[done : done + count]
                self._filled += count
                done += count
            self._size += done
            return done

    def close(self) -> None:
        """Write the last segment. Afterwards :attr:`entry` is there. Again it does nothing."""
        if self._finished:
            return
        self._seal(last=True)
        self._entry = IndexEntry(id=self._file_id, size=self._size, digest=merkle.root(self._digests))
        self._end()

    def abort(self) -> None:
        """End without a last segment: what was written so far is, to every reader, a truncated file."""
        if not self._finished:
            self._end()

    def __enter__(self) -> SealedWriter:
        self._must_be_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _must_be_open(self) -> None:
        if self._finished:
            raise UsageError("the sealed stream has ended", todo="seal into a new one")

    def _seal(self, *, last: bool) -> None:
        end = self._start + self._filled + TAG_SIZE
        with (
            memoryview(self._clear)[: self._filled] as text,
            memoryview(self._block)[:end] as whole,
            whole[self._start :] as out,
        ):
            self._cipher.seal_into(len(self._digests), last, text, out)
            self._digests.append(hashlib.sha256(whole).digest())
            self._send(whole)
        self._start = self._filled = 0

    def _send(self, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                with data[done:] as rest:
                    count = self._out.write(rest)
                if not count:  # a raw file in non-blocking mode says so, and the bytes would be lost unseen
                    raise OSError(errno.EAGAIN, "the stream took no bytes")
                done += count
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._finished = True
        erase(self._clear)
