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
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from cloister.errors import UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink, refuse
from cloister.inference.engines.torch_waiting import Waiting
from cloister.inference.model_files import ModelFiles

if TYPE_CHECKING:
    from cloister.inference.engines.torch_answers import Choice
    from cloister.inference.engines.torch_jobs import Event, Job
    from cloister.inference.engines.torch_model import TorchModel
    from cloister.inference.engines.torch_requests import Ask

MAX_SLOTS: Final = 64
MAX_CONTEXT: Final = 1 << 20
ASK_SECONDS: Final = 0.25
"""How often a request that waits looks whether it is still wanted."""
_STILL_WORKING: Final[Mapping[str, Any]] = {}
_OBJECT: Final[Mapping[Kind, str]] = {"chat": "chat.completion.chunk", "text": "text_completion"}


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
        from cloister.inference.engines.torch_batch import Batch  # noqa: PLC0415 -- with torch, as in `open`
        from cloister.inference.engines.torch_pace import CHUNK, Pace  # noqa: PLC0415
        from cloister.inference.engines.torch_requests import Asks  # noqa: PLC0415
        from cloister.inference.engines.torch_text import Texts  # noqa: PLC0415

        length = settings.context_length
        self.context_length = min(length, model.trained_context or length)
        self.slots = settings.slots
        self.embedding_length: int | None = model.width
        self._asks = Asks(model, context_length=self.context_length, slots=self.slots)
        self.tools = self._asks.tools
        self._texts = Texts(model.tokenizer.backend_tokenizer)
        self._ends = model.ends
        self._entropy = entropy
        self._now = now
        threads = settings.threads or default_threads()
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
        told: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        choices, jobs = self._prepared(kind, ask, told, tenant)
        head: dict[str, Any] = {
            "id": f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{secrets.token_hex(16)}",
            "object": _OBJECT[kind],
            "created": int(self._now()),
            "model": "model",
        }
        try:
            if self._answered(jobs, choices, told, sink, head):
                sink(head | {"choices": [], "usage": _usage(ask, choices, jobs)})
        finally:
            for job in jobs:
                job.cancelled = True

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        from cloister.inference.engines.torch_jobs import Ended, Failed, Job  # noqa: PLC0415 -- as above

        texts = self._asks.tokens(request["input"], "input")
        told: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        jobs = [
            Job(prompt=tokens, sampler=None, max_tokens=0, tell=_teller(told, place))
            for place, tokens in enumerate(texts)
        ]
        states: dict[int, list[float]] = {}
        try:
            self._submit(jobs)
            while len(states) < len(jobs):
                place, event = told.get()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Ended) and event.state is not None:
                    states[place] = (event.state / event.state.norm().clamp(min=1e-12)).tolist()
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
        atexit.unregister(self.close)

    def _prepared(
        self, kind: Kind, ask: Ask, told: queue.SimpleQueue[tuple[int, Event]], tenant: bytes | None
    ) -> tuple[list[Choice], list[Job]]:
        from cloister.inference.engines.torch_answers import Choice  # noqa: PLC0415 -- as above
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
                choices.append(Choice(index, ask, kind, self._texts, prompt))
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
                    tell=_teller(told, index),
                )
                leader = leader or job
                jobs.append(job)
        return choices, jobs

    def _answered(
        self,
        jobs: Sequence[Job],
        choices: Sequence[Choice],
        told: queue.SimpleQueue[tuple[int, Event]],
        sink: Sink,
        head: dict[str, Any],
    ) -> bool:
        """Tell every answer to its end; False where ``sink`` wanted no more."""
        from cloister.inference.engines.torch_jobs import Failed  # noqa: PLC0415 -- as above

        self._submit(jobs)
        while not all(choice.ended for choice in choices):
            try:
                index, event = told.get(timeout=ASK_SECONDS)
            except queue.Empty:
                if sink(_STILL_WORKING):
                    return False
                continue
            choice = choices[index]
            if isinstance(event, Failed):
                raise event.error
            parts = choice.tell(event)
            if choice.ended:
                jobs[index].cancelled = True
            chunks: list[Mapping[str, Any]] = [head | {"choices": [part]} for part in parts]
            if any(sink(chunk) for chunk in chunks or [_STILL_WORKING]):
                return False
        return True

    def _submit(self, jobs: Sequence[Job]) -> None:
        if not self._batch.submit(jobs):
            raise RequestRefused("The engine is shutting down", status=503, code="overloaded")


def default_threads() -> int:
    """Processors this process may use: the server around the engine takes little, and threads wait as it needs."""
    return len(os.sched_getaffinity(0))


def _load(model: ModelFiles, settings: EngineSettings) -> TorchModel:
    from cloister.inference.engines.torch_model import load, prove  # noqa: PLC0415 -- torch is heavy

    use_threads(settings.threads or default_threads())
    opened = load(model, precision=settings.precision, adapter=settings.adapter)
    prove(opened)
    return opened


def _compute_with(threads: int) -> Waiting:
    use_threads(threads)
    return Waiting(threads, len(os.sched_getaffinity(0)))


def use_threads(count: int) -> None:
    """Let torch compute with ``count`` threads for the thread that calls."""
    import torch  # noqa: PLC0415 -- as above

    torch.set_num_threads(count)
    with suppress(RuntimeError):  # once in a process, before anything is computed
        torch.set_num_interop_threads(1)


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
        "torch",
        {
            "quantised KV cache": settings.kv_cache != "f16",
            "speculation": settings.speculation != "off" or settings.draft is not None,
            "upstream": settings.upstream is not None,
        },
    )


def _usage(ask: Ask, choices: Sequence[Choice], jobs: Sequence[Job]) -> dict[str, Any]:
    prompt = sum(map(len, ask.prompts))
    answered = sum(choice.tokens for choice in choices)
    # Of each prompt once: its first choice reads it for all.
    cached = sum(job.cached for job in jobs[:: ask.choices])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answered,
        "total_tokens": prompt + answered,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _teller(told: queue.SimpleQueue[tuple[int, Event]], index: int) -> Callable[[Event], None]:
    return lambda event: told.put((index, event))


def _base64(values: Sequence[float]) -> Any:
    return cast("Any", base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode())
