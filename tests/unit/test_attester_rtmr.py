"""Measurement registers: extended, read back, and refused when they do not hold this launch. Firmware's log, trimmed."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester import firmware_log
from cloister.attester.firmware_log import only_if_it_replays, read_firmware_log, trim
from cloister.attester.rtmr import Registers, measure_launch
from cloister.attester.simulated import SimulatedPlatform
from cloister.errors import AttesterError
from cloister.evidence.eventlog import LaunchEvent, event_digest, parse_event_log, replay
from cloister.evidence.measured import replay_registers
from cloister.evidence.tcg_log import parse_tcg_log
from configfs_tsm import Mounted, fuse_needed, mounted
from shared_data import vectors

LAUNCH = tuple(LaunchEvent(name=f"event-{number}", payload=bytes([number])) for number in range(3))
fuse_needed()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Mounted]:
    SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))
    with mounted(tmp_path, "--platform", str(tmp_path / "tee")) as running:
        yield running


@pytest.fixture
def registers(kernel: Mounted) -> Registers:
    return Registers.find((kernel.mountpoint / "elsewhere", kernel.measurements))


def test_an_extension_is_what_the_tdx_module_does(registers: Registers) -> None:
    before = registers.read("rtmr2")
    after = registers.extend(2, b"\x07" * 48)
    assert after == registers.read("rtmr2") == hashlib.sha384(before + b"\x07" * 48).digest()


def test_a_launch_leads_to_the_register_that_its_log_replays_to(registers: Registers) -> None:
    log = measure_launch(registers, LAUNCH)
    assert parse_event_log(log) == LAUNCH
    assert registers.read("rtmr3") == replay(LAUNCH)


@pytest.mark.parametrize("done", range(4))
def test_a_launch_goes_on_where_it_stopped(done: int, registers: Registers) -> None:
    for event in LAUNCH[:done]:
        registers.extend(3, event_digest(event))
    assert parse_event_log(measure_launch(registers, LAUNCH)) == LAUNCH
    assert registers.read("rtmr3") == replay(LAUNCH)


@pytest.mark.parametrize(
    "before",
    [(b"\x01" * 48,), (event_digest(LAUNCH[1]),), (*(event_digest(event) for event in LAUNCH), bytes(48))],
    ids=["something else", "another order", "something behind it"],
)
def test_a_register_that_holds_anything_else_is_refused_and_left_alone(
    before: tuple[bytes, ...], registers: Registers
) -> None:
    for digest in before:
        registers.extend(3, digest)
    held = registers.read("rtmr3")
    with pytest.raises(AttesterError, match="something else was measured into it") as refused:
        measure_launch(registers, LAUNCH)
    assert "restart the VM" in refused.value.todo
    assert registers.read("rtmr3") == held


@pytest.mark.parametrize("count", [0, 257])
def test_a_launch_of_no_or_too_many_events_extends_nothing(count: int, registers: Registers) -> None:
    with pytest.raises(AttesterError, match="1 to 256 events"):
        measure_launch(registers, [LAUNCH[0]] * count)
    assert registers.read("rtmr3") == bytes(48)


def test_somebody_who_extends_in_between_is_noticed(kernel: Mounted, registers: Registers) -> None:
    kernel.misbehave(other_extender=["yes"])
    with pytest.raises(AttesterError, match="not what it must be after its extension"):
        measure_launch(registers, LAUNCH)


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"extend": ["EBUSY"]}, "rtmr3 cannot be extended: the TDX module is busy"),
        ({"extend": ["EINTR"]}, "a signal interrupted it"),
        ({"extend": ["EIO"]}, "the TDX module failed"),
        ({"extend": ["ENXIO"]}, "no such register"),
        ({"extend": ["EACCES"]}, "this user may not"),
        ({"extend": ["EROFS"]}, "mounted read-only"),
        ({"extend": ["EINVAL"]}, "exactly 48 bytes"),
        ({"register_read": ["EIO"]}, "cannot be read: the TDX module failed"),
    ],
)
def test_every_failure_has_its_own_words(
    faults: dict[str, Any], words: str, kernel: Mounted, registers: Registers
) -> None:
    kernel.misbehave(**faults)
    with pytest.raises(AttesterError, match=words):
        measure_launch(registers, LAUNCH)


@pytest.mark.parametrize("size", [0, 32, 47, 49])
def test_a_digest_of_another_length_never_reaches_the_kernel(size: int, registers: Registers) -> None:
    with pytest.raises(AttesterError, match="48 bytes long"):
        registers.extend(3, bytes(size))


def test_a_kernel_without_registers_says_which_one_has_them(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="no measurement registers") as refused:
        Registers.find((tmp_path,))
    assert "6.16" in refused.value.todo


def test_a_register_that_is_no_register_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rtmr3:sha384").write_bytes(bytes(47))
    with pytest.raises(AttesterError, match="holds 47 bytes"):
        Registers(tmp_path).read("rtmr3")
    with pytest.raises(AttesterError, match=r"ENOENT"):
        Registers(tmp_path).read("rtmr2")


# The firmware's log


@pytest.mark.parametrize(
    ("name", "size"), [("coco-trustee/CCEL_data_gcp", 20_349), ("dstack/ccel.bin", 1_933)]
)
@pytest.mark.parametrize("padding", [b"\xff", b"\0"])
def test_a_captured_table_is_cut_behind_its_last_event(name: str, size: int, padding: bytes) -> None:
    table = vectors(name).read_bytes()
    log = table[:size]
    assert trim(log + padding * (len(table) - size)) == log
    assert trim(log) == log


def test_a_last_event_that_ends_like_padding_is_kept_whole() -> None:
    log = vectors("dstack/ccel.bin").read_bytes()[:1_933]
    # EV_SEPARATOR: four zero bytes of data, as firmware writes them.
    event = (1).to_bytes(4, "little") + (4).to_bytes(4, "little") + (1).to_bytes(4, "little")
    event += (
        (0x0C).to_bytes(2, "little")
        + hashlib.sha384(bytes(4)).digest()
        + (4).to_bytes(4, "little")
        + bytes(4)
    )
    assert trim(log + event + bytes(1000)) == log + event


@pytest.mark.parametrize(
    "table", [b"", b"\xff" * 65536, bytes(65536), b"no log"], ids=["empty", "ff", "zeros", "text"]
)
def test_what_is_no_log_is_refused_by_our_own_error(table: bytes) -> None:
    with pytest.raises(AttesterError, match="cannot be carried"):
        trim(table)


def test_a_log_over_its_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firmware_log, "MAX_CARRIED", 1_000)
    with pytest.raises(AttesterError, match="over its bound"):
        trim(vectors("dstack/ccel.bin").read_bytes())


def test_a_machine_without_a_log_has_none(tmp_path: Path) -> None:
    assert read_firmware_log(tmp_path / "CCEL") == b""
    assert only_if_it_replays(b"", {}) == b""


def test_a_log_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, limit: int) -> bytes:
        raise PermissionError(13, "")

    monkeypatch.setattr(firmware_log, "read_file", denied)
    with pytest.raises(AttesterError, match="EACCES") as refused:
        read_firmware_log(tmp_path / "CCEL")
    assert "CAP_DAC_OVERRIDE" in refused.value.todo


def test_a_log_is_carried_only_if_it_leads_to_the_registers(caplog: pytest.LogCaptureFixture) -> None:
    log = trim(vectors("coco-trustee/CCEL_data_gcp").read_bytes())
    ends = replay_registers(parse_tcg_log(log, algorithm="sha384", registers="rtmr"), algorithm="sha384")
    registers = {f"rtmr{number}": value for number, value in ends.items()}
    assert only_if_it_replays(log, registers) == log
    assert not caplog.records
    for name in registers:
        with caplog.at_level(logging.WARNING):
            assert only_if_it_replays(log, {**registers, name: bytes(48)}) == b""
        assert f"does not replay to {name}" in caplog.text
