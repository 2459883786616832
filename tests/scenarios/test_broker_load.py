"""Many at once: 200 sessions over one broker, and counted releases over two replicas that share a witness."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

import manifest_parts
from broker_parts import PATH, SECRET, Bench, OwnersBench, attested, owners_manifest, served, workload
from cloister.broker import custody as custody_module
from cloister.broker.custody import Custody
from cloister.broker.service import Broker
from cloister.broker.state_key import Share
from cloister.broker.tree_head import log_id
from cloister.broker.witness_app import create_witness
from cloister.broker.witness_memory import Witness
from cloister.manifest.manifest import Witnesses

SESSIONS = 200
CLIENTS = 8
EACH = 12


def test_two_hundred_sessions_at_once_are_served_without_an_error(tmp_path: Path) -> None:
    bench, tee = Bench(tmp_path / "state"), workload()
    bench.put()
    bench.allow(tee, releases=SESSIONS)
    start = threading.Barrier(SESSIONS)

    def one(_number: int) -> bytes:
        start.wait(60)
        return attested(bench, tee).get()

    with ThreadPoolExecutor(SESSIONS) as pool:
        assert list(pool.map(one, range(SESSIONS))) == [SECRET] * SESSIONS
    assert len(bench.told("attestation")) == SESSIONS
    # Each got a number of its own, whoever shared a transaction with it.
    assert [entry.reason for entry in bench.told("release")] == [
        f"release {n}" for n in range(1, SESSIONS + 1)
    ]


class Late:
    """A witness that starts when the log that it is for is known."""

    app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is None:
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self.app(scope, receive, send)


@dataclass
class Replica:
    """One of the brokers on a state, as :class:`broker_parts.Attempt` asks it."""

    broker: Broker


def test_replicas_that_share_a_witness_are_never_taken_for_a_rollback_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custody_module, "RETRY_SECONDS", 0.05)
    wanda, late, tee = manifest_parts.owner("wanda"), Late(), workload()
    genesis = owners_manifest(witnesses=Witnesses(keys={"wanda": wanda.key}, threshold=1))
    (tmp_path / "wanda").mkdir(mode=0o700)
    with served(late) as url:
        bench = OwnersBench(tmp_path / "state", genesis, witnesses={"wanda": url})
        log_key = bytes.fromhex(bench.custody.progress().log_key)
        late.app = create_witness(Witness(tmp_path / "wanda", wanda, {log_id(log_key): log_key}))
        until(lambda: bench.custody.opened)
        shares = bench.share_out()
        bench.have_done("put", PATH, SECRET)
        bench.allow(releases=1_000)
        replicas = [bench.custody, opened(bench, shares["alice"], shares["bob"])]

        def client(number: int) -> Counter[str]:
            ended = Counter[str]()
            replica = Replica(OwnersBench.desk_over(replicas[number % 2]).broker)
            attempt = attested(replica, tee)  # type: ignore[arg-type]
            for _ in range(EACH):
                ended["released" if attempt.get() == SECRET else "wrong"] += 1
            return ended

        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [pool.submit(client, number) for number in range(CLIENTS)]
            third = opened(
                bench, shares["alice"], shares["bob"]
            )  # a replica that starts while the others are busy
            ended = sum((one.result(60) for one in asked), Counter[str]())
        until(lambda: third.opened)
        assert ended == {"released": CLIENTS * EACH}
        assert [entry.reason for entry in bench.told("release")] == [
            f"release {number}" for number in range(1, CLIENTS * EACH + 1)
        ]


def opened(bench: OwnersBench, *shares: Share) -> Custody:
    """One more replica that its owners opened."""
    custody = bench.again()
    for share in shares:
        custody.offer(share)
    return custody


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
