"""What cgroups and the kernel leave this process of time and memory.

Both versions of cgroups are read, in every group from this process's own up to the top, since each may limit. Limits only
ever lower what is there: a file that is missing, empty or malformed limits nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

MAX_DEPTH: Final = 32
"""Groups above one another that are looked at."""
MAX_CPU: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """Time and memory of this process."""

    processors: float | None
    """Processors' worth of time that a cgroup allows; None for no quota."""
    memory: int
    """Bytes it may ever have: the kernel's, or a cgroup's where that is less."""
    available: int
    """Bytes of them that are free now, or can be freed without swapping."""


def read_limits(root: Path) -> Limits:
    """The limits below ``root``."""
    table = _meminfo(read_text(root / "proc/meminfo"))
    memory, available = table.get("MemTotal", 0), table.get("MemAvailable", table.get("MemFree", 0))
    quota: float | None = None
    for folder in _groups(root, "cpu"):
        allowed = _quota(folder)
        if allowed is not None:
            quota = allowed if quota is None else min(quota, allowed)
    for folder in _groups(root, "memory"):
        limit, used = _memory(folder)
        if limit is not None and (memory == 0 or limit < memory):
            memory = limit
        if limit is not None:
            available = min(available, max(0, limit - used))
    return Limits(processors=quota, memory=memory, available=available)


def read_text(path: Path, *, limit: int = 1 << 20) -> str:
    """At most ``limit`` bytes of a small file; "" where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode("utf-8", "replace")
    except OSError:
        return ""


def number_list(text: str) -> set[int]:
    """``{0, 1, 2, 8}`` of ``0-2,8`` (the form of the kernel's cpulist); empty where it is malformed."""
    found: set[int] = set()
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return set()
        begin, end = int(first), int(last) if dash else int(first)
        if not begin <= end < MAX_CPU:
            return set()
        found.update(range(begin, end + 1))
    return found


def _meminfo(text: str) -> dict[str, int]:
    """Name → bytes."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdecimal():
            found[name] = int(words[0]) << 10
    return found


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's group and those above it, in version 2 and in version 1."""
    top = root / "sys/fs/cgroup"
    places: list[tuple[Path, str]] = [(top, "/"), (top / controller, "/")]
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            places += [(top, path), (top / "unified", path)]
        elif controller in controllers.split(","):
            places += [(top / controllers, path), (top / controller, path)]
    seen = set()
    for base, path in places:
        # A group outside this process's view is named by `..`; its files cannot be seen.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")][:MAX_DEPTH]
        for depth in range(len(parts), -1, -1):
            folder = base.joinpath(*parts[:depth])
            if folder not in seen:
                seen.add(folder)
                yield folder


def _quota(folder: Path) -> float | None:
    words = read_text(folder / "cpu.max").split()
    if not words:
        words = [
            *read_text(folder / "cpu.cfs_quota_us").split(),
            *read_text(folder / "cpu.cfs_period_us").split(),
        ]
    if len(words) != 2 or not all(word.isdecimal() for word in words) or int(words[1]) == 0:
        return None  # `max`, or -1 in version 1
    return int(words[0]) / int(words[1])


def _memory(folder: Path) -> tuple[int | None, int]:
    """Limit and use in bytes; the page cache that can be dropped is not counted as use."""
    limit = read_text(folder / "memory.max").strip() or read_text(folder / "memory.limit_in_bytes").strip()
    used = read_text(folder / "memory.current").strip() or read_text(folder / "memory.usage_in_bytes").strip()
    if not limit.isdecimal():
        return None, 0
    cache = 0
    for line in read_text(folder / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file") and value.isdecimal():
            cache = max(cache, int(value))
    return int(limit), max(0, int(used) - cache) if used.isdecimal() else 0
