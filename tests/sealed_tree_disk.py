"""A disk under a sealed tree whose plug can be pulled, that can be full, and whose syncs can fail. A real implementation of
the tree's ``Storage``, in memory: what was not synced may be on the disk in part, in any order, or not at all."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cloister.sealing.posix import Space

SECTOR = 512


class PowerLoss(BaseException):
    """The machine is off: nothing runs any more."""


@dataclass
class Inode:
    """``view`` is what reads find, ``kept`` what is certainly on the disk, ``pending`` what may be."""

    view: bytearray = field(default_factory=bytearray)
    kept: bytearray = field(default_factory=bytearray)
    pending: list[tuple[str, int, bytes]] = field(default_factory=list)
    reserved: int = 0

    def apply(self, target: bytearray, kind: str, offset: int, data: bytes) -> None:
        if kind == "truncate":
            del target[offset:]
            target.extend(bytes(offset - len(target)))
        else:
            target.extend(bytes(max(0, offset - len(target))))
            target[offset : offset + len(data)] = data

    def after_power_loss(self, chance: random.Random) -> Inode:
        found = bytearray(self.kept)
        how = chance.random()
        for kind, offset, data in self.pending:
            if kind == "truncate":
                if chance.random() < how:
                    self.apply(found, kind, offset, data)
                continue
            for start in range(0, len(data), SECTOR):
                if chance.random() < how:
                    self.apply(found, kind, offset + start, data[start : start + SECTOR])
        return Inode(bytearray(found), found)


class Disk:
    """One folder."""

    def __init__(self, kept: dict[str, Inode] | None = None) -> None:
        self.kept_names: dict[str, Inode] = dict(kept or {})
        self.view_names: dict[str, Inode] = dict(self.kept_names)
        self.pending_names: list[tuple[str, str, Inode | None]] = []
        self.off_after: int | None = None
        """So many more changes, and the power goes."""
        self.full_after: int | None = None
        """So many more bytes, and the disk is full."""
        self.failing_syncs = 0
        self.reserving = False
        """Whether room can be set aside on it."""
        self.failing_names = ""
        """Only syncs of files whose names begin so fail."""
        self.failing_loses = True
        self.locked = False

    def step(self) -> None:
        if self.off_after is not None:
            if self.off_after <= 0:
                raise PowerLoss
            self.off_after -= 1

    def after_power_loss(self, chance: random.Random) -> Disk:
        """What the next boot finds."""
        names = dict(self.kept_names)
        how = chance.random()
        for name, new, inode in self.pending_names:
            if chance.random() < how:
                self.change(names, name, new, inode)
        made: dict[int, Inode] = {}
        for inode in names.values():
            made.setdefault(id(inode), inode.after_power_loss(chance))
        return Disk({name: made[id(inode)] for name, inode in names.items()})

    def change(self, names: dict[str, Inode], name: str, new: str, inode: Inode | None) -> None:
        if inode is not None:  # made, or renamed
            names.pop(name, None)
            names[new] = inode
        else:
            names.pop(name, None)

    def renaming(self, name: str, new: str, inode: Inode | None) -> None:
        self.step()
        self.pending_names.append((name, new, inode))
        self.change(self.view_names, name, new, inode)

    # Storage

    def names(self) -> Iterator[tuple[str, bool]]:
        yield from [(name, True) for name in self.view_names]

    def open(self, name: str, *, write: bool) -> DiskFile:
        if name not in self.view_names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return DiskFile(self, name, self.view_names[name])

    def create(self, name: str) -> DiskFile:
        if name in self.view_names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if self.full_after is not None and self.full_after <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.renaming(name, name, Inode())
        return DiskFile(self, name, self.view_names[name])

    def rename(self, old: str, new: str) -> None:
        self.renaming(old, new, self.view_names[old])

    def remove(self, name: str) -> None:
        if name in self.view_names:
            self.renaming(name, name, None)

    def sync(self) -> None:
        self.step()
        self.kept_names, self.pending_names = dict(self.view_names), []

    def space(self) -> Space:
        return Space(1 << 40, 1 << 39)

    def close(self) -> None:
        self.locked = False


class DiskFile:
    def __init__(self, disk: Disk, name: str, inode: Inode) -> None:
        self.disk = disk
        self.name = name
        self.inode = inode

    def size(self) -> int:
        return len(self.inode.view)

    def read(self, buffers: Sequence[memoryview], offset: int) -> int:
        done = 0
        for buffer in buffers:
            found = self.inode.view[offset + done : offset + done + len(buffer)]
            buffer[: len(found)] = found
            done += len(found)
            if len(found) < len(buffer):
                break
        return done

    def write(self, buffers: Sequence[bytes | memoryview], offset: int) -> None:
        data = b"".join(buffers)
        disk = self.disk
        disk.step()
        wanted = max(0, offset + len(data) - max(offset, self.inode.reserved))
        full = disk.full_after is not None and disk.full_after < wanted
        if full:
            data = data[: len(data) - wanted + max(0, disk.full_after or 0)]
            wanted = max(0, disk.full_after or 0)
        if disk.full_after is not None:
            disk.full_after -= wanted
        self.change("write", offset, data)
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def change(self, kind: str, offset: int, data: bytes) -> None:
        self.inode.pending.append((kind, offset, data))
        self.inode.apply(self.inode.view, kind, offset, data)

    def truncate(self, size: int) -> None:
        self.disk.step()
        self.change("truncate", size, b"")

    def punch(self, offset: int, length: int) -> None:
        length = max(0, min(length, len(self.inode.view) - offset))
        self.disk.step()
        self.change("write", offset, bytes(length))

    def reserve(self, offset: int, length: int) -> None:
        if self.disk.full_after is None and self.disk.reserving:
            self.inode.reserved = max(self.inode.reserved, offset + length)

    def sync(self) -> None:
        self.disk.step()
        if self.disk.failing_syncs and self.name.startswith(self.disk.failing_names):
            # What the kernel does: reads still find it, and it never reaches the disk; or it did, all the same.
            self.disk.failing_syncs -= 1
            if self.disk.failing_loses:
                self.inode.pending.clear()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        # Whatever was lost before stays lost: only what is pending now is kept.
        for kind, offset, data in self.inode.pending:
            self.inode.apply(self.inode.kept, kind, offset, data)
        self.inode.pending.clear()

    def lock(self, *, alone: bool) -> bool:
        if self.disk.locked:
            return False
        self.disk.locked = alone
        return True

    def close(self) -> None:
        pass
