"""Rate limits: one peer's flood is told to wait, nobody else notices, and the table does not grow."""

from __future__ import annotations

from typing import Any

import pytest

from broker_parts import Reply, call
from cloister.broker.limits import Buckets, RateLimit
from cloister.broker.metrics import Metrics


class Ticks:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def limit(ticks: Ticks, metrics: Metrics) -> RateLimit:
    buckets = Buckets(rate=0.5, burst=3, ticks=ticks, max_peers=4)
    return RateLimit(answer, buckets=buckets, metrics=metrics)


def ask(limit: RateLimit, address: str | None, path: bytes = b"/kbs/v0/auth") -> Reply:
    return call(limit, "POST", path, client=None if address is None else (address, 12345))


def statuses(limit: RateLimit, address: str | None, count: int) -> list[int]:
    return [ask(limit, address).status for _ in range(count)]


def test_after_its_burst_a_peer_is_told_when_to_come_back(
    limit: RateLimit, ticks: Ticks, metrics: Metrics
) -> None:
    assert statuses(limit, "192.0.2.1", 5) == [200, 200, 200, 429, 429]
    refused = ask(limit, "192.0.2.1")
    assert (refused.problem, refused.headers["retry-after"]) == ("too-many-requests", "2")
    assert b"cloister_broker_limited_total 3.0" in metrics.render()
    ticks.now += 2
    assert statuses(limit, "192.0.2.1", 2) == [200, 429]
    ticks.now += 1000
    assert statuses(limit, "192.0.2.1", 4) == [200, 200, 200, 429]


def test_one_peer_s_flood_is_not_another_s(limit: RateLimit) -> None:
    assert 429 in statuses(limit, "192.0.2.1", 10)
    assert statuses(limit, "192.0.2.2", 3) == [200, 200, 200]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("no address", "no address", True),
        (None, None, True),
    ],
)
def test_addresses_of_ipv6_count_by_their_network(
    limit: RateLimit, one: str | None, other: str | None, shared: bool
) -> None:
    statuses(limit, one, 3)
    assert (ask(limit, other).status == 429) is shared


def test_whether_the_process_runs_may_be_asked_without_end(limit: RateLimit) -> None:
    assert {ask(limit, "192.0.2.1", b"/healthz").status for _ in range(20)} == {200}
    assert statuses(limit, "192.0.2.1", 4) == [200, 200, 200, 429]


@pytest.mark.parametrize("path", [b"/readyz", b"/metrics"])
def test_what_looks_into_the_state_is_counted(limit: RateLimit, path: bytes) -> None:
    assert [ask(limit, "192.0.2.1", path).status for _ in range(4)] == [200, 200, 200, 429]


def test_a_path_that_only_looks_exempt_is_counted(limit: RateLimit) -> None:
    found = [
        ask(limit, "192.0.2.1", path).status for path in (b"/healthz/", b"/metrics/x", b"//healthz", b"/x")
    ]
    assert found == [200, 200, 200, 429]


def test_the_table_is_bounded_whoever_comes(limit: RateLimit) -> None:
    for number in range(100):
        ask(limit, f"192.0.2.{number}")
    assert len(limit._buckets._left) == 4
    assert statuses(limit, "192.0.2.99", 3) == [200, 200, 429]
