"""An engine that asks another server inside the same TEE: vLLM, SGLang, llama-server, Ollama, or any with OpenAI's API.

The server is on the machine's own loopback or a Unix socket, at an address that is measured. It is believed to compute
what it says, and nothing else: all that it sends is read strictly and within bounds, and its words reach no log of ours.
Settings of a model are the server's own matter, so they are refused here. A prefix cache of the server must not tell one
client what another asked: each request carries a salt for it (vLLM's ``cache_salt``), and llama.cpp's is switched off.
"""

from __future__ import annotations

import base64
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import msgspec

from cloister.errors import InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused, shutting_down
from cloister.inference.engines import EngineSettings, EngineStats, Kind, Sink, check_bounds, refuse
from cloister.inference.engines.upstream_address import UpstreamAddress, check_upstream, parse_upstream
from cloister.inference.engines.upstream_events import Embeddings, Models, chunk_of, decoded
from cloister.inference.engines.upstream_exchange import Bounds, Exchange
from cloister.inference.model_files import ModelFiles

__all__ = ["UpstreamEngine", "check_upstream"]

MAX_SLOTS: Final = 1024
SALT_LENGTH: Final = 32
CLOSE_SECONDS: Final = 30.0
_PATHS: Final[Mapping[Kind, str]] = {"chat": "/v1/chat/completions", "text": "/v1/completions"}
_STILL_WORKING: Final[Mapping[str, Any]] = {}
_SLACK: Final = 64
"""Chunks beyond a token each: roles, ends, usage."""


class UpstreamEngine:
    """A server in the same TEE. See :class:`cloister.inference.engines.Engine`."""

    def __init__(
        self,
        address: UpstreamAddress,
        settings: EngineSettings,
        *,
        model: str,
        embedding_length: int | None,
        bounds: Bounds,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.context_length = settings.context_length
        self.slots = settings.slots
        self.embedding_length = embedding_length
        # The server knows whether its model calls tools, and refuses them where it does not.
        self.tools = True
        self._address = address
        self._model = model
        self._bounds = bounds
        self._prefix_cache = settings.prefix_cache
        self._entropy = entropy
        self._change = threading.Condition()
        self._closed = False
        self._running = 0
        self._counted = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}

    @classmethod
    def open(
        cls, model: ModelFiles | None, settings: EngineSettings, *, bounds: Bounds | None = None
    ) -> UpstreamEngine:
        """Ask the server what it serves. Raises UsageError (the settings) and InferenceError (the server)."""
        _check(model, settings)
        address = parse_upstream(settings.upstream or "")
        bounds = bounds or Bounds()
        asking = replace(bounds, first=min(bounds.first, 60.0))
        with Exchange(address, "/v1/models", None, bounds=asking) as exchange:
            found: Models = decoded(exchange.answer(), Models)
        known = {one.id: one for one in found.data}
        if address.model is None and len(known) != 1:
            raise UsageError(
                f"the upstream serves {len(known)} models",
                todo="name one behind the upstream's address: …#model",
            )
        name = address.model or next(iter(known))
        if name not in known:
            raise UsageError("the upstream does not serve the model that is asked for")
        length = min(settings.context_length, known[name].max_model_len or settings.context_length)
        return cls(
            address,
            replace(settings, context_length=length),
            model=name,
            embedding_length=_embedding_length(address, name, asking),
            bounds=bounds,
        )

    def generate(
        self, kind: Kind, request: Mapping[str, Any], sink: Sink, *, tenant: bytes | None = None
    ) -> None:
        body = self._body(kind, request, tenant)
        usage: Mapping[str, Any] | None = None
        stopped = False
        left = self.context_length * int(request.get("n", 1)) * _prompts(request) + _SLACK

        def wanted() -> bool:
            nonlocal stopped
            stopped = stopped or self._closed or sink(_STILL_WORKING)
            return not stopped

        with self._using(), Exchange(self._address, _PATHS[kind], body, bounds=self._bounds) as exchange:
            for data in exchange.events(wanted):
                chunk = chunk_of(data, kind)
                usage = chunk.pop("usage", usage)
                left -= 1
                if left < 0:
                    raise InferenceError("the upstream's answer does not end")
                if chunk["choices"] and sink(chunk):
                    return
                if self._closed:
                    stopped = True
                    break
            if stopped:
                return
            if usage is None:
                raise InferenceError("the upstream did not count its tokens")
            self._count(usage)
            sink(chunk | {"choices": [], "usage": usage})

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.embedding_length is None:
            raise RequestRefused("The upstream's model makes no embeddings", code="unsupported")
        texts = request["input"]
        with self._using():
            found = _embeddings(
                self._address, self._model, texts, self._bounds, wanted=lambda: not self._closed
            )
        count = len(texts) if isinstance(texts, list) and not isinstance(texts[0], int) else 1
        ordered = sorted(found.data, key=lambda item: item.index)
        if [item.index for item in ordered] != list(range(count)):
            raise InferenceError("the upstream's embeddings are not those that were asked for")
        if any(len(item.embedding) != self.embedding_length for item in ordered):
            raise InferenceError("the upstream's embeddings have different lengths")
        encode: Callable[[list[float]], Any] = list
        if request.get("encoding_format") == "base64":
            encode = _base64
        tokens = found.usage.prompt_tokens
        return {
            "object": "list",
            "model": "model",
            "data": [
                {"object": "embedding", "index": item.index, "embedding": encode(item.embedding)}
                for item in ordered
            ],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    def stats(self) -> EngineStats:
        with self._change:
            return EngineStats(running=self._running, **self._counted)

    def close(self) -> None:
        """Break off what runs, and wait for it (bounded). Idempotent."""
        with self._change:
            self._closed = True
            self._change.wait_for(lambda: self._running == 0, timeout=CLOSE_SECONDS)

    def _body(self, kind: Kind, request: Mapping[str, Any], tenant: bytes | None) -> bytes:
        if "repeat_penalty" in request:
            raise RequestRefused(
                "repeat_penalty has no name that every upstream knows",
                code="unsupported",
                param="repeat_penalty",
            )
        body = dict(request)
        if "n_probs" in body:
            body["logprobs"] = body.pop("n_probs")
        kept = self._prefix_cache and tenant is not None
        salt = tenant if kept and tenant is not None else self._entropy(SALT_LENGTH)
        body |= {
            "model": self._model,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_salt": salt.hex(),
            "cache_prompt": False,
        }
        return msgspec.json.encode(body)

    def _count(self, usage: Mapping[str, Any]) -> None:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        with self._change:
            self._counted["prompt_tokens"] += max(0, usage["prompt_tokens"] - cached)
            self._counted["cached_tokens"] += cached
            self._counted["completion_tokens"] += usage["completion_tokens"]

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._change:
            if self._closed:
                raise shutting_down()
            self._running += 1
        try:
            yield
        finally:
            with self._change:
                self._running -= 1
                self._change.notify_all()


def _check(model: ModelFiles | None, settings: EngineSettings) -> None:
    if model is not None:
        raise UsageError("an upstream has its model itself", todo="leave the model out")
    if settings.upstream is None:
        raise UsageError("no upstream is named", todo="pass its address, unix:/path or http://127.0.0.1:PORT")
    check_bounds(settings, slots=MAX_SLOTS)
    refuse(
        "upstream",
        {
            "threads of its own": settings.threads is not None,
            "adapter": settings.adapter is not None,
            "precision of its own": settings.precision is not None,
            "quantised KV cache of its own": settings.kv_cache != "f16",
            "speculation of its own": settings.speculation != "off" or settings.draft is not None,
            "prefill chunk of its own": settings.prefill_chunk is not None,
        },
    )


def _embedding_length(address: UpstreamAddress, model: str, bounds: Bounds) -> int | None:
    """Of the vectors that the server makes; None where it makes none."""
    try:
        found = _embeddings(address, model, ["a"], bounds)
    except InferenceError:
        return None
    return len(found.data[0].embedding) if found.data else None


def _embeddings(
    address: UpstreamAddress,
    model: str,
    texts: Any,
    bounds: Bounds,
    wanted: Callable[[], bool] = lambda: True,
) -> Embeddings:
    body = msgspec.json.encode({"model": model, "input": texts, "encoding_format": "float"})
    with Exchange(address, "/v1/embeddings", body, bounds=bounds) as exchange:
        found: Embeddings = decoded(exchange.answer(wanted), Embeddings, limit=bounds.size)
    return found


def _prompts(request: Mapping[str, Any]) -> int:
    prompt = request.get("prompt")
    return len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1


def _base64(values: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
