"""Which TEE a machine is: found, never guessed, never replaced by a weaker one; and what covers a launch in each."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attester.firmware_log import trim
from cloister.attester.launch import host_data
from cloister.attester.local import ASKED, COVERED, LOUD, Places, find_machine, looked_for, open_attester
from cloister.attester.simulated import SimulatedPlatform
from cloister.errors import AttesterError
from cloister.evidence import snp
from cloister.evidence.eventlog import LaunchEvent, replay
from configfs_tsm import Mounted, fuse_needed, mounted
from shared_data import vectors

CLOISTER = Path(sys.executable).parent / "cloister"
LAUNCH = (LaunchEvent(name="cloister.config", payload=b"\x11" * 32),)
fuse_needed()


def places(kernel: Mounted) -> Places:
    return Places(
        gramine=kernel.mountpoint / "none",
        reports=kernel.reports,
        measurements=(kernel.measurements,),
        firmware_log=kernel.ccel,
        tpm=kernel.mountpoint / "tpm",
        tpm_firmware_log=kernel.mountpoint / "log",
    )


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A SEV-SNP guest."""
    report = vectors("coco-trustee/snp/test-report.bin")
    with mounted(
        tmp_path_factory.mktemp("snp"), "--provider", "sev_guest", "--report", str(report)
    ) as kernel:
        yield kernel


def test_a_machine_without_any_tee_is_none_and_says_what_was_looked_for(tmp_path: Path) -> None:
    empty = Places(gramine=tmp_path / "gramine", reports=tmp_path / "reports")
    assert find_machine(empty) is None
    for path in (tmp_path / "gramine", tmp_path / "reports"):
        assert str(path) in looked_for(empty)
    with pytest.raises(AttesterError, match="no TEE was found") as refused:
        open_attester(LAUNCH, places=empty)
    assert "cloister doctor attestation" in refused.value.todo


def test_an_snp_guest_attests_without_launch_events_and_loudly(
    guest: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        evidence = open_attester(LAUNCH, places=places(guest)).quote(bytes(64))
    assert (evidence.tee, evidence.event_log) == ("snp", b"")
    assert "covered ONLY by the launch measurement" in caplog.text


def test_the_reference_values_of_an_snp_guest_are_those_of_its_report(guest: Mounted) -> None:
    machine = find_machine(places(guest))
    assert machine is not None
    expected = snp.parse_report(vectors("coco-trustee/snp/test-report.bin").read_bytes()).measurement
    assert machine.reference_values(LAUNCH) == {"measurement": expected}


def test_the_reference_values_of_a_td_do_not_launch_anything(tmp_path: Path) -> None:
    SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))
    with mounted(tmp_path, "--platform", str(tmp_path / "tee")) as kernel:
        machine = find_machine(places(kernel))
        assert machine is not None
        values = machine.reference_values(LAUNCH)
        assert values["rtmr3"] == replay(LAUNCH)
        assert (kernel.measurements / "rtmr3:sha384").read_bytes() == bytes(48)
        assert values["mrtd"] == (kernel.measurements / "mrtd:sha384").read_bytes()


def test_endorsements_that_an_operator_gave_travel_with_each_quote(guest: Mounted) -> None:
    machine = find_machine(places(guest))
    assert machine is not None
    assert machine.launch(LAUNCH, endorsements=b"given").quote(bytes(64)).endorsements == b"given"


@pytest.mark.parametrize("asked", ["tpm", "az-snp-vtpm"])
def test_a_tpm_is_used_only_by_name_and_its_absence_is_said(asked: str, guest: Mounted) -> None:
    found = find_machine(places(guest))
    assert found is not None
    assert found.tee == "snp"
    machine = find_machine(places(guest), asked=asked)  # type: ignore[arg-type]
    assert machine is not None
    assert machine.tee == asked
    with pytest.raises(AttesterError):
        machine.launch(LAUNCH).quote(bytes(64))
    with pytest.raises(AttesterError, match="PCRs"):
        machine.reference_values(LAUNCH)


def test_every_kind_says_what_covers_a_launch() -> None:
    assert set(COVERED) >= {"tdx", "sgx", "snp", "tpm", "az-snp-vtpm"}
    assert set(COVERED) > LOUD
    assert ASKED[0] == "auto"
    for kind in LOUD:
        assert "ONLY" in COVERED[kind] or "NOT" in COVERED[kind]  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tee", "sgx9"], "there is no TEE 'sgx9'"),
        (["--simulated-tee", "x", "--tee", "tpm"], "--simulated-tee excludes"),
        (["--simulated-tee", "x", "--gpus"], "--simulated-tee excludes"),
        (["--simulated-tee", "x", "--pccs", "https://x"], "--simulated-tee excludes"),
        (["--tee", "tpm", "--endorsements", "/nowhere"], "cannot read /nowhere"),
        (["--tee", "tpm", "--pccs", "http://pccs.example"], "http"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: list[str], words: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [CLOISTER, "serve", str(tmp_path), "--no-api-keys", *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@given(st.binary(max_size=4096) | st.integers(0, 1 << 20).map(bytes))
def test_any_firmware_table_is_trimmed_or_refused_by_our_own_error(table: bytes) -> None:
    with suppress(AttesterError):
        assert table.startswith(trim(table))


@given(st.data())
def test_any_altered_firmware_table_is_survived(data: st.DataObject) -> None:
    table = bytearray(vectors("dstack/ccel.bin").read_bytes()[:4096])
    for _ in range(data.draw(st.integers(1, 8))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    with suppress(AttesterError):
        assert bytes(table).startswith(trim(bytes(table)))


EVENTS = (*LAUNCH, LaunchEvent(name="cloister.program", payload=b"\x22" * 32))
HOST_DATA = slice(0xC0, 0xE0)
"""Of a report (SEV Secure Nested Paging Firmware ABI Specification, table 23)."""


def test_an_snp_guest_is_refused_unless_its_host_data_stand_for_this_launch(guest: Mounted) -> None:
    machine = find_machine(places(guest))
    assert machine is not None
    with pytest.raises(AttesterError, match=host_data(EVENTS).hex()) as refused:
        machine.launch(EVENTS, stated=True)
    assert "measure run" in str(refused.value)


def test_an_snp_guest_that_was_started_for_this_launch_attests(tmp_path: Path) -> None:
    report = bytearray(vectors("coco-trustee/snp/test-report.bin").read_bytes())
    report[HOST_DATA] = host_data(EVENTS)
    (tmp_path / "report.bin").write_bytes(report)
    (tmp_path / "kernel").mkdir()
    options = ("--provider", "sev_guest", "--report", str(tmp_path / "report.bin"))
    with mounted(tmp_path / "kernel", *options) as kernel:
        machine = find_machine(places(kernel))
        assert machine is not None
        assert machine.launch(EVENTS, stated=True).quote(bytes(64)).tee == "snp"


def test_azure_s_snp_guests_cannot_state_a_launch(guest: Mounted) -> None:
    machine = find_machine(places(guest), asked="az-snp-vtpm")
    assert machine is not None
    with pytest.raises(AttesterError, match="nothing of a launch"):
        machine.launch(EVENTS, stated=True)


def test_host_data_stand_for_every_event_in_its_order() -> None:
    assert len(host_data(EVENTS)) == 32
    assert host_data(EVENTS) != host_data(tuple(reversed(EVENTS)))
    assert host_data(EVENTS[:1]) != host_data(EVENTS)
