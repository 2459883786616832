"""What `cloister doctor isolation` says of this machine: can it confine a program as `cloister run` does by default?

One line for each mechanism. What would make the strictest isolation be refused has failed; what is only weaker is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cloister.attester.diagnosis import Finding
from cloister.errors import EXIT_POLICY, IsolationRefused
from cloister.workload.isolation import BOUNDED_SIGNALS, Isolation, Network, check
from cloister.workload.linux import Machine, look

if TYPE_CHECKING:
    from cloister.attester.diagnosis import Options

STRICTEST: Final = Isolation(
    write=(), read="all", landlock="require", network=Network(access="none"), seccomp=True, swap="refuse"
)


def check_isolation(_: Options) -> tuple[Finding, ...]:
    """The checks of this room, as the entry point group ``cloister.doctor`` offers them."""
    try:
        machine = look()
    except IsolationRefused as error:
        return (_failed(error),)
    return findings(machine)


def findings(machine: Machine) -> tuple[Finding, ...]:
    """Pure: what ``machine`` is worth."""
    landlock = f"ABI {machine.landlock}" if machine.landlock else "none"
    if 0 < machine.landlock < BOUNDED_SIGNALS:
        landlock += f"; from ABI {BOUNDED_SIGNALS} on (Linux 6.12) signals and abstract sockets are held too"
    seen = (
        Finding(
            "kernel", "ok", f"Linux {machine.kernel} on {machine.architecture or 'an unknown processor'}"
        ),
        Finding("Landlock", "ok", landlock),
    )
    try:
        given = check(STRICTEST, machine)
    except IsolationRefused as error:
        return (*seen, _failed(error))
    lines = (
        Finding(
            one.check, "ok", f"{one.found} ({one.todo})" if one.state == "weak" and one.todo else one.found
        )
        for one in given
        if one.check not in ("plaintext", "user")
    )
    return (*seen, *lines)


def _failed(error: IsolationRefused) -> Finding:
    return Finding("isolation", "failed", error.what, error.todo, EXIT_POLICY)
