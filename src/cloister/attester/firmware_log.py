"""The log of what firmware, boot loader and kernel measured (CCEL), read from ACPI for the evidence to carry.

The table in memory is larger than its log, so the padding is taken off. A log that does not replay to the machine's
own registers would make every relying party refuse the evidence: it is left out, loudly. It proves nothing here.
"""

from __future__ import annotations

import errno
import hmac
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cloister.attester.kernel_files import read_file
from cloister.errors import AttesterError, EvidenceError
from cloister.evidence.measured import replay_registers
from cloister.evidence.tcg_log import parse_tcg_log

CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
MAX_TABLE: Final = 4 << 20
MAX_CARRIED: Final = 384 * 1024
"""Bytes of a log that still fits into an evidence bundle beside all else."""
_TRIES: Final = 64

_log = logging.getLogger("cloister.attester")


def read_firmware_log(path: Path = CCEL) -> bytes:
    """The log without its padding; empty where the machine has none. Raises :class:`AttesterError`."""
    try:
        table = read_file(path, MAX_TABLE)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return b""
        todo = "run as root in the guest, or grant the service CAP_DAC_OVERRIDE"
        raise AttesterError(
            f"the firmware log {path} cannot be read ({errno.errorcode.get(error.errno or 0, '?')})",
            todo=todo if error.errno in (errno.EACCES, errno.EPERM) else "look at the kernel log",
        ) from None
    return trim(table)


def trim(table: bytes) -> bytes:
    """``table`` without the 0x00 or 0xFF behind its last event. Raises :class:`AttesterError` for what is no log."""
    padding = table[-1:]
    cut = len(table.rstrip(padding)) if padding in (b"\0", b"\xff") else len(table)
    # The last event itself may end in such bytes: the shortest beginning that still is a whole log is the log.
    for end in range(cut, min(cut + _TRIES, len(table)) + 1):
        try:
            parse_tcg_log(table[:end], algorithm="sha384", registers="rtmr")
        except EvidenceError as error:
            refused = error
            continue
        if end > MAX_CARRIED:
            raise AttesterError(f"the firmware log is {end} bytes long, over its bound of {MAX_CARRIED}")
        return table[:end]
    raise AttesterError(
        f"the firmware log cannot be carried: {refused.what}", todo="look at the VM's firmware"
    )


def only_if_it_replays(log: bytes, registers: Mapping[str, bytes]) -> bytes:
    """``log`` if every register that it touches ends as ``registers`` (``rtmr0`` …) has it, else empty with a warning."""
    if not log:
        return log
    events = parse_tcg_log(log, algorithm="sha384", registers="rtmr")
    for number, value in sorted(replay_registers(events, algorithm="sha384").items()):
        if not hmac.compare_digest(value, registers.get(f"rtmr{number}", b"")):
            _log.warning(
                "the firmware log does not replay to rtmr%d of this machine and is left out of the evidence",
                number,
            )
            return b""
    return log
