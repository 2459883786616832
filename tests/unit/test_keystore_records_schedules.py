"""Brokers that make versions at one moment, in every order that there is.

A store that does one request after the other is modelled; the brokers run the real code. A broker is what it was answered so
far: it is run anew from its start up to the first request that has no answer yet, so that every order of the answers can
be gone through. What a broker crashes in is a broker that is not answered any more, so crashes are among the orders.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from cloister.broker.keystores.records import (
    CLAIM_ENDS,
    CLAIM_SECONDS,
    RecordedKeystore,
    VersionRecord,
    made,
    told,
)
from cloister.broker.keystores.versioned import ForeignVersion
from cloister.errors import KeystoreUnavailable
from keystore_contract import NOW, OWNER

LOST = "no answer"

Keys = frozenset[tuple[int, str]]


@dataclass(frozen=True)
class Request:
    """What a broker asks of its store or, with ``clock``, of its own clock."""

    what: str
    arguments: tuple[Any, ...] = ()


@cache
def told_by(records: frozenset[VersionRecord]) -> tuple[ForeignVersion, ...]:
    return told("k", records, "the store")


@dataclass(frozen=True)
class State:
    """The objects in the store, what has not been done yet of what was not answered, and the time."""

    records: frozenset[VersionRecord]
    keys: Keys
    late: frozenset[Request] = frozenset()
    time: int = 0

    @property
    def versions(self) -> tuple[ForeignVersion, ...]:
        return told_by(self.records)

    def after(self, request: Request) -> State:
        records, keys = self.records, self.keys
        match request:
            case Request("create", made):
                keys |= {made}
            case Request("write", (record,)):
                records |= {record}
            case Request("remove", (record,)):
                records -= {record}
            case Request("erase", erased):
                keys -= {erased}
        return replace(self, records=records, keys=keys)


class Waits(BaseException):
    """There is no answer yet."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.request = request


class Replayed(RecordedKeystore):
    """Its requests are answered by what is given; the first without an answer ends it."""

    algorithm = "none"
    label = "none"
    store = "the store"

    def __init__(self, name: str, answers: tuple[Any, ...], *, timed: bool) -> None:
        super().__init__(self._time if timed else lambda: 0.0)
        self._name = name
        self._answers: Iterator[Any] = iter(answers)
        self._created = 0
        self._began: float | None = None

    def time_of_day(self) -> int:
        """And from the same moment on its clock runs."""
        self._began = self._time()
        return NOW + int(self._began)

    def _answer(self, what: str, *arguments: Any) -> Any:
        for answer in self._answers:
            if answer is LOST:
                raise KeystoreUnavailable("lost")
            return answer
        raise Waits(Request(what, arguments))

    def _time(self) -> float:
        began, self._began = self._began, None
        return float(self._answer("clock")) if began is None else began

    def _records(self, key: str, *, certain: bool = False) -> Collection[VersionRecord]:
        return self._answer("records")  # type: ignore[no-any-return]

    def _create(self, key: str, number: int) -> str:
        self._created += 1
        name = f"{self._name}{self._created}"
        self._answer("create", number, name)
        return name

    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        may()
        self._answer("write", record)

    def _remove(self, record: VersionRecord) -> None:
        self._answer("remove", record)

    def _erase(self, key: str, number: int, name: str) -> None:
        self._answer("erase", number, name)

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        raise NotImplementedError

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        raise NotImplementedError


@dataclass(frozen=True)
class Broker:
    """One that rotates, and asks again so often."""

    name: str
    tries: int = 1
    now: int = NOW
    timed: bool = False
    """It asks what time it is; without that none passes."""

    def next(self, answers: tuple[Any, ...]) -> Request | None:
        """What it asks after ``answers``; None when it is through."""
        store = Replayed(self.name, answers, timed=self.timed)
        try:
            for _ in range(self.tries):
                try:
                    store.rotate("k", now=store.time_of_day() if self.timed else self.now)
                    break
                except KeystoreUnavailable:
                    pass
        except Waits as waits:
            return waits.request
        return None


START = State(frozenset({made("k", 1, OWNER, NOW, "first")}), frozenset({(1, "first")}))
Answers = tuple[tuple[Any, ...], ...]


def answered(answers: Answers, place: int, answer: Any) -> Answers:
    return (*answers[:place], (*answers[place], answer), *answers[place + 1 :])


def explore(brokers: tuple[Broker, ...], *, losses: int = 0) -> Iterator[State]:
    """Every state in which all brokers are through, after a look at every one on the way to it.

    ``losses`` answers to brokers that ask again are lost at any place: their request is done at any later time, at once
    and never included.
    """
    asks = cache(lambda place, answers: brokers[place].next(answers))
    places = range(len(brokers))
    contents: set[tuple[frozenset[VersionRecord], Keys]] = set()
    todo: list[tuple[State, Answers, int]] = [(START, ((),) * len(brokers), losses)]
    seen = set(todo)

    def push(before: State, state: State, answers: Answers, left: int) -> None:
        new = state.versions  # raises if there are two of one, or a gap
        assert new[: len(before.versions)] == before.versions, "a version has gone"
        assert {(one.number, one.handle) for one in new} <= state.keys, "a version has no key"
        if (state, answers, left) not in seen:
            seen.add((state, answers, left))
            todo.append((state, answers, left))

    while todo:
        state, answers, left = todo.pop()
        if (state.records, state.keys) not in contents:
            contents.add((state.records, state.keys))
            recovers(state)
        requests = [asks(place, given) for place, given in enumerate(answers)]
        for request in state.late:
            push(state, replace(state, late=state.late - {request}).after(request), answers, left)
        for place, request in enumerate(requests):
            if request is None:
                continue
            if request.what == "clock":
                for new in passing(
                    state, [(answers[other], requests[other]) for other in places if other != place]
                ):
                    push(state, new, answered(answers, place, new.time), left)
                continue
            answer = state.records if request.what == "records" else None
            push(state, state.after(request), answered(answers, place, answer), left)
            if left and brokers[place].tries > 1:
                late = state.late if request.what == "records" else state.late | {request}
                push(state, replace(state, late=late), answered(answers, place, LOST), left - 1)
        if not any(requests):
            yield state


def passing(state: State, others: list[tuple[tuple[Any, ...], Request | None]]) -> Iterator[State]:
    """What may be when a broker looks at its clock: the same moment, or later."""
    yield state
    if state.time <= CLAIM_SECONDS:
        yield replace(state, time=CLAIM_SECONDS + 1)
    # Nine minutes are more than passes between a look at the clock and the end of the request right after it.
    confirming = any(
        request is not None
        and request.what == "write"
        and request.arguments[0].state == "made"
        and is_time(given[-1])
        for given, request in others
    )
    if state.time < CLAIM_ENDS and not confirming:
        yield replace(state, time=CLAIM_SECONDS + CLAIM_ENDS, late=frozenset())


def is_time(answer: Any) -> bool:
    return isinstance(answer, int)


def recovers(state: State) -> None:
    """Were all brokers dead now: ten minutes after the last claim another makes the next version, and cleans up."""
    answers: tuple[Any, ...] = ()
    before = state.versions
    broker = Broker("later", now=max(one.created for one in state.records) + CLAIM_ENDS)
    while (request := broker.next(answers)) is not None:
        answers = (*answers, state.records if request.what == "records" else None)
        state = state.after(request)
    assert state.versions[:-1] == before
    assert state.versions[-1].handle.startswith("later")
    assert not [one for one in state.records if one.state == "claimed"]


def test_three_brokers_that_rotate_never_share_a_number_leave_a_gap_or_take_a_version_back() -> None:
    ends = set(explore((Broker("a"), Broker("b"), Broker("c"))))
    assert {len(state.versions) for state in ends} == {1, 2, 3, 4}
    for state in ends:  # nobody crashed, so nothing is left behind
        assert len(state.records) == len(state.versions) == len(state.keys)


def test_an_answer_that_is_lost_at_any_place_does_no_harm_however_late_its_request_is_done() -> None:
    ends = set(explore((Broker("a", tries=3), Broker("b", tries=2)), losses=1))
    assert {len(state.versions) for state in ends} >= {1, 2, 3}


def test_two_answers_that_are_lost_are_made_good_by_the_same_broker_at_once() -> None:
    for state in explore((Broker("a", tries=3),), losses=2):
        assert len(state.versions) >= 2


def test_a_broker_that_is_too_slow_never_makes_a_version_of_a_claim_that_another_took_away() -> None:
    ends = set(explore((Broker("a", tries=2, timed=True), Broker("b", timed=True))))
    assert {len(state.versions) for state in ends} == {1, 2, 3}


def test_a_broker_that_was_not_answered_and_comes_back_too_late_never_takes_back_what_became_a_version() -> (
    None
):
    ends = set(explore((Broker("a", tries=2, timed=True), Broker("b", timed=True)), losses=1))
    assert {len(state.versions) for state in ends} == {1, 2, 3, 4}
