"""What happened in a run, as facts in order: what the terminal, the page and the report show, and what an auditor reads.

One line of JSON a fact. No fact tells of data or weights more than the federation lets leave: metrics that every
party agreed to, norms, sizes and digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from cloister.encoding import Record, decode_json
from cloister.errors import FormatError

MAX_LINE: Final = 256 * 1024
MAX_FACTS: Final = 100_000
State = Literal["admitted", "ready", "excluded", "left"]


class Begun(Record, frozen=True, kw_only=True, tag="begun", tag_field="event"):
    """A run begins, or goes on from its last round."""

    at: int
    """Unix seconds, as in every fact."""
    run: str
    federation: str
    version: int
    digest: str
    """Of the federation's document."""
    parties: tuple[str, ...]
    rounds: int
    done: int
    """Rounds that were done before: 0, or where a run goes on."""
    method: str
    secure: bool
    epsilon: float | None
    """The privacy budget, if there is one."""
    aggregator: str
    """SHA-256 of the aggregator's evidence."""
    simulated: bool
    """Some TEE in it is simulated: nothing is protected."""


class PartyState(Record, frozen=True, kw_only=True, tag="party", tag_field="event"):
    """A party's evidence was accepted, renewed or refused, or it left."""

    at: int
    party: str
    state: State
    reason: str
    agent: str
    """SHA-256 of its agent's evidence, or ``""``."""
    workload: str
    measurements: str
    """Of the workload: one digest over what its evidence measured, as results show it."""
    tee: str
    until: int
    """When its evidence ends."""


class Share(Record, frozen=True, kw_only=True):
    """What one party brought in a round."""

    examples: int
    """0 where the federation does not list them."""
    bytes: int
    norm: float | None
    """How far its update goes from the model; None where nobody is shown it."""
    metrics: dict[str, float]
    scores: dict[str, float]
    """Of the round's averaged model on its held-out data; of the metrics that may leave."""


class RoundDone(Record, frozen=True, kw_only=True, tag="round", tag_field="event"):
    """A round has a result."""

    at: int
    number: int
    seconds: float
    shares: dict[str, Share]
    refused: dict[str, str]
    """Parties without an update that counts, and why."""
    scores: dict[str, float]
    """Of all parties, weighted by examples."""
    epsilon: float | None
    """Spent so far."""
    model: str
    """SHA-256 of the averaged arrays as safetensors."""
    down: int
    """Bytes of the model that went to each party."""


class Ended(Record, frozen=True, kw_only=True, tag="ended", tag_field="event"):
    """No round follows."""

    at: int
    finished: bool
    """Whether all rounds were done, or as many as the privacy budget allows: receivers get the model."""
    reason: str
    rounds: int
    model: str


Fact = Begun | PartyState | RoundDone | Ended


def encode_fact(fact: Fact) -> bytes:
    """One line, with its end. Raises FormatError for what could not be read again: a number that is none, no text."""
    try:
        line = msgspec.json.encode(fact)
    except (UnicodeEncodeError, msgspec.EncodeError):
        raise FormatError("a fact has a text that is none") from None
    decode_facts(line + b"\n", what="a fact")
    return line + b"\n"


def decode_facts(data: bytes, *, what: str = "the run's log") -> tuple[Fact, ...]:
    """Every whole line of ``data``; what stands behind the last line's end is being written. Raises FormatError."""
    lines = data.split(b"\n")[:-1]
    if len(lines) > MAX_FACTS:
        raise FormatError(f"{what} has more than {MAX_FACTS} lines")
    found = []
    for number, line in enumerate(lines, 1):
        fact: Fact = decode_json(line, Fact, what=f"{what}, line {number}", limit=MAX_LINE)  # type: ignore[arg-type]
        found.append(fact)
    return tuple(found)


def newest_states(facts: Iterable[Fact]) -> dict[str, PartyState]:
    """The last that was said of each party."""
    return {fact.party: fact for fact in facts if isinstance(fact, PartyState)}
