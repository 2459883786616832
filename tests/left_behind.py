"""Open descriptors and children of this process, so that a test sees what its own act left, and nothing else.

Other tests of the same process leave files and sockets to the garbage collector and to threads that end when they please, so
the whole table is never the same twice; what matters is what is there now and was not before.
"""

from __future__ import annotations

import gc
import os
import stat
from pathlib import Path

Descriptor = tuple[int, str, int]
"""Number, what the kernel says it is, inode."""


def open_descriptors() -> frozenset[Descriptor]:
    """Every descriptor but those of sockets and event loops, which threads of other tests may open at any time."""
    gc.collect()
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        try:
            state, target = path.stat(), os.readlink(path)  # noqa: PTH115 -- memfds are no paths
        except OSError:
            continue  # the listing's own, or closed meanwhile
        if not stat.S_ISSOCK(state.st_mode) and not target.startswith("anon_inode:[event"):
            found.add((int(path.name), target, state.st_ino))
    return frozenset(found)


def left_open(before: frozenset[Descriptor]) -> frozenset[Descriptor]:
    """What is open now and was not ``before``."""
    return open_descriptors() - before


def children() -> frozenset[int]:
    """Process ids of this process's children, also of those that ended and were not waited for (proc(5), stat)."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue  # it ended meanwhile
        if int(parent) == os.getpid():
            found.add(int(path.parent.name))
    return frozenset(found)
