"""A conversation with a model: what was said so far, and the next answer as it streams. Kept in memory alone.

Over any ``httpx2`` client; given a sealed one (:func:`cloister.connect`) nothing of it is in the clear on its way. What a
model writes is text of others: :func:`plain` makes it harmless for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Final

import httpx2

from cloister.encoding import encode_json, parse_json
from cloister.errors import FormatError, InferenceError, NetworkError, UsageError

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
MAX_EVENT: Final = 1 << 20
"""Bytes of one server-sent event."""
MAX_ANSWER: Final = 16 << 20
"""Bytes of one answer's stream."""
MAX_ERROR: Final = 64 * 1024
MAX_NAME: Final = 512
_END: Final = re.compile(rb"\r?\n\r?\n")
_JOINERS: Final = "\u200c\u200d"
"""They print nothing and steer nothing, and several scripts and emoji need them."""


class Conversation:
    """``headers`` go with each request: an API key. ``system`` is what the model is told first."""

    def __init__(
        self,
        client: httpx2.Client,
        *,
        model: str = "",
        system: str = "",
        headers: Mapping[str, str] | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """``model`` is the first that the service names, if it is empty. Raises as :meth:`ask`."""
        self._client = client
        self._headers = dict(headers or {})
        self._system = system
        self._max_tokens = max_tokens
        self.model = model or self._first_model()
        self._said: list[dict[str, str]] = []

    @property
    def turns(self) -> int:
        """Questions with their answers."""
        return len(self._said) // 2

    def begin_anew(self) -> None:
        """Forget what was said."""
        self._said.clear()

    def ask(self, question: str) -> Generator[str, None, None]:
        """The pieces of the answer. Question and answer count as said once it came whole, or its reader has left.

        Raises UsageError for a key or a request that the service refuses, NetworkError where it does not answer, has no
        room or breaks off, InferenceError where the model fails; CloisterError of the sealed channel.
        """
        told = [{"role": "system", "content": self._system}] if self._system else []
        asked = {"role": "user", "content": question}
        body = {"model": self.model, "messages": [*told, *self._said, asked], "stream": True}
        if self._max_tokens is not None:
            body["max_tokens"] = self._max_tokens
        fields = {"content-type": "application/json", "accept": "text/event-stream", **self._headers}
        answer: list[str] = []
        try:
            with self._client.stream("POST", CHAT, content=encode_json(body), headers=fields) as response:
                _check(response)
                for piece in _pieces(_raw(response)):
                    answer.append(piece)
                    yield piece
        except httpx2.TransportError as error:
            raise _unanswered(error) from None
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(asked, answer)  # Ctrl-C comes while the next piece is waited for
            raise
        self._keep(asked, answer)

    def _keep(self, asked: dict[str, str], answer: list[str]) -> None:
        self._said += [asked, {"role": "assistant", "content": "".join(answer)}]

    def _first_model(self) -> str:
        try:
            with self._client.stream("GET", MODELS, headers=self._headers) as response:
                _check(response)
                listed = parse_json(_bounded(response), what="the list of models")
        except httpx2.TransportError as error:
            raise _unanswered(error) from None
        try:
            return str(listed["data"][0]["id"])[:MAX_NAME]
        except (KeyError, IndexError, TypeError):
            raise InferenceError("the service names no model", todo="pass --model") from None


def plain(text: str) -> str:
    """``text`` that cannot steer a terminal: what does not print is shown as an escape; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" or char in _JOINERS else f"\\u{ord(char):04x}"
        for char in text
    )


def _raw(response: httpx2.Response) -> Iterator[bytes]:
    """As it came: nobody asked for it to be squeezed."""
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FormatError("the answer is compressed, which nobody asked for")
    return response.iter_raw()


def _pieces(parts: Iterator[bytes]) -> Iterator[str]:
    """Text of a stream of chat completion chunks, up to its end mark."""
    rest, read, seen = bytearray(), 0, 0
    for part in parts:
        read += len(part)
        rest += part
        if read > MAX_ANSWER:
            raise FormatError("the answer is longer than any that is read")
        while (end := _END.search(rest, max(0, seen - 3))) is not None:
            event, seen = bytes(rest[: end.start()]), 0
            del rest[: end.end()]
            data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
            if data == b"[DONE]":
                return
            if data:
                yield from _said(data)
        seen = len(rest)
        if seen > MAX_EVENT:
            raise FormatError("the answer is longer than any that is read")
    raise NetworkError("the answer was broken off", todo="ask again")


def _said(data: bytes) -> Iterator[str]:
    chunk = parse_json(data, what="a piece of the answer")
    if not isinstance(chunk, dict):
        raise FormatError("a piece of the answer is none")
    if chunk.get("error"):
        raise InferenceError(f"the service failed in the middle: {_message(chunk)}", todo="ask again")
    try:
        for choice in chunk.get("choices", ()):
            content = choice["delta"].get("content")
            if content:
                yield str(content)
    except (AttributeError, KeyError, TypeError):
        raise FormatError("a piece of the answer is none") from None


def _check(response: httpx2.Response) -> None:
    """Raise what an answer that is none means."""
    status = response.status_code
    if status == 200:
        return
    try:
        said = _message(parse_json(_bounded(response), what="a refusal"))
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


def _bounded(response: httpx2.Response) -> bytes:
    found = bytearray()
    for part in _raw(response):
        found += part
        if len(found) > MAX_ERROR:
            raise FormatError(f"an answer is over its bound of {MAX_ERROR} bytes")
    return bytes(found)


def _message(value: Any) -> str:
    """Of an error in OpenAI's shape, on one line."""
    error = value.get("error") if isinstance(value, dict) else None
    text = str(error.get("message", "") if isinstance(error, dict) else error or "")[:300]
    return " ".join(plain(text).split()) or "no reason was given"


def _unanswered(error: Exception) -> NetworkError:
    return NetworkError(f"the service does not answer ({type(error).__name__})", todo="check that it runs")
