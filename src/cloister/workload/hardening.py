"""The launcher's own process, and those that mount for it: nobody looks into them, and they leave nothing on a disk.

They hold keys and plaintext that the program must not have. Nothing here is inherited by a program but the limit on core
dumps: the program's own confinement is confinement.py.
"""

from __future__ import annotations

import contextlib
import resource
from typing import Final

from cloister.errors import IsolationRefused
from cloister.workload import linux
from cloister.workload.confinement import no_core_dumps
from cloister.workload.linux import Finding

_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4


def harden_launcher(*, lock: bool = True) -> tuple[Finding, ...]:
    """No core dumps, no debugger of the same user, and with ``lock`` no page of this process in swap.

    Call it after :func:`~cloister.workload.namespaces.private_mounts`. Memory is locked as it is touched, where this process
    may lock without limit; under a limit it is not tried, since every later allocation over the limit would fail.
    Raises :class:`~cloister.errors.IsolationRefused`.
    """
    try:
        no_core_dumps()
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
    except OSError as error:
        raise IsolationRefused(f"this process cannot be closed to others: {error.strerror}") from None
    closed = Finding("launcher", "ok", "leaves no core dump, and cannot be traced by processes of its user")
    return (closed, _locked()) if lock else (closed,)


def _locked() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    free = linux.has_capability(linux.CAP_IPC_LOCK)
    if not free and hard == resource.RLIM_INFINITY:
        with contextlib.suppress(OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
            soft = hard
    if not free and soft != resource.RLIM_INFINITY:
        return Finding(
            "launcher's memory",
            "weak",
            f"is not locked: this process may lock {soft >> 10} KiB",
            "start as root, or raise `ulimit -l` (LimitMEMLOCK=infinity)",
        )
    try:
        linux.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT)
    except OSError as error:
        return Finding("launcher's memory", "weak", f"is not locked: {error.strerror}", "switch swap off")
    return Finding("launcher's memory", "ok", "is locked as it is touched, and never swapped")
