"""The facts of a run for tests: hospitals that learn, one late, one excluded and back, a budget that is spent."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from msgspec import structs

from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone, Share

START = 1_795_000_000
NAMES = ("north", "south", "west", "east", "lake", "hill", "forest", "coast")
HOSTILE = "<img src=x onerror=document.title='pwned'><script>document.title='pwned'</script>\u202e\x1b[2J\n"
EXCLUDED = "the workload's RTMR3 is not what the policy names"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def begun(**changes: Any) -> Begun:
    plain = Begun(
        at=START,
        run=digest("run")[:16],
        federation="hospitals",
        version=1,
        digest=digest("federation"),
        parties=NAMES[:3],
        rounds=10,
        done=0,
        method="fedavg",
        secure=False,
        epsilon=8.0,
        aggregator=digest("aggregator"),
        simulated=False,
    )
    return structs.replace(plain, **changes)


def state(party: str, **changes: Any) -> PartyState:
    plain = PartyState(
        at=START - 10,
        party=party,
        state="ready",
        reason="",
        agent=digest(f"{party}'s agent"),
        workload=digest(f"{party}'s workload"),
        measurements=digest("measurements"),
        tee="tdx",
        until=START + 1800,
    )
    return structs.replace(plain, **changes)


def share(place: int, number: int, **changes: Any) -> Share:
    """What the party at this place brought in this round."""
    f1 = 0.86 * (1 - math.exp(-number / 2.6)) - 0.03 * place % 0.2
    loss = 9 * math.exp(-number / 2.2) + 0.9 + 0.2 * place
    plain = Share(
        examples=1200 - place * 230 % 900,
        bytes=91_200_000 + place,
        norm=4.2 / number + place * 0.3,
        metrics={"loss": loss * 0.8, "seconds": 11.0},
        scores={"f1": f1, "loss": loss},
    )
    return structs.replace(plain, **changes)


def done(number: int, shares: dict[str, Share], **changes: Any) -> RoundDone:
    total = sum(one.examples for one in shares.values()) or 1
    known = set.intersection(*(set(one.scores) for one in shares.values())) if shares else set()
    plain = RoundDone(
        at=START + 21 * number,
        number=number,
        seconds=20.3 + number % 3,
        shares=shares,
        refused={},
        scores={
            key: sum(one.scores[key] * one.examples for one in shares.values()) / total
            for key in sorted(known)
        },
        epsilon=1.9 * math.sqrt(number),
        model=digest(f"model {number}"),
        down=91_200_000,
    )
    return structs.replace(plain, **changes)


def ended(rounds: int = 10, **changes: Any) -> Ended:
    plain = Ended(
        at=START + 21 * rounds + 2, finished=True, reason="", rounds=rounds, model=digest(f"model {rounds}")
    )
    return structs.replace(plain, **changes)


def run(parties: int = 3, *, rounds: int = 10, so_far: int | None = None, **changes: Any) -> tuple[Fact, ...]:
    """A whole run, or its first ``so_far`` rounds: the second party is late in round 3, the third is away in 5 and 6."""
    names = tuple([*NAMES, *(f"clinic-{number}" for number in range(64))][:parties])
    facts: list[Fact] = []
    for name in names:
        facts.append(state(name, at=START - 20, state="admitted", workload="", measurements=""))
        facts.append(state(name))
    facts.append(begun(parties=names, rounds=rounds, **changes))
    for number in range(1, (rounds if so_far is None else so_far) + 1):
        at, refused = START + 21 * number, {}
        if parties > 2 and number == 5:
            facts.append(state(names[2], at=at - 4, state="excluded", reason=EXCLUDED))
        if parties > 2 and number == 7:
            facts.append(state(names[2], at=at - 4, reason="evidence renewed", until=START + 3600))
        if number == 3:
            refused[names[1]] = "an update of 'south' came 12 s late"
        if parties > 2 and number in (5, 6):
            refused[names[2]] = "excluded: its evidence does not hold"
        shares = {
            name: share(place, number, **({"norm": None} if changes.get("secure") else {}))
            for place, name in enumerate(names)
            if name not in refused
        }
        facts.append(done(number, shares, refused=refused))
    if so_far is None:
        facts.append(ended(rounds))
    return tuple(facts)
