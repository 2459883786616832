"""Sessions: single use, short lives, bounded tables, a new identifier once attested."""

from __future__ import annotations

import pytest

from broker_parts import NOW, workload
from cloister.broker import protocol
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.profiles import announce, present
from cloister.broker.protocol import Attestation, RuntimeData, TeeEvidence
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

TDX = announce(protocol.auth_request("tdx"))


def _attest(
    sessions: Sessions, pending: Pending, *, ends: int = NOW + 10_000, size: int = 1000, now: int = NOW
) -> tuple[str, Attested]:
    runtime = RuntimeData(nonce=protocol.encode_nonce(pending.nonce), tee_pubkey=TeeKeyPair.generate().public)
    bundle = collect(workload(), pending.nonce, encode_json(runtime))
    body = encode_json(Attestation(runtime_data=runtime, tee_evidence=TeeEvidence(primary_evidence=bundle)))
    presented = present(pending.announced, body, collateral=None, device_collateral=None)
    return sessions.attested(pending, presented, policy="0" * 64, size=size, ends=ends, now=now)


def test_a_challenge_is_spent_once() -> None:
    sessions = Sessions()
    identifier, pending = sessions.challenge(TDX, NOW)
    assert sessions.spend(identifier, NOW) == pending
    with pytest.raises(SessionRefused):
        sessions.spend(identifier, NOW)


def test_a_challenge_ends() -> None:
    sessions = Sessions()
    identifier, _ = sessions.challenge(TDX, NOW)
    with pytest.raises(SessionRefused):
        sessions.spend(identifier, NOW + CHALLENGE_SECONDS)


def test_an_attested_session_ends_with_its_result_or_after_its_time() -> None:
    sessions = Sessions()
    _, pending = sessions.challenge(TDX, NOW)
    _, short = _attest(sessions, pending, ends=NOW + 10)
    _, long = _attest(sessions, pending)
    assert (short.expires, long.expires) == (NOW + 10, NOW + SESSION_SECONDS)
    assert sessions.find(short.digest, NOW + 9) is short
    with pytest.raises(SessionRefused):
        sessions.find(short.digest, NOW + 10)


def test_neither_identifier_opens_the_other_table() -> None:
    sessions = Sessions()
    first, pending = sessions.challenge(TDX, NOW)
    second, _ = _attest(sessions, pending)
    assert first != second
    with pytest.raises(SessionRefused):
        sessions.find(session_digest(first), NOW)
    with pytest.raises(SessionRefused):
        sessions.spend(second, NOW)


def test_a_full_table_refuses_and_evicts_nobody() -> None:
    sessions = Sessions(challenges=3)
    first, _ = sessions.challenge(TDX, NOW)
    for _ in range(2):
        sessions.challenge(TDX, NOW)
    with pytest.raises(TooManySessions):
        sessions.challenge(TDX, NOW)
    sessions.spend(first, NOW)
    sessions.challenge(TDX, NOW)


def test_ended_challenges_make_room() -> None:
    sessions = Sessions(challenges=2)
    for _ in range(10):
        sessions.challenge(TDX, NOW)
        sessions.challenge(TDX, NOW)
        with pytest.raises(TooManySessions):
            sessions.challenge(TDX, NOW + CHALLENGE_SECONDS - 1)
        sessions = Sessions(challenges=2)
    sessions.challenge(TDX, NOW)
    sessions.challenge(TDX, NOW)
    sessions.challenge(TDX, NOW + CHALLENGE_SECONDS)


@pytest.mark.parametrize("identifier", ["", "A", "A" * 42, "A" * 44, "é" * 43, "=" * 43, "A" * 42 + "B"])
def test_what_is_no_identifier_is_refused(identifier: str) -> None:
    with pytest.raises(SessionRefused):
        Sessions().spend(identifier, NOW)


def test_evidence_that_sessions_hold_is_bounded_and_ended_ones_make_room() -> None:
    sessions = Sessions(max_held=3000)
    _, pending = sessions.challenge(TDX, NOW)
    kept = [_attest(sessions, pending)[1] for _ in range(3)]
    with pytest.raises(TooManySessions, match="evidence"):
        _attest(sessions, pending, size=1)
    assert [sessions.find(one.digest, NOW) for one in kept] == kept
    _, later = _attest(sessions, pending, size=3000, now=NOW + SESSION_SECONDS)
    assert sessions.find(later.digest, NOW + SESSION_SECONDS) is later
    with pytest.raises(SessionRefused):
        sessions.find(kept[0].digest, NOW)


def test_a_full_table_of_attested_sessions_refuses_and_evicts_nobody() -> None:
    sessions = Sessions(limit=2)
    _, pending = sessions.challenge(TDX, NOW)
    kept = [_attest(sessions, pending)[1] for _ in range(2)]
    with pytest.raises(TooManySessions):
        _attest(sessions, pending)
    assert [sessions.find(one.digest, NOW) for one in kept] == kept


def test_a_session_shows_no_identifier_of_itself() -> None:
    sessions = Sessions()
    first, pending = sessions.challenge(TDX, NOW)
    second, session = _attest(sessions, pending)
    for identifier in (first, second):
        assert identifier not in repr(session) + repr(pending) + repr(vars(sessions))
