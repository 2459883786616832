"""Event logs against the registers of a verified quote: only what replays becomes a claim."""

from __future__ import annotations

import hmac
from dataclasses import replace

from cloister.errors import EventLogMismatch
from cloister.evidence.eventlog import parse_event_log, replay
from cloister.verifier.claims import Claims


def replay_logs(claims: Claims, *, event_log: bytes, firmware_log: bytes) -> Claims:
    """``claims`` with the events of those logs, each of which must lead to the quoted registers.

    ``event_log`` holds launch events (evidence/eventlog.py) and leads to RTMR3, ``firmware_log`` is a TCG log
    and leads to RTMR0 … RTMR2 or to PCRs. Raises :class:`~cloister.errors.EventLogMismatch`.
    """
    if firmware_log:
        raise EventLogMismatch("firmware logs are not read yet")
    if not event_log:
        return claims
    register = claims.measurements.get("rtmr3")
    if register is None:
        raise EventLogMismatch(
            f"a {claims.tee.upper()} quote has no register that an event log could replay to",
            todo="the log cannot be believed; send none",
        )
    events = parse_event_log(event_log)
    if not hmac.compare_digest(replay(events), register):
        raise EventLogMismatch(
            "the event log does not replay to the quoted rtmr3",
            todo="something else was launched than the log says",
        )
    return replace(claims, events={event.name: event.payload for event in events})
