"""Event logs against quoted registers: every register that a log touches must end as the quote says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache

import pytest

import simulated_evidence as attacks
from cloister.attester.simulation.quote import Layout
from cloister.endorsements.roots import simulated_root
from cloister.errors import EventLogMismatch, EvidenceError, FormatError
from cloister.evidence.dstack_log import RUNTIME_EVENT, runtime_digest
from cloister.evidence.eventlog import LaunchEvent, encode_event_log, replay
from cloister.verifier import intel
from cloister.verifier.claims import Claims
from cloister.verifier.logs import replay_logs
from cloister.verifier.rules import IntelRules
from simulated_evidence import NOW
from tcg_logs import EV_ACTION, EV_NO_ACTION, EV_SEPARATOR, Logged, log

EVENTS = (LaunchEvent(name="cloister.config", payload=b"\x11"), LaunchEvent(name="other", payload=b""))
LAUNCH = encode_event_log(EVENTS)
CCEL = (Logged(1, EV_SEPARATOR, bytes(4)), Logged(2, EV_ACTION, b"a"), Logged(1, EV_ACTION, b"b"))


@cache
def verified(layout: Layout = Layout.TDX_V4) -> Claims:
    shown = attacks.honest(layout)
    return intel.verify(
        shown.quote,
        shown.collateral.encode(),
        root=simulated_root(attacks.platform().root_sha256),
        now=NOW,
        rules=IntelRules(min_tcb_evaluation_number=1),
    )


def registers(events: tuple[Logged, ...], size: int = 48, start: bytes = b"") -> dict[int, bytes]:
    """Index -> the register after ``events``, worked out apart from the code under test."""
    algorithm = {32: "sha256", 48: "sha384"}[size]
    found: dict[int, bytes] = {0: start} if start else {}
    for event in events:
        before = found.get(event.index, bytes(size))
        found[event.index] = hashlib.new(algorithm, before + event.extended(algorithm)).digest()
    return found


def domain(events: tuple[Logged, ...] = CCEL, launch: tuple[LaunchEvent, ...] = EVENTS) -> Claims:
    """A trust domain that measured these."""
    quoted = {f"rtmr{index - 1}": value for index, value in registers(events).items()}
    return dataclasses.replace(
        verified(), measurements={**verified().measurements, **quoted, "rtmr3": replay(launch)}
    )


def vtpm(events: tuple[Logged, ...], size: int = 32, **further: bytes) -> Claims:
    """A TPM that measured these."""
    quoted = {f"pcr{index}": value for index, value in registers(events, size).items()}
    return dataclasses.replace(verified(), tee="tpm", measurements={**quoted, **further})


def dstack(*entries: tuple[int, int, str, bytes]) -> bytes:
    """A dstack log of (register, type, name, payload)."""
    return json.dumps(
        [
            {
                "imr": register,
                "event_type": kind,
                "event": name,
                "event_payload": payload.hex(),
                "digest": (
                    runtime_digest(name, payload)
                    if kind == RUNTIME_EVENT
                    else hashlib.sha384(payload).digest()
                ).hex(),
            }
            for register, kind, name, payload in entries
        ]
    ).encode()


DSTACK = (
    (1, EV_SEPARATOR, "", bytes(4)),
    (3, RUNTIME_EVENT, "app-id", b"\1"),
    (3, RUNTIME_EVENT, "ready", b""),
)


def dstack_domain() -> Claims:
    third = bytes(48)
    for name, payload in (("app-id", b"\1"), ("ready", b"")):
        third = hashlib.sha384(third + runtime_digest(name, payload)).digest()
    first = hashlib.sha384(bytes(48) + hashlib.sha384(bytes(4)).digest()).digest()
    measured = {**verified().measurements, "rtmr1": first, "rtmr3": third}
    return dataclasses.replace(verified(), measurements=measured)


def test_no_log_changes_nothing() -> None:
    assert replay_logs(verified(), event_log=b"", firmware_log=b"") is verified()


def test_launch_events_become_claims() -> None:
    claims = replay_logs(domain(), event_log=LAUNCH, firmware_log=b"")
    assert claims.events == {"cloister.config": b"\x11", "other": b""}
    assert claims.measured_events == ()


def test_a_firmware_log_becomes_measured_events_and_never_named_claims() -> None:
    claims = replay_logs(domain(), event_log=LAUNCH, firmware_log=log(*CCEL, padding=b"\xff" * 99))
    assert [(event.register, event.name) for event in claims.measured_events] == [
        (0, "separator"),
        (1, "action"),
        (0, "action"),
    ]
    assert set(claims.events) == {"cloister.config", "other"}


def test_a_dstack_log_becomes_both() -> None:
    claims = replay_logs(dstack_domain(), event_log=dstack(*DSTACK), firmware_log=b"")
    assert claims.events == {"app-id": b"\1", "ready": b""}
    assert [event.register for event in claims.measured_events] == [1, 3, 3]


def test_a_firmware_log_beside_a_dstack_log_is_not_counted_twice() -> None:
    ccel = log(Logged(2, EV_SEPARATOR, bytes(4)))
    claims = replay_logs(dstack_domain(), event_log=dstack(*DSTACK), firmware_log=ccel)
    assert [event.register for event in claims.measured_events] == [1, 3, 3]


@pytest.mark.parametrize("size", [32, 48])
def test_a_tpms_log_replays_to_its_pcrs_in_their_bank(size: int) -> None:
    algorithms = ("sha1", "sha256", "sha384")
    events = (Logged(0, EV_SEPARATOR, bytes(4)), Logged(7, EV_ACTION, b"a"))
    claims = vtpm(events, size, pcr23=bytes(size))
    found = replay_logs(claims, event_log=b"", firmware_log=log(*events, algorithms=algorithms))
    assert [event.register for event in found.measured_events] == [0, 7]


def test_the_startup_locality_counts() -> None:
    events = (Logged(0, EV_NO_ACTION, b"StartupLocality\0\3"), Logged(0, EV_SEPARATOR, bytes(4)))
    data = log(*events, algorithms=("sha256",))
    right = registers(events[1:], 32, start=bytes(31) + b"\3")[0]
    replay_logs(vtpm((), pcr0=right), event_log=b"", firmware_log=data)
    with pytest.raises(EventLogMismatch, match="quoted pcr0"):
        replay_logs(vtpm(events[1:]), event_log=b"", firmware_log=data)


@pytest.mark.parametrize(("size", "algorithm"), [(32, "sha256"), (48, "sha384")])
def test_launch_events_of_a_tpm_replay_to_pcr_15(size: int, algorithm: str) -> None:
    claims = vtpm((), size, pcr15=replay(EVENTS, algorithm=algorithm))
    found = replay_logs(claims, event_log=LAUNCH, firmware_log=b"")
    assert set(found.events) == {"cloister.config", "other"}
    with pytest.raises(EventLogMismatch, match="quoted pcr15"):
        replay_logs(vtpm((), size, pcr15=bytes(size)), event_log=LAUNCH, firmware_log=b"")


LIES = {
    # name: (claims, event log, firmware log, error, part of the text)
    "a launch event left out": (
        domain(),
        encode_event_log(EVENTS[:1]),
        b"",
        EventLogMismatch,
        "event log does not replay to the quoted rtmr3",
    ),
    "a launch event altered": (
        domain(),
        encode_event_log((LaunchEvent(name="cloister.config", payload=b"\x12"), EVENTS[1])),
        b"",
        EventLogMismatch,
        "event log does not replay to the quoted rtmr3",
    ),
    "a firmware event left out": (
        domain(),
        b"",
        log(*CCEL[:2]),
        EventLogMismatch,
        "firmware log does not replay to the quoted rtmr0",
    ),
    "firmware events in another order": (
        domain(),
        b"",
        log(CCEL[2], CCEL[1], CCEL[0]),
        EventLogMismatch,
        "quoted rtmr0",
    ),
    "one register right, one wrong": (
        domain(),
        b"",
        log(*CCEL, Logged(3, EV_ACTION, b"more")),
        EventLogMismatch,
        "quoted rtmr2",
    ),
    "a firmware event in the launcher's register": (
        domain(),
        LAUNCH,
        log(*CCEL, Logged(4, EV_ACTION, b"more")),
        EventLogMismatch,
        "quoted rtmr3",
    ),
    "a digest taken from elsewhere": (
        domain(),
        b"",
        log(CCEL[0], dataclasses.replace(CCEL[1], digest=b"\x66" * 48), CCEL[2]),
        EventLogMismatch,
        "quoted rtmr1",
    ),
    "a dstack runtime event left out": (
        dstack_domain(),
        dstack(*DSTACK[:2]),
        b"",
        EventLogMismatch,
        "quoted rtmr3",
    ),
    "a dstack firmware event too many": (
        dstack_domain(),
        dstack(*DSTACK, (2, EV_ACTION, "", b"more")),
        b"",
        EventLogMismatch,
        "quoted rtmr2",
    ),
    "a dstack log in place of a launch log": (
        domain(),
        dstack(*DSTACK),
        b"",
        EventLogMismatch,
        "does not replay",
    ),
    "neither form": (domain(), b"()", b"", FormatError, "launch event log is not JSON"),
    "a list that is no dstack log": (domain(), b" [1]", b"", FormatError, "dstack event log"),
    "a TPM's log beside a trust domain": (
        domain(),
        b"",
        log(Logged(0, EV_SEPARATOR, bytes(4)), algorithms=("sha256",)),
        EvidenceError,
        "no sha384 digests",
    ),
    "an event of a PCR that is not quoted": (
        vtpm((Logged(0, EV_SEPARATOR, bytes(4)),)),
        b"",
        log(Logged(0, EV_SEPARATOR, bytes(4)), Logged(14, EV_ACTION, b"a"), algorithms=("sha256",)),
        EventLogMismatch,
        "events of pcr14, which is not quoted",
    ),
    "a launch log beside a TPM without PCR 15": (
        vtpm((Logged(0, EV_SEPARATOR, bytes(4)),)),
        LAUNCH,
        b"",
        EventLogMismatch,
        "no register",
    ),
    "a dstack log beside a TPM": (
        vtpm((), pcr15=bytes(32)),
        dstack(*DSTACK),
        b"",
        FormatError,
        "launch event log",
    ),
    "a launch log beside an enclave": (verified(Layout.SGX_V3), LAUNCH, b"", EventLogMismatch, "no register"),
    "a firmware log beside an enclave": (
        verified(Layout.SGX_V3),
        b"",
        log(*CCEL),
        EventLogMismatch,
        "no registers that a firmware log",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_log_that_lies_is_refused(case: str) -> None:
    claims, event_log, firmware_log, error, text = LIES[case]
    with pytest.raises(error, match=text):
        replay_logs(claims, event_log=event_log, firmware_log=firmware_log)
