from __future__ import annotations

import asyncio

from cloister.channel.cadence import Cadence
from skipping_loop import run

SECONDS = 0.02


def test_a_tick_serves_everybody_who_waits_and_comes_at_a_multiple_of_its_time() -> None:
    async def main() -> list[float]:
        cadence, loop = Cadence(SECONDS), asyncio.get_running_loop()
        moments: list[float] = []
        for pause in (0.001, 0.003, 0.004):
            await asyncio.sleep(pause)
            cadence.at_tick(lambda: moments.append(loop.time()))
        await asyncio.sleep(3 * SECONDS)
        return moments

    first, *others = run(main())
    assert [first, first] == others
    assert round(first / SECONDS, 3).is_integer()


def test_what_is_written_before_a_tick_is_sent_at_it() -> None:
    async def main() -> None:
        cadence, loop = Cadence(SECONDS), asyncio.get_running_loop()
        said: list[str] = []
        turn = loop.create_future()
        cadence.before_tick(lambda: turn.set_result(loop.time()))
        due = await turn
        said.append("written")
        cadence.at_tick(lambda: said.append("sent"))
        while len(said) < 2:  # noqa: ASYNC110 -- turns of the loop are what passes
            await asyncio.sleep(0)
        assert loop.time() == due
        assert said == ["written", "sent"]

    run(main())


def test_who_asks_while_a_tick_lasts_is_called_at_the_next_and_not_forgotten() -> None:
    async def main() -> None:
        cadence = Cadence(SECONDS)
        calls: list[int] = []

        def again() -> None:
            calls.append(1)
            if len(calls) < 4:
                cadence.before_tick(again)

        cadence.before_tick(again)
        async with asyncio.timeout(10):
            while len(calls) < 4:  # noqa: ASYNC110 -- ticks are what is waited for
                await asyncio.sleep(0.001)

    run(main())


def test_a_cadence_goes_on_in_another_loop() -> None:
    cadence = Cadence(SECONDS)

    async def main() -> None:
        done = asyncio.Event()
        cadence.at_tick(done.set)
        await asyncio.wait_for(done.wait(), 5)
        cadence.at_tick(done.set)  # the loop ends before this tick

    run(main())
    run(main())
