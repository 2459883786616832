"""When a sealed answer leaves, and what its sizes and moments show. The framing is in the property and vector tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from cloister.channel.cadence import Cadence
from cloister.channel.chunks import ChunkReader
from cloister.channel.hpke import Kem, Suite
from cloister.channel.ohttp_response import ResponseOpener, ResponseSealer
from cloister.channel.padding import BUCKETS
from cloister.channel.sealed_response import GRACE, SealedResponse
from skipping_loop import run

CADENCE = 0.05
ENC, SECRET, SUITE = b"e" * 32, b"s" * 32, Suite(Kem.X_WING)
NONCE_LENGTH = 32


class Wire:
    """What left, and when."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, bytes]] = []

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.parts.append((asyncio.get_running_loop().time(), message["body"]))

    def sizes(self) -> list[list[int]]:
        """Sizes of the sealed chunks in each part."""
        found = []
        for number, (_, body) in enumerate(self.parts):
            reader = ChunkReader(chunked=True, max_chunk=BUCKETS[-1])
            reader.push(body[NONCE_LENGTH:] if number == 0 else body)
            found.append([len(chunk) for chunk in iter(reader.next_chunk, None)])
        return found

    def opened(self) -> bytes:
        opener = ResponseOpener(SUITE, ENC, SECRET, chunked=True, max_chunk=BUCKETS[-1])
        parts = [part for _, body in self.parts for part in opener.feed(body)]
        return b"".join((*parts, *opener.finish()))


def answer(
    wire: Wire, *, send: Callable[[Any], Awaitable[None]] | None = None, seconds: float = 60.0
) -> SealedResponse:
    sealer = ResponseSealer(SUITE, ENC, SECRET, chunked=True, entropy=bytes)
    return SealedResponse(
        send or wire.send, sealer, padded=True, cadence=Cadence(CADENCE), send_seconds=seconds
    )


async def say(response: SealedResponse, words: Sequence[bytes], pause: float, *, end: bool = True) -> None:
    await response.send({"type": "http.response.start", "status": 200, "headers": []})
    for number, word in enumerate(words):
        if number:
            await asyncio.sleep(pause)
        await response.send({"type": "http.response.body", "body": word, "more_body": True})
    if end:
        await response.send({"type": "http.response.body", "body": b""})
        await response.stop()


def test_the_first_data_waits_for_no_tick_and_takes_along_what_is_written_in_the_same_breath() -> None:
    async def main() -> tuple[float, Wire]:
        wire = Wire()
        response = answer(wire)
        began = asyncio.get_running_loop().time()
        await say(response, [b"role", b"token"], 0, end=False)
        await asyncio.sleep(CADENCE / 2)
        taken = wire.parts[0][0] - began
        await response.stop()
        return taken, wire

    taken, wire = run(main())
    assert taken == 0
    assert len(wire.parts) == 1


def test_tokens_are_collected_between_ticks_and_keep_their_order() -> None:
    words = [b"<%d>" % number for number in range(60)]

    async def main() -> Wire:
        wire = Wire()
        await say(answer(wire), words, 0.005)
        return wire

    wire = run(main())
    gone = wire.opened()
    places = [gone.index(word) for word in words]
    assert places == sorted(places)
    moments = [moment for moment, _ in wire.parts]
    assert len(moments) <= 2 + 60 * 0.005 / CADENCE + 1
    assert max(after - before for before, after in pairwise(moments)) < CADENCE + 1e-6


def test_neither_sizes_nor_moments_show_the_lengths_of_tokens() -> None:
    async def main(words: list[bytes]) -> Wire:
        wire = Wire()
        await say(answer(wire), words, CADENCE * 1.1)
        return wire

    short, long = run(main([b"a"] * 6)), run(main([b"a" * 300] * 6))
    assert {size for part in short.sizes() for size in part} == {512 + 16}
    for wire in (short, long):
        sizes = [size for part in wire.sizes() for size in part]
        assert set(sizes) <= {bucket + 16 for bucket in BUCKETS}
        # Behind the first, everything but the end leaves at a multiple of the cadence.
        assert all(round(moment / CADENCE, 3).is_integer() for moment, _ in wire.parts[1:-1])
    assert [moment for moment, _ in short.parts] == [moment for moment, _ in long.parts]


def test_a_second_breath_does_not_wait_for_a_tick() -> None:
    async def main() -> float:
        wire = Wire()
        response = answer(wire)
        await say(response, [b"role"], 0, end=False)
        while not wire.parts:  # noqa: ASYNC110 -- turns of the loop are what passes
            await asyncio.sleep(0)
        await response.send({"type": "http.response.body", "body": b"token", "more_body": True})
        await asyncio.sleep(2 * CADENCE)
        await response.stop()
        return wire.parts[1][0] - wire.parts[0][0]

    assert run(main()) == pytest.approx(GRACE)


def test_a_client_that_makes_no_room_is_given_up_in_the_time_allowed() -> None:
    async def main() -> float:
        stuck = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await stuck.wait()

        response = answer(Wire(), send=send, seconds=0.2)
        began = asyncio.get_running_loop().time()
        with pytest.raises(OSError, match="does not read"):
            await say(response, [b"word"], 0)
        assert response.gone.is_set()
        with pytest.raises(OSError, match="left"):
            await response.send({"type": "http.response.body", "body": b"more", "more_body": True})
        await response.stop()
        return asyncio.get_running_loop().time() - began

    assert run(main()) == pytest.approx(0.2)


def test_a_cancelled_application_stays_cancelled_while_it_waits_for_its_client() -> None:
    async def main() -> None:
        stuck = asyncio.Event()

        async def send(message: Any) -> None:
            await stuck.wait()

        task = asyncio.create_task(say(answer(Wire(), send=send), [b"word"], 0))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
