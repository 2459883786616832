"""Runtime measurement registers of a TD, through the kernel's files (6.16 and later): read, extend, launch.

A launcher extends what it launches into RTMR3 *before* the first quote, so that a policy can name it
(docs/spec/event-log.md). Each extension is read back and compared with what it must be. A register that holds
anything else than the beginning of this very launch is refused: no log could be replayed to it.
"""

from __future__ import annotations

import errno
import hmac
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cloister.attester.kernel_files import read_file, write_file
from cloister.errors import AttesterError
from cloister.evidence.eventlog import (
    MAX_EVENTS,
    REGISTER_SIZE,
    LaunchEvent,
    encode_event_log,
    event_digest,
    extend,
    replay,
)

MEASUREMENTS: Final = (
    Path("/sys/class/misc/tdx_guest/measurements"),
    Path("/sys/devices/virtual/misc/tdx_guest/measurements"),
)
"""Where the kernel has the files; the first is a link to the second, and may be missing in a container."""
LAUNCH_REGISTER: Final = 3
FIRMWARE_REGISTERS: Final = ("mrtd", "rtmr0", "rtmr1", "rtmr2")

_EXPLAINED: Final[dict[int, tuple[str, str]]] = {
    errno.EACCES: ("this user may not", "run as root in the guest, or grant the service CAP_DAC_OVERRIDE"),
    errno.EPERM: ("this user may not", "run as root in the guest, or grant the service CAP_DAC_OVERRIDE"),
    errno.EROFS: ("it is mounted read-only", "in a container, mount /sys writable"),
    errno.ENOENT: (
        "the kernel has no such register",
        "kernel 6.16 or later with CONFIG_TSM_MEASUREMENTS, and `modprobe tdx_guest`",
    ),
    errno.EINVAL: ("the kernel takes exactly 48 bytes at offset 0 and refused ours", "report this kernel"),
    errno.EBUSY: ("the TDX module is busy", "ask again"),
    errno.EINTR: ("a signal interrupted it", "ask again"),
    errno.ENXIO: ("the TDX module has no such register", "look at the kernel log"),
    errno.EIO: ("the TDX module failed", "look at the kernel log"),
}


class Registers:
    """The measurement registers below ``directory``. Every method raises :class:`AttesterError`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def find(cls, places: Sequence[Path] = MEASUREMENTS) -> Registers:
        """Those in the first of ``places`` that exists."""
        for place in places:
            if (place / "rtmr3:sha384").exists():
                return cls(place)
        raise AttesterError(
            f"the kernel has no measurement registers: there is no {places[0] / 'rtmr3:sha384'}",
            todo="kernel 6.16 or later with CONFIG_TSM_MEASUREMENTS, and `modprobe tdx_guest`",
        )

    def read(self, name: str) -> bytes:
        """48 bytes of ``mrtd`` or ``rtmr0`` … ``rtmr3``."""
        path = self._path(name)
        try:
            value = read_file(path, REGISTER_SIZE)
        except OSError as error:
            raise _explain(error, f"{path} cannot be read") from None
        if len(value) != REGISTER_SIZE:
            raise AttesterError(f"{path} holds {len(value)} bytes, not {REGISTER_SIZE}")
        return value

    def extend(self, index: int, digest: bytes) -> bytes:
        """Extend ``digest`` (48 bytes) into RTMR ``index``; the new value, which is compared with what it must be."""
        if len(digest) != REGISTER_SIZE:
            raise AttesterError(f"a digest to extend is {REGISTER_SIZE} bytes long, not {len(digest)}")
        name = f"rtmr{index}"
        before = self.read(name)
        try:
            write_file(self._path(name), digest)
        except OSError as error:
            raise _explain(error, f"{name} cannot be extended") from None
        after = self.read(name)
        if not hmac.compare_digest(after, extend(before, digest)):
            raise AttesterError(
                f"{name} is not what it must be after its extension",
                todo="something else extends it; restart the VM and launch one workload in it",
            )
        return after

    def check_writable(self) -> None:
        """This process may extend RTMR3, as far as can be told without doing it."""
        path = self._path(f"rtmr{LAUNCH_REGISTER}")
        if not os.access(path, os.W_OK, effective_ids=True):
            raise _explain(PermissionError(errno.EACCES, ""), f"{path.name} cannot be extended")

    def firmware(self) -> dict[str, bytes]:
        """MRTD and RTMR0 … RTMR2: what was measured before any launcher."""
        return {name: self.read(name) for name in FIRMWARE_REGISTERS}

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}:sha384"


def measure_launch(registers: Registers, events: Iterable[LaunchEvent]) -> bytes:
    """Extend ``events`` into RTMR3 and return the launch log that replays to it.

    RTMR3 may hold all zeros, or the first of these very events, or all of them: a service that was restarted in the
    same VM has measured them already. Raises :class:`AttesterError` for anything else.
    """
    launch = tuple(events)
    if not 1 <= len(launch) <= MAX_EVENTS:
        raise AttesterError(f"a launch has 1 to {MAX_EVENTS} events, not {len(launch)}")
    name = f"rtmr{LAUNCH_REGISTER}"
    value = registers.read(name)
    measured = next((count for count in range(len(launch) + 1) if replay(launch[:count]) == value), None)
    if measured is None:
        raise AttesterError(
            f"{name} of this VM is {value.hex()[:16]}…: something else was measured into it, so no log of this launch "
            "could replay to it",
            todo="restart the VM, and launch one workload with one configuration in it",
        )
    for event in launch[measured:]:
        value = registers.extend(LAUNCH_REGISTER, event_digest(event))
    if not hmac.compare_digest(value, replay(launch)):
        raise AttesterError(f"{name} does not hold this launch", todo="restart the VM")
    return encode_event_log(launch)


def _explain(error: OSError, doing: str) -> AttesterError:
    number = error.errno or 0
    what, todo = _EXPLAINED.get(number, (os.strerror(number), "see `cloister doctor attestation`"))
    refused = AttesterError(f"{doing}: {what} ({errno.errorcode.get(number, number)})", todo=todo)
    refused.__cause__ = error
    return refused
