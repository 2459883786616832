"""A round of secure aggregation, the aggregator's side: five steps with all parties, and the sum alone comes out.

A party trains before it says its keys. So what takes long is over before anything binds it to who takes part, and who drops
out of training leaves a round that can be tried again. The four steps that follow are short; each has an eighth of the
round's time, and what is left of those before it. Who has not answered in a step is out of those that follow.

Once masked vectors were asked for, a round without a result is lost: its parties take part in it under no other terms.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, UpdateRefused
from cloister.federated.exchange import NOT_READY, Exchange, Reply, Request
from cloister.federated.federation import Federation
from cloister.federated.identity import read_spki
from cloister.federated.secure.sum import MaskedSum, Mean
from cloister.federated.secure.terms import Said, Terms, read
from cloister.federated.secure.wire import BEGUN, STEPS, Asked, key_digest, pack, threshold, unpack
from cloister.federated.updates import Arrays

EIGHTHS: Final = 8
LEAST: Final = 1.0
"""Seconds that a step has, whatever those before it took."""
_log = logging.getLogger("cloister.federated")


class RoundLost(FederationError):
    """There is no result, and the round cannot be tried again."""


class SecureRound:
    """One try of one round. ``parties`` → their workloads' keys (SubjectPublicKeyInfo, DER)."""

    def __init__(
        self,
        federation: Federation,
        run: str,
        number: int,
        model: Arrays,
        digest: str,
        parties: Mapping[str, bytes],
        *,
        exchange: Exchange,
        clock: Callable[[], float],
    ) -> None:
        """``digest`` is the model's. Raises FederationError where ``parties`` are too few."""
        if len(parties) < federation.minimum:
            raise FederationError(f"{len(parties)} parties are ready, and a round needs {federation.minimum}")
        self._deadline = federation.deadline
        self._terms = Terms(
            run=run, number=number,
            parties={party: read_spki(spki, digest=key_digest(spki)) for party, spki in parties.items()},
            threshold=threshold(federation.minimum, len(parties)), largest_ppm=federation.aggregation.largest_ppm,
            model=digest, shapes={name: array.shape for name, array in model.items()},
        )  # fmt: skip
        self._asked = Asked(parties={party: key_digest(spki) for party, spki in sorted(parties.items())})
        self._sum = MaskedSum(self._terms)
        self._exchange = exchange
        self._clock = clock
        self._masked = False
        self.refused: dict[str, str] = {}
        """Parties that fell out, and why."""
        self.bytes: dict[str, int] = dict.fromkeys(sorted(parties), 0)
        """That came of each."""
        self.metrics: dict[str, Mapping[str, float]] = {}
        """What each said of its training."""

    def mean(self, models: Mapping[str, bytes], accept: Callable[[Reply], None]) -> Mean:
        """All steps. ``models`` is what each party is sent of the model; ``accept`` hears who has trained, and may refuse.

        Raises FederationError, RoundLost where the round is over for good.
        """
        asked = encode_json(self._asked)
        told: Mapping[str, bytes] = {party: pack(asked, models[party]) for party in self.bytes}
        begun = self._clock()
        try:
            for place, step in enumerate(STEPS, EIGHTHS - len(STEPS) + 1):
                until = begun + self._deadline * place / EIGHTHS
                self._masked |= step == "masked"
                self._step(step, told, accept, seconds=max(LEAST, until - self._clock()))
                if step != STEPS[-1]:
                    told = self._sum.close()
            found = self._sum.result()
        except FederationError as error:
            raise self._failed(error) from None
        self.refused = {
            party: why for party, why in sorted(self.refused.items()) if party not in found.parties
        }
        return found

    def _step(
        self, step: str, told: Mapping[str, bytes], accept: Callable[[Reply], None], *, seconds: float
    ) -> None:
        terms = self._terms
        requests = {
            party: Request(step, terms.run, terms.number, terms.model, content)
            for party, content in told.items()
        }
        for reply in self._exchange.ask(requests, seconds=seconds):
            if reply.party not in told:
                continue
            try:
                self._take(step, reply, accept)
            except CloisterError as error:
                self.refused[reply.party] = error.what
        for party in self._sum.waits_for:
            self.refused.setdefault(party, f"nothing came in time for the step {step!r}")

    def _take(self, step: str, reply: Reply, accept: Callable[[Reply], None]) -> None:
        party = reply.party
        self.bytes[party] += len(reply.content)
        if reply.error:
            raise UpdateRefused(reply.error)
        if (reply.run, reply.number) != (self._terms.run, self._terms.number):
            raise UpdateRefused(f"what {party} says is of another run or round")
        if party not in self._exchange.ready():
            raise UpdateRefused(NOT_READY)
        message, vector = unpack(reply.content) if step == "masked" else (reply.content, memoryview(b""))
        if read(message, Said, what=f"what {party} says").party != party:
            raise UpdateRefused(f"{party} sends what another party says")
        if step == "keys":
            accept(reply)
        self._sum.take(message, vector)
        if step == "keys":
            self.metrics[party] = reply.metrics

    def _failed(self, error: FederationError) -> FederationError:
        number = self._terms.number
        reasons = "; ".join(f"{party}: {why}" for party, why in sorted(self.refused.items()))
        told = f"round {number} has no sum ({error.what})" + (f": {reasons}" if reasons else "")
        if self._masked or BEGUN in self.refused.values():
            return RoundLost(told, todo="go on with the next round")
        return FederationError(told, todo="mend what is said of the parties, then start the aggregator again")


def moved(model: Arrays, mean: Mean) -> dict[str, NDArray[Any]]:
    """``model``, as far on as the mean difference says."""
    return {name: array.astype(np.float32) + mean.arrays[name] for name, array in model.items()}
