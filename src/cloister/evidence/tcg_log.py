"""TCG event logs: what firmware, boot loader and kernel stub measured, for RTMRs (CCEL) and for PCRs.

Source: TCG PC Client Platform Firmware Profile, revision 1.06, section 10 (the crypto-agile form), and UEFI 2.11,
section 38.4.1 (measurement register indices of TDX). One algorithm is read, of a log that says in its header which it
has. Every length must meet the next, and behind the last event stands nothing, or nothing but 0x00 or 0xFF: the
ACPI table is larger than the log. What each digest covers is worked out by evidence/coverage.py; types, names and
descriptions are the word of whoever wrote the log, because no register covers them.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from cloister.errors import EvidenceError
from cloister.evidence.coverage import covered_part, event_name
from cloister.evidence.measured import LOCALITY_EVENT, MeasuredEvent
from cloister.evidence.reader import Reader

MAX_LOG: Final = 1 << 20
MAX_EVENTS: Final = 4096
MAX_ALGORITHMS: Final = 8
PCRS: Final = 24
RTMRS: Final = 4
EV_NO_ACTION: Final = 3

_SIGNATURE: Final = b"Spec ID Event03\0"
_LOCALITY: Final = b"StartupLocality\0"
_NOWHERE: Final = 0xFFFFFFFF
_ALGORITHMS: Final = {0x0004: "sha1", 0x000B: "sha256", 0x000C: "sha384", 0x000D: "sha512"}
_EFI: Final = 0x80000000
_KINDS: Final = {
    0x00: "EV_PREBOOT_CERT",
    0x01: "EV_POST_CODE",
    0x03: "EV_NO_ACTION",
    0x04: "EV_SEPARATOR",
    0x05: "EV_ACTION",
    0x06: "EV_EVENT_TAG",
    0x07: "EV_S_CRTM_CONTENTS",
    0x08: "EV_S_CRTM_VERSION",
    0x09: "EV_CPU_MICROCODE",
    0x0A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0B: "EV_TABLE_OF_DEVICES",
    0x0C: "EV_COMPACT_HASH",
    0x0D: "EV_IPL",
    0x0E: "EV_IPL_PARTITION_DATA",
    0x0F: "EV_NONHOST_CODE",
    0x10: "EV_NONHOST_CONFIG",
    0x11: "EV_NONHOST_INFO",
    0x12: "EV_OMIT_BOOT_DEVICE_EVENTS",
    0x13: "EV_POST_CODE2",
    _EFI + 0x01: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    _EFI + 0x02: "EV_EFI_VARIABLE_BOOT",
    _EFI + 0x03: "EV_EFI_BOOT_SERVICES_APPLICATION",
    _EFI + 0x04: "EV_EFI_BOOT_SERVICES_DRIVER",
    _EFI + 0x05: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    _EFI + 0x06: "EV_EFI_GPT_EVENT",
    _EFI + 0x07: "EV_EFI_ACTION",
    _EFI + 0x08: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    _EFI + 0x09: "EV_EFI_HANDOFF_TABLES",
    _EFI + 0x0A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    _EFI + 0x0B: "EV_EFI_HANDOFF_TABLES2",
    _EFI + 0x0C: "EV_EFI_VARIABLE_BOOT2",
    _EFI + 0x0D: "EV_EFI_GPT_EVENT2",
    _EFI + 0x10: "EV_EFI_HCRTM_EVENT",
    _EFI + 0xE0: "EV_EFI_VARIABLE_AUTHORITY",
    _EFI + 0xE1: "EV_EFI_SPDM_FIRMWARE_BLOB",
    _EFI + 0xE2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
    _EFI + 0xE3: "EV_EFI_SPDM_DEVICE_POLICY",
    _EFI + 0xE4: "EV_EFI_SPDM_DEVICE_AUTHORITY",
}


def kind_name(number: int) -> str:
    """The event type as the specification spells it, or its number where it has no name there."""
    return _KINDS.get(number, f"0x{number:08x}")


def parse_tcg_log(
    data: bytes, *, algorithm: Literal["sha256", "sha384"], registers: Literal["rtmr", "pcr"]
) -> tuple[MeasuredEvent, ...]:
    """The events of a log that extended a register, in order, with the digests of ``algorithm``.

    ``registers`` says whose log it is: in a CCEL, indices 1 to 4 are RTMR 0 to 3 (index 0 is MRTD, which no event can
    extend). A TPM's StartupLocality event stands first, with an empty digest (:data:`LOCALITY_EVENT`).
    At most 1 MiB and 4096 events. Raises :class:`~cloister.errors.EvidenceError`.
    """
    if len(data) > MAX_LOG:
        raise EvidenceError(f"the firmware log is {len(data)} bytes long, over its bound of {MAX_LOG}")
    reader = Reader(data, "firmware log")
    sizes = _header(reader)
    wanted = next((number for number, name in _ALGORITHMS.items() if name == algorithm), None)
    if wanted not in sizes:
        raise EvidenceError(f"the firmware log has no {algorithm} digests")
    events: list[MeasuredEvent] = []
    for count in range(MAX_EVENTS + 1):
        if _at_end(reader, data):
            return tuple(events)
        if count == MAX_EVENTS:
            break
        index, kind = reader.u32(), reader.u32()
        digest = _digests(reader, sizes)[wanted]
        content = reader.take(reader.u32())
        if kind == EV_NO_ACTION:
            if content.startswith(_LOCALITY) and registers == "pcr":
                events.append(_locality(index, content, events))
            continue
        register = _register(index, registers)
        name, covered = kind_name(kind), covered_part(kind_name(kind), content, digest, algorithm)
        events.append(
            MeasuredEvent(
                register=register,
                kind=name,
                digest=digest,
                data=content,
                vouched=covered is not None,
                name=event_name(name, content, covered),
                covered=covered,
            )
        )
    raise EvidenceError(f"the firmware log has more than {MAX_EVENTS} events")


def _header(reader: Reader) -> dict[int, int]:
    """Sizes of the digests by algorithm, from the first event (TCG_PCClientPCREvent, Spec ID Event03)."""
    reader.u32()  # the index means nothing here: some firmware writes 0, some 1
    if reader.u32() != EV_NO_ACTION:
        raise EvidenceError(
            "the firmware log does not begin with a Spec ID event",
            todo="only crypto-agile TCG logs are read (CCEL, binary_bios_measurements of a TPM 2.0)",
        )
    reader.zeros(20)
    inner = Reader(reader.take(reader.u32()), "firmware log's Spec ID event")
    if inner.take(16) != _SIGNATURE:
        raise EvidenceError("the firmware log's first event is not Spec ID Event03")
    inner.take(8)  # platform class, specification version, size of UINTN: no meaning for what follows
    count = inner.u32()
    if not 1 <= count <= MAX_ALGORITHMS:
        raise EvidenceError(f"the firmware log names {count} algorithms, not 1 to {MAX_ALGORITHMS}")
    sizes: dict[int, int] = {}
    for _ in range(count):
        number, size = inner.u16(), inner.u16()
        name = _ALGORITHMS.get(number)
        expected = hashlib.new(name).digest_size if name else size
        if number in sizes or size != expected or not 1 <= size <= 64:
            raise EvidenceError(
                f"the firmware log's algorithm {number:#06x} has {size} bytes, or stands twice"
            )
        sizes[number] = size
    inner.take(inner.take(1)[0])
    inner.end()
    return sizes


def _digests(reader: Reader, sizes: dict[int, int]) -> dict[int, bytes]:
    """The digests of one event: one of each algorithm that the header names."""
    if reader.u32() != len(sizes):
        raise EvidenceError("an event of the firmware log has another number of digests than its header says")
    digests: dict[int, bytes] = {}
    for _ in range(len(sizes)):
        number = reader.u16()
        if number not in sizes or number in digests:
            raise EvidenceError(
                f"an event of the firmware log has a digest of algorithm {number:#06x}, unknown or twice"
            )
        digests[number] = reader.take(sizes[number])
    return digests


def _register(index: int, registers: Literal["rtmr", "pcr"]) -> int:
    if registers == "pcr":
        if index >= PCRS:
            raise EvidenceError(f"the firmware log extends PCR {index}, which does not exist")
        return index
    if not 1 <= index <= RTMRS:
        raise EvidenceError(
            f"the firmware log extends measurement register {index}, which is no RTMR",
            todo="index 0 is MRTD, which the TDX module alone writes",
        )
    return index - 1


def _locality(index: int, content: bytes, events: list[MeasuredEvent]) -> MeasuredEvent:
    # Section 10.4.5.3: PCR 0 then starts with the locality in its last byte.
    late = any(event.register == 0 for event in events)
    if index != 0 or late or len(content) != len(_LOCALITY) + 1 or content[-1] not in (0, 3, 4):
        raise EvidenceError("the firmware log's StartupLocality is malformed, late or stands twice")
    return MeasuredEvent(
        register=0, kind=LOCALITY_EVENT, digest=b"", data=content, vouched=True, covered=content
    )


def _at_end(reader: Reader, data: bytes) -> bool:
    """Is there only padding from here on? An event of type 0 in register 0 with eight zeros would be none."""
    if not reader.remaining:
        return True
    head = data[reader.position : reader.position + 8]
    for filler in (b"\0", b"\xff"):
        if not head.strip(filler):
            if data[reader.position :].strip(filler):
                raise EvidenceError("the firmware log has something behind its padding")
            return True
    return False
