"""The broker's clock only rises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from broker_parts import NOW, Clock
from cloister.broker.clock import RisingClock


def test_time_that_is_turned_back_stands_still() -> None:
    host = Clock()
    clock = RisingClock(host)
    assert clock() == NOW
    host.now = NOW + 5
    assert clock() == NOW + 5
    host.now = NOW - 1000
    assert clock() == NOW + 5
    host.now = NOW + 6
    assert clock() == NOW + 6


def test_what_was_verified_to_have_been_is_a_floor_and_never_lowers_it() -> None:
    clock = RisingClock(Clock())
    assert clock.raise_to(NOW + 100) == NOW + 100
    assert clock() == NOW + 100
    assert clock.raise_to(NOW - 100) == NOW + 100
    assert clock() == NOW + 100


def test_no_thread_sees_it_go_back() -> None:
    host = Clock()
    clock = RisingClock(host)

    def look(number: int) -> bool:
        host.now = NOW + (number * 7919) % 100
        seen = [clock() for _ in range(200)]
        return seen == sorted(seen)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(32)))
