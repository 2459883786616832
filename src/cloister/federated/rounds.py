"""The rounds of a run: ask the parties that are ready, take what may be used, combine, score, keep, tell. No network here.

How parties are asked is an argument (exchange.py; over Flower it is flower/server.py), and so are the clock and who is
ready. Where nobody may see an update, a round's training is secure/rounds.py's. After each round its result, which the
parties' workloads have scored, is kept before anybody else hears of it, so a run that was killed goes on from its last
round with the same result. Nothing waits without end: a round ends at its deadline, and so does waiting for parties.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cloister.errors import BudgetSpent, CloisterError, FederationError, UpdateRefused
from cloister.federated.aggregation import Aggregator, Update
from cloister.federated.exchange import NOT_READY, Exchange, Reply, Request
from cloister.federated.federation import EPSILON, MILLION, Federation, Privacy
from cloister.federated.privacy import Budget
from cloister.federated.progress import Ended, Fact, RoundDone, Share
from cloister.federated.round import Head, Round
from cloister.federated.secure.rounds import RoundLost, SecureRound, moved
from cloister.federated.updates import Arrays, check_update, decode_arrays, encode_arrays

PAUSE: Final = 0.5
MAX_EXAMPLES: Final = 10_000_000
MAX_SECONDS: Final = 10_000_000.0
MAX_REASON: Final = 300


@dataclass(frozen=True, slots=True)
class Kept:
    """A run after a round: all that goes on with it."""

    number: int
    model: Arrays
    state: Arrays
    """Of the way of aggregation."""
    secret: bytes = field(default=b"", repr=False)
    """Of its noise; empty before the first round."""


class Rounds:
    """One run. ``keep`` stores a :class:`Kept` for good, and only then tells what happened.

    ``claims`` is what parties said before that they have spent (:func:`~cloister.federated.privacy.claims_of`). ``keys``
    tells the key of each ready party's workload (SubjectPublicKeyInfo, DER), for secure aggregation.
    """

    def __init__(
        self,
        federation: Federation,
        run: str,
        exchange: Exchange,
        *,
        keep: Callable[[Kept, Fact], None],
        claims: Mapping[str, float] | None = None,
        keys: Callable[[], Mapping[str, bytes]] = dict,
        now: Callable[[], int] = lambda: int(time.time()),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._federation = federation
        self._run = run
        self._exchange = exchange
        self._keep = keep
        self._now = now
        self._clock = clock
        self._sleep = sleep
        self._aggregator = Aggregator(federation)
        self._budget = Budget(federation)
        self._of_clients = isinstance(federation.privacy, Privacy) and federation.privacy.of == "clients"
        self._claims = dict(claims or {})
        self._keys = keys
        self._lost = False
        """Whether the round before had no result."""
        self._holds: dict[str, str] = {}
        """Party → digest of the model that it has."""
        self._holders: dict[str, bytes] = {}
        """Party → the key of its workload in the round before, where that is known."""

    def go_on(self, kept: Kept) -> Kept:
        """All rounds that are left. What ends a run early is told as a fact, and not raised."""
        self._aggregator.restore(kept.state, kept.secret)
        finished, reason = False, ""
        try:
            for number in range(kept.number + 1, self._federation.rounds + 1):
                kept = self._round(number, kept)
            finished = True
        except BudgetSpent as error:
            # As many as there may ever be: what they came to is the model. Without any there is none.
            finished, reason = kept.number > 0, str(error)
        except FederationError as error:
            reason = str(error)
        ended = Ended(
            at=self._now(), finished=finished, reason=reason, rounds=kept.number,
            model=digest_of(encode_arrays(kept.model)),
        )  # fmt: skip
        self._keep(kept, ended)
        return kept

    def _round(self, number: int, kept: Kept) -> Kept:
        self._budget.check_next(kept.number, self._claims)
        parties = self._gathered()
        begun = self._clock()
        blob = encode_arrays(kept.model)
        if self._federation.aggregation.secure:
            model, shares, refused = self._sum(number, kept.model, blob, parties)
        else:
            updates, shares, refused = self._train(number, kept.model, blob, parties)
            model = self._aggregator.combine(kept.model, updates, number=number)
        after = encode_arrays(model)
        scores = self._score(number, after, sorted(shares))
        for party, (found, _) in scores.items():
            shares[party] = Share(
                examples=shares[party].examples, bytes=shares[party].bytes, norm=shares[party].norm,
                metrics=shares[party].metrics, scores=found,
            )  # fmt: skip
        fact = RoundDone(
            at=self._now(), number=number, seconds=round(self._clock() - begun, 3), shares=shares, refused=refused,
            scores=_weighted(list(scores.values())), epsilon=self._spent(number), model=digest_of(after),
            down=len(blob),
        )  # fmt: skip
        kept = Kept(number, model, self._aggregator.state(), self._aggregator.secret)
        self._keep(kept, fact)
        return kept

    def _gathered(self) -> list[str]:
        """Parties of the next round; as long as there are too few, at most a round's time is waited."""
        until = self._clock() + self._federation.deadline
        while len(ready := self._exchange.ready()) < self._federation.minimum:
            if self._clock() > until:
                raise FederationError(
                    f"{len(ready)} parties are ready, and a round needs {self._federation.minimum}",
                    todo="start the others' agents, then the aggregator again: it goes on from its last round",
                )
            self._sleep(PAUSE)
        return sorted(ready)

    def _train(
        self, number: int, model: Arrays, blob: bytes, parties: list[str]
    ) -> tuple[dict[str, Update], dict[str, Share], dict[str, str]]:
        """Updates that may be used, what each party brought, and why others' may not."""
        federation, digest, begun = self._federation, digest_of(blob), self._clock()
        desk = Round(
            self._run, number, parties, minimum=federation.minimum, begun=begun, deadline=federation.deadline,
        )  # fmt: skip
        updates: dict[str, Update] = {}
        shares: dict[str, Share] = {}
        refused: dict[str, str] = {}
        requests = {
            party: Request(
                "train", self._run, number, digest, b"" if self._holds.get(party) == digest else blob
            )
            for party in parties
        }
        largest = federation.aggregation.largest_ppm / MILLION
        for reply in self._replies(requests, blob, until=begun + federation.deadline):
            try:
                if reply.error:
                    raise UpdateRefused(reply.error)
                arrays = decode_arrays(
                    reply.content, what=f"the update of {reply.party}", limit=2 * len(blob) + 65536
                )
                norm = check_update(arrays, model=model, largest=largest, what=f"the update of {reply.party}")
                examples = _counted(reply)
                self._budget.check_claim(reply.party, reply.metrics, self._claims)
                desk.take(Head(reply.run, reply.number, reply.party), now=self._clock())
            except CloisterError as error:
                refused[reply.party] = error.what
                self._holds.pop(reply.party, None)
                continue
            updates[reply.party] = arrays, examples
            if EPSILON in reply.metrics:
                self._claims[reply.party] = reply.metrics[EPSILON]
            told = self._leaving(reply.metrics)
            shares[reply.party] = Share(
                # Its weight is the aggregator's alone; others hear of what the federation lists, and of no size of an
                # update that noise is to hide.
                examples=int(told.get("examples", 0)), bytes=len(reply.content),
                norm=None if self._of_clients else round(norm, 6), metrics=told, scores={},
            )  # fmt: skip
        for party in set(parties) - self._exchange.ready():
            desk.exclude(party)
            updates.pop(party, None)
            shares.pop(party, None)
            refused[party] = NOT_READY
        for party in set(parties) - desk.brought - refused.keys():
            refused[party] = f"nothing came within {federation.deadline} s"
        # Whose update counts is not refused for what else came in its name.
        refused = {party: why for party, why in sorted(refused.items()) if party not in updates}
        if len(updates) < federation.minimum:
            raise FederationError(
                f"round {number} has {len(updates)} updates that may be used, and needs {federation.minimum}: "
                + "; ".join(f"{party}: {why}" for party, why in sorted(refused.items())),
                todo="mend what is said of the parties, then start the aggregator again",
            )
        return dict(sorted(updates.items())), dict(sorted(shares.items())), refused

    def _replies(self, requests: Mapping[str, Request], blob: bytes, *, until: float) -> Iterator[Reply]:
        """Of all; who refuses without the model gets it, and is asked once more: a workload may have been started anew."""
        again: dict[str, Request] = {}
        for reply in self._exchange.ask(requests, seconds=until - self._clock()):
            asked = requests.get(reply.party)
            if reply.error and asked is not None and not asked.content:
                again[reply.party] = replace(asked, content=blob)
            else:
                yield reply
        if again and (left := until - self._clock()) > 0:
            yield from self._exchange.ask(again, seconds=left)

    def _sum(
        self, number: int, model: Arrays, blob: bytes, parties: list[str]
    ) -> tuple[Arrays, dict[str, Share], dict[str, str]]:
        """The model after a round of which nobody sees an update; as it was, where such a round is lost."""
        digest, keys = digest_of(blob), self._keys()
        known = {party: keys[party] for party in parties if party in keys}
        secure = SecureRound(
            self._federation, self._run, number, model, digest, known, exchange=self._exchange, clock=self._clock
        )  # fmt: skip

        def accept(reply: Reply) -> None:
            self._budget.check_claim(reply.party, reply.metrics, self._claims)
            if EPSILON in reply.metrics:
                self._claims[reply.party] = reply.metrics[EPSILON]

        for party, key in known.items():
            if self._holders.get(party) != key:
                self._holds.pop(party, None)  # another workload, which has nothing
        self._holders = known
        models = {party: b"" if self._holds.get(party) == digest else blob for party in known}
        try:
            mean = secure.mean(models, accept)
        except RoundLost as error:
            self._holds.clear()
            if self._lost:
                raise
            self._lost = True
            return model, {}, dict.fromkeys(known, error.what[:MAX_REASON]) | secure.refused
        self._lost = False
        for party in known.keys() - set(mean.parties):
            self._holds.pop(party, None)
        shares = {}
        for party in sorted(mean.parties):
            # How many examples an update is of is in the sum; a party may tell it beside.
            told = self._leaving(secure.metrics[party])
            shares[party] = Share(
                examples=int(told.get("examples", 0)), bytes=secure.bytes[party], norm=None, metrics=told, scores={},
            )  # fmt: skip
        return self._aggregator.follow(model, moved(model, mean), number=number), shares, secure.refused

    def _score(self, number: int, blob: bytes, parties: list[str]) -> dict[str, tuple[dict[str, float], int]]:
        """What parties say of the round's model; who does not answer says nothing."""
        digest = digest_of(blob)
        requests = {party: Request("score", self._run, number, digest, blob) for party in parties}
        found = {}
        for reply in self._exchange.ask(requests, seconds=self._federation.deadline):
            same = (reply.run, reply.number) == (self._run, number)
            if reply.error or not same or reply.party not in requests:
                continue
            self._holds[reply.party] = digest
            # 0 examples: a party without a held-out part.
            if reply.examples > 0:
                found[reply.party] = (self._leaving(reply.metrics), min(reply.examples, MAX_EXAMPLES))
        return dict(sorted(found.items()))

    def _leaving(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Of what a party says, what the federation lets leave and a number can be."""
        return {
            # Of epsilon every bit: it has to rise, be it by ever so little.
            name: value if name == EPSILON else round(value, 6)
            for name, value in sorted(metrics.items())
            if name in self._federation.metrics and 0 <= value <= MAX_SECONDS
        }

    def _spent(self, number: int) -> float | None:
        if not isinstance(self._federation.privacy, Privacy):
            return None
        return round(self._budget.spent(number, self._claims), 6)


def digest_of(blob: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(blob).hexdigest()


def _counted(reply: Reply) -> int:
    if not 1 <= reply.examples <= MAX_EXAMPLES:
        raise UpdateRefused(
            f"the update of {reply.party} is said to be of {reply.examples} examples; 1 to {MAX_EXAMPLES} are believed"
        )
    return reply.examples


def _weighted(found: list[tuple[dict[str, float], int]]) -> dict[str, float]:
    """The mean of each metric that all told, by examples."""
    if not found:
        return {}
    names = set.intersection(*(set(metrics) for metrics, _ in found))
    total = sum(examples for _, examples in found)
    return {
        name: round(sum(metrics[name] * examples for metrics, examples in found) / total, 6)
        for name in sorted(names)
    }
