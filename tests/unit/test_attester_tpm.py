"""The TPM attester's own refusals: devices, sockets, responses, arguments. The whole ways run on swtpm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.attester.azure import AzureAttester
from cloister.attester.tpm import MAX_FIRMWARE_LOG, TpmAttester, qualifying_data, read_firmware_log
from cloister.attester.tpm_commands import Tpm
from cloister.attester.tpm_responses import words
from cloister.attester.tpm_transport import DeviceTransport, SocketTransport
from cloister.errors import AttesterError
from cloister.evidence.binding import quoted_form
from cloister.evidence.eventlog import LaunchEvent


class Scripted:
    """A transport that gives prepared responses, the last for ever."""

    def __init__(self, *responses: bytes) -> None:
        self._responses = list(responses)
        self.commands: list[bytes] = []

    def submit(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]


def answer(code: int, body: bytes = b"", tag: int = 0x8001) -> bytes:
    return tag.to_bytes(2, "big") + (10 + len(body)).to_bytes(4, "big") + code.to_bytes(4, "big") + body


def test_a_machine_without_a_tpm_says_so(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="does not exist; this machine has no TPM"):
        TpmAttester(DeviceTransport(tmp_path / "tpmrm0")).quote(bytes(64))
    with pytest.raises(AttesterError, match="is swtpm running"):
        TpmAttester(SocketTransport(tmp_path / "socket")).quote(bytes(64))


def test_a_device_that_may_not_be_opened_says_which_group(tmp_path: Path) -> None:
    device = tmp_path / "tpmrm0"
    device.write_bytes(b"")
    device.chmod(0)
    transport = DeviceTransport(device)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may open everything
    try:
        with pytest.raises(AttesterError, match="group tss"):
            transport.submit(b"")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (0x100, "it was not started"),
        (0x101, "failure mode"),
        (0x921, "locked after wrong authorisations"),
        (0x902, "no room for another key"),
        (0x18B, "no such key, session or NV index"),
        (0x98E, "authorisation failed"),
        (0x1DF, "made for another key or another TPM"),
        (0x185, "the hierarchy is disabled"),
        (0x1C4, "a value is out of range"),
        (0x01E, "an error of TPM 1.2"),
        (0x95F, "a warning"),
    ],
)
def test_a_refusal_of_the_tpm_is_told_in_words(code: int, what: str) -> None:
    assert what in words(code)[0]
    with pytest.raises(AttesterError, match=what):
        Tpm(Scripted(answer(code))).read_public(1)


def test_a_busy_tpm_is_asked_again_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.attester.tpm_commands._PAUSE", 0)
    public = answer(0, b"\0\2ab" + b"\0\0" * 2)
    transport = Scripted(answer(0x922), answer(0x90A), public)
    assert Tpm(transport).read_public(1) == b"ab"
    assert len(transport.commands) == 3
    endless = Scripted(answer(0x922))
    with pytest.raises(AttesterError, match="it is busy"):
        Tpm(endless).read_public(1)
    assert len(endless.commands) == 20


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x80\x01\0\0\0\x0a\0\0", id="cut within its header"),
        pytest.param(answer(0)[:-1] + b"\0\0", id="longer than it says"),
        pytest.param(answer(0, tag=0x8002), id="another tag"),
        pytest.param(answer(0x101, tag=0x00C4), id="a response of TPM 1.2"),
        pytest.param(answer(0, b"\0\x09ab"), id="cut within a buffer"),
    ],
)
def test_a_malformed_response_is_an_attesters_error(response: bytes) -> None:
    with pytest.raises(AttesterError):
        Tpm(Scripted(response)).read_public(1)


def test_report_data_is_sixty_four_bytes_and_hashed() -> None:
    assert qualifying_data(bytes(64)) == quoted_form("tpm", bytes(64))
    for size in (0, 32, 63, 65):
        with pytest.raises(AttesterError, match="64 bytes long"):
            qualifying_data(bytes(size))


@pytest.mark.parametrize("pcrs", [(), (24,), (-1, 0)])
def test_pcrs_that_do_not_exist_are_refused(pcrs: tuple[int, ...]) -> None:
    with pytest.raises(AttesterError, match="from 0 to 23"):
        TpmAttester(Scripted(b""), pcrs=pcrs)


def test_another_bank_is_refused() -> None:
    with pytest.raises(AttesterError, match="choose sha256 or sha384"):
        TpmAttester(Scripted(b""), bank="sha1")


def test_launch_events_without_their_pcr_are_refused() -> None:
    attester = TpmAttester(Scripted(b""), pcrs=(0, 7))
    with pytest.raises(AttesterError, match="PCR 15, which is not quoted"):
        attester.measure_launch((LaunchEvent(name="a", payload=b""),))


def test_the_firmware_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(AttesterError, match="cannot be read"):
        read_firmware_log(log)
    log.write_bytes(bytes(MAX_FIRMWARE_LOG))
    assert len(read_firmware_log(log)) == MAX_FIRMWARE_LOG
    log.write_bytes(bytes(MAX_FIRMWARE_LOG + 1))
    with pytest.raises(AttesterError, match="over 524288 bytes"):
        read_firmware_log(log)


def test_a_tpm_that_is_not_azures_says_so() -> None:
    no_handles = answer(0, b"\0" + (1).to_bytes(4, "big") + bytes(4))
    with pytest.raises(AttesterError, match="confidential VM of Azure"):
        AzureAttester(Scripted(no_handles)).quote(bytes(64))
