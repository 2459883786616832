"""How processes of a federation ask each other: over a real socket, inside the sealed channel, by records alone."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.channel.keyring import KeyRing
from cloister.channel.transport import SealedClient, connect
from cloister.encoding import Record
from cloister.errors import CloisterError, FederationError, FormatError, NetworkError
from cloister.federated.messages import MAX_SMALL, SESSIONS, Ask, Facts, FactsFrom, Session
from cloister.federated.sealed_call import Endpoint, Refused, call, sealed_service
from sealed_service import launched, listen, policy_for

ECHO, FAILING, REFUSING, FLOATING = "/echo", "/failing", "/refusing", "/floating"
ASK = Ask(party="north", federation="ab" * 32)


class Said(Record, frozen=True, kw_only=True):
    """Anything that a record can hold."""

    text: str
    data: bytes
    number: int


class Fraction(Record, frozen=True, kw_only=True):
    """What no canonical JSON has."""

    value: float


def session(ask: Ask) -> Session:
    return Session(session=ask.party, nonce=bytes.fromhex(ask.federation))


def refuse(_ask: Ask) -> Session:
    raise FederationError("north has left\x1b[31m this federation", todo="agree on a new version")


def fail(_ask: Ask) -> Session:
    raise ValueError("a patient's name in an exception")


ENDPOINTS = {
    SESSIONS: Endpoint(Ask, session, MAX_SMALL),
    ECHO: Endpoint(Said, lambda said: said, MAX_SMALL),
    REFUSING: Endpoint(Ask, refuse, MAX_SMALL),
    FAILING: Endpoint(Ask, fail, MAX_SMALL),
    FLOATING: Endpoint(Ask, lambda _ask: Fraction(value=0.5), MAX_SMALL),
}


@contextlib.contextmanager
def serving() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a service of these endpoints, and what it was given when it started."""
    tee, keyring, started = launched(), KeyRing(), []
    app = sealed_service(
        ENDPOINTS, attester=tee, keyring=keyring, max_request=MAX_SMALL, started=lambda *found: started.append(found)
    )  # fmt: skip
    listener = listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", started
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        keyring.close()


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, list[Any]]]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def client(service: tuple[str, list[Any]]) -> Iterator[SealedClient]:
    with connect(service[0], policy=policy_for(launched())) as found:
        yield found


def test_a_record_goes_in_and_a_record_comes_out(client: SealedClient) -> None:
    assert call(client, SESSIONS, ASK, Session) == Session(session="north", nonce=bytes.fromhex("ab" * 32))


@settings(max_examples=20)
@given(text=st.text(max_size=50), data=st.binary(max_size=500), number=st.integers(0, 2**53 - 1))
def test_whatever_a_record_holds_comes_back(
    client: SealedClient, text: str, data: bytes, number: int
) -> None:
    said = Said(text=text, data=data, number=number)
    assert call(client, ECHO, said, Said) == said


def test_the_service_is_told_of_its_own_evidence_when_it_starts(service: tuple[str, list[Any]]) -> None:
    ((evidence, loop),) = service[1]
    assert loop.is_running()
    assert hasattr(evidence, "evidence")


def test_health_is_all_that_is_said_in_the_clear(service: tuple[str, list[Any]]) -> None:
    url, _ = service
    with httpx2.Client(base_url=url) as plain:
        assert plain.get("/healthz").json() == {"status": "ok"}
        for path in (SESSIONS, REFUSING):
            answer = plain.post(path, content=b'{"party":"north","federation":"x"}')
            assert answer.status_code == 403
            assert b"north has left" not in answer.content


def test_a_refusal_comes_back_with_its_reason_in_one_line_that_steers_nothing(client: SealedClient) -> None:
    with pytest.raises(Refused) as refusal:
        call(client, REFUSING, ASK, Session)
    assert refusal.value.what == "north has left [31m this federation; agree on a new version"


def test_a_handler_that_breaks_tells_nothing_of_what_it_broke_on(client: SealedClient) -> None:
    with pytest.raises(CloisterError) as refusal:
        call(client, FAILING, ASK, Session)
    assert "patient" not in str(refusal.value)
    assert call(client, SESSIONS, ASK, Session).session == "north"  # and the service goes on


@pytest.mark.parametrize(
    ("path", "asked", "answer", "error", "words"),
    [
        pytest.param(SESSIONS, FactsFrom(token="t", start=0), Session, Refused, "form it should", id="another record"),
        pytest.param(
            SESSIONS, Ask(party="n" * MAX_SMALL, federation=""), Session, Refused, "over its bound", id="over its bound"
        ),
        pytest.param("/federation/v1/nothing", ASK, Session, Refused, "without a reason", id="a path that is none"),
        pytest.param("/healthz", ASK, Session, Refused, "without a reason", id="a path that takes no records"),
        pytest.param(SESSIONS, ASK, Facts, FormatError, "the answer does not have", id="an answer that was not asked for"),
        pytest.param(FLOATING, ASK, Fraction, CloisterError, "", id="an answer that no record can be"),
    ],
)  # fmt: skip
def test_what_was_not_agreed_is_refused(
    client: SealedClient, path: str, asked: Record, answer: type[Any], error: type[CloisterError], words: str
) -> None:
    with pytest.raises(error) as refusal:
        call(client, path, asked, answer)
    assert words in str(refusal.value)


def test_a_request_that_is_no_json_is_refused(client: SealedClient) -> None:
    for content in (b"", b"{", b"\x80\x04K\x01.", b"[]", b'{"party":"a","party":"b","federation":"c"}'):
        answer = client.post(SESSIONS, content=content)
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/problem+json"


def test_where_nobody_answers_any_more_it_is_the_network() -> None:
    with contextlib.ExitStack() as undo:
        with serving() as (url, _):
            found = undo.enter_context(connect(url, policy=policy_for(launched())))
            assert call(found, SESSIONS, ASK, Session).session == "north"
        with pytest.raises(NetworkError, match=r"127\.0\.0\.1 does not answer"):
            call(found, SESSIONS, ASK, Session)
