"""Evidence on demand: one quote for a window of nonces, each with its proof, over one set of keys."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cloister import merkle
from cloister.attester import RawDeviceEvidence, RawEvidence
from cloister.channel.evidence_service import EvidenceService
from cloister.errors import AttesterError, Overloaded, StaleNonce
from cloister.evidence.binding import check_binding, check_nonce, device_nonce
from cloister.evidence.bundle import EvidenceBundle


class Recording:
    """An attester that notes what it was asked to sign; the quote is the report data itself."""

    def __init__(self, *, hold: threading.Event | None = None, fail: Exception | None = None) -> None:
        self.signed: list[bytes] = []
        self.hold = hold
        self.fail = fail

    def quote(self, report_data: bytes) -> RawEvidence:
        if self.hold is not None:
            self.hold.wait(5)
        if self.fail is not None:
            raise self.fail
        self.signed.append(report_data)
        return RawEvidence(tee="tdx", quote=report_data, event_log=b"log", endorsements=b"collateral")


class Keys:
    """Key material that is another each time it is asked for."""

    def __init__(self) -> None:
        self.times = 0

    def material(self) -> bytes:
        self.times += 1
        return b"material %d" % self.times


def nonces(count: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in range(count)]


def check(bundle: EvidenceBundle, nonce: bytes) -> None:
    """As an appraisal does: proof, then binding."""
    check_binding(bundle, check_nonce(bundle, nonce), bundle.quote)


def asked_together(service: EvidenceService, asked: list[bytes]) -> list[EvidenceBundle]:
    async def ask() -> list[EvidenceBundle]:
        return await asyncio.gather(*(service.evidence(nonce) for nonce in asked))

    return asyncio.run(ask())


def test_a_lone_nonce_is_a_tree_of_one_leaf():
    attester = Recording()
    (bundle,) = asked_together(EvidenceService(attester, Keys()), nonces(1))
    assert (bundle.nonce_proof.index, bundle.nonce_proof.size, bundle.nonce_proof.path) == (0, 1, ())
    assert (bundle.event_log, bundle.endorsements) == (b"log", b"collateral")
    check(bundle, nonces(1)[0])


@pytest.mark.parametrize("count", [2, 3, 17])
def test_the_nonces_of_a_window_share_one_quote_and_each_has_its_proof(count: int):
    attester = Recording()
    bundles = asked_together(EvidenceService(attester, Keys()), nonces(count))
    assert len(attester.signed) == 1
    for bundle, nonce in zip(bundles, nonces(count), strict=True):
        check(bundle, nonce)
        assert merkle.root(nonces(count)) == check_nonce(bundle, nonce)


def test_the_key_material_is_captured_once_for_a_quote():
    keys = Keys()
    bundles = asked_together(EvidenceService(Recording(), keys), nonces(5))
    assert keys.times == 1
    assert {bundle.key_material for bundle in bundles} == {b"material 1"}


def test_a_tree_is_bounded_and_the_rest_gets_the_next_quote():
    attester = Recording()
    bundles = asked_together(EvidenceService(attester, Keys(), max_tree=4), nonces(10))
    assert [bundle.nonce_proof.size for bundle in bundles] == [4] * 8 + [2] * 2
    assert len(attester.signed) == 3
    for bundle, nonce in zip(bundles, nonces(10), strict=True):
        check(bundle, nonce)


def test_nonces_that_come_while_a_quote_is_made_wait_for_the_one_after():
    hold = threading.Event()
    attester = Recording(hold=hold)
    service = EvidenceService(attester, Keys(), window=0.001)

    async def ask() -> list[EvidenceBundle]:
        first = asyncio.create_task(service.evidence(nonces(3)[0]))
        await asyncio.sleep(0.05)  # its quote is being made
        later = [asyncio.create_task(service.evidence(nonce)) for nonce in nonces(3)[1:]]
        await asyncio.sleep(0.05)
        hold.set()
        return await asyncio.gather(first, *later)

    bundles = asyncio.run(ask())
    assert [bundle.nonce_proof.size for bundle in bundles] == [1, 2, 2]


def test_more_than_the_queue_holds_is_refused():
    service = EvidenceService(Recording(), Keys(), max_waiting=3)

    async def ask() -> list[object]:
        return await asyncio.gather(*(service.evidence(n) for n in nonces(5)), return_exceptions=True)

    kinds = [type(answer) for answer in asyncio.run(ask())]
    assert kinds == [EvidenceBundle] * 3 + [Overloaded] * 2


@pytest.mark.parametrize(
    "raised",
    [AttesterError("no TEE here"), OSError("device"), RuntimeError("driver")],
    ids=lambda e: type(e).__name__,
)
def test_everybody_in_the_window_hears_that_the_attester_failed(raised: Exception):
    service = EvidenceService(Recording(fail=raised), Keys())

    async def ask() -> list[object]:
        return await asyncio.gather(*(service.evidence(n) for n in nonces(3)), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(ask())] == [AttesterError] * 3


def test_a_quote_that_never_comes_is_a_failure():
    hold = threading.Event()
    service = EvidenceService(Recording(hold=hold), Keys(), window=0.0, quote_timeout=0.05)

    async def ask() -> None:
        with pytest.raises(AttesterError, match="in time"):
            await service.evidence(bytes(32))
        hold.set()

    asyncio.run(ask())


def test_the_service_answers_again_after_a_failure_and_after_a_pause():
    attester = Recording(fail=AttesterError("for a moment"))
    service = EvidenceService(attester, Keys())

    async def ask() -> None:
        with pytest.raises(AttesterError):
            await service.evidence(bytes(32))
        attester.fail = None
        check(await service.evidence(bytes(32)), bytes(32))
        await asyncio.sleep(0.05)
        check(await service.evidence(b"\x01" * 32), b"\x01" * 32)

    asyncio.run(ask())


def test_who_leaves_is_left_out_of_the_tree():
    attester = Recording()
    service = EvidenceService(attester, Keys(), window=0.05)

    async def ask() -> EvidenceBundle:
        leaving = asyncio.create_task(service.evidence(bytes(32)))
        await asyncio.sleep(0)
        staying = asyncio.create_task(service.evidence(b"\x01" * 32))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    bundle = asyncio.run(ask())
    assert bundle.nonce_proof.size == 1
    check(bundle, b"\x01" * 32)


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_nonce_of_another_length_is_refused(length: int):
    with pytest.raises(StaleNonce):
        asked_together(EvidenceService(Recording(), Keys()), [bytes(length)])


class Gpus:
    """Devices that answer with the nonce they were asked, so that a test sees which one it was."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.fail = fail

    def collect(self, nonce: bytes) -> RawDeviceEvidence:
        if self.fail is not None:
            raise self.fail
        return RawDeviceEvidence(evidence=nonce, endorsements=b"manifests")


def test_devices_answer_a_nonce_of_the_same_window_and_keys_and_the_quote_binds_their_answer() -> None:
    attester = Recording()
    asked = nonces(3)
    bundles = asked_together(EvidenceService(attester, Keys(), window=0.01, devices=Gpus()), asked)
    assert len(attester.signed) == 1
    for nonce, bundle in zip(asked, bundles, strict=True):
        root = check_nonce(bundle, nonce)
        assert bundle.device_evidence == device_nonce(root, bundle.key_material)
        assert bundle.device_endorsements == b"manifests"
        check_binding(bundle, root, bundle.quote)


def test_a_device_that_fails_means_no_evidence_at_all() -> None:
    service = EvidenceService(Recording(), Keys(), window=0, devices=Gpus(AttesterError("GPU 3 is silent")))
    with pytest.raises(AttesterError, match="GPU 3 is silent"):
        asked_together(service, nonces(1))
