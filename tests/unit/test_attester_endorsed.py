"""Evidence that carries fetched endorsements: refreshed in the background, never waiting long for a vendor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from cloister.attester import RawDeviceEvidence, RawEvidence
from cloister.attester.endorsed import MAX_AGE, RETRY, EndorsedAttester, EndorsedDeviceAttester
from cloister.endorsements.nvidia import NvidiaEndorsements, encode_nvidia_endorsements
from cloister.errors import AttesterError, NetworkError
from cloister.evidence.nvidia import encode_device_evidence, parse_sdk_evidence
from shared_data import vectors
from simulated_evidence import NOW, REPORT_DATA, platform

DAY = 86_400


class Bare:
    """The simulated TEE without the collateral that it would carry."""

    def __init__(self, own: bytes = b"") -> None:
        self.tee = platform().tee("tdx", clock=lambda: NOW)
        self.own = own

    def quote(self, report_data: bytes) -> RawEvidence:
        raw = self.tee.quote(report_data)
        return RawEvidence(tee=raw.tee, quote=raw.quote, event_log=raw.event_log, endorsements=self.own)


class Source:
    """The simulated vendor, which can be down, slow or wrong."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked = 0
        self.down = False
        self.answer: Callable[[], bytes] = lambda: platform().collateral(int(self.clock()), "tdx")
        self.hold: threading.Event | None = None

    def endorsements(self, tee: Any, evidence: bytes) -> bytes:
        self.asked += 1
        if self.hold is not None:
            self.hold.wait(20)
        if self.down:
            raise NetworkError("the vendor is down")
        return self.answer()


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(clock: Clock) -> Source:
    return Source(clock)


def settle(attester: EndorsedAttester) -> None:
    """Wait for the refresh that runs in the background."""
    deadline = time.monotonic() + 10
    while any(held.busy for held in attester._shelf._held.values()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_quote_carries_what_the_vendor_signs_now(clock: Clock, source: Source) -> None:
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    assert attester.quote(REPORT_DATA).endorsements == platform().collateral(NOW, "tdx")


def test_the_vendor_is_asked_once_for_many_quotes(clock: Clock, source: Source) -> None:
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    for _ in range(20):
        attester.quote(REPORT_DATA)
    assert source.asked == 1


def test_it_is_refreshed_in_the_background_before_it_ends(clock: Clock, source: Source) -> None:
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    first = attester.quote(REPORT_DATA).endorsements
    clock.now += DAY
    assert clock.now - NOW > MAX_AGE
    assert attester.quote(REPORT_DATA).endorsements == first  # nobody waits for the new one
    settle(attester)
    second = attester.quote(REPORT_DATA).endorsements
    assert second == platform().collateral(int(clock.now), "tdx") != first
    assert source.asked == 2


def test_the_last_good_one_stays_while_the_vendor_is_down_and_no_longer_than_it_holds(
    clock: Clock, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    first = attester.quote(REPORT_DATA).endorsements
    source.down = True
    for _ in range(25):
        clock.now += DAY
        assert attester.quote(REPORT_DATA).endorsements == first
        settle(attester)
    assert "the vendor is down" in caplog.text
    clock.now += 10 * DAY
    assert attester.quote(REPORT_DATA).endorsements == b""
    source.down = False
    clock.now += RETRY
    assert attester.quote(REPORT_DATA).endorsements == platform().collateral(int(clock.now), "tdx")


def test_a_vendor_that_is_down_is_not_asked_for_every_quote(clock: Clock, source: Source) -> None:
    source.down = True
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    for _ in range(20):
        assert attester.quote(REPORT_DATA).endorsements == b""
    assert source.asked == 1
    clock.now += RETRY
    attester.quote(REPORT_DATA)
    assert source.asked == 2


def test_a_clock_that_went_back_does_not_put_off_the_next_try(clock: Clock, source: Source) -> None:
    clock.now += 3 * DAY
    source.down = True
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    attester.quote(REPORT_DATA)
    clock.now -= 3 * DAY
    source.down = False
    assert attester.quote(REPORT_DATA).endorsements


def test_a_vendor_that_hangs_holds_a_quote_for_the_patience_alone(clock: Clock, source: Source) -> None:
    source.hold = threading.Event()
    attester = EndorsedAttester(Bare(own=b"its own"), source, clock, patience=0.05)
    assert attester.quote(REPORT_DATA).endorsements == b"its own"
    source.hold.set()
    settle(attester)
    assert attester.quote(REPORT_DATA).endorsements == platform().collateral(NOW, "tdx")
    assert source.asked == 1


def test_many_threads_ask_once_and_all_get_it(clock: Clock, source: Source) -> None:
    source.hold = threading.Event()
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(attester.quote(REPORT_DATA).endorsements))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    source.hold.set()
    for thread in threads:
        thread.join(20)
    assert found == [platform().collateral(NOW, "tdx")] * 12
    assert source.asked == 1


def test_another_platform_is_another_question(clock: Clock, source: Source) -> None:
    bare = Bare()
    attester = EndorsedAttester(bare, source, clock, patience=20)
    attester.quote(REPORT_DATA)
    bare.tee = platform().tee("sgx", clock=lambda: NOW)
    attester.quote(REPORT_DATA)
    settle(attester)
    assert source.asked == 2


@pytest.mark.parametrize(
    "answer", [lambda: b"not collateral", lambda: platform().collateral(NOW - 40 * DAY, "tdx")]
)
def test_a_document_that_is_none_or_ended_is_not_carried(
    clock: Clock, source: Source, answer: Callable[[], bytes]
) -> None:
    source.answer = answer
    attester = EndorsedAttester(Bare(own=b"its own"), source, clock, patience=20)
    assert attester.quote(REPORT_DATA).endorsements == b"its own"


def test_a_source_that_breaks_does_not_break_the_attester(clock: Clock, source: Source) -> None:
    def answer() -> bytes:
        raise ZeroDivisionError

    source.answer = answer
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    assert attester.quote(REPORT_DATA).endorsements == b""


def test_evidence_nobody_endorses_passes_unchanged(clock: Clock, source: Source) -> None:
    class Tpm:
        def quote(self, report_data: bytes) -> RawEvidence:
            return RawEvidence(tee="tpm", quote=b"{}", endorsements=b"its own")

    assert EndorsedAttester(Tpm(), source, clock, patience=20).quote(REPORT_DATA).endorsements == b"its own"
    assert source.asked == 0


def test_an_attester_that_fails_fails_as_before(clock: Clock, source: Source) -> None:
    attester = EndorsedAttester(Bare(), source, clock, patience=20)
    with pytest.raises(AttesterError):
        attester.quote(b"short")


class TestDevices:
    def test_device_evidence_carries_them_too(self, clock: Clock) -> None:
        captured = vectors("nvidia-attestation-sdk/hopper_evidence.json").read_bytes()
        evidence = encode_device_evidence(parse_sdk_evidence(captured))
        rim = vectors("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml").read_bytes()
        document = encode_nvidia_endorsements(NvidiaEndorsements(rims=(rim,)))

        class Devices:
            def collect(self, nonce: bytes) -> RawDeviceEvidence:
                return RawDeviceEvidence(evidence)

        class Endorser:
            def device_endorsements(self, device_evidence: bytes) -> bytes:
                assert device_evidence == evidence
                return document

        attester = EndorsedDeviceAttester(Devices(), Endorser(), clock)
        assert attester.collect(bytes(32)) == RawDeviceEvidence(evidence, document)

    def test_device_evidence_that_cannot_be_read_passes_unchanged(self, clock: Clock) -> None:
        class Devices:
            def collect(self, nonce: bytes) -> RawDeviceEvidence:
                return RawDeviceEvidence(b"?", b"its own")

        attester = EndorsedDeviceAttester(Devices(), None, clock)  # type: ignore[arg-type]
        assert attester.collect(bytes(32)).endorsements == b"its own"
