"""Federations for tests: real keys, real signatures, policies of the simulated TEE."""

from __future__ import annotations

from typing import Any

from msgspec import structs

from cloister.encoding import encode_json
from cloister.federated.federation import Aggregation, Federation, Party, Privacy, Task
from cloister.manifest.signed import Signed, sign
from manifest_parts import NOW, owner, policy_text

NAMES = ("north", "south", "west")
MILLION = 1_000_000


def party(name: str, **changes: Any) -> Party:
    plain = Party(key=owner(name).key, agent=(policy_text("a1"),), workload=(policy_text("b2"),))
    return structs.replace(plain, **changes)


def aggregation(**changes: Any) -> Aggregation:
    plain = Aggregation(method="fedavg", secure=False, tolerated=0, proximal_ppm=0, largest_ppm=50 * MILLION)
    return structs.replace(plain, **changes)


def privacy(**changes: Any) -> Privacy:
    plain = Privacy(
        of="clients", noise_ppm=MILLION, clip_ppm=MILLION, epsilon_ppm=8 * MILLION, delta_inverse=100_000
    )
    return structs.replace(plain, **changes)


def federation(*names: str, **changes: Any) -> Federation:
    """Three hospitals that learn to find diseases, or parties of these names."""
    plain = Federation(
        name="hospitals",
        version=1,
        previous="",
        issued=NOW,
        parties={name: party(name) for name in names or NAMES},
        aggregator=(policy_text("c3"),),
        everyone=True,
        attest_minutes=30,
        task=Task(
            plugin="ner", code="11" * 32, model="22" * 32, settings={"kinds": ("Disease",), "epochs": 1}
        ),
        rounds=5,
        deadline=600,
        minimum=2,
        aggregation=aggregation(),
        privacy="none",
        metrics=("f1", "loss"),
        receivers=("north",),
    )
    return structs.replace(plain, **changes)


def signed(document: Federation, *names: str) -> Signed:
    """Signed by these, or by all parties."""
    return sign("federation", encode_json(document), [owner(name) for name in names or document.parties])
