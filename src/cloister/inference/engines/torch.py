"""The engine for Hugging Face models: ``transformers`` on torch's CPU kernels, with continuous batching.

Weights are safetensors and code is that of ``transformers`` alone: nothing of the model's folder is run, no pickle is read,
no network is asked. One thread computes for everybody (torch_batch.py); each request's own thread makes text of its tokens.
``precision`` is how the weights compute: as they are stored, in 32 or 16 bits, or in 8 or 4 (cloister.inference.lowbit).
There is no quantised KV cache and no speculation, and a model whose attention is out of the ordinary is refused at opening.
"""

from __future__ import annotations

import atexit
import base64
import os
import queue
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from cloister.errors import UsageError
from cloister.inference.api_errors import shutting_down
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink, check_bounds, refuse
from cloister.inference.engines.in_process import Failed, Told, answer, processors, teller, usage_of
from cloister.inference.engines.torch_waiting import Waiting
from cloister.inference.model_files import ModelFiles

if TYPE_CHECKING:
    from cloister.inference.engines.answers import Choice
    from cloister.inference.engines.torch_jobs import Job
    from cloister.inference.engines.torch_model import TorchModel
    from cloister.inference.engines.torch_requests import Ask


class TorchEngine:
    """A Hugging Face model in this process. See :class:`cloister.inference.engines.Engine`."""

    def __init__(
        self,
        model: TorchModel,
        settings: EngineSettings,
        *,
        entropy: Callable[[int], bytes] = os.urandom,
        now: Callable[[], float] = time.time,
    ) -> None:
        from cloister.inference.engines.answer_text import Texts  # noqa: PLC0415 -- tokenizers
        from cloister.inference.engines.torch_batch import Batch  # noqa: PLC0415 -- with torch, as in `open`
        from cloister.inference.engines.torch_pace import CHUNK, Pace  # noqa: PLC0415
        from cloister.inference.engines.torch_requests import Asks  # noqa: PLC0415

        length = settings.context_length
        self.context_length = min(length, model.trained_context or length)
        self.slots = settings.slots
        self.embedding_length: int | None = model.width
        self.model: TorchModel | None = model
        """For who measures it while nobody asks; None when closed."""
        self._asks = Asks(model, context_length=self.context_length, slots=self.slots)
        self.tools = self._asks.tools
        self._texts = Texts(model.tokenizer.backend_tokenizer)
        self._ends = model.ends
        self._entropy = entropy
        self._now = now
        # All of them: the server around the engine takes little, and threads wait as it needs.
        threads = settings.threads or processors()
        self._batch = Batch(
            model,
            rows=self.slots,
            length=self.context_length,
            prefix_cache=settings.prefix_cache,
            pace=Pace(chunk=settings.prefill_chunk or CHUNK),
            prepare=lambda: _compute_with(threads),
        )
        # The thread must have left torch before the interpreter takes its modules apart.
        atexit.register(self.close)

    @classmethod
    def open(cls, model: ModelFiles | None, settings: EngineSettings) -> TorchEngine:
        """Load ``model``. Raises InferenceError (the model) and UsageError (the settings)."""
        _check(settings)
        if model is None or model.kind != "huggingface":
            raise UsageError(
                "the engine torch computes Hugging Face models alone", todo="choose another engine"
            )
        # On a thread that ends: OpenMP's threads that helped it then end, too, and do not count as ones that could
        # want a processor (torch_waiting.py).
        with ThreadPoolExecutor(1, thread_name_prefix="cloister-torch-load") as loader:
            opened = loader.submit(_load, model, settings).result()
        return cls(opened, settings)

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        ask = self._asks.read(kind, request)
        told: Told = queue.SimpleQueue()
        choices, jobs = self._prepared(kind, ask, told, tenant)

        def drop(index: int) -> None:
            jobs[index].cancelled = True

        def usage() -> Mapping[str, Any]:
            # Of each prompt once: its first choice reads it for all.
            cached = sum(job.cached for job in jobs[:: ask.choices])
            return usage_of(ask.prompts, choices, cached=cached)

        try:
            self._submit(jobs)
            answer(kind, choices, told, sink, created=self._now(), drop=drop, usage=usage)
        finally:
            for index in range(len(jobs)):
                drop(index)

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from cloister.inference.engines.torch_jobs import Job  # noqa: PLC0415 -- as above

        texts = self._asks.tokens(request["input"], "input")
        told: Told = queue.SimpleQueue()
        jobs = [
            Job(prompt=tokens, sampler=None, max_tokens=0, tell=teller(told, place))
            for place, tokens in enumerate(texts)
        ]
        states: dict[int, list[float]] = {}
        try:
            self._submit(jobs)
            while len(states) < len(jobs):
                place, event = told.get()
                if isinstance(event, Failed):
                    raise event.error
                state = jobs[place].state
                if state is not None:
                    states[place] = (state / state.norm().clamp(min=1e-12)).tolist()
        finally:
            for job in jobs:
                job.cancelled = True
        encode = _base64 if request.get("encoding_format") == "base64" else list
        count = sum(map(len, texts))
        return {
            "object": "list",
            "model": "model",
            "data": [
                {"object": "embedding", "index": place, "embedding": encode(states[place])}
                for place in range(len(texts))
            ],
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    def stats(self) -> EngineStats:
        return self._batch.stats()

    def close(self) -> None:
        """Stop what runs behind its present step, wait for it (bounded), free the model. Idempotent."""
        self._batch.close()
        self.model = None
        atexit.unregister(self.close)

    def _prepared(
        self, kind: Kind, ask: Ask, told: Told, tenant: bytes | None
    ) -> tuple[list[Choice], list[Job]]:
        from cloister.inference.engines.answers import Choice  # noqa: PLC0415 -- as above
        from cloister.inference.engines.torch_jobs import Job  # noqa: PLC0415
        from cloister.inference.engines.torch_sampling import Sampler  # noqa: PLC0415

        choices: list[Choice] = []
        jobs: list[Job] = []
        for prompt in ask.prompts:
            leader: Job | None = None
            for number in range(ask.choices):
                index = len(choices)
                seed = ask.sampling.seed
                seed = int.from_bytes(self._entropy(8)) if seed is None else seed + number
                calls = {"tools": ask.tools, "one_call": ask.one_call}
                choices.append(Choice(index, kind, self._texts, prompt, ask.stops, **calls))
                room = self.context_length - len(prompt)
                job = Job(
                    prompt=prompt,
                    sampler=Sampler(ask.sampling, prompt, seed=seed),
                    max_tokens=min(ask.max_tokens or room, room),
                    ends=self._ends,
                    top=ask.top,
                    tenant=tenant,
                    leader=leader,
                    grammar=self._asks.grammar(ask),
                    tell=teller(told, index),
                )
                leader = leader or job
                jobs.append(job)
        return choices, jobs

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not self._batch.submit(jobs):
            raise shutting_down()


def _load(model: ModelFiles, settings: EngineSettings) -> TorchModel:
    from cloister.inference.engines.torch_model import load, prove  # noqa: PLC0415 -- torch is heavy

    use_threads(settings.threads or processors())
    opened = load(model, precision=settings.precision, adapter=settings.adapter)
    prove(opened)
    return opened


def _compute_with(threads: int) -> Waiting:
    use_threads(threads)
    return Waiting(threads, processors())


def use_threads(count: int) -> None:
    """Let torch compute with ``count`` threads for the thread that calls."""
    import torch  # noqa: PLC0415 -- as above

    torch.set_num_threads(count)
    with suppress(RuntimeError):  # once in a process, before anything is computed
        torch.set_num_interop_threads(1)


def _check(settings: EngineSettings) -> None:
    check_bounds(settings)
    refuse(
        "torch",
        {
            "quantised KV cache": settings.kv_cache != "f16",
            "speculation": settings.speculation != "off" or settings.draft is not None,
            "upstream": settings.upstream is not None,
        },
    )


def _base64(values: Sequence[float]) -> Any:
    return cast("Any", base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode())
