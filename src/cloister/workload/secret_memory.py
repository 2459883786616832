"""A few pages for keys, out of reach of everything but this process: of swap, core dumps, children and, where the kernel has
it, of the kernel itself.

``memfd_secret`` (Linux 5.14) takes the pages out of the kernel's own map of memory: not even root reads them through another
process. Elsewhere they are locked, left out of core dumps and empty in children. What Python or a library copies out of
them is ordinary memory again: keep copies short-lived, and few.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from types import TracebackType
from typing import Final, Literal, Self

from cloister.errors import UsageError, WorkloadError
from cloister.workload import linux

Kind = Literal["secret", "locked", "unlocked"]
MAX_SIZE: Final = 1 << 20
_MADV_WIPEONFORK: Final = 18


def secret_descriptor() -> int:
    """``memfd_secret``, closed on exec. Raises :class:`OSError` where the kernel has none or this process may not."""
    return linux.syscall("memfd_secret", os.O_CLOEXEC)


class SecretMemory:
    """``size`` bytes, zeros at first. ``secret_descriptor`` is an argument for tests of kernels without it.

    Not for concurrent writers. Raises :class:`~cloister.errors.UsageError` for a size that is none, and
    :class:`~cloister.errors.WorkloadError` where there is no memory to be had.
    """

    def __init__(self, size: int, *, secret_descriptor: Callable[[], int] = secret_descriptor) -> None:
        if not 0 < size <= MAX_SIZE:
            raise UsageError(f"secret memory holds 1 to {MAX_SIZE} bytes")
        self._size = size
        self._owner = os.getpid()
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self._pages, self._kind = _secret(whole, secret_descriptor)
        except (OSError, ValueError):
            self._pages, self._kind = _locked(whole)

    @property
    def kind(self) -> Kind:
        """``secret``: by memfd_secret; ``locked``: by mlock; ``unlocked``: could be swapped out."""
        return self._kind

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"<SecretMemory of {self._size} bytes, {self._kind}>"

    def __reduce__(self) -> str:
        raise UsageError("secret memory is not copied")

    def write(self, data: bytes | bytearray | memoryview, offset: int = 0) -> None:
        """Raises :class:`~cloister.errors.UsageError` where it does not fit."""
        self._within(offset, len(data))
        self._pages[offset : offset + len(data)] = bytes(data) if isinstance(data, memoryview) else data

    def read(self, offset: int = 0, length: int | None = None) -> bytes:
        """A copy in ordinary memory. Raises :class:`~cloister.errors.UsageError` beyond the end."""
        length = self._size - offset if length is None else length
        self._within(offset, length)
        return self._pages[offset : offset + length]

    def view(self) -> memoryview:
        """The memory itself, to be read into or handed to a library without a copy. Release it before :meth:`close`."""
        self._within(0, 0)
        return memoryview(self._pages)[: self._size]

    def erase(self) -> None:
        """Zeros."""
        self._within(0, 0)
        ctypes.memset(_address(self._pages), 0, len(self._pages))

    def close(self) -> None:
        """Erase, and give the memory back. Closing twice is harmless."""
        if self._pages.closed:
            return
        if os.getpid() == self._owner:
            self.erase()
        self._pages.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _within(self, offset: int, length: int) -> None:
        if os.getpid() != self._owner:
            # Where the pages are not mapped, touching them would end the child.
            raise UsageError("secret memory stays in the process that made it", todo="make some in the child")
        if offset < 0 or length < 0 or offset + length > self._size:
            raise UsageError(f"secret memory of {self._size} bytes has no {length} at {offset}")


def _secret(size: int, descriptor_of: Callable[[], int]) -> tuple[mmap.mmap, Kind]:
    descriptor = descriptor_of()
    try:
        os.ftruncate(descriptor, size)
        pages = mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
    # The kernel counts these pages as locked: where that is over the limit, mapping failed above. Not for children.
    pages.madvise(mmap.MADV_DONTFORK)
    return pages, "secret"


def _locked(size: int) -> tuple[mmap.mmap, Kind]:
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise WorkloadError(f"there is no memory for {size} bytes of keys: {error.strerror}") from None
    pages.madvise(mmap.MADV_DONTDUMP)
    pages.madvise(_MADV_WIPEONFORK)
    try:
        linux.mlock(_address(pages), size)
    except OSError:
        return pages, "unlocked"
    return pages, "locked"


def _address(pages: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(pages))
