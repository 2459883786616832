"""TCG event logs: one form is read, digests are tried against the data, and nothing is believed."""

from __future__ import annotations

import hashlib
import struct

import pytest

from cloister.errors import EvidenceError
from cloister.evidence.measured import LOCALITY_EVENT, replay_registers
from cloister.evidence.tcg_log import MAX_EVENTS, MAX_LOG, kind_name, parse_tcg_log
from spec_vectors import spec_vectors
from tcg_logs import (
    EV_ACTION,
    EV_APPLICATION,
    EV_BOOT,
    EV_DRIVER_CONFIG,
    EV_EVENT_TAG,
    EV_IPL,
    EV_NO_ACTION,
    EV_S_CRTM_VERSION,
    EV_SEPARATOR,
    Logged,
    encode,
    header,
    log,
    spec_id,
    tagged,
    variable,
)

SEPARATOR = Logged(1, EV_SEPARATOR, bytes(4))
CMDLINE = b"console=ttyS0 root=/dev/vda ro"

COVERED = {
    # name: (event, name that it gets, what its digest covers)
    "a separator": (SEPARATOR, "separator", bytes(4)),
    "a firmware version": (
        Logged(1, EV_S_CRTM_VERSION, "EDK II\0".encode("utf-16-le")),
        "firmware-version",
        "EDK II\0".encode("utf-16-le"),
    ),
    "an action": (
        Logged(2, EV_ACTION, b"Exit Boot Services Invocation"),
        "action",
        b"Exit Boot Services Invocation",
    ),
    "a variable with its name": (
        Logged(1, EV_DRIVER_CONFIG, variable("SecureBoot", b"\1")),
        "secure-boot",
        variable("SecureBoot", b"\1"),
    ),
    "another vendor's SecureBoot": (
        Logged(1, EV_DRIVER_CONFIG, variable("SecureBoot", b"\1", bytes(16))),
        "variable:SecureBoot",
        variable("SecureBoot", b"\1", bytes(16)),
    ),
    "a boot variable's contents": (
        Logged(1, EV_BOOT, variable("BootOrder", b"\0\0"), hashed=b"\0\0"),
        "variable:BootOrder",
        b"\0\0",
    ),
    "GRUB's kernel command line": (
        Logged(3, EV_IPL, b"kernel_cmdline: " + CMDLINE + b"\0", hashed=CMDLINE),
        "kernel-command-line",
        CMDLINE,
    ),
    "an older GRUB's, with NUL and a stray byte": (
        Logged(3, EV_IPL, b"grub_kernel_cmdline " + CMDLINE + b"\0\x9f", hashed=CMDLINE + b"\0"),
        "kernel-command-line",
        CMDLINE + b"\0",
    ),
    "a GRUB command": (
        Logged(3, EV_IPL, b"grub_cmd: linux /vmlinuz\0", hashed=b"linux /vmlinuz"),
        "boot-loader-command",
        b"linux /vmlinuz",
    ),
    "systemd-stub's name of a section": (
        Logged(3, EV_IPL, ".linux\0".encode("utf-16-le"), hashed=b".linux\0"),
        "",
        b".linux\0",
    ),
    "systemd-stub's tagged command line": (
        Logged(3, EV_EVENT_TAG, tagged(0x8F3B22ED, CMDLINE), hashed=CMDLINE),
        "kernel-command-line",
        CMDLINE,
    ),
    "a tagged event as a whole": (
        Logged(4, EV_EVENT_TAG, tagged(0x4141454C, b"domain operation content")),
        "",
        tagged(0x4141454C, b"domain operation content"),
    ),
    "an unknown type": (Logged(1, 0x12345678, b"data"), "", b"data"),
}


@pytest.mark.parametrize("case", COVERED)
def test_a_digest_vouches_for_what_it_covers(case: str) -> None:
    event, name, covered = COVERED[case]
    (found,) = parse_tcg_log(log(event), algorithm="sha384", registers="rtmr")
    assert (found.vouched, found.covered, found.name) == (True, covered, name)
    assert found.data == event.data
    assert hashlib.sha384(covered).digest() == found.digest
    assert found.register == event.index - 1


UNCOVERED = {
    # name: (event, name that it gets)
    "a kernel": (Logged(2, EV_APPLICATION, bytes(40), hashed=b"PE"), "efi-application"),
    "an initrd of the EFI stub": (
        Logged(3, EV_EVENT_TAG, tagged(0x8F3B22EC, b"Linux initrd\0"), hashed=b"cpio"),
        "initrd",
    ),
    "a section of a unified kernel": (
        Logged(3, EV_IPL, ".initrd\0".encode("utf-16-le"), hashed=b"cpio"),
        "initrd",
    ),
    "a file that GRUB read": (Logged(3, EV_IPL, b"/boot/vmlinuz\0", hashed=b"ELF"), ""),
    "a variable of lengths that do not meet": (
        Logged(1, EV_DRIVER_CONFIG, variable("SecureBoot", b"\1")[:-1], hashed=b"x"),
        "",
    ),
    "a description of another command line": (
        Logged(3, EV_IPL, b"kernel_cmdline: " + CMDLINE + b"\0", hashed=CMDLINE + b" init=/bin/sh"),
        "kernel-command-line",
    ),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_what_a_digest_does_not_cover_is_not_vouched_for(case: str) -> None:
    event, name = UNCOVERED[case]
    (found,) = parse_tcg_log(log(event), algorithm="sha384", registers="rtmr")
    assert (found.vouched, found.covered, found.name) == (False, None, name)


def test_registers_are_replayed_from_the_digests_alone() -> None:
    events = parse_tcg_log(
        log(SEPARATOR, Logged(2, EV_ACTION, b"a"), Logged(1, EV_ACTION, b"b"), Logged(4, EV_ACTION, b"c")),
        algorithm="sha384",
        registers="rtmr",
    )
    first = hashlib.sha384(bytes(48) + hashlib.sha384(bytes(4)).digest()).digest()
    registers = replay_registers(events, algorithm="sha384")
    assert registers[0] == hashlib.sha384(first + hashlib.sha384(b"b").digest()).digest()
    assert set(registers) == {0, 1, 3}


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_one_bank_of_several_is_read(algorithm: str) -> None:
    data = log(Logged(23, EV_ACTION, b"a"), algorithms=("sha1", "sha256", "sha384"))
    (found,) = parse_tcg_log(data, algorithm=algorithm, registers="pcr")  # type: ignore[arg-type]
    assert (found.register, found.digest) == (23, hashlib.new(algorithm, b"a").digest())
    assert found.vouched


def test_events_that_extend_nothing_are_not_told() -> None:
    data = log(
        Logged(0, EV_NO_ACTION, b"StartupLocality\0\3"),
        Logged(0xFFFFFFFF, EV_NO_ACTION, b"SP800-155"),
        SEPARATOR,
    )
    (found,) = parse_tcg_log(data, algorithm="sha384", registers="rtmr")
    assert found.kind == "EV_SEPARATOR"


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_pcr_0_starts_with_the_locality_of_the_startup(locality: int) -> None:
    start = Logged(0, EV_NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    data = log(start, Logged(0, EV_SEPARATOR, bytes(4)), algorithms=("sha256",))
    events = parse_tcg_log(data, algorithm="sha256", registers="pcr")
    assert [event.kind for event in events] == [LOCALITY_EVENT, "EV_SEPARATOR"]
    begin = bytes(31) + bytes([locality])
    expected = hashlib.sha256(begin + hashlib.sha256(bytes(4)).digest()).digest()
    assert replay_registers(events, algorithm="sha256") == {0: expected}


@pytest.mark.parametrize("padding", [b"", bytes(64), b"\xff" * 64, bytes(3), b"\xff" * 5])
def test_a_table_may_be_padded(padding: bytes) -> None:
    found = parse_tcg_log(log(SEPARATOR, padding=padding), algorithm="sha384", registers="rtmr")
    assert len(found) == 1


def test_a_log_without_events_is_empty() -> None:
    assert parse_tcg_log(log(), algorithm="sha384", registers="rtmr") == ()


def raw(*parts: bytes) -> bytes:
    return header(spec_id(("sha384",))) + b"".join(parts)


EVENT = encode(SEPARATOR, ("sha384",))
MANY = log(*[SEPARATOR] * (MAX_EVENTS + 1))
REFUSED = {
    # name: (log, part of the text)
    "nothing": (b"", "ends at byte 0"),
    "too large": (bytes(MAX_LOG + 1), "over its bound"),
    "too many events": (MANY, "more than 4096 events"),
    "an event in place of the header": (EVENT, "does not begin with a Spec ID event"),
    "a digest in the header": (header(spec_id(("sha384",)), digest=b"\1" * 20), "reserved bytes"),
    "another signature": (
        header(spec_id(("sha384",)).replace(b"Event03", b"Event02")),
        "not Spec ID Event03",
    ),
    "no algorithms": (header(spec_id(())), "names 0 algorithms"),
    "nine algorithms": (header(spec_id(["sha1"] * 9)), "names 9 algorithms"),
    "an algorithm twice": (header(spec_id(("sha384", "sha384"))), "stands twice"),
    "an algorithm of another size": (header(spec_id(("sha384",), sizes={"sha384": 32})), "has 32 bytes"),
    "another algorithm": (log(SEPARATOR, algorithms=("sha256",)), "has no sha384 digests"),
    "bytes behind the header's vendor": (header(spec_id(("sha384",)) + b"\0"), "behind its end"),
    "a header that is cut": (header(spec_id(("sha384",)))[:-1], "in the middle"),
    "an event that is cut": (raw(EVENT)[:-1], "in the middle"),
    "an event of no digests": (raw(struct.pack("<IIII", 1, 4, 0, 0)), "another number of digests"),
    "an event of two digests": (
        header(spec_id(("sha384",))) + encode(SEPARATOR, ("sha384", "sha256")),
        "another number of digests",
    ),
    "an event of another algorithm": (
        header(spec_id(("sha384",))) + encode(SEPARATOR, ("sha256",)),
        "algorithm 0x000b",
    ),
    "an event that is larger than the log": (
        raw(EVENT[:-8] + struct.pack("<I", 0xFFFFFFFF) + bytes(4)),
        "in the middle",
    ),
    "an event in MRTD": (log(Logged(0, EV_SEPARATOR, b"\1\0\0\0")), "register 0, which is no RTMR"),
    "an event in a fifth register": (log(Logged(5, EV_SEPARATOR, bytes(4))), "register 5, which is no RTMR"),
    "something behind zeros": (log(SEPARATOR, padding=bytes(64) + b"\1"), "behind its padding"),
    "something behind ones": (log(SEPARATOR, padding=b"\xff" * 64 + EVENT), "behind its padding"),
    "zeros behind ones": (log(SEPARATOR, padding=b"\xff" * 64 + bytes(8)), "behind its padding"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_log_of_another_form_is_refused(case: str) -> None:
    data, text = REFUSED[case]
    with pytest.raises(EvidenceError, match=text):
        parse_tcg_log(data, algorithm="sha384", registers="rtmr")


def locality(content: bytes, index: int = 0) -> Logged:
    return Logged(index, EV_NO_ACTION, b"StartupLocality\0" + content)


PCR_REFUSED = {
    "an event in PCR 24": (log(Logged(24, EV_SEPARATOR, bytes(4)), algorithms=("sha256",)), "PCR 24"),
    "an event nowhere": (
        log(Logged(0xFFFFFFFF, EV_SEPARATOR, bytes(4)), algorithms=("sha256",)),
        "PCR 4294967295",
    ),
    "a locality that does not exist": (
        log(locality(b"\1"), algorithms=("sha256",)),
        "StartupLocality is malformed",
    ),
    "a locality of two bytes": (
        log(locality(b"\3\0"), algorithms=("sha256",)),
        "StartupLocality is malformed",
    ),
    "a locality of PCR 1": (log(locality(b"\3", 1), algorithms=("sha256",)), "StartupLocality is malformed"),
    "a locality behind an event": (
        log(Logged(0, EV_SEPARATOR, bytes(4)), locality(b"\3"), algorithms=("sha256",)),
        "StartupLocality is malformed",
    ),
    "two localities": (
        log(locality(b"\3"), locality(b"\3"), algorithms=("sha256",)),
        "StartupLocality is malformed",
    ),
}


@pytest.mark.parametrize("case", PCR_REFUSED)
def test_a_tpms_log_of_another_form_is_refused(case: str) -> None:
    data, text = PCR_REFUSED[case]
    with pytest.raises(EvidenceError, match=text):
        parse_tcg_log(data, algorithm="sha256", registers="pcr")


def test_a_log_is_read_as_specified() -> None:
    vectors = spec_vectors("event-log.md")["tcg"]
    data = bytes.fromhex(vectors["log"])
    assert data == log(
        SEPARATOR, Logged(3, EV_IPL, b"kernel_cmdline: ro\0", hashed=b"ro"), algorithms=("sha384",)
    )
    events = parse_tcg_log(data, algorithm="sha384", registers="rtmr")
    registers = replay_registers(events, algorithm="sha384")
    assert {str(number): value.hex() for number, value in registers.items()} == vectors["registers"]
    assert events[1].covered == b"ro"


def test_types_without_a_name_are_shown_by_number() -> None:
    assert kind_name(0x80000003) == "EV_EFI_BOOT_SERVICES_APPLICATION"
    assert kind_name(0x99) == "0x00000099"
