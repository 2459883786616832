"""Weights in pages of 2 MiB: reading them once for every token then costs no walk through page tables, which on a
virtual machine is a third of the time.

The C library does not ask the kernel for such pages unless its environment says so, and what PyTorch packs lies in
its memory. So the process's own large anonymous mappings are named to the kernel (``madvise``) and gathered at once
where it can (``MADV_COLLAPSE``, Linux 6.1). Nothing else changes; where the kernel refuses, all stays as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SMALLEST: Final = 4 << 20
"""Bytes of a mapping that is worth it."""
PAGE: Final = 2 << 20
_HUGEPAGE: Final = 14
_COLLAPSE: Final = 25
_MAX_MAPPINGS: Final = 1 << 16
_LINE: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p 0+ 00:00 0\s*(\[heap\]|\[anon:[^\]]*\])?\s*")


def anonymous(maps: str) -> Iterator[tuple[int, int]]:
    """(start, bytes) of each large private anonymous mapping of ``/proc/self/maps``, cut to whole huge pages."""
    for line in maps.splitlines()[:_MAX_MAPPINGS]:
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        start, end = (int(found[part], 16) for part in (1, 2))
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if end - start >= SMALLEST:
            yield start, end - start


def gather() -> int:
    """Put what is there into huge pages; the bytes of the mappings for which the kernel agreed to try."""
    with contextlib.suppress(OSError, AttributeError):
        advise = ctypes.CDLL(None, use_errno=True).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        agreed = 0
        for start, size in anonymous(Path("/proc/self/maps").read_text("ascii", "replace")):
            # A mapping that another thread unmaps meanwhile is refused, and that is all.
            if advise(start, size, _HUGEPAGE) == 0:
                agreed += size
                advise(start, size, _COLLAPSE)
        return agreed
    return 0
