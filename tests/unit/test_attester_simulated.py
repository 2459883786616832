"""The simulated platform as a library: storage, sharing, measurements, collateral, loudness."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedPlatform
from cloister.attester.simulation.chain import DAY
from cloister.attester.simulation.quote import Layout
from cloister.errors import AttesterError, UsageError
from cloister.evidence.eventlog import LaunchEvent, parse_event_log, replay
from simulated_evidence import LAUNCH, NOW, REPORT_DATA, platform, seeded


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    directory = tmp_path / "platform"
    SimulatedPlatform.create(directory, now=NOW, entropy=seeded("stored"))
    return directory


def test_a_stored_platform_is_the_same_for_every_process_that_loads_it(stored: Path) -> None:
    one, other = SimulatedPlatform.load(stored), SimulatedPlatform.load(stored)
    assert one.root_sha256 == other.root_sha256
    assert one.collateral(NOW) == other.collateral(NOW)
    for kind in ("tdx", "sgx"):
        quotes = [p.tee(kind, launch=LAUNCH, clock=lambda: NOW).quote(REPORT_DATA) for p in (one, other)]
        assert quotes[0] == quotes[1]


def test_two_platforms_have_two_roots_and_one_firmware(tmp_path: Path) -> None:
    one = SimulatedPlatform.create(tmp_path / "one", now=NOW)
    other = SimulatedPlatform.create(tmp_path / "other", now=NOW)
    assert one.root_sha256 != other.root_sha256
    assert one.firmware == other.firmware


def test_only_the_owner_may_enter_the_directory_or_read_a_file(stored: Path) -> None:
    assert stat.S_IMODE(stored.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in stored.iterdir()} == {0o600}
    assert [path.name for path in stored.parent.iterdir()] == ["platform"]


def test_an_existing_platform_is_never_replaced(stored: Path) -> None:
    before = {file.name: file.read_bytes() for file in stored.iterdir()}
    with pytest.raises(UsageError, match="exists"):
        SimulatedPlatform.create(stored, now=NOW)
    assert {file.name: file.read_bytes() for file in stored.iterdir()} == before
    assert [path.name for path in stored.parent.iterdir()] == ["platform"]


@pytest.mark.parametrize("kind", ["file", "link", "no parent"])
def test_a_place_that_cannot_be_a_new_directory_is_refused(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if kind == "file":
        place.write_text("mine")
    elif kind == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place = place / "below"
    with pytest.raises(UsageError):
        SimulatedPlatform.create(place, now=NOW)
    assert len(list(tmp_path.iterdir())) == (0 if kind == "no parent" else 1)


def test_of_several_that_create_at_once_exactly_one_succeeds(tmp_path: Path) -> None:
    def attempt(_: int) -> str:
        try:
            return SimulatedPlatform.create(tmp_path / "platform", now=NOW).root_sha256
        except UsageError:
            return ""

    with ThreadPoolExecutor(4) as pool:
        roots = [root for root in pool.map(attempt, range(8)) if root]
    assert roots == [SimulatedPlatform.load(tmp_path / "platform").root_sha256]
    assert [path.name for path in tmp_path.iterdir()] == ["platform"]


def test_loading_where_nothing_is_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cloister simulate init"):
        SimulatedPlatform.load(tmp_path / "nothing")


def _swap(directory: Path, one: str, other: str) -> None:
    first, second = directory / one, directory / other
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])


def _replace(directory: Path, name: str, old: bytes, new: bytes) -> None:
    path = directory / name
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a-key-others-may-read": lambda d: (d / "root.key").chmod(0o640),
    "a-key-that-is-a-link": lambda d: (
        (d / "pck.key").rename(d.parent / "pck.key"),
        (d / "pck.key").symlink_to(d.parent / "pck.key"),
    ),
    "a-missing-key": lambda d: (d / "attestation.key").unlink(),
    "a-missing-document": lambda d: (d / "platform.json").unlink(),
    "keys-exchanged": lambda d: _swap(d, "pck.key", "pck-ca.key"),
    "certificates-exchanged": lambda d: _swap(d, "pck.crt", "tcb-signing.crt"),
    "a-truncated-key": lambda d: (d / "root.key").write_bytes((d / "root.key").read_bytes()[:100]),
    "no-certificate": lambda d: (d / "root.crt").write_bytes(b"-----BEGIN NOTHING-----\n"),
    "an-endless-file": lambda d: (d / "root.crt").write_bytes(b"A" * 70_000),
    "an-unknown-field": lambda d: _replace(d, "platform.json", b'{"', b'{"extra":1,"'),
    "another-format": lambda d: _replace(d, "platform.json", b"platform/v1", b"platform/v9"),
    "another-firmware": lambda d: _replace(
        d, "platform.json", b'"firmware_version":"1"', b'"firmware_version":"0"'
    ),
    "a-short-cpu-svn": lambda d: _replace(d, "platform.json", b'"pce_id":"AAA="', b'"pce_id":"AA=="'),
    "a-key-of-another-curve": lambda d: (d / "attestation.key").write_bytes(_p384()),
}


def _p384() -> bytes:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_platform_is_refused_in_one_line_without_its_keys(damage: str, stored: Path) -> None:
    secret = (stored / "root.key").read_text().splitlines()[1]
    DAMAGE[damage](stored)
    with pytest.raises(AttesterError) as caught:
        SimulatedPlatform.load(stored)
    assert "\n" not in str(caught.value)
    assert secret[:16] not in str(caught.value)


def test_a_certificate_of_another_platform_is_refused(stored: Path, tmp_path: Path) -> None:
    SimulatedPlatform.create(tmp_path / "other", now=NOW)
    for name in ("pck.crt", "pck.key"):
        (stored / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(AttesterError, match="not issued by"):
        SimulatedPlatform.load(stored)


def test_measurements_are_those_the_quote_states() -> None:
    tee = platform().tee(launch=LAUNCH, clock=lambda: NOW)
    report = dcap_qvl.parse_quote(tee.quote(REPORT_DATA).quote).report
    stated = {"mrtd": report.mr_td, **{f"rtmr{n}": getattr(report, f"rt_mr{n}") for n in range(4)}}
    assert stated == tee.measurements
    assert report.report_data == REPORT_DATA
    enclave = platform().tee("sgx", launch=LAUNCH, clock=lambda: NOW)
    report = dcap_qvl.parse_quote(enclave.quote(REPORT_DATA).quote).report
    assert {"mrenclave": report.mr_enclave, "mrsigner": report.mr_signer} == enclave.measurements


def test_the_event_log_replays_to_the_fourth_register() -> None:
    tee = platform().tee(launch=LAUNCH, clock=lambda: NOW)
    events = parse_event_log(tee.quote(REPORT_DATA).event_log)
    assert events == LAUNCH
    assert replay(events) == tee.measurements["rtmr3"]


@given(payload=st.binary(max_size=64))
def test_another_launch_changes_only_what_it_is_measured_into(payload: bytes) -> None:
    other = (LaunchEvent(name=LAUNCH[0].name, payload=payload),)
    for layout, register in ((Layout.TDX_V4, "rtmr3"), (Layout.SGX_V3, "mrenclave")):
        before = platform().tee(layout.kind, launch=LAUNCH).measurements
        after = platform().tee(layout.kind, launch=other).measurements
        changed = {name for name in before if before[name] != after[name]}
        assert changed == ({register} if payload != LAUNCH[0].payload else set())


@pytest.mark.parametrize("size", [0, 32, 63, 65, 128])
def test_report_data_of_another_length_is_neither_padded_nor_cut(size: int) -> None:
    with pytest.raises(AttesterError, match="64"):
        platform().tee().quote(bytes(size))


def test_a_kind_without_that_form_of_quote_is_refused() -> None:
    with pytest.raises(AttesterError, match="TDX_V4"):
        platform().tee("sgx", layout=Layout.TDX_V4)


@pytest.mark.parametrize("days", [0, 1, 29, 31, 400])
def test_collateral_is_issued_again_as_days_go_by(days: int, stored: Path) -> None:
    now = NOW + days * DAY
    fresh = SimulatedPlatform.load(stored)
    evidence = fresh.tee(launch=LAUNCH, clock=lambda: now).quote(REPORT_DATA)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(evidence.endorsements.decode())
    dcap_qvl.QuoteVerifier(fresh.chain.root.der).verify_with_policy(
        evidence.quote, collateral, now, dcap_qvl.QuotePolicy.strict(now)
    )
    issued = json.loads(json.loads(evidence.endorsements)["tcb_info"])
    assert issued["issueDate"] < issued["nextUpdate"]


def test_one_tee_that_runs_for_weeks_carries_new_collateral() -> None:
    clock = [NOW]
    tee = platform().tee(clock=lambda: clock[0])
    first = tee.quote(REPORT_DATA).endorsements
    clock[0] += 600
    assert tee.quote(REPORT_DATA).endorsements == first
    clock[0] += 2 * DAY
    assert tee.quote(REPORT_DATA).endorsements != first


@pytest.mark.parametrize("now", [NOW - 3 * DAY, NOW + 8 * 365 * DAY], ids=["before", "after"])
def test_outside_its_certificates_life_a_platform_issues_nothing(now: int) -> None:
    with pytest.raises(AttesterError, match="do not hold"):
        platform().collateral(now)


def test_no_name_in_the_chain_claims_to_be_intels(stored: Path) -> None:
    for path in stored.glob("*.crt"):
        name = x509.load_pem_x509_certificate(path.read_bytes()).subject.rfc4514_string()
        assert "SIMULATED" in name
        assert "Intel" not in name


def test_every_use_says_loudly_that_nothing_is_protected(
    stored: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for use in (
        lambda: SimulatedPlatform.create(tmp_path / "new", now=NOW),
        lambda: SimulatedPlatform.load(stored),
        lambda: platform().tee(),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="cloister.attester"):
            use()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "SIMULATED TEE" in caplog.text
        assert "protected" in caplog.text.lower()


def test_private_keys_show_in_no_repr(stored: Path) -> None:
    loaded = SimulatedPlatform.load(stored)
    text = f"{loaded!r} {loaded.chain!r} {loaded.tee()!r}"
    for path in stored.glob("*.key"):
        assert path.read_text().splitlines()[1] not in text
    scalar = loaded.chain.root.key.private_numbers().private_value
    assert str(scalar) not in text


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        SimulatedPlatform.create(tmp_path / "platform", now=NOW)
    assert list(tmp_path.iterdir()) == []


def test_the_published_vector_is_what_this_code_makes() -> None:
    vector = json.loads((Path(__file__).parents[1] / "vectors" / "simulated-tee.json").read_text())
    stream = BytesIO(hashlib.shake_256(vector["entropy_shake256_seed"].encode()).digest(4096))
    now = vector["now"]
    made = SimulatedPlatform.generate(now=now, entropy=stream.read)
    assert stream.tell() == vector["entropy_bytes_used"]
    assert made.root_sha256 == vector["root_sha256"]
    assert {name: value.hex() for name, value in made.firmware.items()} == vector["firmware"]
    events = launch_events(
        config=vector["config"].encode(),
        program=bytes.fromhex(vector["program_digest"]),
        model_index=bytes.fromhex(vector["model_index_digest"]),
    )
    for layout in Layout:
        tee = made.tee(layout.kind, launch=events, layout=layout, clock=lambda: now)
        evidence = tee.quote(bytes.fromhex(vector["report_data"]))
        stated = {name: value.hex() for name, value in tee.measurements.items()}
        assert stated == vector["measurements"][layout.kind]
        digest = hashlib.sha256(evidence.endorsements).hexdigest()
        assert digest == vector["collateral_sha256"][layout.kind]
        assert hashlib.sha256(evidence.quote).hexdigest() == vector["quote_sha256"][layout.name]
