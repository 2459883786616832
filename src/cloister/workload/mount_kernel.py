"""The kernel's FUSE protocol: requests as they are read from ``/dev/fuse``, replies as they are written to it.

Pure: bytes in, numbers and names out, and back. The layouts are those of the kernel's ``include/uapi/linux/fuse.h``,
protocol 7.31 and later, in the machine's own byte order. Refused: a kernel that speaks an older one, and a request shorter
than its own structure. What is not listed here is answered with ``ENOSYS``, after which the kernel does without.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloister.errors import WorkloadError
from cloister.sealing.posix import Kind, Space, Status

MAJOR: Final = 7
MINOR: Final = 31
MAX_TRANSFER: Final = 1 << 20
"""Bytes of file content in one request: what the kernel allows unprivileged mounts (256 pages)."""
BUFFER_SIZE: Final = MAX_TRANSFER + 8192
"""What one request can take up, with its headers and names."""
ROOT_ID: Final = 1
_VALID_SECONDS: Final = 86_400
# Everything that changes goes through this kernel, so it may remember names and attributes as long as it likes.

_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ATTR = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4Q2I")
_ATTR_VALID = struct.Struct("=QII")
_INIT_IN = struct.Struct("=4I")
_INIT_OUT = struct.Struct("=4I2H2I2H2IH22x")
_STATFS = struct.Struct("=5Q4I24x")
_DIRENT = struct.Struct("=QQII")
_OPEN_OUT = struct.Struct("=QIi")
_WRITE_OUT = struct.Struct("=II")

GETATTR_IN: Final = struct.Struct("=IIQ")
SETATTR_IN: Final = struct.Struct("=II6Q8I")
OPEN_IN: Final = struct.Struct("=II")
CREATE_IN: Final = struct.Struct("=4I")
MKNOD_IN: Final = struct.Struct("=4I")
MKDIR_IN: Final = struct.Struct("=II")
RENAME_IN: Final = struct.Struct("=Q")
RENAME2_IN: Final = struct.Struct("=QII")
READ_IN: Final = struct.Struct("=QQIIQII")
WRITE_IN: Final = struct.Struct("=QQIIQII")
RELEASE_IN: Final = struct.Struct("=QIIQ")
FSYNC_IN: Final = struct.Struct("=QII")
FORGET_IN: Final = struct.Struct("=Q")
BATCH_FORGET_IN: Final = struct.Struct("=II")
FORGET_ONE: Final = struct.Struct("=QQ")


class Opcode(enum.IntEnum):
    """The operations that are answered."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    RENAME2 = 45


class Set(enum.IntFlag):
    """Which attributes ``SETATTR`` sets."""

    MODE = 1
    UID = 2
    GID = 4
    SIZE = 8
    MTIME = 32
    HANDLE = 64
    MTIME_NOW = 256


class Capability(enum.IntFlag):
    """What both sides can do (``INIT``); the kernel offers, we take."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23


_WANTED = (
    Capability.ASYNC_READ
    | Capability.ATOMIC_O_TRUNC
    | Capability.BIG_WRITES
    | Capability.ASYNC_DIO
    | Capability.PARALLEL_DIROPS
    | Capability.MAX_PAGES
    | Capability.CACHE_SYMLINKS
)
KEEP_CACHE: Final = 1 << 1
CACHE_DIRECTORY: Final = 1 << 3
_TYPES: Final[dict[Kind, int]] = {"file": 0o100000, "directory": 0o040000, "link": 0o120000}


class Request(NamedTuple):
    """One request: what is asked, about which node, and the rest of its bytes, which belong to the buffer they came in."""

    opcode: int
    unique: int
    node: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class Owner:
    """To whom everything in the mount belongs."""

    uid: int
    gid: int


def parse_request(data: memoryview) -> Request:
    """What was read from the device at once. Raises ValueError, which no kernel ever gave cause for."""
    if len(data) < _IN.size:
        raise ValueError("a request shorter than its header")
    length, opcode, unique, node, _, _, _, _, _ = _IN.unpack_from(data)
    if length != len(data):
        raise ValueError("a request of another length than its header says")
    return Request(opcode, unique, node, data[_IN.size :])


def names(body: memoryview, count: int) -> list[str]:
    """``count`` names, each ended by a NUL; bytes that are no UTF-8 become surrogates, which every store refuses."""
    parts = bytes(body).split(b"\0", count)
    if len(parts) != count + 1:
        raise ValueError("a request without its names")
    return [part.decode("utf-8", "surrogateescape") for part in parts[:count]]


def reply(unique: int, *parts: bytes | memoryview) -> list[bytes | memoryview]:
    """The buffers of an answer, to be written at once."""
    return [_OUT.pack(_OUT.size + sum(map(len, parts)), 0, unique), *parts]


def refusal(unique: int, number: int) -> list[bytes | memoryview]:
    """The answer that it failed with this errno."""
    return [_OUT.pack(_OUT.size, -number, unique)]


def init_out(body: memoryview, *, writable: bool) -> bytes:
    """Agree with the kernel on versions and sizes. Raises :class:`~cloister.errors.WorkloadError` on an old kernel."""
    major, minor, readahead, offered = _INIT_IN.unpack_from(body)
    if major != MAJOR or minor < MINOR:
        raise WorkloadError(
            f"this kernel speaks FUSE {major}.{minor}, and {MAJOR}.{MINOR} is needed",
            todo="use Linux 5.4 or later",
        )
    wanted = _WANTED | (Capability.WRITEBACK_CACHE if writable else 0)
    background, congestion, pages = 32, 24, MAX_TRANSFER // 4096
    agreed = (MAJOR, MINOR, max(readahead, MAX_TRANSFER), offered & wanted, background, congestion)
    return _INIT_OUT.pack(*agreed, MAX_TRANSFER, 1, pages, 0, 0, 0, 0)


def _attributes(status: Status, owner: Owner) -> bytes:
    changed, changed_ns = divmod(status.changed_ns, 10**9)
    modified, modified_ns = divmod(status.modified_ns, 10**9)
    blocks = -(-status.stored // 512)
    mode = _TYPES[status.kind] | status.mode
    return _ATTR.pack(
        status.number, status.size, blocks, modified, modified, changed, modified_ns, modified_ns, changed_ns,
        mode, status.links, owner.uid, owner.gid, 0, 4096, 0,
    )  # fmt: skip


def attr_out(status: Status, owner: Owner) -> bytes:
    """The answer to ``GETATTR`` and ``SETATTR``."""
    return _ATTR_VALID.pack(_VALID_SECONDS, 0, 0) + _attributes(status, owner)


def entry_out(node: int, status: Status, owner: Owner) -> bytes:
    """The answer to everything that looks up or makes a name."""
    return _ENTRY.pack(node, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0) + _attributes(status, owner)


def no_entry_out() -> bytes:
    """The answer that there is no such name, which the kernel may remember."""
    return _ENTRY.pack(0, 0, _VALID_SECONDS, 0, 0, 0) + bytes(_ATTR.size)


def open_out(handle: int, flags: int) -> bytes:
    """The answer to ``OPEN`` and ``OPENDIR``."""
    return _OPEN_OUT.pack(handle, flags, 0)


def write_out(count: int) -> bytes:
    """The answer to ``WRITE``."""
    return _WRITE_OUT.pack(count, 0)


def statfs_out(space: Space) -> bytes:
    """The answer to ``STATFS``, in blocks of 4 KiB."""
    blocks, free = space.total // 4096, space.free // 4096
    return _STATFS.pack(blocks, free, free, 0, 0, 4096, 255, 4096, 0)


def directory_entry(name: str, *, number: int, kind: Kind, position: int) -> bytes:
    """One entry of ``READDIR``; ``position`` is where the next one is asked for."""
    encoded = name.encode("utf-8", "surrogateescape")
    entry = _DIRENT.pack(number, position, len(encoded), _TYPES[kind] >> 12) + encoded
    return entry + bytes(-len(entry) % 8)
