"""How commands reach a TPM: the kernel's device, or the socket of a software TPM.

One method, :meth:`submit`: a whole command in, a whole response out. Nothing is understood here; a response that is
longer than a TPM's may be, or that does not come, is an :class:`~cloister.errors.AttesterError`.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path
from typing import Final, Protocol

from cloister.errors import AttesterError

DEVICE: Final = "/dev/tpmrm0"
"""The kernel's resource manager: each opening has its own keys and sessions, gone when it is closed."""
MAX_RESPONSE: Final = 4096
_HEADER: Final = 10


class TpmTransport(Protocol):
    """Carries one command (whole, with its header) and returns the response. Not for several threads."""

    def submit(self, command: bytes) -> bytes: ...


class DeviceTransport:
    """The TPM of this machine. Opened at the first command."""

    def __init__(self, path: str | Path = DEVICE) -> None:
        self._path = Path(path)
        self._descriptor: int | None = None

    def submit(self, command: bytes) -> bytes:
        """One command. Raises :class:`~cloister.errors.AttesterError`."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            # The kernel takes a command in one write and gives its response to one read.
            if os.write(self._descriptor, command) != len(command):
                raise AttesterError(f"{self._path} took a part of a command only")
            return os.read(self._descriptor, MAX_RESPONSE)
        except OSError as error:
            what, todo = _DEVICE_WORDS.get(
                error.errno or 0, (f"cannot be used ({error.strerror})", "look at the kernel's log")
            )
            raise AttesterError(f"{self._path} {what}", todo=todo) from None

    def close(self) -> None:
        """Give up the device; the kernel flushes what was loaded."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_DEVICE_WORDS: Final = {
    errno.ENOENT: ("does not exist", "this machine has no TPM, or its driver is not loaded"),
    errno.ENXIO: ("has no TPM behind it", "this machine has no TPM, or its driver is not loaded"),
    errno.ENODEV: ("has no TPM behind it", "this machine has no TPM, or its driver is not loaded"),
    errno.EACCES: ("may not be opened", "run it as a member of the group tss"),
    errno.EPERM: ("may not be opened", "run it as a member of the group tss"),
    errno.EBUSY: ("is in use", "stop the other program, or use the resource manager /dev/tpmrm0"),
    errno.ETIME: ("did not answer in time", "try again; look at the kernel's log if it stays so"),
    errno.ETIMEDOUT: ("did not answer in time", "try again; look at the kernel's log if it stays so"),
}


class SocketTransport:
    """A software TPM (swtpm) on a Unix socket. Connected at the first command."""

    def __init__(self, path: str | Path, *, timeout: float = 30.0) -> None:
        self._path = Path(path)
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def submit(self, command: bytes) -> bytes:
        """One command. Raises :class:`~cloister.errors.AttesterError`."""
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.settimeout(self._timeout)
                self._socket.connect(str(self._path))
            self._socket.sendall(command)
            header = self._receive(self._socket, _HEADER)
            size = int.from_bytes(header[2:6], "big")
            if not _HEADER <= size <= MAX_RESPONSE:
                raise AttesterError(f"the TPM announced a response of {size} bytes")
            return header + self._receive(self._socket, size - _HEADER)
        except OSError as error:
            self.close()
            raise AttesterError(
                f"the TPM at {self._path} cannot be reached ({error.strerror or error})",
                todo="is swtpm running?",
            ) from None

    def close(self) -> None:
        """Disconnect; what was loaded stays loaded in the TPM."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _receive(self, connection: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = connection.recv(size - len(data))
            if not part:
                self.close()
                raise AttesterError(f"the TPM at {self._path} hung up within a response")
            data += part
        return data
