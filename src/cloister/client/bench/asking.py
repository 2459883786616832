"""One streamed request, timed: when its first token came, and each after it.

What a service answers is counted, never kept: an outcome holds times and numbers, and of a refusal its status. A stream that
ends without its mark is a failure, also where tokens came before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec

from cloister.errors import ChannelError

CHAT: Final = "v1/chat/completions"
MAX_EVENT: Final = 1 << 20
"""Bytes of one server-sent event."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times in seconds."""

    began: float
    """On the clock that was given."""
    took: float
    first: float | None = None
    """To the first token; None if none came."""
    gaps: tuple[float, ...] = ()
    """Between the arrivals of tokens after it; tokens that arrive together are zero apart."""
    tokens: int = 0
    """Of the answer, as the service counts them; where it does not, the chunks that came."""
    prompt_tokens: int = 0
    failure: str | None = None
    """None, or what went wrong in a word or two: ``status 503``, ``network``, ``broken off``, ``malformed``."""
    retry_after: float | None = None
    """What a refusal asked for."""
    left: bool = False
    """Whether we left on purpose before the end."""


async def ask(
    client: httpx2.AsyncClient,
    base: str,
    body: Mapping[str, Any] | bytes,
    headers: Mapping[str, str],
    *,
    path: str = CHAT,
    leave_after: int | None = None,
    leave_at: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Ask and read to the end, or until ``leave_after`` tokens came or ``leave_at`` seconds are over.

    ``base`` ends with ``/``.

    What a network, a service or a sealed channel does wrong is the outcome's ``failure``. Raises what verification of a
    sealed service raises: that is no matter of load.
    """
    began = clock()
    timed = _Timed(began, clock)
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    fields = {"content-type": "application/json", **headers}
    failure, retry_after, left = None, None, False
    try:
        async with (
            asyncio.timeout(leave_at),
            client.stream("POST", base + path, content=content, headers=fields) as answer,
        ):
            if answer.status_code != 200:
                failure, retry_after = f"status {answer.status_code}", _seconds(answer)
            elif answer.headers.get("content-type", "").startswith("text/event-stream"):
                left = await _listen(answer.aiter_bytes(), timed, leave_after)
                failure = None if left or timed.ended else timed.error or "broken off"
            else:
                timed.whole(msgspec.json.decode(await answer.aread()))
    except TimeoutError:
        left = True
    except httpx2.TransportError:
        failure = "network"
    except ChannelError:
        failure = "sealed channel"
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError, IndexError, ValueError):
        failure = "malformed"
    return Outcome(
        began=began,
        took=clock() - began,
        first=timed.first,
        gaps=tuple(timed.gaps),
        tokens=timed.tokens or timed.chunks,
        prompt_tokens=timed.prompt_tokens,
        failure=failure,
        retry_after=retry_after,
        left=left,
    )


class _Timed:
    """The times of a stream's tokens, as they arrive."""

    def __init__(self, began: float, clock: Callable[[], float]) -> None:
        self._began, self._clock = began, clock
        self._last = began
        self.first: float | None = None
        self.gaps: list[float] = []
        self.chunks = self.tokens = self.prompt_tokens = 0
        self.ended = False
        self.error: str | None = None

    def event(self, data: bytes) -> None:
        """One event of the stream."""
        if data == b"[DONE]":
            self.ended = True
            return
        value = msgspec.json.decode(data)
        if "error" in value:
            self.error = "error in the stream"
            return
        if value.get("usage"):
            self._count(value["usage"])
        choices = value.get("choices")
        if choices and _says_something(choices[0]):
            now = self._clock()
            if self.first is None:
                self.first = now - self._began
            else:
                self.gaps.append(now - self._last)
            self._last = now
            self.chunks += 1

    def whole(self, value: Mapping[str, Any]) -> None:
        """An answer that did not come as a stream."""
        self.ended = True
        self._count(value.get("usage") or {})

    def _count(self, usage: Mapping[str, Any]) -> None:
        self.tokens = int(usage.get("completion_tokens", 0))
        self.prompt_tokens = int(usage.get("prompt_tokens", 0))


async def _listen(parts: AsyncIterator[bytes], timed: _Timed, leave_after: int | None) -> bool:
    """Whether we left before the end."""
    rest = b""
    async for part in parts:
        *events, rest = (rest + part).split(b"\n\n")
        if len(rest) > MAX_EVENT:
            raise ValueError("an event without end")
        for event in events:
            for line in event.splitlines():
                if line.startswith(b"data:"):
                    timed.event(line[5:].strip())
        if leave_after is not None and timed.chunks >= leave_after:
            return True
    return False


def _says_something(choice: Mapping[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"))


def _seconds(answer: httpx2.Response) -> float | None:
    told = answer.headers.get("retry-after", "")
    return float(told[:6]) if told[:6].isdecimal() else None
