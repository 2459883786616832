"""A new sealed file as a Python file object: what is written streams out sealed, and shows when it is closed.

Refuses to seek, and to show what was not written to its end: an exception inside ``with``, or a file that was forgotten
without being closed, leaves the directory as it was.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from fsspec.transaction import Transaction

from cloister.errors import UsageError
from cloister.sealing.filesystem_directory import SealedDirectory
from cloister.sealing.index import check_path
from cloister.sealing.writer import SealedWriter


class SealedUpload(io.BufferedIOBase):
    """Open for writing. ``autocommit=False`` leaves it to :meth:`commit` to show the file after it was closed."""

    mode = "wb"

    def __init__(
        self,
        directory: SealedDirectory,
        relative: str,
        *,
        path: str,
        key_uri: str,
        kek: bytes,
        autocommit: bool = True,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._ended = True  # until there is something to throw away
        check_path(relative)
        directory.check_writable()
        self.path = self.name = path
        self._directory = directory
        self._relative = relative
        self._autocommit = autocommit
        self._body = directory.store.body(directory.path)
        self._ended = False
        try:
            self._writer = SealedWriter(self._body, key_uri=key_uri, kek=kek, name=relative, entropy=entropy)
        except BaseException:
            self.discard()
            raise

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._writer.tell()

    def write(self, data: Any, /) -> int:
        """Take all of ``data``, any contiguous buffer."""
        if self.closed:
            raise ValueError("write to a closed file")
        if not isinstance(data, bytes | bytearray | memoryview):
            data = memoryview(data)
        return self._writer.write(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        raise io.UnsupportedOperation(
            "a sealed file is written once, from front to back; what seeks while it writes needs a `cloister mount`"
        )

    def close(self) -> None:
        """The last segment, and (with autocommit) the directory's index that names the file."""
        if self.closed:
            return
        super().close()
        if self._ended:
            return
        try:
            self._writer.close()
            if self._autocommit:
                self.commit()
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Show the file. Raises :class:`~cloister.errors.UsageError` if it is not closed, or was thrown away."""
        commit_together([self])

    def discard(self) -> None:
        """As if it had never been opened."""
        if not self._ended:
            self._ended = True
            if hasattr(self, "_writer"):
                self._writer.abort()
            self._body.discard()
        super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and not self.closed:
            self.discard()
            warnings.warn(f"{self.path} was never closed: nothing was written", ResourceWarning, stacklevel=2)


def commit_together(uploads: Sequence[SealedUpload]) -> None:
    """Show files that were closed, those of one directory in one version of its index; the last of a path is the one."""
    together: dict[str, dict[str, SealedUpload]] = {}
    for upload in uploads:
        if not upload.closed or upload._ended:
            raise UsageError(f"{upload.path} is not at its end", todo="close it first")
        before = together.setdefault(upload._directory.path, {}).get(upload._relative)
        if before is not None:
            before.discard()
        together[upload._directory.path][upload._relative] = upload
    for files in together.values():
        directory = next(iter(files.values()))._directory
        directory.publish({name: (upload._writer.entry, upload._body) for name, upload in files.items()})
        for upload in files.values():
            upload._ended = True


class SealedTransaction(Transaction):  # type: ignore[misc]  # fsspec has no types
    """What was written in it shows at its end, with one new index for each sealed directory, or not at all."""

    def complete(self, commit: bool = True) -> None:
        """Commit or discard everything."""
        uploads = list(self.files)
        self.files.clear()
        try:
            if commit:
                commit_together(uploads)
        finally:
            for upload in uploads:
                upload.discard()
            self.fs._intrans = False
            self.fs._transaction = None
