"""Whatever is flipped, cut or thrown at the readers of device evidence: refused by our own errors, or nothing changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nvidia_vectors as captured
from cloister.endorsements.nvidia import parse_nvidia_endorsements
from cloister.endorsements.rim import MAX_RIM, read_rim, rim_certificates
from cloister.endorsements.roots import NVIDIA_RIM_ROOT, simulated_root
from cloister.errors import CloisterError
from cloister.evidence.nvidia import (
    MAX_EVIDENCE,
    DeviceEvidence,
    DeviceReport,
    parse_device_evidence,
    parse_sdk_evidence,
    read_raw_evidence,
    split_pem,
)
from cloister.evidence.nvidia_fields import read_fields
from cloister.evidence.spdm import MAX_REPORT, parse_report
from cloister.verifier.claims import DeviceClaims
from cloister.verifier.nvidia_chain import verify_chain
from cloister.verifier.ocsp import check_revocation
from cloister.verifier.rim import verify_rim
from nvidia_vectors import DRIVER_RIM, NVTRUST, SDK
from simulated_evidence import NOW
from simulated_nvidia import TODAY, judge, machine, show

SWITCH, GPU = f"{SDK}/switch_evidence_ls10.json", f"{SDK}/hopper_evidence.json"


def flipped(data: bytes, bit: int) -> bytes:
    bit %= 8 * len(data)
    altered = bytearray(data)
    altered[bit // 8] ^= 1 << bit % 8
    return bytes(altered)


def _shown(name: str, report: Callable[[bytes], bytes]) -> DeviceEvidence:
    (device,) = captured.evidence(name).devices
    bent = DeviceReport(kind=device.kind, report=report(device.report), certificates=device.certificates)
    return DeviceEvidence(devices=(bent,))


def test_no_byte_of_a_captured_report_can_be_changed() -> None:
    """Every byte of a switch's report, one bit each; a GPU's is twice as long and sampled below."""
    size = len(captured.evidence(SWITCH).devices[0].report)
    bits = random.Random("bits")
    for offset in range(size):
        shown = _shown(SWITCH, lambda data: flipped(data, 8 * offset + bits.randrange(8)))  # noqa: B023
        with pytest.raises(CloisterError):
            captured.verified(shown)


@given(bit=st.integers(min_value=0, max_value=1 << 16))
def test_no_bit_of_a_captured_gpus_report_can_be_changed(bit: int) -> None:
    with pytest.raises(CloisterError):
        captured.verified(_shown(GPU, lambda data: flipped(data, bit)))


@given(length=st.integers(min_value=0, max_value=1 << 13), more=st.binary(max_size=64))
def test_no_prefix_of_a_report_and_nothing_longer_is_accepted(length: int, more: bytes) -> None:
    whole = captured.evidence(GPU).devices[0].report
    bent = whole[: length % len(whole)] + more
    if bent == whole:
        return
    with pytest.raises(CloisterError):
        captured.verified(_shown(GPU, lambda _: bent))


@given(which=st.integers(min_value=0, max_value=4), bit=st.integers(min_value=0, max_value=1 << 14))
def test_no_bit_of_a_captured_chain_can_be_changed(which: int, bit: int) -> None:
    (device,) = captured.evidence(GPU).devices
    chain = list(device.certificates)
    chain[which] = flipped(chain[which], bit)
    bent = DeviceReport(kind="gpu", report=device.report, certificates=tuple(chain))
    with pytest.raises(CloisterError):
        captured.verified(DeviceEvidence(devices=(bent,)))


@given(bit=st.integers(min_value=0, max_value=1 << 18))
def test_a_flipped_bit_in_a_captured_manifest_changes_nothing_that_is_believed(bit: int) -> None:
    genuine = verify_rim(captured.rim(DRIVER_RIM), NVIDIA_RIM_ROOT)
    try:
        found = verify_rim(flipped(captured.rim(DRIVER_RIM), bit), NVIDIA_RIM_ROOT)
    except CloisterError:
        return
    assert found == genuine  # white space between the lines of a certificate, say


@given(cut=st.integers(min_value=0, max_value=1 << 15), inserted=st.text(max_size=40))
def test_text_put_into_a_manifest_changes_nothing_that_is_believed(cut: int, inserted: str) -> None:
    data = captured.rim(DRIVER_RIM)
    cut %= len(data)
    try:
        found = verify_rim(data[:cut] + inserted.encode("utf-8", "replace") + data[cut:], NVIDIA_RIM_ROOT)
    except CloisterError:
        return
    assert found.rim == verify_rim(data, NVIDIA_RIM_ROOT).rim


@cache
def _believed() -> tuple[DeviceClaims, ...]:
    return judge(show())


@given(bit=st.integers(min_value=0, max_value=1 << 20), part=st.sampled_from(["evidence", "endorsements"]))
def test_a_flipped_bit_in_what_travels_changes_nothing_that_is_believed(bit: int, part: str) -> None:
    shown = show()
    documents = {"evidence": shown.evidence, "endorsements": shown.endorsements}
    documents[part] = flipped(documents[part], bit)
    try:
        found = judge(_Travelled(**documents))  # type: ignore[arg-type]
    except CloisterError:
        return
    assert found == _believed()


class _Travelled:
    def __init__(self, evidence: bytes, endorsements: bytes) -> None:
        self.evidence = evidence
        self.endorsements = endorsements


READERS: dict[str, Callable[[bytes], Any]] = {
    "report": parse_report,
    "our own form": parse_device_evidence,
    "NVIDIA's form": parse_sdk_evidence,
    "raw": lambda data: read_raw_evidence(data, data),
    "PEM": split_pem,
    "endorsements": parse_nvidia_endorsements,
    "manifest": read_rim,
    "manifest's chain": rim_certificates,
    "verified manifest": lambda data: verify_rim(data, NVIDIA_RIM_ROOT),
    "OCSP answer": lambda data: check_revocation([_pair()], [data], now=NOW, required=True),
    "certificates": lambda data: verify_chain([data, data], _root(data), what="it"),
}


def _pair() -> tuple[bytes, bytes]:
    chain = machine().devices[0].chain
    return chain[1].der, chain[2].der


def _root(data: bytes) -> Any:
    import hashlib

    return simulated_root(hashlib.sha256(data).hexdigest())


def _refused_or_read(name: str, data: bytes) -> None:
    said = ""
    try:
        READERS[name](data)
    except CloisterError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 1500


@pytest.mark.parametrize("name", READERS)
@given(data=st.binary(max_size=1 << 12))
def test_any_bytes_raise_our_own_errors_alone(name: str, data: bytes) -> None:
    _refused_or_read(name, data)


SEEDS: dict[str, Callable[[], bytes]] = {
    "report": lambda: captured.evidence(GPU).devices[0].report,
    "NVIDIA's form": lambda: _file(SWITCH),
    "manifest": lambda: captured.rim(DRIVER_RIM),
    "manifest's chain": lambda: captured.rim(DRIVER_RIM),
    "verified manifest": lambda: captured.rim(DRIVER_RIM),
    "OCSP answer": lambda: machine().ocsp(TODAY)[0],
    "certificates": lambda: captured.evidence(GPU).devices[0].certificates[0],
    "endorsements": lambda: show().endorsements,
    "our own form": lambda: show().evidence,
}


def _file(name: str) -> bytes:
    from shared_data import vectors

    return vectors(name).read_bytes()


@pytest.mark.parametrize("name", SEEDS)
@given(seed=st.integers(min_value=0, max_value=1 << 32))
def test_genuine_bytes_that_were_cut_doubled_and_overwritten_raise_our_own_errors_alone(
    name: str, seed: int
) -> None:
    draw = random.Random(seed)
    data = bytearray(SEEDS[name]())
    for _ in range(draw.randrange(1, 5)):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.randrange(1, 200))
        match draw.randrange(4):
            case 0:
                del data[start:end]
            case 1:
                data[start:start] = data[start:end]
            case 2:
                data[start:end] = draw.randbytes(end - start)
            case _:
                data[start:end] = b"\xff" * (end - start)
    _refused_or_read(name, bytes(data))


@given(data=st.binary(min_size=64, max_size=2048), kind=st.sampled_from(["gpu", "nvswitch"]))
def test_any_opaque_data_raises_our_own_errors_alone(data: bytes, kind: Any) -> None:
    head = b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60\x00\x00\x01\x37\x00\x00"
    record = b"\x01\x01\x33\x00\x01\x30\x00" + bytes(48)
    body = head + record + bytes(32) + len(data).to_bytes(2, "little") + data + bytes(96)
    try:
        read_fields(parse_report(body), kind)
    except CloisterError:
        return


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("report", MAX_REPORT),
        ("our own form", MAX_EVIDENCE),
        ("NVIDIA's form", MAX_EVIDENCE),
        ("endorsements", 1 << 20),
        ("manifest", MAX_RIM),
        ("OCSP answer", 16 * 1024),
    ],
)
def test_more_than_the_bound_is_refused_before_it_is_read(name: str, limit: int) -> None:
    for byte in (b"\0", b"[", b"<", b" "):
        with pytest.raises(CloisterError, match="over its bound"):
            READERS[name](byte * (limit + 1))


def test_a_mebibyte_of_nesting_is_refused() -> None:
    for name, data in (
        ("manifest", b"<a>" * 300_000),
        ("manifest", b"<a " + b'b="c" ' * 150_000 + b"/>"),
        ("our own form", b"[" * (1 << 20)),
        ("NVIDIA's form", b'[{"a":' * 100_000),
        ("PEM", b"-----BEGIN CERTIFICATE-----\n" * 30_000),
    ):
        with pytest.raises(CloisterError):
            READERS[name](data)


def test_the_whole_captured_machine_takes_no_more_than_its_size_in_evidence() -> None:
    assert len(_file(f"{NVTRUST}/gpu_evidence.json")) < MAX_EVIDENCE
