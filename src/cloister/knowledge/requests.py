"""What the knowledge endpoints are asked, strictly (docs/spec/knowledge-service.md). Pure."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from msgspec import Meta

from cloister.encoding import Record
from cloister.inference.api_errors import RequestRefused
from cloister.inference.openai_requests import ChatRequest, Count, Seed, Stop, Temperature, TextPart, Unit

MAX_QUESTION: Final = 16 * 1024
"""Characters."""
MAX_PASSAGES: Final = 32
MAX_TURNS: Final = 256
USUAL_PASSAGES: Final = 8
MAX_NAME: Final = 512
PREFIX: Final = "knowledge/"
"""Of the names of models."""
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TAKEN: Final = (
    "tools", "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "logit_bias", "prediction",
)  # fmt: skip
"""What a question to documents does not have: tools are off, and an answer is text."""

Question = Annotated[str, Meta(min_length=1, max_length=MAX_QUESTION)]
Names = Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]


class Turn(Record, frozen=True, kw_only=True):
    """What was said before."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(max_length=1 << 20)]


class SearchRequest(Record, frozen=True, kw_only=True):
    question: Question
    collections: Names
    passages: Annotated[int, Meta(ge=1, le=MAX_PASSAGES)] = USUAL_PASSAGES


class AnswerRequest(Record, frozen=True, kw_only=True):
    question: Question
    collections: Names
    history: Annotated[tuple[Turn, ...], Meta(max_length=MAX_TURNS)] = ()
    passages: Annotated[int, Meta(ge=1, le=MAX_PASSAGES)] = USUAL_PASSAGES
    stream: bool = False
    max_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Unit | None = None
    seed: Seed | None = None
    stop: Stop | None = None


class AddRequest(Record, frozen=True, kw_only=True):
    """A document whose parts were uploaded."""

    digest: str
    """SHA-256 of the content."""
    parts: Annotated[int, Meta(ge=1, le=1024)]


def of_chat(request: ChatRequest) -> tuple[AnswerRequest, str]:
    """A chat completion as a question, and what its system messages say. Raises RequestRefused."""
    for name in _TAKEN:
        if getattr(request, name):
            raise RequestRefused(f"Questions to documents have no {name}", code="unsupported", param=name)
    if (request.n or 1) > 1:
        raise RequestRefused("Questions to documents have one answer", code="unsupported", param="n")
    system: list[str] = []
    turns: list[Turn] = []
    for message in request.messages:
        text = _text(message.content)
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role == "user":
            turns.append(Turn(role="user", content=text))
        elif message.role == "assistant":
            turns.append(Turn(role="assistant", content=text))
        else:
            raise RequestRefused("Questions to documents have no tools", code="unsupported", param="messages")
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise RequestRefused("The last message is no question", code="invalid_value", param="messages")
    question = turns.pop().content
    if len(question) > MAX_QUESTION:
        raise RequestRefused(
            f"The question has over {MAX_QUESTION} characters", code="invalid_value", param="messages"
        )
    asked = AnswerRequest(
        question=question,
        collections=(request.model.removeprefix(PREFIX),),
        history=tuple(turns[-MAX_TURNS:]),
        stream=bool(request.stream),
        max_tokens=request.max_completion_tokens or request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
    )
    return asked, "\n\n".join(filter(None, system))


def check_document(name: str) -> str:
    """A document's name. Raises RequestRefused: no path that leads up, no mark that steers, no part that is empty."""
    parts = name.split("/")
    if (
        not 0 < len(name) <= MAX_NAME
        or not name.isprintable()
        or "\\" in name
        or any(part in ("", ".", "..") or part != part.strip() for part in parts)
    ):
        raise RequestRefused(
            f"A document's name is a relative path of 1 to {MAX_NAME} characters that print",
            code="invalid_value",
            param="name",
        )
    return name


def check_digest(text: str) -> bytes:
    """SHA-256 in hexadecimal digits. Raises RequestRefused."""
    if not _DIGEST.fullmatch(text):
        raise RequestRefused(
            "A digest has 64 lower-case hexadecimal digits", code="invalid_value", param="digest"
        )
    return bytes.fromhex(text)


def _text(content: str | list[TextPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or "" for part in content)
    return content or ""
