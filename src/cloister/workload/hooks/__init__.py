"""Import hooks: under ``cloister run`` well-known libraries read and write sealed paths, and programs need not know.

Importing this changes nothing. :func:`install` is called by the launcher's ``sitecustomize`` alone; it imports no library,
each is changed when the program imports it. What is no sealed path (paths.py says what is one) goes to the library as
it came. Refuses to let a writer pass that it could not change: what was to be sealed would lie there in the clear.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from cloister.sealing import access
from cloister.sealing.access import Access

_lock = threading.Lock()
_installed = False


def install(access_provider: Callable[[], Access]) -> None:
    """Hook the libraries, now where they are imported and later where they will be. Twice is once.

    ``access_provider`` is asked when the first sealed path is met.
    """
    from cloister.workload.hooks import frames, hub, tensors  # noqa: PLC0415
    from cloister.workload.hooks.seams import apply_when_imported  # noqa: PLC0415

    global _installed  # noqa: PLW0603 -- modules are changed once for a process
    with _lock:
        access.register_later(access_provider)
        if _installed:
            return
        _installed = True
        for seam in (*frames.SEAMS, *tensors.SEAMS, *hub.SEAMS):
            apply_when_imported(seam)
        frames.register_filesystem_when_imported()
