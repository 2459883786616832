"""Where this machine could write memory to a disk: the swap areas of ``/proc/swaps``, and what a policy says to them.

A swap area on a disk of the host takes plaintext out of the TEE. Whether an area is encrypted (dm-crypt under a random key)
or lies in memory (zram) does not show reliably from inside: no area is taken for safe by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cloister.errors import IsolationRefused

SwapPolicy = Literal["refuse", "warn"]
MAX_AREAS: Final = 64
_HEADER: Final = ["Filename", "Type", "Size", "Used", "Priority"]


@dataclass(frozen=True, slots=True)
class Swap:
    """One area."""

    path: str
    kind: str
    """``partition`` or ``file``."""
    size: int
    """Bytes."""
    used: int
    """Bytes."""


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """The areas of ``/proc/swaps`` (proc_swaps(5); sizes there are in KiB). ``""`` where the kernel has no such file.

    Raises :class:`~cloister.errors.IsolationRefused` for anything else: what cannot be read is not taken for "none".
    """
    lines = text.splitlines()
    if not lines:
        return ()
    if lines[0].split() != _HEADER or len(lines) > MAX_AREAS + 1:
        raise IsolationRefused("/proc/swaps does not have the form it should", todo="look at `swapon --show`")
    return tuple(_area(line) for line in lines[1:])


def judge_swap(swaps: tuple[Swap, ...], policy: SwapPolicy) -> str:
    """What was found, in one line; ``""`` where there is no swap.

    Raises :class:`~cloister.errors.IsolationRefused` where there is some and the policy refuses it.
    """
    if not swaps:
        return ""
    named = ", ".join(swap.path[:64] for swap in swaps[:4]) + (", …" if len(swaps) > 4 else "")
    found = f"this machine swaps memory to {named}, which may lie on a disk of the host"
    if policy == "refuse":
        raise IsolationRefused(
            found,
            todo='`swapoff -a`; or, where it is zram or encrypted under a key of this boot, say `swap = "warn"`',
        )
    return found


def _area(line: str) -> Swap:
    # The kernel escapes white space in a name, so there are five columns.
    parts = line.split()
    if len(parts) != 5 or not (parts[2].isdecimal() and parts[3].isdecimal()):
        raise IsolationRefused("/proc/swaps does not have the form it should", todo="look at `swapon --show`")
    return Swap(parts[0], parts[1], int(parts[2]) << 10, int(parts[3]) << 10)
