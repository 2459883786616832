from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cloister.inference.api_errors import RequestRefused
from cloister.inference.generation import Bell, ChunkBuffer, Generations
from scripted_engine import ScriptedEngine


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))  # type: ignore[arg-type]


async def words(generations: Generations) -> list[str]:
    async with generations.chunks("text", {}) as chunks:
        return [choice["text"] async for chunk in chunks for choice in chunk["choices"] if choice["text"]]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 -- what is waited for happens on the engine's thread
        await asyncio.sleep(0.005)


def test_chunks_arrive_in_order_and_whole() -> None:
    async def main() -> None:
        expected = [str(number) for number in range(5000)]
        generations = Generations(ScriptedEngine(expected))
        assert await words(generations) == expected
        generations.close()

    run(main)


def test_no_more_requests_run_at_once_than_the_engine_has_slots() -> None:
    async def main() -> None:
        running = most = 0
        lock = threading.Lock()
        everyone = threading.Event()

        def before(_: int) -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 3:
                    everyone.set()
            everyone.wait(20)
            time.sleep(0.05)  # a fourth would be seen
            with lock:
                running -= 1

        generations = Generations(ScriptedEngine(["a"], slots=3, before=before))
        answers = await asyncio.gather(*(words(generations) for _ in range(9)))
        assert answers == [["a"]] * 9
        assert most == 3
        generations.close()

    run(main)


def test_a_full_queue_refuses_at_once_instead_of_waiting() -> None:
    async def main() -> None:
        go_on = threading.Event()
        generations = Generations(
            ScriptedEngine(["a"], slots=1, before=lambda _: bool(go_on.wait(20))), max_waiting=1
        )
        tasks = [asyncio.create_task(words(generations)) for _ in range(2)]
        await until(lambda: generations.running == 1)
        await asyncio.sleep(0)
        with pytest.raises(RequestRefused) as refused:
            await words(generations)
        assert refused.value.status == 503
        go_on.set()
        assert await asyncio.gather(*tasks) == [["a"], ["a"]]
        generations.close()

    run(main)


def test_a_client_that_stops_reading_stops_the_engine_and_frees_the_slot() -> None:
    async def main() -> None:
        engine = ScriptedEngine(("a" for _ in iter(int, 1)), slots=1)  # never ends by itself
        generations = Generations(engine)
        async with generations.chunks("text", {}) as chunks:
            async for _ in chunks:
                break
        await until(engine.stopped.is_set)
        await until(lambda: generations.running == 0)
        generations.close()

    run(main)


def test_a_cancelled_request_that_waits_leaves_the_queue() -> None:
    async def main() -> None:
        go_on = threading.Event()
        engine = ScriptedEngine(["a"], slots=1, before=lambda _: bool(go_on.wait(20)))
        generations = Generations(engine)
        first = asyncio.create_task(words(generations))
        await until(lambda: generations.running == 1)
        second = asyncio.create_task(words(generations))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        go_on.set()
        assert await first == ["a"]
        assert len(engine.asked) == 1
        assert await words(generations) == ["a"]
        generations.close()

    run(main)


def test_an_error_comes_behind_the_chunks_before_it() -> None:
    async def main() -> None:
        generations = Generations(ScriptedEngine(["a", "b"], error=RequestRefused("no")))
        seen: list[Any] = []

        async def read() -> None:
            async with generations.chunks("text", {}) as chunks:
                async for chunk in chunks:
                    seen.append(chunk["choices"][0]["text"])

        with pytest.raises(RequestRefused):
            await read()
        assert seen == ["a", "b"]
        generations.close()

    run(main)


def test_a_full_buffer_holds_the_engine_and_counts_a_stalled_client_as_gone() -> None:
    async def main() -> None:
        buffer = ChunkBuffer(Bell(asyncio.get_running_loop()), limit=2, stall=0.05)
        assert [buffer.put({"number": number}) for number in range(2)] == [False, False]
        assert await asyncio.to_thread(buffer.put, {"number": 2}) is True
        buffer.end(None)
        with pytest.raises(RequestRefused):
            _ = [chunk async for chunk in buffer]

    run(main)


def test_an_empty_chunk_only_asks_whether_to_go_on() -> None:
    async def main() -> None:
        buffer = ChunkBuffer(Bell(asyncio.get_running_loop()))
        assert buffer.put({}) is False
        buffer.abandon()
        assert buffer.put({}) is True
        buffer.end(None)
        assert [chunk async for chunk in buffer] == []

    run(main)


def test_closing_lets_go_of_running_requests() -> None:
    async def main() -> None:
        engine = ScriptedEngine(("a" for _ in iter(int, 1)), slots=1)
        generations = Generations(engine)
        async with generations.chunks("text", {}):
            generations.close()
            await until(engine.stopped.is_set)
        with pytest.raises(RequestRefused):
            await words(generations)

    run(main)
