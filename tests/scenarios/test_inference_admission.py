"""Attacks on the queue: a key that asks for everything, and what others and it are told. Real HTTP, a scripted engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any
from unittest import mock

import httpx2
import pytest

from app_server import served
from cloister.inference.admission import MAX_WAITING, SHARE
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.generation import Generations
from scripted_engine import ScriptedEngine

GREEDY, MODEST = "sk-" + "g" * 40, "sk-" + "m" * 40
MOST = int(MAX_WAITING * SHARE)


class Flood:
    """A service whose one slot is held by the greedy key, with as many of its requests waiting as may wait."""

    def __init__(
        self,
        url: str,
        go_on: threading.Event,
        engine: ScriptedEngine,
        generations: Generations,
        pool: ThreadPoolExecutor,
    ) -> None:
        self.url, self.go_on, self.engine, self._pool = url, go_on, engine, pool
        self._generations = generations

    def ask(self, key: str) -> httpx2.Response:
        body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": key}]}
        headers = {"authorization": f"Bearer {key}"}
        return httpx2.post(
            f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=60, verify=False
        )

    def begin(self, key: str) -> Any:
        return self._pool.submit(self.ask, key)

    def queued(self, key: str) -> Any:
        """Begun, and in the queue behind all that is there."""
        before, asked, until = self._generations.waiting, self.begin(key), time.monotonic() + 30
        while self._generations.waiting == before:
            assert time.monotonic() < until
            time.sleep(0.005)
        return asked


@contextmanager
def flooded() -> Iterator[Flood]:
    go_on = threading.Event()
    engine = ScriptedEngine(["a"], slots=1, before=lambda _: bool(go_on.wait(30)))
    made: list[Generations] = []

    def generations(engine: ScriptedEngine) -> Generations:
        made.append(Generations(engine))
        return made[-1]

    with mock.patch("cloister.inference.app.Generations", generations):
        app = create_app(engine, model_name="m", api_keys=ApiKeys([GREEDY, MODEST]))
    with served(app) as url, ThreadPoolExecutor(MOST + 8) as pool:
        flood = Flood(url, go_on, engine, made[0], pool)
        try:
            mine = [flood.begin(GREEDY) for _ in range(MOST + 4)]
            # One has the slot and a share waits: three more are refused, and only then is the flood complete.
            refused = _first(mine, 3)
            assert {answer.status_code for answer in refused} == {429}
            yield flood
        finally:
            go_on.set()


def _first(futures: list[Any], count: int) -> list[httpx2.Response]:
    found: list[httpx2.Response] = []
    for future in as_completed(futures, timeout=30):
        found.append(future.result())
        if len(found) == count:
            break
    return found


def test_a_key_that_floods_the_queue_is_told_429_and_when_to_come_back() -> None:
    with flooded() as flood:
        answer = flood.ask(GREEDY)
        assert answer.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_another_key_gets_the_next_slot_though_it_came_last() -> None:
    with flooded() as flood:
        modest = flood.queued(MODEST)
        flood.go_on.set()
        assert modest.result(30).status_code == 200
        order = [asked["messages"][0]["content"] for asked in flood.engine.asked]
        assert order.index(MODEST) <= 2


def test_who_waits_is_told_nothing_before_there_is_a_slot() -> None:
    with flooded() as flood:
        modest = flood.queued(MODEST)
        with pytest.raises(TimeoutError):
            modest.result(0.3)
        flood.go_on.set()
        assert modest.result(30).status_code == 200
