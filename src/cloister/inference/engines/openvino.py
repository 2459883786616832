"""The engine for OpenVINO's models and others: OpenVINO GenAI's continuous batching, on the CPU, in this process.

It reads OpenVINO IR, GGUF (LLaMA, Qwen 2 and 3; Q8_0, Q4_0, Q6_K and floats) and Hugging Face models of those shapes. What
is in the model's files is data alone. Nothing of it is written to a disk, nothing is reported to anybody. There is no
prefix cache (OpenVINO's is shared by all who ask), no draft model, no adapters, no embeddings, no calls of functions.
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from cloister.errors import UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink, refuse
from cloister.inference.model_files import ModelFiles

if TYPE_CHECKING:
    from cloister.inference.engines.openvino_answers import Choice
    from cloister.inference.engines.openvino_model import OpenVinoModel
    from cloister.inference.engines.openvino_pipeline import Event, Job
    from cloister.inference.engines.openvino_requests import Ask

MAX_SLOTS: Final = 64
MAX_CONTEXT: Final = 1 << 20
ASK_SECONDS: Final = 0.25
"""How often a request that waits looks whether it is still wanted."""
_STILL_WORKING: Final[Mapping[str, Any]] = {}
_OBJECT: Final[Mapping[Kind, str]] = {"chat": "chat.completion.chunk", "text": "text_completion"}


class OpenVinoEngine:
    """A model in OpenVINO GenAI, in this process. See :class:`cloister.inference.engines.Engine`."""

    embedding_length: int | None = None
    tools = False

    def __init__(
        self,
        model: OpenVinoModel,
        settings: EngineSettings,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        now: Callable[[], float] = time.time,
    ) -> None:
        from cloister.inference.engines.openvino_model import NGRAM  # noqa: PLC0415 -- with OpenVINO
        from cloister.inference.engines.openvino_pipeline import Pipeline  # noqa: PLC0415 -- with OpenVINO
        from cloister.inference.engines.openvino_requests import Asks  # noqa: PLC0415
        from cloister.inference.engines.torch_text import Texts  # noqa: PLC0415

        guesses = NGRAM if settings.speculation == "ngram" else {}
        self.context_length = min(settings.context_length, model.trained_context or settings.context_length)
        self.slots = settings.slots
        self._asks = Asks(model, context_length=self.context_length, slots=self.slots, guesses=guesses)
        self._texts = Texts(model.backend)
        self._ends = model.ends
        self._schemas = model.schemas
        self._entropy = entropy
        self._now = now
        self._pipeline = Pipeline(model.take_pipeline(), guesses=guesses)
        # Threads inside C++ must not outlive the interpreter.
        atexit.register(self.close)

    @classmethod
    def open(cls, model: ModelFiles | None, settings: EngineSettings) -> OpenVinoEngine:
        """Load ``model``. Raises InferenceError (the model) and UsageError (the settings)."""
        _check(settings)
        if model is None:
            raise UsageError("the engine openvino needs a model", todo="name one")
        from cloister.inference.engines.openvino_model import load  # noqa: PLC0415 -- OpenVINO is heavy

        opened = cls(load(model, settings, threads=settings.threads or default_threads()), settings)
        try:
            # One token shows that the model computes.
            opened.generate("text", {"prompt": [0], "max_tokens": 1, "temperature": 0}, lambda _: False)
        except BaseException:
            opened.close()
            raise
        return opened

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        ask = self._asks.read(kind, request)
        told: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        choices, jobs = self._prepared(kind, ask, told)
        head = {
            "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(16)}",
            "object": _OBJECT[kind],
            "created": int(self._now()),
            "model": "model",
        }
        try:
            if self._answered(jobs, choices, told, sink, head):
                sink({**head, "choices": [], "usage": _usage(ask, choices)})
        finally:
            self._pipeline.cancel(jobs)

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        raise RequestRefused("The engine openvino makes no embeddings", code="unsupported")

    def stats(self) -> EngineStats:
        return self._pipeline.stats()

    def close(self) -> None:
        """Stop what runs behind its present step, wait for it (bounded), free the model. Idempotent."""
        self._pipeline.close()
        self._schemas.close()
        atexit.unregister(self.close)

    def _prepared(
        self, kind: Kind, ask: Ask, told: queue.SimpleQueue[tuple[int, Event]]
    ) -> tuple[list[Choice], list[Job]]:
        from cloister.inference.engines.openvino_answers import Choice  # noqa: PLC0415 -- as above
        from cloister.inference.engines.openvino_pipeline import Job  # noqa: PLC0415

        choices: list[Choice] = []
        jobs: list[Job] = []
        for prompt in ask.prompts:
            for number in range(ask.choices):
                index = len(choices)
                choices.append(Choice(index, ask, kind, self._texts, prompt))
                jobs.append(
                    Job(
                        prompt=prompt,
                        config=self._asks.config(ask, prompt, number, self._entropy),
                        max_tokens=self._asks.room(ask, prompt),
                        ends=self._ends,
                        tell=_teller(told, index),
                    )
                )
        return choices, jobs

    def _answered(
        self,
        jobs: Sequence[Job],
        choices: Sequence[Choice],
        told: queue.SimpleQueue[tuple[int, Event]],
        sink: Sink,
        head: Mapping[str, Any],
    ) -> bool:
        """Tell every answer to its end; False where ``sink`` wanted no more."""
        from cloister.inference.engines.openvino_pipeline import Failed, Token  # noqa: PLC0415 -- as above

        if not self._pipeline.submit(jobs):
            raise RequestRefused("The engine is shutting down", status=503, code="overloaded")
        ended: set[int] = set()
        while len(ended) < len(choices):
            try:
                index, event = told.get(timeout=ASK_SECONDS)
            except queue.Empty:
                if sink(_STILL_WORKING):
                    return False
                continue
            choice = choices[index]
            if isinstance(event, Failed):
                raise event.error
            if index in ended:
                continue
            parts = choice.add(event) if isinstance(event, Token) else choice.end(event)
            if choice.ended:
                ended.add(index)
                self._pipeline.cancel([jobs[index]])
            for chunk in [{**head, "choices": [part]} for part in parts] or [dict(_STILL_WORKING)]:
                if sink(chunk):
                    return False
        return True


def default_threads() -> int:
    """Processors this process may use, less one for the server around the engine, at least one."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _check(settings: EngineSettings) -> None:
    if not 1 <= settings.slots <= MAX_SLOTS:
        raise UsageError(f"{settings.slots} slots: between 1 and {MAX_SLOTS} are served")
    if not 16 <= settings.context_length <= MAX_CONTEXT:
        raise UsageError(
            f"a context of {settings.context_length} tokens: between 16 and {MAX_CONTEXT} are served"
        )
    if settings.threads is not None and not 1 <= settings.threads <= 1024:
        raise UsageError(f"{settings.threads} threads: between 1 and 1024 compute")
    refuse(
        "openvino",
        {
            "prefix cache of each tenant's own": settings.prefix_cache,
            "KV cache of 4 bits": settings.kv_cache == "q4_0",
            "speculation by a draft model": settings.speculation == "draft" or settings.draft is not None,
            "adapters": settings.adapter is not None,
            "upstream": settings.upstream is not None,
        },
    )


def _usage(ask: Ask, choices: Sequence[Choice]) -> dict[str, Any]:
    prompt = sum(map(len, ask.prompts))
    answered = sum(choice.tokens for choice in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _teller(told: queue.SimpleQueue[tuple[int, Event]], index: int) -> Callable[[Event], None]:
    return lambda event: told.put((index, event))
