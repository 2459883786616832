"""Captured event logs replay: to the registers of a real quote where there is one, else to published values."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import pytest

from cloister.appraisal.judge_intel import judge_tdx, judge_tdx_platform
from cloister.appraisal.observed_intel import observed_tdx
from cloister.appraisal.reference_intel import TdxReference, check_tdx
from cloister.encoding import convert
from cloister.endorsements.roots import INTEL_ROOT
from cloister.errors import AppraisalRefused, CloisterError, EventLogMismatch
from cloister.evidence.dstack_log import RUNTIME_KIND, parse_dstack_log
from cloister.evidence.measured import MeasuredEvent, replay_registers
from cloister.evidence.quote import parse_quote
from cloister.evidence.tcg_log import parse_tcg_log
from cloister.verifier.claims import Claims
from cloister.verifier.intel import verify
from cloister.verifier.logs import replay_logs
from cloister.verifier.trail import Trail
from intel_vectors import SERVER, at, collateral, quote
from shared_data import vectors

GCP, DSTACK_CCEL, DSTACK = "coco-trustee/CCEL_data_gcp", "dstack/ccel.bin", "dstack/quote-report.json"


@cache
def ccel(name: str) -> tuple[MeasuredEvent, ...]:
    return parse_tcg_log(vectors(name).read_bytes(), algorithm="sha384", registers="rtmr")


@cache
def dstack_log() -> bytes:
    return str(json.loads(vectors(DSTACK).read_text())["event_log"]).encode()


@cache
def dstack() -> Claims:
    """The real quote, verified in its time."""
    return verify(
        quote(DSTACK),
        collateral("tdx_quote_outdated_collateral"),
        root=INTEL_ROOT,
        now=at("2026-03-01"),
        rules=SERVER,
    )


# No quote came with Google's log: these are the RTMRs that trustee's own tests expect of it
# (deps/eventlog/src/lib.rs, test_rtmr_integrity), and every digest that can be recomputed from the log is.
GCP_REGISTERS = {
    0: "3300980705adf09d28b707b79699d9874892164280832be2c386a715b6e204e0897fb564a064f810659207ba862b304f",
    1: "204d49f78d29918fe7b2f694e76653861a0c2a018987d2c3a54266eff737232524cf0af68c4d180e2f8c2c0937f21967",
}


def test_the_log_of_a_google_machine_replays_to_its_published_registers() -> None:
    registers = replay_registers(ccel(GCP), algorithm="sha384")
    assert {number: value.hex() for number, value in registers.items()} == GCP_REGISTERS


def test_the_log_of_a_google_machine_is_covered_by_its_digests() -> None:
    events = ccel(GCP)
    assert (len(events), sum(event.vouched for event in events)) == (21, 14)
    (secure_boot,) = [event for event in events if event.name == "secure-boot"]
    assert secure_boot.vouched
    assert secure_boot.data.endswith(b"\0")  # it is off
    assert [event.data for event in events if event.name == "action"] == [
        b"Calling EFI Application from Boot Option",
        b"Exit Boot Services Invocation",
        b"Exit Boot Services Returned with Success",
    ]
    # Whatever is hashed elsewhere (tables, firmware, kernels) has only its digest in the log.
    assert {event.kind for event in events if not event.vouched} == {
        "EV_EFI_HANDOFF_TABLES2",
        "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        "EV_PLATFORM_CONFIG_FLAGS",
        "EV_EFI_BOOT_SERVICES_APPLICATION",
    }


def test_dstacks_ccel_replays_to_the_rtmr0_of_a_real_quote() -> None:
    # The quote that belongs to this log was not captured; one of the same firmware and configuration was.
    registers = replay_registers(ccel(DSTACK_CCEL), algorithm="sha384")
    report = parse_quote(quote("phala-dcap-qvl/quote-from-tappd.hex"))
    assert registers[0] == report.measurements["rtmr0"]
    assert set(registers) == {0, 1}
    assert (len(ccel(DSTACK_CCEL)), sum(event.vouched for event in ccel(DSTACK_CCEL))) == (18, 12)


def test_a_real_dstack_log_replays_to_all_four_registers_of_its_quote() -> None:
    events = parse_dstack_log(dstack_log())
    registers = replay_registers(events, algorithm="sha384")
    assert {f"rtmr{number}": value for number, value in registers.items()} == {
        name: value for name, value in dstack().measurements.items() if name != "mrtd"
    }


def test_a_real_dstack_log_becomes_claims() -> None:
    claims = replay_logs(dstack(), event_log=dstack_log(), firmware_log=b"")
    assert list(claims.events) == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "key-provider",
        "system-ready",
        "LIUM_MINER_HOTKEY",
    ]
    assert claims.events["app-id"].hex() == "3763bc34552cf3a27ff71ad5f7a90471562a1a2d"
    assert claims.events["compose-hash"].startswith(claims.events["app-id"])
    assert len(claims.measured_events) == 28


def policy(**changes: object) -> TdxReference:
    fields = {**observed_tdx(replay_logs(dstack(), event_log=dstack_log(), firmware_log=b"")), **changes}
    reference = convert(fields, TdxReference, what="policy")
    check_tdx(reference)
    return reference


def judge(reference: TdxReference, event_log: bytes | None = None) -> None:
    claims = replay_logs(
        dstack(), event_log=dstack_log() if event_log is None else event_log, firmware_log=b""
    )
    judge_tdx_platform(claims, reference, Trail())
    judge_tdx(claims, reference, Trail())


def by_digest() -> dict[str, list[str]]:
    """Every firmware event of the real machine, by a label of one's own."""
    return {
        f"event {number}": [event.digest.hex()]
        for number, event in enumerate(parse_dstack_log(dstack_log()))
        if event.kind != RUNTIME_KIND
    }


def test_a_policy_can_require_the_named_events_of_a_real_machine() -> None:
    judge(policy())
    unpinned = {f"rtmr{number}": "any" for number in range(4)}
    judge(policy(**unpinned, firmware_events=by_digest()))


def test_a_policy_of_another_machine_refuses_the_real_one() -> None:
    events = policy().events
    assert events is not None
    with pytest.raises(AppraisalRefused, match="launch event 'compose-hash' is"):
        judge(policy(events={**events, "compose-hash": ["00" * 32]}))
    with pytest.raises(AppraisalRefused, match="'LIUM_MINER_HOTKEY' happened"):
        judge(policy(events={name: "any" for name in events if name != "LIUM_MINER_HOTKEY"}))
    unpinned = {f"rtmr{number}": "any" for number in range(4)}
    fewer = dict(list(by_digest().items())[1:])
    with pytest.raises(
        AppraisalRefused, match="rtmr0 holds an event that the policy does not list: 8ae1e425"
    ):
        judge(policy(**unpinned, firmware_events=fewer))
    with pytest.raises(AppraisalRefused, match="'cmdline' is required and did not happen"):
        judge(policy(firmware_events={"cmdline": ["text:init=/bin/sh"]}))
    with pytest.raises(AppraisalRefused, match="'app-id' is required and did not happen"):
        judge(policy(events={"app-id": "any"}), event_log=b"")


def test_any_altered_event_of_a_real_log_is_refused() -> None:
    entries = json.loads(dstack_log())
    for number, entry in enumerate(entries):
        for changed in (
            entries[:number] + entries[number + 1 :],
            [*entries[: number + 1], *entries[number:]],
            [*entries[:number], {**entry, "digest": "00" * 48}, *entries[number + 1 :]],
            [*entries[:number], {**entry, "imr": (entry["imr"] + 1) % 4}, *entries[number + 1 :]],
        ):
            with pytest.raises(CloisterError):
                replay_logs(dstack(), event_log=json.dumps(changed).encode(), firmware_log=b"")


def quoted(name: str) -> Claims:
    """Claims of a machine whose registers are those of the captured log."""
    registers = replay_registers(ccel(name), algorithm="sha384")
    measured = {f"rtmr{number}": registers.get(number, bytes(48)) for number in range(4)}
    return dataclasses.replace(dstack(), measurements={**dstack().measurements, **measured})


@pytest.mark.parametrize("name", [GCP, DSTACK_CCEL])
def test_a_captured_table_replays_with_its_padding_and_without(name: str) -> None:
    table = vectors(name).read_bytes()
    claims = replay_logs(quoted(name), event_log=b"", firmware_log=table)
    assert claims.measured_events == ccel(name)
    log = table.rstrip(b"\xff")
    assert len(log) < len(table)
    assert replay_logs(quoted(name), event_log=b"", firmware_log=log).measured_events == ccel(name)
    with pytest.raises(EventLogMismatch, match="does not replay to the quoted rtmr0"):
        replay_logs(dstack(), event_log=b"", firmware_log=table)


def test_a_flipped_byte_of_a_log_changes_nothing_that_a_digest_covers() -> None:
    log = vectors(DSTACK_CCEL).read_bytes().rstrip(b"\xff")
    claims = quoted(DSTACK_CCEL)
    true = [(event.register, event.digest, event.covered) for event in ccel(DSTACK_CCEL)]
    refused = 0
    for place in range(len(log)):
        altered = bytearray(log)
        altered[place] ^= 1 << place % 8
        try:
            found = replay_logs(claims, event_log=b"", firmware_log=bytes(altered)).measured_events
        except CloisterError:
            refused += 1
            continue
        # Descriptions and types are covered by nothing; a part that is covered is either the same or given up.
        assert [(event.register, event.digest) for event in found] == [entry[:2] for entry in true]
        for event, (_, _, covered) in zip(found, true, strict=True):
            assert event.covered in (covered, None)
    assert refused > 18 * 48


def test_every_prefix_of_a_log_is_refused_or_misses_events() -> None:
    log = vectors(DSTACK_CCEL).read_bytes().rstrip(b"\xff")
    claims = quoted(DSTACK_CCEL)
    for size in range(0, len(log), 7):
        with pytest.raises(CloisterError):
            replay_logs(claims, event_log=b"", firmware_log=log[: size or 1])
