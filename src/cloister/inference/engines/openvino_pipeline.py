"""Continuous batching in OpenVINO GenAI, with Python's lock left to others while it computes.

``ContinuousBatchingPipeline.step`` holds the interpreter's lock for a whole forward pass: the server around it would stand
still. ``generate`` does not, and computes on as long as any request is there, also those that were added meanwhile. So one
thread calls ``generate`` with a request of one token, which is cancelled as soon as it has begun; the true requests
join it and keep it going. A second thread reads their tokens. A request that joins in the very moment in which the last one
ends is found afterwards, taken back without being computed, and begun anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from cloister.errors import InferenceError
from cloister.inference.api_errors import RequestRefused, shutting_down
from cloister.inference.engines import EngineStats
from cloister.inference.engines.in_process import Ended, Event, Failed, Token
from cloister.inference.engines.openvino_import import genai, openvino

CLOSE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.001
IDLE_POLL_SECONDS: Final = 0.005
"""While a prompt is read nothing can come soon."""
_JOIN_ATTEMPTS: Final = 64
_MISSED: Final = 50
"""Looks at a request that is over and has nothing to read, before it counts as broken off."""


@dataclass(slots=True, eq=False)
class Job:
    """One answer to be computed."""

    prompt: Sequence[int]
    config: Any
    """An ``openvino_genai.GenerationConfig``, whose ``stop_token_ids`` are ``ends``."""
    max_tokens: int
    ends: frozenset[int]
    logprobs: bool
    tell: Callable[[Event], None]
    """Called on the reading thread, which it must not hold up."""
    handle: Any = None
    count: int = 0
    over: bool = False
    missed: int = field(default=0, repr=False)


class Pipeline:
    """The two threads around one ``ContinuousBatchingPipeline``."""

    def __init__(
        self,
        pipeline: Any,
        *,
        guesses: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``guesses`` are fields of every ``GenerationConfig``, where later tokens are guessed."""
        self._guesses = dict(guesses or {})
        self._genai: Any = genai()
        tensor = openvino().Tensor
        self._tensor: Callable[[Sequence[int]], Any] = lambda tokens: tensor(np.array([tokens], np.int64))
        self._pipeline: Any | None = pipeline
        self._clock = clock
        self._change = threading.Condition()
        self._waiting: list[Job] = []
        self._live: list[Job] = []
        self._computes = False
        self._joined = False
        self._closed = False
        self._number = 1
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._pace = 0.0
        """Seconds between the last tokens of a stream."""
        self._last = 0.0
        self._threads = [
            threading.Thread(target=target, name=f"cloister-openvino-{name}", daemon=True)
            for name, target in (("compute", self._compute), ("read", self._read))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Begin ``jobs`` at the next step; False where the engine is closing."""
        with self._change:
            if self._closed:
                return False
            self._waiting.extend(jobs)
            if self._computes and self._joined and self._live:
                self._join()
            self._change.notify_all()
        # Where nothing runs yet, the first step is joined if it can be; else the second one is.
        for _ in range(_JOIN_ATTEMPTS):
            with self._change:
                pipeline = self._pipeline
                if not self._waiting or pipeline is None or self._joined:
                    break
                if self._computes and pipeline.has_non_finished_requests():
                    self._join()
                    break
            time.sleep(0)
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Take no more steps for ``jobs``, and tell nothing more of them."""
        with self._change:
            for job in jobs:
                self._end(job)

    def stats(self) -> EngineStats:
        with self._change:
            return EngineStats(
                running=len(self._live) + len(self._waiting),
                prompt_tokens=self._prompt_tokens,
                cached_tokens=0,
                completion_tokens=self._completion_tokens,
            )

    def close(self) -> None:
        """Stop what runs behind its present step, wait for it (bounded), free the model. Idempotent."""
        with self._change:
            self._closed = True
            refusal = shutting_down()
            for job in (*self._live, *self._waiting):
                self._end(job, Failed(refusal))
            self._change.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_SECONDS)
        self._pipeline = None

    def _compute(self) -> None:
        pipeline: Any = self._pipeline
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._waiting) or self._closed)
                if self._closed:
                    return
                self._computes, self._joined = True, False
            try:
                pipeline.generate([self._tensor([0])], [self._opening()], self._opener())
            except Exception as error:  # C++ exceptions arrive as many Python types
                # Its text could quote the request.
                self._fail(InferenceError(f"OpenVINO failed ({type(error).__name__})"))
            with self._change:
                self._computes = False
                try:
                    self._take_back(pipeline)
                except Exception as error:  # as above
                    self._fail(InferenceError(f"OpenVINO failed ({type(error).__name__})"))

    def _opening(self) -> Any:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = 4096, True, False
        for name, value in self._guesses.items():
            setattr(config, name, value)
        return config

    def _opener(self) -> Any:
        pipeline, status = self, self._genai.StreamingStatus.CANCEL

        class Opener(self._genai.StreamerBase):  # type: ignore[misc,name-defined]
            def write(self, _: object) -> Any:
                with pipeline._change:
                    pipeline._join()
                return status

            def end(self) -> None:
                pass

        return Opener()

    def _join(self) -> None:
        """Under the lock, while ``generate`` runs and has a request: add those that wait."""
        self._joined = True
        waiting, self._waiting = self._waiting, []
        for job in waiting:
            if job.over or self._pipeline is None:
                continue
            self._number += 1
            try:
                job.handle = self._pipeline.add_request(self._number, self._tensor(job.prompt), job.config)
            except Exception as error:  # as above; the request's own fault, since nothing was computed yet
                text = str(error).strip().splitlines()[-1][:200]
                self._end(job, Failed(RequestRefused(f"The engine refuses the request: {text}")))
                continue
            self._prompt_tokens += len(job.prompt)
            self._live.append(job)
        self._change.notify_all()

    def _take_back(self, pipeline: Any) -> None:
        """Under the lock, when nothing computes: what joined too late waits again."""
        if not pipeline.has_non_finished_requests():
            return
        running = self._genai.GenerationStatus.RUNNING
        late = [job for job in self._live if job.handle.get_status() == running]
        for job in late:
            job.handle.cancel()
            self._live.remove(job)
            self._prompt_tokens -= len(job.prompt)
        # With nothing left to schedule a step computes nothing and lets go of what was cancelled.
        pipeline.step()
        self._waiting[:0] = late

    def _fail(self, error: InferenceError) -> None:
        with self._change:
            for job in (*self._live, *self._waiting):
                self._end(job, Failed(error))

    def _read(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: bool(self._live) or self._closed)
                if self._closed and not self._live:
                    return
                for job in tuple(self._live):
                    self._read_one(job)
                pause = self._pause()
            time.sleep(pause)

    def _read_one(self, job: Job) -> None:
        running = job.handle.get_status() == self._genai.GenerationStatus.RUNNING
        found = False
        while not job.over and job.handle.can_read():
            for output in job.handle.read().values():
                for token, probability in zip(output.generated_ids, output.generated_log_probs, strict=False):
                    found = True
                    self._take(job, token, probability)
        if found:
            now = self._clock()
            self._pace, self._last = now - self._last, now
        job.missed = 0 if running or found else job.missed + 1
        if job.missed > _MISSED and not job.over:
            self._end(job, Failed(InferenceError("the engine broke off an answer")))

    def _take(self, job: Job, token: int, probability: float) -> None:
        if job.over:
            return
        job.count += 1
        self._completion_tokens += 1
        if token in job.ends:
            self._end(job, Ended("stop", untold=1))
            return
        job.tell(Token(token, probability, [(token, probability)]) if job.logprobs else Token(token))
        if job.count >= job.max_tokens:
            self._end(job, Ended("length"))

    def _end(self, job: Job, event: Event | None = None) -> None:
        if job.over:
            return
        job.over = True
        if job in self._live:
            self._live.remove(job)
        if job in self._waiting:
            self._waiting.remove(job)
        if job.handle is not None:
            job.handle.cancel()
        if event is not None:
            job.tell(event)

    def _pause(self) -> float:
        """Until the next token can be there, roughly: half of what the last step took, then ever less."""
        if not any(job.count for job in self._live):
            return IDLE_POLL_SECONDS
        expected = self._last + min(self._pace, 0.5) - self._clock()
        return max(POLL_SECONDS, min(expected / 2, 0.05))
