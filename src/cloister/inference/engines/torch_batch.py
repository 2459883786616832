"""Continuous batching: one thread owns the model, and between two of its steps answers join and leave.

Each running answer has a row of the key and value memory. A step decodes one token of every row that has read its prompt
and, as far as the pace allows, reads on in the prompts of the others, all in one pass over the weights. Rows
that are free keep what they hold for the tenant who filled them, if that is wanted: another tenant's question never finds
it. What is computed is told through each job's own queue, so a client that is slow delays nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import torch

from cloister.errors import InferenceError
from cloister.inference.api_errors import shutting_down
from cloister.inference.engines import EngineStats
from cloister.inference.engines.in_process import Ended, Failed, Reading, Token
from cloister.inference.engines.torch_attention import KvMemory, Segment
from cloister.inference.engines.torch_jobs import Job
from cloister.inference.engines.torch_model import TorchModel
from cloister.inference.engines.torch_pace import Pace
from cloister.inference.engines.torch_sampling import greedy, log_probabilities
from cloister.inference.engines.torch_waiting import Waiting

CLOSE_SECONDS: Final = 30.0
MIN_REUSED: Final = 16
"""A common beginning of fewer tokens is sooner computed than looked for."""


@dataclass(slots=True)
class _Kept:
    """What a row holds, and for whom it may be used again."""

    tokens: list[int] = field(default_factory=list)
    tenant: bytes | None = None
    used: int = 0
    filled: int = 0
    """Tokens of whoever had it, in memory."""


class Batch:
    """The thread, its rows, and those who wait for one."""

    def __init__(
        self,
        model: TorchModel,
        *,
        rows: int,
        length: int,
        prefix_cache: bool,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.perf_counter,
        prepare: Callable[[], Waiting | None] = lambda: None,
    ) -> None:
        """``prepare`` runs on the thread before its first step, and says how its helpers wait."""
        self._model: TorchModel | None = model
        self._memory = KvMemory(rows, length)
        self._length = length
        self._prefix_cache = prefix_cache
        self._pace = pace or Pace()
        self._clock = clock
        self._prepare = prepare
        self._kept = [_Kept() for _ in range(rows)]
        self._free = list(range(rows))
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._change = threading.Condition()
        self._closed = False
        self._uses = 0
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._thread = threading.Thread(target=self._work, name="cloister-torch", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> bool:
        """Let ``jobs`` wait for rows, in this order; False once the batch is closed."""
        with self._change:
            if self._closed:
                return False
            self._waiting.extend(jobs)
            self._change.notify()
        return True

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
        )

    def close(self) -> None:
        """End every job behind its present step, and free the model. Idempotent."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(CLOSE_SECONDS)
        self._model = None

    def _work(self) -> None:
        waiting = self._prepare()
        # One mode for all that touches the memory: its tensors may not be changed outside of it.
        with torch.inference_mode():
            while self._admit():
                try:
                    seconds = self._step()
                    if waiting is not None:
                        waiting.computed(seconds)
                except Exception as error:  # whatever torch raises: the jobs fail, the thread goes on
                    failed = Failed(InferenceError(f"the engine failed in a step: {type(error).__name__}"))
                    self._let_go(self._running, failed)
        if waiting is not None:
            waiting.close()
        closing = Failed(shutting_down())
        self._let_go([*self._running, *self._waiting], closing)
        self._kept.clear()
        self._memory = KvMemory(0, 0)

    def _let_go(self, jobs: Sequence[Job], why: Failed) -> None:
        for job in tuple(jobs):
            job.tell(why)
            self._release(job, keep=False)

    def _admit(self) -> bool:
        """Give free rows to those who wait; sleep while there is nothing to do. False when closed."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._running or self._waiting)
            for job in [job for job in (*self._waiting, *self._running) if job.cancelled]:
                self._release(job, keep=job.row >= 0)
            while self._waiting and self._free and not self._closed:
                job = self._waiting.pop(0)
                self._place(job)
                self._running.append(job)
            return not self._closed

    def _place(self, job: Job) -> None:
        best, common = self._free[0], 0
        if self._prefix_cache and job.tenant is not None and job.sampler is not None:
            for row in self._free:
                kept = self._kept[row]
                if kept.tenant == job.tenant:
                    found = _common(kept.tokens, job.prompt)
                    if found > common:
                        best, common = row, found
        if common < MIN_REUSED:
            # What was used longest ago, or never; of those the first, so that running rows lie together.
            best, common = min(self._free, key=lambda row: (self._kept[row].used, row)), 0
        self._free.remove(best)
        if common == 0:
            self._memory.clear(best, self._kept[best].filled)
            self._kept[best].filled = 0
        # At least one token is computed: its logits are where the answer begins.
        job.row, job.done = best, min(common, len(job.prompt) - 1)
        job.cached = job.done
        self._cached_tokens += job.done

    def _release(self, job: Job, *, keep: bool) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
        if job not in self._running:
            return
        self._running.remove(job)
        kept = self._kept[job.row]
        self._uses += 1
        kept.tokens, kept.tenant, kept.used = [], None, self._uses
        # At most: a step that failed may have written what was not counted.
        kept.filled = max(kept.filled, len(job.prompt) + len(job.answer))
        if keep and self._prefix_cache and job.tenant is not None:
            kept.tokens = [*job.prompt, *job.answer][: job.done]
            kept.tenant = job.tenant
        self._free.append(job.row)
        job.row = -1

    def _step(self) -> float:
        """The seconds that it took."""
        self._follow()
        decoding = [job for job in self._running if not job.reads]
        reading = [job for job in self._running if job.reads and not job.waits]
        budget = self._pace.allowance(decoding=len(decoding), reading=len(reading))
        started = self._clock()
        segments = [Segment(job.row, job.done, 1) for job in decoding]
        tokens = [job.answer[-1] for job in decoding]
        jobs = list(decoding)
        pooled: list[tuple[Job, Segment]] = []
        read = 0
        for job in reading:
            if read >= budget:
                break
            count = min(budget - read, len(job.prompt) - job.done)
            read += count
            segment = Segment(job.row, job.done, count)
            if job.sampler is None:
                pooled.append((job, segment))
                continue
            segments.append(segment)
            tokens.extend(job.prompt[job.done : job.done + count])
            jobs.append(job)
        # Before anybody is told of it: who has an answer finds it counted.
        self._prompt_tokens += read
        if segments:
            self._compute(jobs, segments, tokens)
        for job, segment in pooled:
            self._pool(job, segment)
        seconds = self._clock() - started
        self._pace.took(seconds, decoding=len(decoding), read=read)
        return seconds

    def _follow(self) -> None:
        """Give followers what their leader has read, unless it is gone: then they read for themselves."""
        for job in self._running:
            leader = job.leader
            if leader is None or job.waits:
                continue
            job.leader = None
            if job.done == 0 and leader.row >= 0 and not leader.reads:
                job.done = len(job.prompt) - 1
                self._memory.copy(leader.row, job.row, job.done)

    def _compute(self, jobs: Sequence[Job], segments: Sequence[Segment], tokens: Sequence[int]) -> None:
        assert self._model is not None  # noqa: S101 -- only a closed batch has none, and its thread has ended
        wanted: list[int] = []
        choosing: list[Job] = []
        place = 0
        for job, segment in zip(jobs, segments, strict=True):
            place += segment.count
            job.done += segment.count
            if job.done >= len(job.prompt):
                wanted.append(place - 1)
                choosing.append(job)
        # Logits of one place at least: models index by it, and an empty index is a shape of its own.
        logits = self._model.logits(self._memory, segments, tokens, wanted or [place - 1])
        self._choose(choosing, logits)
        for job in jobs:
            if job.reads:
                job.tell(Reading())

    def _choose(self, jobs: Sequence[Job], logits: torch.Tensor) -> None:
        plain = [
            place
            for place, job in enumerate(jobs)
            if job.sampler is not None and job.sampler.sampling.greedy and job.grammar is None
        ]
        chosen = dict(zip(plain, greedy(logits, plain), strict=True)) if plain else {}
        for place, job in enumerate(jobs):
            assert job.sampler is not None  # noqa: S101 -- texts that are only read choose nothing
            try:
                token = chosen.get(place)
                if token is None:
                    allowed = None if job.grammar is None else job.grammar.allowed()
                    token = job.sampler.choose(logits[place], allowed)
                self._take(job, token, logits[place])
            except InferenceError as error:
                self._let_go([job], Failed(error))

    def _take(self, job: Job, token: int, logits: torch.Tensor) -> None:
        self._completion_tokens += 1
        if token in job.ends:
            self._end(job, "stop", untold=1)
            return
        complete = job.grammar is not None and job.grammar.took(token)
        job.answer.append(token)
        if job.top is None:
            job.tell(Token(token))
        else:
            job.tell(Token(token, *log_probabilities(logits, token, job.top)))
        if complete:
            self._end(job, "stop")
        elif len(job.answer) >= job.max_tokens or len(job.prompt) + len(job.answer) >= self._length:
            self._end(job, "length")

    def _end(self, job: Job, reason: Literal["stop", "length"], *, untold: int = 0) -> None:
        self._release(job, keep=True)
        job.tell(Ended(reason, untold))

    def _pool(self, job: Job, segment: Segment) -> None:
        assert self._model is not None  # noqa: S101 -- as above
        part = job.prompt[job.done : job.done + segment.count]
        hidden = self._model.read(self._memory, [segment], part).float().sum(dim=0)
        job.total = hidden if job.total is None else job.total + hidden
        job.done += segment.count
        if job.reads:
            job.tell(Reading())
            return
        job.state = job.total / len(job.prompt)
        self._release(job, keep=False)
        job.tell(Ended("stop"))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
