from __future__ import annotations

import asyncio

import pytest

from cloister.inference.admission import MAX_RETRY, Admission
from cloister.inference.api_errors import RequestRefused
from skipping_loop import run

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32


async def asking(admission: Admission, tenant: bytes | None, seconds: float, log: list[bytes | None]) -> None:
    place = await admission.enter(tenant)
    log.append(tenant)
    await asyncio.sleep(seconds)
    admission.leave(place)


def test_free_slots_go_round_the_keys_and_not_to_who_asked_most() -> None:
    async def main() -> list[bytes | None]:
        admission = Admission(1)
        log: list[bytes | None] = []
        tenants = [A, A, A, A, B, B, C]
        async with asyncio.TaskGroup() as group:
            for tenant in tenants:
                group.create_task(asking(admission, tenant, 1.0, log))
                await asyncio.sleep(0)
        assert admission.waiting == 0
        return log

    assert run(main()) == [A, A, B, C, A, B, A]


def test_one_key_fills_its_share_of_the_queue_and_no_more() -> None:
    async def main() -> None:
        admission = Admission(1, max_waiting=8, share=0.25)
        log: list[bytes | None] = []
        async with asyncio.TaskGroup() as group:
            for _ in range(3):  # one slot, a share of two
                group.create_task(asking(admission, A, 1.0, log))
                await asyncio.sleep(0)
            with pytest.raises(RequestRefused) as refused:
                await admission.enter(A)
            assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
            group.create_task(asking(admission, B, 1.0, log))
            await asyncio.sleep(0)
            assert admission.waiting == 3
        assert sorted(filter(None, log)) == [A, A, A, B]

    run(main())


def test_a_full_queue_refuses_everybody_with_503() -> None:
    async def main() -> None:
        admission = Admission(1, max_waiting=2, share=0.5)
        log: list[bytes | None] = []
        async with asyncio.TaskGroup() as group:
            for tenant in (A, A, B):
                group.create_task(asking(admission, tenant, 1.0, log))
                await asyncio.sleep(0)
            with pytest.raises(RequestRefused) as refused:
                await admission.enter(C)
            assert (refused.value.status, refused.value.code) == (503, "overloaded")

    run(main())


def test_where_nobody_is_asked_for_keys_the_whole_queue_is_everybodys() -> None:
    async def main() -> None:
        admission = Admission(1, max_waiting=4)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(asking(admission, None, 1.0, []))
                await asyncio.sleep(0)
            with pytest.raises(RequestRefused) as refused:
                await admission.enter(None)
            assert refused.value.status == 503

    run(main())


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        pytest.param(0.01, 1, id="quick requests"),
        pytest.param(3.0, 6, id="two slots, four waiting, three seconds each"),
        pytest.param(500.0, MAX_RETRY, id="slow requests"),
    ],
)
def test_a_refusal_says_how_long_the_queue_takes(seconds: float, told: int) -> None:
    async def main() -> int | None:
        admission = Admission(2, max_waiting=4, clock=asyncio.get_running_loop().time)
        for _ in range(3):
            await asking(admission, None, seconds, [])
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(asking(admission, None, seconds, []))
                await asyncio.sleep(0)
            with pytest.raises(RequestRefused) as refused:
                await admission.enter(None)
        return refused.value.retry_after

    assert run(main()) == told


def test_before_anything_is_done_the_age_of_what_runs_is_the_measure() -> None:
    async def main() -> int | None:
        admission = Admission(1, max_waiting=1, clock=asyncio.get_running_loop().time)
        place = await admission.enter(None)
        waiting = asyncio.create_task(admission.enter(None))
        await asyncio.sleep(7)
        with pytest.raises(RequestRefused) as refused:
            await admission.enter(None)
        admission.leave(place)
        admission.leave(await waiting)
        return refused.value.retry_after

    assert run(main()) == 7


def test_a_slot_that_comes_while_its_waiter_leaves_is_not_lost() -> None:
    async def main() -> None:
        admission = Admission(1)
        place = await admission.enter(A)
        first, second = (asyncio.create_task(admission.enter(tenant)) for tenant in (A, B))
        await asyncio.sleep(0)
        admission.leave(place)
        admission.leave(place)  # again, without effect
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        admission.leave(await second)
        assert admission.waiting == 0
        await asyncio.wait_for(admission.enter(C), 1)

    run(main())


def test_whoever_leaves_the_queue_makes_room_in_it() -> None:
    async def main() -> None:
        admission = Admission(1, max_waiting=1)
        await admission.enter(A)
        waiting = asyncio.create_task(admission.enter(A))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert admission.waiting == 0
        other = asyncio.create_task(admission.enter(B))
        await asyncio.sleep(0)
        assert admission.waiting == 1
        other.cancel()

    run(main())
