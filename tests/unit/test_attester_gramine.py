"""SGX quotes inside Gramine, on files that behave as Gramine's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from cloister.attester.gramine import GramineAttester
from cloister.attester.local import Places, find_machine, open_attester
from cloister.attester.simulated import SimulatedPlatform
from cloister.endorsements.roots import simulated_root
from cloister.errors import AttesterError
from cloister.evidence.eventlog import LaunchEvent
from cloister.evidence.quote import parse_quote
from cloister.verifier import intel
from cloister.verifier.rules import IntelRules
from configfs_tsm import Mounted, fuse_needed, mounted

REPORT_DATA = bytes(range(64))
fuse_needed()
Enclave = Callable[[str], AbstractContextManager[Mounted]]


@pytest.fixture
def platform(tmp_path: Path) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path / "tee", now=int(time.time()))


@pytest.fixture
def enclave(tmp_path: Path, platform: SimulatedPlatform) -> Enclave:
    @contextmanager
    def started(kind: str) -> Iterator[Mounted]:
        with mounted(tmp_path, "--platform", str(tmp_path / "tee"), "--gramine", kind) as running:
            yield running

    return started


def test_a_quote_verifies_and_is_over_the_report_data(enclave: Enclave, platform: SimulatedPlatform) -> None:
    now = int(time.time())
    with enclave("dcap") as files:
        evidence = GramineAttester(files.mountpoint).quote(REPORT_DATA)
    claims = intel.verify(
        evidence.quote,
        platform.collateral(now, "sgx"),
        root=simulated_root(platform.root_sha256),
        now=now,
        rules=IntelRules(min_tcb_evaluation_number=1),
    )
    assert (evidence.tee, evidence.event_log, claims.report_data) == ("sgx", b"", REPORT_DATA)


def test_threads_never_get_a_quote_over_each_others_data(enclave: Enclave) -> None:
    data = [bytes([number]) * 64 for number in range(16)]
    with enclave("dcap") as files, ThreadPoolExecutor(8) as pool:
        attesters = [GramineAttester(files.mountpoint) for _ in range(4)]
        asked = [pool.submit(attesters[at % 4].quote, one) for at, one in enumerate(data)]
        assert [parse_quote(one.result().quote).report_data for one in asked] == data


@pytest.mark.parametrize(
    ("kind", "words", "todo"),
    [
        ("none", "without remote attestation", "sgx.remote_attestation"),
        ("epid", "EPID, which Intel ended", "sgx.remote_attestation"),
        ("maa", "unknown type 'maa'", "Gramine"),
        ("direct", "not Gramine on SGX", "gramine-sgx"),
    ],
)
def test_any_other_type_than_dcap_is_refused(kind: str, words: str, todo: str, enclave: Enclave) -> None:
    with enclave(kind) as files, pytest.raises(AttesterError, match=words) as refused:
        GramineAttester(files.mountpoint)
    assert todo in refused.value.todo


def test_a_quote_that_cannot_be_made_leads_to_aesm(enclave: Enclave) -> None:
    with enclave("dcap") as files:
        attester = GramineAttester(files.mountpoint)
        files.misbehave(quote=["EACCES"])
        with pytest.raises(AttesterError, match=r"no quote was made \(EACCES\)") as refused:
            attester.quote(REPORT_DATA)
    for word in ("AESM", "sgx_prv", "PCCS"):
        assert word in refused.value.todo


def test_a_quote_over_other_data_is_refused(enclave: Enclave) -> None:
    with enclave("dcap") as files:
        files.misbehave(stale=["yes"])
        with pytest.raises(AttesterError, match="other report data"):
            GramineAttester(files.mountpoint).quote(REPORT_DATA)


@pytest.mark.parametrize("size", [0, 63, 65, 256])
def test_report_data_of_another_length_is_refused_not_padded(size: int, enclave: Enclave) -> None:
    with enclave("dcap") as files, pytest.raises(AttesterError, match="not 64"):
        GramineAttester(files.mountpoint).quote(bytes(size))


def test_what_is_no_quote_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attestation_type").write_text("dcap")
    (tmp_path / "user_report_data").write_bytes(b"")
    (tmp_path / "quote").write_bytes(b"no quote")
    with pytest.raises(AttesterError, match="no verifier reads"):
        GramineAttester(tmp_path).quote(REPORT_DATA)


def test_gramine_is_found_first_and_its_launch_is_in_mrenclave(enclave: Enclave, tmp_path: Path) -> None:
    events = [LaunchEvent(name="cloister.config", payload=b"x")]
    with enclave("dcap") as files:
        places = Places(gramine=files.mountpoint, reports=tmp_path / "no-reports")
        machine = find_machine(places)
        assert machine is not None
        assert machine.tee == "sgx"
        assert "MRENCLAVE" in machine.covered
        assert set(machine.reference_values(events)) == {"mrenclave", "mrsigner"}
        assert open_attester(events, places=places).quote(REPORT_DATA).event_log == b""


def test_gramine_that_cannot_attest_is_no_reason_to_look_further(enclave: Enclave) -> None:
    with enclave("none") as files, pytest.raises(AttesterError, match="without remote attestation"):
        find_machine(Places(gramine=files.mountpoint))
