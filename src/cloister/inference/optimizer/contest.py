"""The search: candidates are tried in order of promise, the better half stays, until the budget or the doubt ends.

1. Every candidate is made, opened and measured once, the most promising first, then the reference for quality.
2. Quality is judged in the order of speed, until enough good ones are known. What loses too much is out.
3. Those that lead, and variants of the leader, are measured in interleaved rounds; the slower half leaves after each.

A share of the budget is kept for each step, so that a small one still ends with a result. Of a candidate that fails the
reason is kept. Processes and files live no longer than :meth:`Contest.run`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from cloister.inference.machine import Machine
from cloister.inference.optimized import Goal
from cloister.inference.optimizer.candidates import RESERVE, Candidate, Form, LeftOut, variants
from cloister.inference.optimizer.forms import Given, disk_size, made_size
from cloister.inference.optimizer.measurement import Load, Sample
from cloister.inference.optimizer.pool import Pool, Trial
from cloister.inference.optimizer.standing import (
    SHORT,
    Entrant,
    Judgement,
    affordable,
    ranked,
    references_of,
    refused,
)
from cloister.inference.optimizer.trial_process import TrialFailed

HEATS_END: Final = 0.5
JUDGING_END: Final = 0.7
VARIANTS_END: Final = 0.8
FINALS_END: Final = 0.95
"""Shares of the budget."""
TURN: Final = 0.6
"""Of the time that is left for all, what one candidate may take while others wait."""
ROUNDS: Final = 5
FINALISTS: Final = 4
STREAMS: Final = 8
QUICK: Final = Load(prompt=512, decode=24, streams=STREAMS, stream_tokens=16)
FULL: Final = Load(prompt=512, decode=48, streams=STREAMS, stream_tokens=24)
CONTEXT: Final = 640
"""Tokens of a slot while it is measured: the prompt and its answer."""
_SPARE_DISK: Final = 64 << 20


Progress = Callable[[str, str, float], None]
"""Called with (what is done, for which candidate, seconds of the budget that remain)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a contest takes from outside itself."""

    machine: Machine
    start: Callable[[], Trial]
    """A new child process."""
    free_memory: Callable[[], int]
    progress: Progress
    clock: Callable[[], float] = time.monotonic


class Contest:
    """One search. ``room`` is an empty folder for what is made, its caller's to remove."""

    def __init__(
        self,
        given: Given,
        candidates: Sequence[Candidate],
        left_out: Sequence[LeftOut],
        *,
        goal: Goal,
        budget: float,
        max_loss: float,
        text: Path | None,
        room: Path,
        surroundings: Surroundings,
    ) -> None:
        self.entrants = [Entrant(candidate) for candidate in candidates]
        self.left_out = [
            Entrant(Candidate(engine=one.engine), state="left out", reason=one.reason) for one in left_out
        ]
        self._names = {id(entrant): one.name for entrant, one in zip(self.left_out, left_out, strict=True)}
        self._given = given
        self._goal = goal
        self._budget = budget
        self._max_loss = max_loss
        self._text = text
        self._room = room
        self._around = surroundings
        self._begun = surroundings.clock()
        self._made: dict[Form, Path | str] = {"as it is": given.path}
        self._pool = Pool(surroundings.start, surroundings.free_memory)
        self._reference: Entrant | None = None
        self._windows = 0

    def name(self, entrant: Entrant) -> str:
        return self._names.get(id(entrant), entrant.candidate.name)

    def run(self) -> list[Entrant]:
        """Every entrant with what became of it. Raises nothing of a candidate's; KeyboardInterrupt passes, cleaned up."""
        try:
            self._heats()
            self._judge(self._good_enough, until=JUDGING_END)
            self._finals()
            self._judge(lambda: False, until=FINALS_END)
        finally:
            self._pool.close()
        return [*self.entrants, *self.left_out]

    def _heats(self) -> None:
        order = list(self.entrants)
        best = self._references()[:1]
        if best and best[0].form != "as it is":
            # Others are compared with files that have to be made first.
            early = next(entrant for entrant in order if entrant.candidate is best[0])
            order.remove(early)
            order.insert(min(1, len(order)), early)
        for entrant in order:
            if self._left(HEATS_END) <= 0 and any(one.state == "measured" for one in order):
                entrant.state, entrant.reason = "left out", "the budget ended before its turn"
                continue
            self._heat(entrant)

    def _heat(self, entrant: Entrant, *, until: float = HEATS_END) -> None:
        deadline = self._turn(until)
        with self._fate(entrant):
            entrant.path = self._files(entrant, deadline)
            entrant.disk = disk_size(entrant.path, self._given)
            self._round(entrant, QUICK, deadline)
            entrant.state = "measured"
        if entrant.state == "measured":
            self._narrow()

    def _turn(self, until: float) -> float:
        """When the next candidate has to be done: one that hangs must not take the time of all others."""
        known = any(one.state == "measured" for one in self.entrants)
        waiting = sum(one.state == "waiting" for one in self.entrants)
        now = self._around.clock()
        # The last one, where nothing was measured yet, has all that is left to measure something.
        end = self._deadline(until if known or (waiting > 1 and self._left(until) > 0) else FINALS_END)
        return end if waiting <= 1 else now + (end - now) * TURN

    def _narrow(self) -> None:
        """Only those that lead stay open: an open model takes memory."""
        self._pool.keep({one.candidate.name for one in self._in_the_race()[:FINALISTS]})

    def _in_the_race(self) -> list[Entrant]:
        """Who may still be chosen, the best first."""
        return [
            one
            for one in ranked(self.entrants, self._goal)
            if (one.judgement is None and not one.unjudged) or not refused(one, self._max_loss)
        ]

    def _good_enough(self) -> bool:
        judged = [one for one in self.entrants if one.judgement is not None and one is not self._reference]
        return sum(not refused(one, self._max_loss) for one in judged) >= FINALISTS // 2

    def _judge(self, enough: Callable[[], bool], *, until: float) -> None:
        """Measure the quality of the reference, then of the others, the quickest first."""
        measured = ranked(self.entrants, self._goal)
        if self._windows == 0 and measured:
            # The slowest and some others have to be done by then.
            slowest = min(one.sample.decode for one in measured)
            self._windows = affordable(max(1.0, self._left(until)) / 8, slowest)
        reference = self._reference = self._reference or self._referred(until)
        for entrant in measured:
            if reference is None or self._left(until) <= 0 or enough():
                return
            if entrant.judgement is None and not entrant.unjudged:
                self._judge_one(entrant, reference, self._deadline(until))

    def _references(self) -> list[Candidate]:
        candidates = [entrant.candidate for entrant in self.entrants if not entrant.is_variant]
        return references_of(candidates, short=self._budget < SHORT)

    def _referred(self, until: float) -> Entrant | None:
        """The first of what others may be compared with that can be computed; how fast it is does not matter."""
        for candidate in self._references():
            entrant = next(one for one in self.entrants if one.candidate is candidate)
            if entrant.path is None and candidate.form == "as it is":
                entrant.path = self._given.path
            left = self._left(until)
            if entrant.path is not None and left > 0 and not entrant.unjudged:
                self._judge_one(entrant, entrant, self._deadline(until) - left * (1 - TURN))
                if entrant.judgement is not None:
                    return entrant
        return None

    def _to_judge(self, variant: Entrant) -> bool:
        judged = self._reference is not None and self._reference.judgement is not None
        return judged and variant.state == "measured" and variant.judgement is None and not variant.unjudged

    def _judge_one(self, entrant: Entrant, reference: Entrant, deadline: float) -> None:
        self._say("quality", entrant)
        # Opening a model of torch's once more takes longer than all that is asked of it.
        kept = self._pool.get(entrant.candidate.name) if entrant.candidate.engine == "torch" else None
        if kept is None:
            self._make_room(entrant)
        else:
            self._pool.pause()
        trial = kept or self._around.start()
        try:
            found = trial.ask(
                "quality",
                deadline,
                engine=entrant.candidate.engine,
                path=str(entrant.path),
                settings=self._settings(entrant.candidate, slots=1),
                given=str(self._given.path),
                room=str(self._room),
                text=None if self._text is None else str(self._text),
                windows=self._windows,
                threads=max(1, self._around.machine.processors - 1),
                is_reference=entrant is reference,
            )
        except TrialFailed as error:
            entrant.unjudged = error.what
            if kept is not None:
                self._pool.drop(entrant.candidate.name)
            return
        finally:
            if kept is None:
                trial.close()
            else:
                trial.pause()
        entrant.judgement = Judgement(reference=reference.candidate.name, **found)

    def _finals(self) -> None:
        may = [one for one in ranked(self.entrants, self._goal) if not refused(one, self._max_loss)]
        if not may:
            return
        for candidate in variants(may[0].candidate, self._around.machine):
            if self._left(VARIANTS_END) <= 0:
                break
            variant = Entrant(candidate, path=may[0].path, disk=may[0].disk)
            if candidate.kv_cache == may[0].candidate.kv_cache:
                # Threads change the speed alone.
                variant.judgement, variant.unjudged = may[0].judgement, may[0].unjudged
            self.entrants.append(variant)
            self._heat(variant, until=VARIANTS_END)
            if self._reference is not None and self._to_judge(variant):
                self._judge_one(variant, self._reference, self._deadline(VARIANTS_END))
        for number in range(1, ROUNDS + 1):
            may = [one for one in ranked(self.entrants, self._goal) if not refused(one, self._max_loss)]
            # Successive halving: 4, 2, 2, … The first two are compared to the end.
            for entrant in may[: max(2, FINALISTS >> (number - 1))]:
                if self._left(FINALS_END) <= 0:
                    return
                with self._fate(entrant, keep=True):
                    self._round(entrant, FULL, self._deadline(1.0), seed=number)
                self._narrow()

    def _round(self, entrant: Entrant, load: Load, deadline: float, *, seed: int = 0) -> None:
        name = entrant.candidate.name
        trial = self._pool.get(name)
        if trial is None:
            self._say("opening", entrant)
            self._make_room(entrant)
            trial = self._pool.start(name)
            trial.ask(
                "open",
                deadline,
                engine=entrant.candidate.engine,
                path=str(entrant.path),
                settings=self._settings(entrant.candidate, slots=STREAMS),
            )
        self._say("measuring", entrant)
        found = trial.ask("measure", deadline, load=asdict(load), seed=seed)
        trial.pause()
        entrant.samples.append(Sample(**found["sample"]))
        entrant.memory = max(entrant.memory, int(found["memory"]))

    def _make_room(self, entrant: Entrant) -> None:
        """Have memory for one more model, and quiet."""
        standing = [one.candidate.name for one in ranked(self.entrants, self._goal)]
        self._pool.make_room(entrant.candidate.weight_bytes + 2 * RESERVE, standing)
        self._pool.pause()

    def _files(self, entrant: Entrant, deadline: float) -> Path:
        """Where the candidate's files are; converted first where they must be. Raises TrialFailed."""
        form = entrant.candidate.form
        made = self._made.get(form)
        if made is None:
            try:
                made = self._made[form] = self._make(form, entrant, deadline)
            except TrialFailed as error:
                self._made[form] = error.what
                raise
        if isinstance(made, str):
            raise TrialFailed(made)
        return made

    def _make(self, form: Form, entrant: Entrant, deadline: float) -> Path:
        size = made_size(self._given.source, form)
        free = shutil.disk_usage(self._room).free
        if size + _SPARE_DISK > free:
            raise TrialFailed(
                f"its files need about {size / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free"
            )
        self._say(f"converting to {form}", entrant)
        self._pool.pause()
        target = self._room / f"{self._given.name}-{form}.gguf"
        trial = self._around.start()
        try:
            trial.ask("make", deadline, source=str(self._given.path), target=str(target), form=form)
        except TrialFailed as error:
            target.unlink(missing_ok=True)
            raise TrialFailed(f"it cannot be converted: {error.what}") from None
        finally:
            trial.close()
        return target

    @contextlib.contextmanager
    def _fate(self, entrant: Entrant, *, keep: bool = False) -> Iterator[None]:
        """What fails inside is the entrant's row; with ``keep`` what was measured before still counts."""
        try:
            yield
        except TrialFailed as error:
            self._pool.drop(entrant.candidate.name)
            late = self._left(1.0) <= 0 or self._left(HEATS_END) <= 0
            if not (keep and late and entrant.samples):
                entrant.state, entrant.reason = "failed", error.what

    def _settings(self, candidate: Candidate, *, slots: int) -> dict[str, Any]:
        return {
            "context_length": CONTEXT,
            "slots": slots,
            "threads": candidate.threads,
            "precision": candidate.precision,
            "kv_cache": candidate.kv_cache,
        }

    def _deadline(self, share: float) -> float:
        return self._begun + self._budget * share

    def _left(self, share: float) -> float:
        return self._deadline(share) - self._around.clock()

    def _say(self, what: str, entrant: Entrant) -> None:
        self._around.progress(what, entrant.candidate.name, max(0.0, self._left(1.0)))
