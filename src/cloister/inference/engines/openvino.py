"""The engine for OpenVINO's models and others: OpenVINO GenAI's continuous batching, on the CPU, in this process.

It reads OpenVINO IR, GGUF (LLaMA, Qwen 2 and 3; Q8_0, Q4_0, Q6_K and floats) and Hugging Face models of those shapes. What
is in the model's files is data alone. Nothing of it is written to a disk, nothing is reported to anybody. There is no
prefix cache (OpenVINO's is shared by all who ask), no draft model, no adapters, no embeddings, no calls of functions.
"""

from __future__ import annotations

import atexit
import os
import queue
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cloister.errors import UsageError
from cloister.inference.api_errors import RequestRefused, shutting_down
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink, check_bounds, refuse
from cloister.inference.engines.in_process import Told, answer, processors, teller, usage_of
from cloister.inference.model_files import ModelFiles

if TYPE_CHECKING:
    from cloister.inference.engines.answers import Choice
    from cloister.inference.engines.openvino_model import OpenVinoModel
    from cloister.inference.engines.openvino_pipeline import Job
    from cloister.inference.engines.openvino_requests import Ask


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
        from cloister.inference.engines.answer_text import Texts  # noqa: PLC0415 -- tokenizers
        from cloister.inference.engines.openvino_model import NGRAM  # noqa: PLC0415 -- with OpenVINO
        from cloister.inference.engines.openvino_pipeline import Pipeline  # noqa: PLC0415 -- with OpenVINO
        from cloister.inference.engines.openvino_requests import Asks  # noqa: PLC0415

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

        # One is left to the server around the engine.
        threads = settings.threads or max(1, processors() - 1)
        opened = cls(load(model, settings, threads=threads), settings)
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
        told: Told = queue.SimpleQueue()
        choices, jobs = self._prepared(kind, ask, told)
        try:
            if not self._pipeline.submit(jobs):
                raise shutting_down()
            answer(
                kind, choices, told, sink,
                created=self._now(),
                drop=lambda index: self._pipeline.cancel([jobs[index]]),
                usage=lambda: usage_of(ask.prompts, choices, cached=0),
            )  # fmt: skip
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

    def _prepared(self, kind: Kind, ask: Ask, told: Told) -> tuple[list[Choice], list[Job]]:
        from cloister.inference.engines.answers import Choice  # noqa: PLC0415 -- as above
        from cloister.inference.engines.openvino_pipeline import Job  # noqa: PLC0415

        choices: list[Choice] = []
        jobs: list[Job] = []
        for prompt in ask.prompts:
            for number in range(ask.choices):
                index = len(choices)
                choices.append(Choice(index, kind, self._texts, prompt, ask.stops))
                jobs.append(
                    Job(
                        prompt=prompt,
                        config=self._asks.config(ask, prompt, number, self._entropy),
                        max_tokens=self._asks.room(ask, prompt),
                        ends=self._ends,
                        logprobs=ask.logprobs,
                        tell=teller(told, index),
                    )
                )
        return choices, jobs


def _check(settings: EngineSettings) -> None:
    check_bounds(settings)
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
