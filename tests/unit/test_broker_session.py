"""Sessions: single use, short lives, bounded tables, a new identifier once attested."""

from __future__ import annotations

import pytest

from broker_parts import NOW, workload
from cloister.broker import protocol
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import RuntimeData
from cloister.broker.session import (
    CHALLENGE_SECONDS,
    SESSION_SECONDS,
    Attested,
    Pending,
    Sessions,
    TooManySessions,
    session_digest,
)
from cloister.encoding import encode_json
from cloister.errors import SessionRefused


def _attest(sessions: Sessions, pending: Pending, ends: int = NOW + 10_000) -> tuple[str, Attested]:
    runtime = RuntimeData(nonce=protocol.encode_nonce(pending.nonce), tee_pubkey=TeeKeyPair.generate().public)
    bundle = collect(workload(), pending.nonce, encode_json(runtime))
    return sessions.attested(pending, bundle, runtime, ends=ends, now=NOW)


def test_a_challenge_is_spent_once() -> None:
    sessions = Sessions()
    identifier, pending = sessions.challenge("tdx", NOW)
    assert sessions.spend(identifier, NOW) == pending
    with pytest.raises(SessionRefused):
        sessions.spend(identifier, NOW)


def test_a_challenge_ends() -> None:
    sessions = Sessions()
    identifier, _ = sessions.challenge("tdx", NOW)
    with pytest.raises(SessionRefused):
        sessions.spend(identifier, NOW + CHALLENGE_SECONDS)


def test_an_attested_session_ends_with_its_result_or_after_its_time() -> None:
    sessions = Sessions()
    _, pending = sessions.challenge("tdx", NOW)
    _, short = _attest(sessions, pending, ends=NOW + 10)
    _, long = _attest(sessions, pending)
    assert (short.expires, long.expires) == (NOW + 10, NOW + SESSION_SECONDS)
    assert sessions.find(short.digest, NOW + 9) is short
    with pytest.raises(SessionRefused):
        sessions.find(short.digest, NOW + 10)


def test_neither_identifier_opens_the_other_table() -> None:
    sessions = Sessions()
    first, pending = sessions.challenge("tdx", NOW)
    second, _ = _attest(sessions, pending)
    assert first != second
    with pytest.raises(SessionRefused):
        sessions.find(session_digest(first), NOW)
    with pytest.raises(SessionRefused):
        sessions.spend(second, NOW)


def test_a_full_table_refuses_and_evicts_nobody() -> None:
    sessions = Sessions(limit=3)
    first, _ = sessions.challenge("tdx", NOW)
    for _ in range(2):
        sessions.challenge("tdx", NOW)
    with pytest.raises(TooManySessions):
        sessions.challenge("tdx", NOW)
    sessions.spend(first, NOW)
    sessions.challenge("tdx", NOW)


def test_ended_challenges_make_room() -> None:
    sessions = Sessions(limit=2)
    for _ in range(10):
        sessions.challenge("tdx", NOW)
        sessions.challenge("tdx", NOW)
        with pytest.raises(TooManySessions):
            sessions.challenge("tdx", NOW + CHALLENGE_SECONDS - 1)
        sessions = Sessions(limit=2)
    sessions.challenge("tdx", NOW)
    sessions.challenge("tdx", NOW)
    sessions.challenge("tdx", NOW + CHALLENGE_SECONDS)


@pytest.mark.parametrize("identifier", ["", "A", "A" * 42, "A" * 44, "é" * 43, "=" * 43, "A" * 42 + "B"])
def test_what_is_no_identifier_is_refused(identifier: str) -> None:
    with pytest.raises(SessionRefused):
        Sessions().spend(identifier, NOW)
