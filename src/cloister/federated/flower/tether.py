"""Flower's own processes of an app end when who started them has ended.

Flower looks for its parent five times a second, and then ends in good order: it says farewell to a server that may be gone,
and waits for its threads. A model is in its memory meanwhile. So Linux is asked to end it at once.
"""

from __future__ import annotations

import os
import signal

from cloister.workload import linux


def end_with_parent() -> None:
    """From now on. For the process of an app, whose parent started it from its main thread."""
    parent = os.getppid()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended in between
        os._exit(1)
