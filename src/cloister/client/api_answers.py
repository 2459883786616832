"""What a service answers to its API's clients: refusals as errors, server-sent events, all of it bounded.

Over any ``httpx2`` client; given a sealed one (:func:`cloister.connect`) nothing of it is in the clear on its way. What a
service writes is text of others: :func:`plain` makes it harmless for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import httpx2

from cloister.encoding import parse_json
from cloister.errors import FormatError, InferenceError, NetworkError, UsageError

MAX_EVENT: Final = 1 << 20
"""Bytes of one server-sent event."""
MAX_ANSWER: Final = 16 << 20
"""Bytes of one answer's stream."""
MAX_ERROR: Final = 64 * 1024
_END: Final = re.compile(rb"\r?\n\r?\n")
_JOINERS: Final = "\u200c\u200d"
"""They print nothing and steer nothing, and several scripts and emoji need them."""


def plain(text: str) -> str:
    """``text`` that cannot steer a terminal: what does not print is shown as an escape; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" or char in _JOINERS else f"\\u{ord(char):04x}"
        for char in text
    )


def raw(response: httpx2.Response) -> Iterator[bytes]:
    """As it came: nobody asked for it to be squeezed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FormatError("the answer is compressed, which nobody asked for")
    return response.iter_raw()


def events(response: httpx2.Response) -> Iterator[bytes]:
    """The data of each server-sent event, up to the end of the answer. Raises FormatError, httpx2.TransportError."""
    rest, read, seen = bytearray(), 0, 0
    for part in raw(response):
        read += len(part)
        rest += part
        if read > MAX_ANSWER:
            raise FormatError("the answer is longer than any that is read")
        while (end := _END.search(rest, max(0, seen - 3))) is not None:
            event, seen = bytes(rest[: end.start()]), 0
            del rest[: end.end()]
            data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
            if data:
                yield data
        seen = len(rest)
        if seen > MAX_EVENT:
            raise FormatError("the answer is longer than any that is read")


def broken_off() -> NetworkError:
    """An answer that ended before its end."""
    return NetworkError("the answer was broken off", todo="ask again")


def event_object(data: bytes) -> dict[str, Any]:
    """An event's JSON object. Raises FormatError, and InferenceError for one that tells of a failure."""
    value = parse_json(data, what="a piece of the answer")
    if not isinstance(value, dict):
        raise FormatError("a piece of the answer is none")
    if value.get("error"):
        raise InferenceError(f"the service failed in the middle: {message(value)}", todo="ask again")
    return value


def check(response: httpx2.Response) -> None:
    """Raise what an answer that is none means."""
    status = response.status_code
    if status == 200:
        return
    try:
        said = message(parse_json(bounded(response), what="a refusal"))
    except FormatError:
        said = "no reason was given"
    if status in (401, 403):
        raise UsageError(f"the service refuses this key: {said}", todo="pass --service-key-file")
    if status in (429, 503):
        wait = response.headers.get("retry-after", "")[:6]
        raise NetworkError(
            f"the service has no room: {said}",
            todo=f"again in {wait} s" if wait.isdecimal() else "again in a moment",
        )
    if status < 500:
        raise UsageError(f"the service refuses this request (status {status}): {said}")
    raise InferenceError(f"the service failed (status {status}): {said}", todo="ask again")


def bounded(response: httpx2.Response, limit: int = MAX_ERROR) -> bytes:
    """The whole body. Raises FormatError for one of over ``limit`` bytes."""
    found = bytearray()
    for part in raw(response):
        found += part
        if len(found) > limit:
            raise FormatError(f"an answer is over its bound of {limit} bytes")
    return bytes(found)


def message(value: Any) -> str:
    """Of an error in OpenAI's shape, on one line."""
    error = value.get("error") if isinstance(value, dict) else None
    text = str(error.get("message", "") if isinstance(error, dict) else error or "")[:300]
    return " ".join(plain(text).split()) or "no reason was given"


def unanswered(error: Exception) -> NetworkError:
    return NetworkError(f"the service does not answer ({type(error).__name__})", todo="check that it runs")
