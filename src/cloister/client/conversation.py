"""A conversation with a model: what was said so far, and the next answer as it streams. Kept in memory alone.

Over any ``httpx2`` client; given a sealed one (:func:`cloister.connect`) nothing of it is in the clear on its way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2

from cloister.client.api_answers import bounded, broken_off, check, event_object, events, unanswered
from cloister.encoding import encode_json, parse_json
from cloister.errors import FormatError, InferenceError

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
MAX_NAME: Final = 512


@dataclass(frozen=True, slots=True)
class Source:
    """A passage of a document that an answer was given."""

    number: int
    """As the answer cites it."""
    document: str
    title: str
    page: int | None

    def __str__(self) -> str:
        page = "" if self.page is None else f", page {self.page}"
        return f"[{self.number}] {self.title} ({self.document}{page})"


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
        self.sources: tuple[Source, ...] = ()
        """Of the last answer, where it was made from documents."""

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
        self.sources = ()
        try:
            with self._client.stream("POST", CHAT, content=encode_json(body), headers=fields) as response:
                check(response)
                for chunk in _chunks(response):
                    self.sources = _sources(chunk) or self.sources
                    for piece in _said(chunk):
                        answer.append(piece)
                        yield piece
        except httpx2.TransportError as error:
            raise unanswered(error) from None
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(asked, answer)  # Ctrl-C comes while the next piece is waited for
            raise
        self._keep(asked, answer)

    def _keep(self, asked: dict[str, str], answer: list[str]) -> None:
        self._said += [asked, {"role": "assistant", "content": "".join(answer)}]

    def _first_model(self) -> str:
        try:
            with self._client.stream("GET", MODELS, headers=self._headers) as response:
                check(response)
                listed = parse_json(bounded(response), what="the list of models")
        except httpx2.TransportError as error:
            raise unanswered(error) from None
        try:
            return str(listed["data"][0]["id"])[:MAX_NAME]
        except (KeyError, IndexError, TypeError):
            raise InferenceError("the service names no model", todo="pass --model") from None


def _chunks(response: httpx2.Response) -> Iterator[dict[str, Any]]:
    """Chat completion chunks, up to the end mark."""
    for data in events(response):
        if data == b"[DONE]":
            return
        yield event_object(data)
    raise broken_off()


def _sources(chunk: dict[str, Any]) -> tuple[Source, ...]:
    """Of a chunk that tells them."""
    told = chunk.get("knowledge")
    passages = told.get("passages", ()) if isinstance(told, dict) else ()
    try:
        return tuple(
            Source(int(one["number"]), str(one["document"]), str(one["title"]), one["first_page"])
            for one in passages
        )
    except (KeyError, TypeError, ValueError):
        raise FormatError("a piece of the answer is none") from None


def _said(chunk: dict[str, Any]) -> Iterator[str]:
    try:
        for choice in chunk.get("choices", ()):
            content = choice["delta"].get("content")
            if content:
                yield str(content)
    except (AttributeError, KeyError, TypeError):
        raise FormatError("a piece of the answer is none") from None
