"""A process ends when who started it has ended.

Flower's own programs look for their parents five times a second, and then end in good order: they say farewell to a server
that may be gone, and wait for their threads. A model is in their memory meanwhile. So Linux is asked to end them at once.
"""

from __future__ import annotations

import os

from cloister.workload import linux


def end_with_parent(parent: int | None = None) -> None:
    """From now on. For a process whose parent started it from its main thread; ``parent`` if it is known which that was."""
    linux.end_with(parent or os.getppid())
