"""The I/O under the sealed transport: performs the steps of verification.py on another ``httpx2`` transport.

One class blocks and one awaits; they decide nothing. At most one outer answer is open at a time, and it is closed
whatever happens. The opened body is handed on as it arrives; closing it closes the outer connection.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any, Final, TypeVar

import httpx2

from cloister.channel.exchange import AnswerReader
from cloister.channel.verification import Close, Head, Keep, Read, Send, Steps

T = TypeVar("T")
Ended = Callable[[AnswerReader], None]
"""Called once an answer was opened to its end, before the last of it is handed on."""

DEFAULT_TIMEOUT: Final = httpx2.Timeout(600.0, connect=5.0)
"""Seconds; long, because models think. The same as the OpenAI SDK's own."""
VERIFY_TIMEOUT: Final = httpx2.Timeout(30.0, connect=5.0)


class Wire:
    """One outer request at a time, and the answer that is open."""

    def __init__(self, origin: httpx2.URL, outer: httpx2.BaseTransport, extensions: dict[str, Any]) -> None:
        self._origin, self._outer, self._extensions = origin, outer, extensions
        self._response: httpx2.Response | None = None
        self._parts: Iterator[bytes] = iter(())

    def drive(self, steps: Steps[T]) -> T:
        """Perform ``steps`` to their end; the last answer stays open if they left it so."""
        try:
            step = next(steps)
            while True:
                step = steps.send(self._perform(step))
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException:
            self.close()
            raise

    def _perform(self, step: Send | Read | Keep | Close) -> Head | bytes | None:
        if isinstance(step, Read):
            return self.read()
        if isinstance(step, Keep):
            step.anchored.keep(step.seen)
            return None
        self.close()
        if isinstance(step, Close):
            return None
        self._response = self._outer.handle_request(_outer_request(self._origin, step, self._extensions))
        assert isinstance(self._response.stream, httpx2.SyncByteStream)  # noqa: S101 -- tells the type
        self._parts = iter(self._response.stream)
        return _outer_head(self._response)

    def read(self) -> bytes:
        return next(filter(None, self._parts), b"")

    def close(self) -> None:
        response, self._response, self._parts = self._response, None, iter(())
        if response is not None:
            response.close()


class AsyncWire:
    """As :class:`Wire`."""

    def __init__(
        self, origin: httpx2.URL, outer: httpx2.AsyncBaseTransport, extensions: dict[str, Any]
    ) -> None:
        self._origin, self._outer, self._extensions = origin, outer, extensions
        self._response: httpx2.Response | None = None
        self._parts: AsyncIterator[bytes] | None = None

    async def drive(self, steps: Steps[T]) -> T:
        """As :meth:`Wire.drive`."""
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._perform(step))
        except StopIteration as stop:
            result: T = stop.value
            return result
        except BaseException:
            await self.close()
            raise

    async def _perform(self, step: Send | Read | Keep | Close) -> Head | bytes | None:
        if isinstance(step, Read):
            return await self.read()
        if isinstance(step, Keep):
            # A small file, written only when the version rises: not worth a thread, which only asyncio would know.
            step.anchored.keep(step.seen)
            return None
        await self.close()
        if isinstance(step, Close):
            return None
        request = _outer_request(self._origin, step, self._extensions)
        self._response = await self._outer.handle_async_request(request)
        assert isinstance(self._response.stream, httpx2.AsyncByteStream)  # noqa: S101 -- tells the type
        self._parts = aiter(self._response.stream)
        return _outer_head(self._response)

    async def read(self) -> bytes:
        if self._parts is not None:
            async for part in self._parts:
                if part:
                    return part
        return b""

    async def close(self) -> None:
        response, parts = self._response, self._parts
        self._response = self._parts = None
        if isinstance(parts, AsyncGenerator):
            await parts.aclose()
        if response is not None:
            await response.aclose()


class SealedStream(httpx2.SyncByteStream):
    """The opened body, as it arrives; closing it closes the outer connection."""

    def __init__(self, wire: Wire, answer: AnswerReader, ended: Ended) -> None:
        self._wire, self._answer, self._ended = wire, answer, ended

    def __iter__(self) -> Iterator[bytes]:
        if self._answer.ended:  # it came whole with its head
            self._ended(self._answer)
        yield from self._answer.waiting
        while not self._answer.ended:
            part = self._wire.read()
            found = self._answer.feed(part) if part else self._answer.finish()
            if not part:
                self._ended(self._answer)
            yield from found

    def close(self) -> None:
        self._wire.close()


class AsyncSealedStream(httpx2.AsyncByteStream):
    """As :class:`SealedStream`."""

    def __init__(self, wire: AsyncWire, answer: AnswerReader, ended: Ended) -> None:
        self._wire, self._answer, self._ended = wire, answer, ended

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._answer.ended:
            self._ended(self._answer)
        for data in self._answer.waiting:
            yield data
        while not self._answer.ended:
            part = await self._wire.read()
            found = self._answer.feed(part) if part else self._answer.finish()
            if not part:
                self._ended(self._answer)
            for data in found:
                yield data

    async def aclose(self) -> None:
        await self._wire.close()


def _outer_request(origin: httpx2.URL, step: Send, extensions: dict[str, Any]) -> httpx2.Request:
    """Nothing of the caller's request is in it but its time limits."""
    timeout = VERIFY_TIMEOUT.as_dict() if step.quick else extensions.get("timeout", DEFAULT_TIMEOUT.as_dict())
    return httpx2.Request(
        step.method,
        origin.join(step.path),
        headers=list(step.fields),
        content=step.content,
        extensions={"timeout": timeout},
    )


def _outer_head(response: httpx2.Response) -> Head:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Head(status=response.status_code, media_type=media_type)
