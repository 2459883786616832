"""Event logs against the registers of a verified quote: only what replays becomes a claim.

Every register that a log touches must end as the quote says; a log that cannot be compared with anything is refused,
because whoever sent it wants it to be believed. Launch events and dstack's runtime events become named claims: their
digests cover their names. Firmware events become :attr:`Claims.measured_events`: their names are the log's word.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from cloister.errors import EventLogMismatch
from cloister.evidence.dstack_log import RUNTIME_KIND, parse_dstack_log
from cloister.evidence.eventlog import LAUNCH_PCR, parse_event_log, replay
from cloister.evidence.measured import MeasuredEvent, replay_registers
from cloister.evidence.tcg_log import parse_tcg_log
from cloister.verifier.claims import Claims

_BANKS: dict[int, Literal["sha256", "sha384"]] = {32: "sha256", 48: "sha384"}


def replay_logs(claims: Claims, *, event_log: bytes, firmware_log: bytes) -> Claims:
    """``claims`` with the events of those logs, each of which must lead to the quoted registers.

    ``event_log`` holds launch events (evidence/eventlog.py), which lead to RTMR3 or PCR 15, or is dstack's (a JSON
    list, evidence/dstack_log.py), which leads to all RTMRs; ``firmware_log`` is a TCG log and leads to RTMR0 … RTMR2
    or to PCRs. Raises :class:`~cloister.errors.EventLogMismatch`, and for malformed logs
    :class:`~cloister.errors.EvidenceError` and :class:`~cloister.errors.FormatError`.
    """
    if firmware_log:
        claims = _firmware(claims, firmware_log)
    if not event_log:
        return claims
    if event_log.lstrip(b" \t\r\n").startswith(b"[") and "rtmr3" in claims.measurements:
        return _dstack(claims, event_log)
    register = "rtmr3" if "rtmr3" in claims.measurements else f"pcr{LAUNCH_PCR}"
    bank = _BANKS.get(len(claims.measurements.get(register, b"")))
    if bank is None:
        raise EventLogMismatch(
            f"a {claims.tee.upper()} quote has no register that an event log could replay to",
            todo="the log cannot be believed; send none",
        )
    events = parse_event_log(event_log)
    _compare(claims, register, replay(events, algorithm=bank), "event log")
    return replace(claims, events={event.name: event.payload for event in events})


def _dstack(claims: Claims, log: bytes) -> Claims:
    events = parse_dstack_log(log)
    _replay(claims, events, "rtmr", "sha384", "event log")
    logged = {
        event.register for event in claims.measured_events
    }  # a firmware log beside it says more of the same
    return replace(
        claims,
        events={event.name: event.data for event in events if event.kind == RUNTIME_KIND},
        measured_events=(*claims.measured_events, *(e for e in events if e.register not in logged)),
    )


def _firmware(claims: Claims, log: bytes) -> Claims:
    if "rtmr0" in claims.measurements:
        events = parse_tcg_log(log, algorithm="sha384", registers="rtmr")
        _replay(claims, events, "rtmr", "sha384", "firmware log")
        return replace(claims, measured_events=events)
    sizes = {len(value) for name, value in claims.measurements.items() if name.startswith("pcr")}
    bank = _BANKS.get(sizes.pop()) if len(sizes) == 1 else None
    if bank is None:
        raise EventLogMismatch(
            f"{claims.tee.upper()} evidence has no registers that a firmware log could replay to",
            todo="the log cannot be believed; send none",
        )
    events = parse_tcg_log(log, algorithm=bank, registers="pcr")
    _replay(claims, events, "pcr", bank, "firmware log")
    return replace(claims, measured_events=events)


def _replay(
    claims: Claims, events: Iterable[MeasuredEvent], registers: str, algorithm: str, what: str
) -> None:
    for number, value in sorted(replay_registers(events, algorithm=algorithm).items()):
        _compare(claims, f"{registers}{number}", value, what)


def _compare(claims: Claims, name: str, value: bytes, what: str) -> None:
    quoted = claims.measurements.get(name)
    if quoted is None:
        raise EventLogMismatch(
            f"the {what} has events of {name}, which is not quoted",
            todo=f"quote {name} too, or leave its events out of the log",
        )
    if not hmac.compare_digest(value, quoted):
        raise EventLogMismatch(
            f"the {what} does not replay to the quoted {name}",
            todo="something else was measured than the log says",
        )
