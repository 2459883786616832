"""What the kernel asks of a mount, answered from any :class:`~cloister.sealing.posix.Files`.

Thin: nodes become paths, refusals become their errno, everything else is the store's. What does not authenticate is ``EIO``
to the program and one line in the log that names the file; a file's content is in no log and no error. Not offered: hard
links, devices, other owners, extended attributes, holes to seek, allocating without writing. Locks are not answered here, so
the kernel keeps them, which is right for a tree that only this kernel writes.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NoReturn, TypeAlias

from cloister.errors import CloisterError
from cloister.sealing.posix import Files, Filling, OpenFile, Status
from cloister.workload import mount_kernel as kernel
from cloister.workload.mount_kernel import Opcode, Owner, Request, Set
from cloister.workload.mount_nodes import Node, Nodes, Opened, ThreadMemory, refused

Reply: TypeAlias = list[bytes | memoryview] | None
"""Buffers to write at once; None where the kernel waits for nothing."""

MAX_SAID: Final = 1000
_NOREPLACE: Final = 1
_Operation: TypeAlias = Callable[[Request], bytes | memoryview]
_log = logging.getLogger(__name__)


class Mounted:
    """One mounted file system. Thread-safe: :meth:`answer` is called by every thread that reads the device."""

    def __init__(self, files: Files, owner: Owner, *, clock: Callable[[], int]) -> None:
        """``clock`` gives nanoseconds since 1970, for programs that set a time to now."""
        self._files = files
        self._owner = owner
        self._clock = clock
        self._nodes = Nodes()
        self._numbers = itertools.count(1)
        self._opened: dict[int, Opened] = {}
        self._listed: dict[int, tuple[str, ...]] = {}
        self._said: set[str] = set()
        self._memory = ThreadMemory()
        # From the moment a path is made of a node until the store has answered, no name may move. A store that
        # nobody writes to moves none, and its opening of a file can take long.
        self._names = threading.RLock() if files.writable else contextlib.nullcontext()
        self._operations: dict[int, _Operation] = {
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._remove,
            Opcode.RMDIR: self._remove,
            Opcode.RENAME: self._rename,
            Opcode.RENAME2: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.FSYNC: self._fsync,
            Opcode.OPENDIR: self._opendir,
            Opcode.READDIR: self._readdir,
            Opcode.RELEASEDIR: self._releasedir,
            Opcode.FSYNCDIR: self._fsyncdir,
            Opcode.INIT: self._init,
            Opcode.DESTROY: lambda _: b"",
        }

    def answer(self, data: memoryview) -> Reply:
        """One request, done. Never raises for anything that a program, a file or a disk can cause."""
        request = kernel.parse_request(data)
        if request.opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
            with contextlib.suppress(struct.error):
                self._forget(request)
            return None
        operation = self._operations.get(request.opcode)
        if operation is None:
            return kernel.refusal(request.unique, errno.ENOSYS)
        try:
            return kernel.reply(request.unique, operation(request))
        except OSError as error:
            return kernel.refusal(request.unique, error.errno or errno.EIO)
        except CloisterError as error:
            self._say(f"{self._name(request)}: {error.what}")
        except Exception as error:
            # Its text could quote what the program wrote.
            self._say(f"{self._name(request)}: {type(error).__name__} in operation {request.opcode}")
        return kernel.refusal(request.unique, errno.EIO)

    def _say(self, line: str) -> None:
        if line not in self._said and len(self._said) < MAX_SAID:
            self._said.add(line)
            _log.warning("%s", line)

    def _name(self, request: Request) -> str:
        try:
            return ascii(self._nodes.path(self._nodes.node(request.node)))
        except OSError:
            return "a removed file"

    # Names

    def _init(self, request: Request) -> bytes:
        return kernel.init_out(request.body, writable=self._files.writable)

    def _forget(self, request: Request) -> None:
        if request.opcode == Opcode.FORGET:
            self._nodes.forget([(request.node, kernel.FORGET_IN.unpack_from(request.body)[0])])
        elif request.opcode == Opcode.BATCH_FORGET:
            count, _ = kernel.BATCH_FORGET_IN.unpack_from(request.body)
            start, one = kernel.BATCH_FORGET_IN.size, kernel.FORGET_ONE
            self._nodes.forget(
                one.unpack_from(request.body, start + number * one.size) for number in range(count)
            )

    def _lookup(self, request: Request) -> bytes:
        (name,) = kernel.names(request.body, 1)
        with self._names:
            try:
                return self._entry(request.node, name)
            except FileNotFoundError:
                return kernel.no_entry_out()

    def _entry(self, parent: int, name: str) -> bytes:
        status = self._files.status(self._nodes.below(parent, name))
        return kernel.entry_out(self._nodes.found(parent, name).identity, status, self._owner)

    def _status(self, node: Node) -> Status:
        for file in node.handles[:1]:
            return replace(file.status, links=0) if self._nodes.nameless(node) else file.status
        status = self._files.status(self._nodes.path(node))
        if node is self._nodes.root:
            # Others who can see the mount point get no further, whatever the modes inside say.
            return replace(status, mode=status.mode & stat.S_IRWXU)
        return status

    def _getattr(self, request: Request) -> bytes:
        with self._names:
            return kernel.attr_out(self._status(self._nodes.node(request.node)), self._owner)

    def _setattr(self, request: Request) -> bytes:
        valid, _, handle, size, _, _, modified, _, _, modified_ns, _, mode, _, uid, gid, _ = (
            kernel.SETATTR_IN.unpack_from(request.body)
        )
        if (valid & Set.UID and uid != self._owner.uid) or (valid & Set.GID and gid != self._owner.gid):
            raise refused(errno.EPERM)
        node = self._nodes.node(request.node)
        with self._names:
            if valid & Set.SIZE:
                opened = self._opened.get(handle) if valid & Set.HANDLE else None
                if opened is not None:
                    opened.file.truncate(size)
                else:
                    self._files.truncate(self._nodes.path(node), size)
            with self._nameless_allowed(node):
                if valid & Set.MODE:
                    self._files.set_mode(self._nodes.path(node), stat.S_IMODE(mode))
                if valid & (Set.MTIME | Set.MTIME_NOW):
                    now = valid & Set.MTIME_NOW
                    self._files.set_modified(
                        self._nodes.path(node), self._clock() if now else modified * 10**9 + modified_ns
                    )
            return kernel.attr_out(self._status(node), self._owner)

    @contextlib.contextmanager
    def _nameless_allowed(self, node: Node) -> Iterator[None]:
        """The kernel writes times back to files that were removed while open: they end with the file."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.ESTALE or not node.handles:
                raise

    def _readlink(self, request: Request) -> bytes:
        with self._names:
            target = self._files.read_link(self._nodes.path(self._nodes.node(request.node)))
        return target.encode("utf-8", "surrogateescape")

    def _symlink(self, request: Request) -> bytes:
        name, target = kernel.names(request.body, 2)
        with self._names:
            self._files.link(self._nodes.below(request.node, name), target)
            return self._entry(request.node, name)

    def _mknod(self, request: Request) -> bytes:
        mode, _, _, _ = kernel.MKNOD_IN.unpack_from(request.body)
        (name,) = kernel.names(request.body[kernel.MKNOD_IN.size :], 1)
        if not stat.S_ISREG(mode):
            raise refused(errno.EPERM)
        with self._names:
            self._files.create(self._nodes.below(request.node, name), stat.S_IMODE(mode)).close()
            return self._entry(request.node, name)

    def _mkdir(self, request: Request) -> bytes:
        mode, _ = kernel.MKDIR_IN.unpack_from(request.body)
        (name,) = kernel.names(request.body[kernel.MKDIR_IN.size :], 1)
        with self._names:
            self._files.make_directory(self._nodes.below(request.node, name), stat.S_IMODE(mode))
            return self._entry(request.node, name)

    def _remove(self, request: Request) -> bytes:
        (name,) = kernel.names(request.body, 1)
        remove = self._files.unlink if request.opcode == Opcode.UNLINK else self._files.remove_directory
        with self._names:
            remove(self._nodes.below(request.node, name))
            self._nodes.removed(request.node, name)
        return b""

    def _rename(self, request: Request) -> bytes:
        layout = kernel.RENAME_IN if request.opcode == Opcode.RENAME else kernel.RENAME2_IN
        parent, *rest = layout.unpack_from(request.body)
        flags = rest[0] if rest else 0
        old, new = kernel.names(request.body[layout.size :], 2)
        if flags & ~_NOREPLACE:
            raise refused(errno.EINVAL)
        with self._names:
            source, target = self._nodes.below(request.node, old), self._nodes.below(parent, new)
            self._files.rename(source, target, replace=not flags)
            if source != target:
                self._nodes.moved(request.node, old, parent, new)
        return b""

    def _link(self, _: Request) -> NoReturn:
        raise refused(errno.EPERM)

    # Files

    def _open(self, request: Request) -> bytes:
        flags, _ = kernel.OPEN_IN.unpack_from(request.body)
        node = self._nodes.node(request.node)
        # What is open for writing only is read as well, when the kernel fills up a page that was written in part.
        write = flags & os.O_ACCMODE != os.O_RDONLY
        with self._names:
            file = self._files.open(self._nodes.path(node), write=write)
            if flags & os.O_TRUNC and write:
                file.truncate(0)
            return self._hand_out(node, file)

    def _create(self, request: Request) -> bytes:
        _, mode, _, _ = kernel.CREATE_IN.unpack_from(request.body)
        (name,) = kernel.names(request.body[kernel.CREATE_IN.size :], 1)
        with self._names:
            file = self._files.create(self._nodes.below(request.node, name), stat.S_IMODE(mode))
            node = self._nodes.found(request.node, name)
            entry = kernel.entry_out(node.identity, file.status, self._owner)
            return entry + self._hand_out(node, file)

    def _hand_out(self, node: Node, file: OpenFile) -> bytes:
        handle = next(self._numbers)
        self._opened[handle] = Opened(node, file, file if isinstance(file, Filling) else None)
        self._nodes.opened(node, file)
        return kernel.open_out(handle, kernel.KEEP_CACHE)

    def _file(self, handle: int) -> OpenFile:
        return self._of(handle).file

    def _of(self, handle: int) -> Opened:
        try:
            return self._opened[handle]
        except KeyError:
            raise refused(errno.EBADF) from None

    def _read(self, request: Request) -> bytes | memoryview:
        handle, offset, size, *_ = kernel.READ_IN.unpack_from(request.body)
        opened = self._of(handle)
        if opened.filling is None or size > kernel.MAX_TRANSFER:
            return opened.file.read(offset, size)
        buffer = self._memory.view[:size]
        return buffer[: opened.filling.read_into(offset, buffer)]

    def _write(self, request: Request) -> bytes:
        handle, offset, size, *_ = kernel.WRITE_IN.unpack_from(request.body)
        start = kernel.WRITE_IN.size
        return kernel.write_out(self._file(handle).write(offset, request.body[start : start + size]))

    def _fsync(self, request: Request) -> bytes:
        handle, _, _ = kernel.FSYNC_IN.unpack_from(request.body)
        self._file(handle).sync()
        return b""

    def _release(self, request: Request) -> bytes:
        handle, *_ = kernel.RELEASE_IN.unpack_from(request.body)
        with self._names:
            opened = self._opened.pop(handle, None)
            if opened is None:
                raise refused(errno.EBADF)
            self._nodes.closed(opened.node, opened.file)
        opened.file.close()
        return b""

    def _statfs(self, _: Request) -> bytes:
        return kernel.statfs_out(self._files.space())

    # Folders

    def _opendir(self, request: Request) -> bytes:
        with self._names:
            listed = self._files.names(self._nodes.path(self._nodes.node(request.node)))
        handle = next(self._numbers)
        self._listed[handle] = listed
        return kernel.open_out(handle, 0)

    def _readdir(self, request: Request) -> bytes:
        handle, offset, size, *_ = kernel.READ_IN.unpack_from(request.body)
        folder = self._nodes.node(request.node)
        shown = (".", "..", *self._listed.get(handle, ()))
        entries = bytearray()
        with self._names:
            path = self._nodes.path(folder)
            for position in range(offset, len(shown)):
                name = shown[position]
                try:
                    below = path if position < 2 else f"{path}/{name}" if path else name
                    status = self._files.status(below)
                except FileNotFoundError:  # removed since it was listed
                    continue
                entry = kernel.directory_entry(
                    name, number=status.number, kind=status.kind, position=position + 1
                )
                if len(entries) + len(entry) > size:
                    break
                entries += entry
        return bytes(entries)

    def _releasedir(self, request: Request) -> bytes:
        handle, *_ = kernel.RELEASE_IN.unpack_from(request.body)
        self._listed.pop(handle, None)
        return b""

    def _fsyncdir(self, _: Request) -> bytes:
        self._files.sync()
        return b""
