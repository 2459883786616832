"""How fast an engine is, asked as the server asks it: first token, reading, one stream, several streams.

Everything goes through the ``Engine`` protocol, so that all engines are measured alike, with whatever their own path costs.
No prompt is asked twice, nothing is asked for a tenant, so no cache answers in an engine's place. Refused: an engine that
makes no tokens.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.engines import Engine

Clock = Callable[[], float]

_TEXT: Final = (
    "the river and the old bridge stood in the morning light while a child was looking for her small dog who had gone "
    "down to the water with two friends because they wanted to see how many boats there were on that day"
)
_WORDS: Final = tuple(_TEXT.split())
_TRIES: Final = 3
"""Prompts that are tried until an answer is long enough."""
_COUNTED: Final = (24, 72)
"""Words of the prompts by which the tokens of a word are counted."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of an engine in one round; numbers of tokens."""

    prompt: int
    decode: int
    streams: int
    stream_tokens: int
    stream_prompt: int = 16


@dataclass(frozen=True, slots=True)
class Sample:
    """One round. Seconds, and tokens a second."""

    prompt_tokens: int
    first_token: float
    decode: float
    streams: int
    streams_together: float

    @property
    def prefill(self) -> float:
        return self.prompt_tokens / self.first_token


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt_tokens: int
    tokens: int
    begun: float
    first: float
    last: float


class Meter:
    """Measures one engine, round after round."""

    def __init__(self, engine: Engine, *, clock: Clock = time.perf_counter) -> None:
        """Warms the engine up: kernels are chosen, pages touched, the tokens of words counted. Raises InferenceError."""
        self._engine = engine
        self._clock = clock
        self._endless: Mapping[str, Any] = {"ignore_eos": True}
        try:
            self._ask(_text(2, seed=-1), 1)
        except RequestRefused:
            self._endless = {}  # an answer ends where the model ends it
        short, long = (self._ask(_text(words, seed=-words), 4).prompt_tokens for words in _COUNTED)
        self._per_word = max((long - short) / (_COUNTED[1] - _COUNTED[0]), 0.25)
        self._base = max(0.0, short - _COUNTED[0] * self._per_word)

    def measure(self, load: Load, *, seed: int) -> Sample:
        """One round of ``load``. Rounds with other ``seed`` (from 0 on) ask with other words. Raises InferenceError."""
        engine = self._engine
        streams = max(1, min(load.streams, engine.slots))
        alone = self._alone(min(load.prompt, engine.context_length - load.decode - 8), load.decode, seed)
        rate = (alone.tokens - 1) / (alone.last - alone.first) if alone.last > alone.first else 0.0
        together = rate
        if streams > 1:
            together = self._together(load, streams, seed)
        if rate <= 0 or together <= 0:
            raise InferenceError("the engine ends its answers at once, so it cannot be measured")
        first_token = max(alone.first - alone.begun, 1e-9)
        return Sample(alone.prompt_tokens, first_token, rate, streams, together)

    def _words(self, tokens: int) -> int:
        """How many words have about ``tokens`` tokens and not more."""
        return max(1, int((tokens - self._base) / self._per_word * 0.98))

    def _alone(self, prompt: int, decode: int, seed: int) -> _Answer:
        """The answer to one prompt; another prompt is asked where the model ends its answer early."""
        best: _Answer | None = None
        for attempt in range(_TRIES):
            answer = self._ask(_text(self._words(prompt), seed=seed * _TRIES + attempt), decode)
            if best is None or answer.tokens > best.tokens:
                best = answer
            if answer.tokens >= decode // 2:
                break
        assert best is not None  # noqa: S101 -- for the type checker
        return best

    def _together(self, load: Load, streams: int, seed: int) -> float:
        """Tokens a second of ``streams`` answers, from when the last of them began to when the last ended.

        The short prompts are read before; what is made until all have begun is not counted.
        """
        lock = threading.Lock()
        times: list[list[float]] = [[] for _ in range(streams)]
        errors: list[BaseException] = []
        words = self._words(min(load.stream_prompt, self._engine.context_length // 4))
        tokens = max(2, min(load.stream_tokens, self._engine.context_length // 2))

        def run(number: int) -> None:
            def on_token() -> None:
                now = self._clock()
                with lock:
                    times[number].append(now)

            try:
                self._ask(_text(words, seed=(seed + 1) * 1000 + number), tokens, on_token)
            except BaseException as error:  # raised again by the thread that waits
                errors.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return rate_together(times)

    def _ask(self, prompt: str, tokens: int, on_token: Callable[[], None] | None = None) -> _Answer:
        first = last = 0.0
        chunks, usage = 0, dict[str, int]()

        def sink(chunk: Mapping[str, Any]) -> bool:
            nonlocal first, last, chunks, usage
            usage = chunk.get("usage") or usage
            if any(
                "text" in choice and not choice.get("finish_reason") for choice in chunk.get("choices", ())
            ):
                last = self._clock()
                first = first or last
                chunks += 1
                if on_token is not None:
                    on_token()
            return False

        request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, **self._endless}
        begun = self._clock()
        self._engine.generate("text", request, sink)
        if first == 0.0:  # the one token came with the end, or had no text of its own
            first = last = self._clock()
        made = int(usage.get("completion_tokens", chunks))
        return _Answer(int(usage.get("prompt_tokens", 0)), max(made, chunks), begun, first, last)


def rate_together(times: list[list[float]]) -> float:
    """Tokens a second of streams whose tokens came at ``times``: from the last beginning to the last end; 0 for none."""
    began = max((stream[0] for stream in times if stream), default=0.0)
    ended = max((stream[-1] for stream in times if stream), default=0.0)
    inside = sum(1 for stream in times for moment in stream if moment > began)
    if inside and ended > began:
        return inside / (ended - began)
    every = sorted(moment for stream in times for moment in stream)
    return (len(every) - 1) / (every[-1] - every[0]) if len(every) > 1 and every[-1] > every[0] else 0.0


def median(samples: list[Sample]) -> Sample:
    """Medians of each column; of at least one sample."""
    return Sample(
        prompt_tokens=samples[-1].prompt_tokens,
        first_token=statistics.median(sample.first_token for sample in samples),
        decode=statistics.median(sample.decode for sample in samples),
        streams=samples[-1].streams,
        streams_together=statistics.median(sample.streams_together for sample in samples),
    )


def _text(words: int, *, seed: int) -> str:
    """Words under a number of their own: no two prompts begin alike."""
    turned = [_WORDS[(place * 7 + seed) % len(_WORDS)] for place in range(words)]
    return " ".join([f"{seed + 1000}", *turned])
