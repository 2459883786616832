"""A question and its way to a cited answer: what was asked before, retrieval, threshold, prompt, the engine.

What is told comes in this order: the passages that the answer was given, its text piece by piece, its end with citations.
Where no passage is near enough to the question the engine is not asked at all: the answer says that it is not there.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from cloister.inference.answers import gathered
from cloister.inference.exchange import Caller
from cloister.inference.generation import Moment
from cloister.inference.openai_requests import EngineRequest
from cloister.inference.rooms import Desk
from cloister.knowledge.citations import Citation, citations
from cloister.knowledge.prompt import NOT_THERE, REWRITTEN, Count, Message, alone, prompt
from cloister.knowledge.requests import MAX_QUESTION, AnswerRequest
from cloister.knowledge.reranking import body, favour, judged, reordered
from cloister.knowledge.retrieval import Hit
from cloister.knowledge.shelf import Library
from cloister.knowledge.threads import Threads

MAX_ANSWER: Final = 512
"""Tokens of an answer where a request does not say, or a quarter of the context where that is less."""


@dataclass(frozen=True, slots=True)
class Given:
    """What the answer is made from; empty where nothing was near enough."""

    hits: tuple[Hit, ...]
    question: str
    """As it was looked for: a follow-up stands alone here."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete."""

    answered: bool
    reason: str
    citations: tuple[Citation, ...]
    usage: Mapping[str, int]


Told = Given | Piece | End


@dataclass(frozen=True, slots=True)
class Answering:
    """Answers from one library by one engine."""

    shelf: Library
    desk: Desk
    count: Count
    least_nearness: float
    rerank: int
    """Passages that the model puts in order before the best are taken; none for the order in which they were found."""
    threads: Threads
    """Of the room alone: what it does must not hold up who asks for evidence."""

    async def hits(
        self, questions: list[str], collections: Collection[str], caller: Caller, *, most: int
    ) -> list[Hit]:
        """Passages that may answer, beside the event loop. Raises RequestRefused where too many ask."""
        return await self.threads.in_turn(
            caller.tenant, partial(self.shelf.hits, questions, collections, most=most)
        )

    async def answer(
        self,
        request: AnswerRequest,
        collections: Collection[str],
        caller: Caller,
        *,
        system: str = "",
        moment: Moment | None = None,
    ) -> AsyncIterator[Told]:
        """``collections`` are those of the request that the caller may read. Raises RequestRefused, InferenceError."""
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        wordings = [request.question]
        if request.history:
            standing = await self._standing(request, caller, usage)
            wordings = [standing, request.question] if standing else wordings
        hits = await self.hits(wordings, collections, caller, most=max(request.passages, self.rerank))
        near = [hit for hit in hits if hit.nearness >= self.least_nearness]
        if self.rerank and len(near) > 1:
            near[: self.rerank] = await self._reranked(wordings[0], near[: self.rerank], caller, usage)
        del near[request.passages :]
        if not near:
            yield Given((), wordings[0])
            yield Piece(NOT_THERE)
            yield End(False, "stop", (), _summed(usage))
            return
        whole = self.desk.context_length
        length = min(request.max_tokens or MAX_ANSWER, whole // 2 if request.max_tokens else whole // 4)
        asked = await self.threads.run(
            prompt,
            request.question,
            [hit.found for hit in near],
            request.history,
            system=system,
            fence=f"======{secrets.token_hex(8)}======",
            count=self.count,
            context_length=whole,
            answer=length,
        )
        kept = {found.id for found in asked.given}
        yield Given(tuple(hit for hit in near if hit.found.id in kept), wordings[0])
        wanted = _body(asked.messages, length, request)
        told: list[str] = []
        reason = "stop"
        async with self.desk.generations.chunks(
            "chat", wanted, tenant=caller.tenant, moment=moment
        ) as chunks:
            async for chunk in chunks:
                _add(usage, chunk.get("usage"))
                for choice in chunk.get("choices", ()):
                    piece = (choice.get("delta") or {}).get("content")
                    if piece:
                        told.append(piece)
                        yield Piece(piece)
                    reason = choice.get("finish_reason") or reason
        text = "".join(told)
        yield End(NOT_THERE not in text, reason, citations(text, len(asked.given)), _summed(usage))

    async def _reranked(
        self, question: str, hits: list[Hit], caller: Caller, usage: dict[str, int]
    ) -> list[Hit]:
        """In the order of what the model says of each. Raises RequestRefused where it does not tell what is likely."""
        fence = f"======{secrets.token_hex(8)}======"
        favours: list[float | None] = []
        for hit in hits:
            messages = await self.threads.run(
                judged, question, hit.found, fence=fence, count=self.count, context_length=self.desk.context_length,
            )  # fmt: skip
            said: float | None = None
            if messages:
                async with self.desk.generations.chunks(
                    "chat", body(messages), tenant=caller.tenant
                ) as chunks:
                    async for chunk in chunks:
                        _add(usage, chunk.get("usage"))
                        for choice in chunk.get("choices", ()):
                            said = favour(choice.get("logprobs")) if said is None else said
            favours.append(said)
        return reordered(hits, favours)

    async def _standing(self, request: AnswerRequest, caller: Caller, usage: dict[str, int]) -> str:
        """A follow-up as a question that stands alone, by the model; empty if it finds none."""
        messages = await self.threads.run(
            alone,
            request.question,
            request.history,
            count=self.count,
            context_length=self.desk.context_length,
        )
        if not messages:
            return ""
        wanted = {"messages": list(messages), "max_tokens": REWRITTEN, "temperature": 0.0}
        async with self.desk.generations.chunks("chat", wanted, tenant=caller.tenant) as chunks:
            found = await gathered(chunks, EngineRequest("chat", wanted, "knowledge"))
        _add(usage, found["usage"])
        content = str(found["choices"][0]["message"]["content"] or "") if found["choices"] else ""
        return " ".join(content.split())[:MAX_QUESTION]


def _body(messages: tuple[Message, ...], length: int, request: AnswerRequest) -> dict[str, Any]:
    # The likeliest words, where nobody asks for others: an answer from documents is no invention.
    body: dict[str, Any] = {"messages": list(messages), "max_tokens": length, "temperature": 0.0}
    for name in ("temperature", "top_p", "stop"):
        value = getattr(request, name)
        if value is not None:
            body[name] = list(value) if isinstance(value, list | tuple) else value
    if request.seed is not None:
        body["seed"] = request.seed % 0xFFFFFFFF
    return body


def _add(usage: dict[str, int], more: object) -> None:
    if isinstance(more, Mapping):
        for name in usage:
            usage[name] += int(more.get(name, 0))


def _summed(usage: Mapping[str, int]) -> dict[str, int]:
    return {**usage, "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}
