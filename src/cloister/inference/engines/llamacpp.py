"""The built-in engine: llama.cpp's own server inside this process, through PyPI's ``xllamacpp``.

Requests go to the server's handlers as function calls and come back chunk by chunk on the calling thread; several
are computed at once in slots with continuous batching. What is handled beside that:

* It can reuse one client's prompt for the next one's common prefix, and how fast an answer starts would then tell
  what others asked. Only a tenant's own prompts are reused, see :mod:`.llamacpp_slots`; no request can change that.
* A long prompt would hold up the answers of others: it is read in pieces, see :mod:`.llamacpp_prompts`.
* It logs prompts when verbose, and it listens. It is silent here, and where it listens nobody can connect: see
  :mod:`.llamacpp_parameters` and :mod:`.llamacpp_server`.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import msgspec

from cloister.errors import InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused, engine_refusal, shutting_down
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink
from cloister.inference.engines.llamacpp_draft import checked_draft
from cloister.inference.engines.llamacpp_parameters import (
    check_settings,
    default_threads,
    quicken,
    server_parameters,
)
from cloister.inference.engines.llamacpp_prompts import (
    ALONE,
    CHUNK,
    PAUSE,
    Reading,
    Turns,
    beginning,
    cached_tokens,
    frame,
    prompt_text,
)
from cloister.inference.engines.llamacpp_server import added, call, start
from cloister.inference.engines.llamacpp_slots import Place, Slots
from cloister.inference.gguf_header import read_gguf_header
from cloister.inference.model_files import ModelFiles

CLOSE_SECONDS: Final = 30.0
CONVERT: Final = "convert the model to GGUF, or serve it with another engine"
_STILL_WORKING: Final[Mapping[str, Any]] = {}
_STREAMED: Final[Mapping[str, Any]] = {
    "stream": True,
    "stream_options": {"include_usage": True},
    # Progress of the prompt's batches comes as chunks too: a chance to stop before the first token.
    "return_progress": True,
    "n_cache_reuse": 0,
}
_ANSWER_ONLY: Final = frozenset({"max_completion_tokens", "n_predict", "logprobs", "top_logprobs", "n_probs"})


class LlamaCppEngine:
    """A GGUF model in llama.cpp's server, in this process. See :class:`cloister.inference.engines.Engine`."""

    def __init__(
        self,
        server: Any,
        settings: EngineSettings,
        *,
        context_length: int,
        embedding_length: int | None,
        tools: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context_length = context_length
        self.slots = settings.slots
        self.embedding_length = embedding_length
        self.tools = tools
        self._server: Any | None = server
        self._slots = Slots(settings.slots, keeping=settings.prefix_cache)
        self._turns = Turns()
        self._chunk = settings.prefill_chunk or CHUNK
        self._clock = clock
        self._running = 0
        self._answering = 0
        """Requests whose prompt is read."""
        self._counted = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
        self._change = threading.Condition()
        # A loop thread inside C++ must not outlive the interpreter.
        atexit.register(self.close)

    @classmethod
    def open(
        cls, model: ModelFiles | None, settings: EngineSettings, *, embedding: bool = True
    ) -> LlamaCppEngine:
        """Load the GGUF file of ``model``. See :func:`cloister.inference.engines.open_engine`.

        With ``settings.speculation`` there are no embeddings: llama.cpp computes one or the other.
        Raises InferenceError (the model) and UsageError (the settings).
        """
        check_settings(settings)
        if model is None or model.kind != "gguf":
            raise UsageError("the engine llamacpp computes GGUF models alone", todo=CONVERT)
        what = model.main_name
        header = read_gguf_header(model.main, what=what)
        length = min(settings.context_length, header.trained_context or settings.context_length)
        embedding = embedding and settings.speculation == "off"
        params = server_parameters(
            str(model.path(what)),
            context_length=length,
            slots=settings.slots,
            threads=settings.threads or default_threads(),
            embedding=embedding,
            pooling=header.pooling,
            kv_cache=settings.kv_cache,
        )
        quicken(params, settings.speculation, checked_draft(model, settings.draft))
        with added(params, settings.adapter, header):
            server = start(params, what, embeds=embedding and header.pooling is not None)
        return cls(
            server,
            settings,
            context_length=length,
            embedding_length=header.embedding_length if embedding else None,
            # llama.cpp would drop the functions in silence where the template has no place for them.
            tools="tools" in (header.chat_template or ""),
        )

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        body = {**request, **_STREAMED}
        text = prompt_text(kind, body)
        several = max(int(body.get(name) or 1) for name in ("n", "n_cmpl")) > 1
        with self._using() as server, ExitStack() as undo:
            place = None
            cached = None
            if text is None or several:
                undo.enter_context(self._slots.roaming())
            else:
                place = undo.enter_context(self._slots.place(tenant, text, frame(kind, request)))
                reading = Reading(text, known=place.known, context_length=self.context_length)
                if self._read_ahead(server, kind, body, sink, place, reading):
                    return
                cached = reading.cached
            self._ask(server, kind, body, sink, place, cached=cached)

    def _read_ahead(
        self, server: Any, kind: Kind, body: Mapping[str, Any], sink: Sink, place: Place, reading: Reading
    ) -> bool:
        """Have a long prompt computed in pieces, all but the last; True when its answer is not wanted any more."""
        piece = {name: value for name, value in body.items() if name not in _ANSWER_ONLY} | {"max_tokens": 0}
        while reading.next(self._piece()) is not None:
            with self._turns.turn():
                # Others may have begun or ended while this one waited.
                end = reading.next(self._piece())
                if end is None or (reading.cached is not None and not place.mine):
                    break
                began = self._clock()
                usage: Mapping[str, Any] | None = None
                try:
                    usage = self._ask(server, kind, beginning(kind, piece, end), sink, place, answer=False)
                    if usage is None:
                        place.text = ""
                        return True
                except RequestRefused:
                    # A template that refuses this beginning may take the next one; what it says of the whole is told.
                    if self._server is None:
                        raise
                    place.mine = False
                reading.read(end, usage)
                self._pause(PAUSE * (self._clock() - began))
        return False

    def _piece(self) -> int:
        return self._chunk if self._answering else max(ALONE, self._chunk)

    def _pause(self, seconds: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._server is None or not self._answering, timeout=seconds)

    def _ask(
        self,
        server: Any,
        kind: Kind,
        body: Mapping[str, Any],
        sink: Sink,
        place: Place | None,
        *,
        answer: bool = True,
        cached: int | None = None,
    ) -> Mapping[str, Any] | None:
        """One request to the server; its usage, or None if ``sink`` wanted no more.

        ``cached`` replaces what the server says was in the slot, and without ``answer`` no chunk is passed on.
        """
        refusal: RequestRefused | None = None
        usage: dict[str, Any] | None = None
        stopped = begun = answering = False

        def on_chunk(data: bytes) -> bool:
            nonlocal refusal, usage, stopped, begun, answering
            chunk: dict[str, Any] = msgspec.json.decode(data)
            if "error" in chunk:
                refusal = engine_refusal(chunk)
                return True
            if place is not None and not begun:
                begun = True
                self._slots.begun(place)
            if "usage" in chunk:
                computed = int(chunk["usage"]["prompt_tokens"]) - cached_tokens(chunk["usage"])
                usage = chunk["usage"] = _told(chunk["usage"], cached)
                self._count(computed, usage if answer else {})
            if answer and not answering and chunk.get("choices"):
                answering = True
                self._answers(1)
            passed = _STILL_WORKING if "prompt_progress" in chunk or not answer else chunk
            stopped = sink(passed) or self._server is None
            return stopped

        slot = -1 if place is None else place.slot
        reuse = place is not None and self._slots.may_reuse(place)
        encoded = msgspec.json.encode(dict(body) | {"id_slot": slot, "cache_prompt": reuse})
        handler = server.handle_chat_completions if kind == "chat" else server.handle_completions
        try:
            call(lambda: handler(encoded, on_chunk))
        finally:
            if answering:
                self._answers(-1)
        if refusal is not None:
            raise refusal
        if stopped and place is not None and not answering:
            place.text = ""
        if usage is None and not stopped:
            raise InferenceError("the engine broke off an answer")
        return None if stopped else usage

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.embedding_length is None:
            raise RequestRefused("This model was loaded without embeddings", code="unsupported")
        with self._using() as server, self._slots.roaming():
            answer = call(lambda: server.handle_embeddings(dict(request)))
        if not isinstance(answer, Mapping) or "data" not in answer:
            raise engine_refusal(answer if isinstance(answer, Mapping) else {})
        return answer

    def stats(self) -> EngineStats:
        with self._change:
            return EngineStats(running=self._running, **self._counted)

    def close(self) -> None:
        """Stop what runs at its next token, wait for it (bounded), free the model. Idempotent."""
        with self._change:
            server, self._server = self._server, None
            self._change.notify_all()
        self._slots.close()
        with self._change:
            self._change.wait_for(lambda: self._running == 0, timeout=CLOSE_SECONDS)
        atexit.unregister(self.close)
        # The last reference: llama.cpp's threads are joined here.
        del server

    def _answers(self, more: int) -> None:
        with self._change:
            self._answering += more
            self._change.notify_all()

    def _count(self, computed: int, told: Mapping[str, Any]) -> None:
        with self._change:
            self._counted["prompt_tokens"] += computed
            self._counted["cached_tokens"] += cached_tokens(told)
            self._counted["completion_tokens"] += int(told.get("completion_tokens", 0))

    @contextmanager
    def _using(self) -> Iterator[Any]:
        with self._change:
            server = self._server
            if server is None:
                raise shutting_down()
            self._running += 1
        try:
            yield server
        finally:
            del server
            with self._change:
                self._running -= 1
                self._change.notify_all()


def _told(usage: Mapping[str, Any], cached: int | None) -> dict[str, Any]:
    """What pieces of the same request had computed was not in the slot before it."""
    if cached is None:
        return dict(usage)
    return dict(usage) | {"prompt_tokens_details": {"cached_tokens": min(cached, cached_tokens(usage))}}
