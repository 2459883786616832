"""One run, gathered from its facts: what the report, the live page and the terminal all show. Pure.

The newest run of the facts counts. Where it went on from its last round, rounds that were begun after that one are void;
they stay in the audit trail, as everything does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone, Share, newest_states
from cloister.federated.report.words import Tone, count, state_words

LARGEST: Final = 1e30
"""What a curve can show: a party may send what it likes, and would bend the scale of all others."""
Of = Literal["scores", "metrics"]
"""Of the averaged model on held-out data, or of training."""
Point = tuple[int, float]
"""A round's number and a value."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Somebody whose update, or whose evidence, did not count."""

    at: int
    party: str
    what: str
    """In words: an update, or how it stands with the party."""
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """The newest run, as far as it came."""

    facts: tuple[Fact, ...]
    begun: Begun | None
    first: int
    """When it first began."""
    ended: Ended | None
    """None while it goes on."""
    parties: tuple[str, ...]
    """Of the federation, then whoever else was heard of."""
    states: dict[str, PartyState]
    rounds: tuple[RoundDone, ...]
    """With a result, in order."""
    refusals: tuple[Refusal, ...]
    """In order of time; with those who were excluded or left."""
    at: int
    """Of the newest fact."""
    simulated: bool

    @property
    def last(self) -> RoundDone | None:
        """The newest round."""
        return self.rounds[-1] if self.rounds else None

    def points(self, party: str | None, name: str, *, of: Of = "scores") -> tuple[Point, ...]:
        """A metric of a party per round, or of all (None): what is no number is left out."""
        found = []
        for one in self.rounds:
            value = metric(one, party, name, of=of)
            if value is not None:
                found.append((one.number, value))
        return tuple(found)

    def sent(self, party: str) -> int:
        """Bytes that came of it in all rounds."""
        return sum(one.shares[party].bytes for one in self.rounds if party in one.shares)


def run_of(facts: Iterable[Fact]) -> Run:
    """Gather."""
    kept = tuple(facts)
    begun: Begun | None = None
    ended: Ended | None = None
    start, behind, first = 0, 0, 0
    rounds: dict[int, RoundDone] = {}
    refusals: list[tuple[int, Refusal]] = []
    for place, fact in enumerate(kept):
        match fact:
            case Begun():
                if begun is None or begun.run != fact.run:
                    # Evidence comes before the first round: what was said of parties since the last run is of this one.
                    start, first = (0 if begun is None else behind), fact.at
                    rounds = {}
                begun, ended = fact, None
                rounds = {number: one for number, one in rounds.items() if number <= fact.done}
            case PartyState():
                if fact.state in ("excluded", "left"):
                    refusals.append((place, Refusal(fact.at, fact.party, state_words(fact)[0], fact.reason)))
            case RoundDone():
                rounds[fact.number] = fact
                refusals += [
                    (place, Refusal(fact.at, party, f"update of round {fact.number} refused", reason))
                    for party, reason in fact.refused.items()
                ]
            case Ended():
                ended = fact
        if not isinstance(fact, PartyState):
            behind = place + 1
    of_run = kept[start:]
    states = newest_states(of_run)
    heard = [
        *(begun.parties if begun else ()),
        *states,
        *(name for one in rounds.values() for name in one.shares),
    ]
    return Run(
        facts=kept,
        begun=begun,
        first=first,
        ended=ended,
        parties=tuple(dict.fromkeys(heard)),
        states=states,
        rounds=tuple(rounds[number] for number in sorted(rounds)),
        refusals=tuple(refusal for place, refusal in refusals if place >= start),
        at=max((fact.at for fact in kept), default=0),
        simulated=any(_simulated(fact) for fact in kept),
    )


def metric(one: RoundDone, party: str | None, name: str, *, of: Of = "scores") -> float | None:
    """A metric of a round, a number that can be shown: of ``party``, or of all together, weighted by examples if told."""
    if party is not None:
        return _finite(_values(one.shares.get(party), of).get(name))
    if of == "scores":
        return _finite(one.scores.get(name))
    known = [(max(0, share.examples), _finite(share.metrics.get(name))) for share in one.shares.values()]
    if not known or any(value is None for _, value in known):
        return None
    told = any(examples for examples, _ in known)
    weights = [examples if told else 1 for examples, _ in known]
    return _finite(
        sum(weight * (value or 0.0) for weight, (_, value) in zip(weights, known, strict=True)) / sum(weights)
    )


def run_words(run: Run) -> tuple[str, Tone]:
    """How it stands with the run, in one line."""
    if run.begun is None:
        return "The run has not begun", ""
    done, rounds = len(run.rounds), run.begun.rounds
    if run.ended is None:
        return f"Running: {done} of {count(rounds, 'round')} done", ""
    if run.ended.finished:
        if done < rounds:
            return (
                f"Finished: {done} of {count(rounds, 'round')}, as many as the privacy budget allows",
                "good",
            )
        return f"Finished: all {count(rounds, 'round')} done", "good"
    return f"Stopped after {run.ended.rounds} of {count(rounds, 'round')}", "bad"


def _simulated(fact: Fact) -> bool:
    if isinstance(fact, Begun):
        return fact.simulated
    return isinstance(fact, PartyState) and "simulated" in fact.tee.lower()


def _values(share: Share | None, of: Of) -> dict[str, float]:
    if share is None:
        return {}
    return share.scores if of == "scores" else share.metrics


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) <= LARGEST else None  # NaN is not


def epsilon_points(run: Run) -> tuple[Point, ...]:
    """What was spent, round by round."""
    spent = ((one.number, _finite(one.epsilon)) for one in run.rounds)
    return tuple((number, value) for number, value in spent if value is not None)


def traffic(rounds: Sequence[RoundDone]) -> tuple[int, int]:
    """Bytes from the parties, and to them: who was refused had received the model too."""
    up = sum(share.bytes for one in rounds for share in one.shares.values())
    return up, sum(one.down * len(one.shares.keys() | one.refused.keys()) for one in rounds)
