"""Manifests, rules and owners for tests: real keys, real signatures, policies of the simulated TEE."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from typing import Any

from msgspec import structs

from cloister.encoding import encode_json
from cloister.manifest.acceptance import AcceptedManifest, accept_genesis, accept_successor
from cloister.manifest.manifest import Manifest, Witnesses, Workload, origin
from cloister.manifest.order import Order
from cloister.manifest.quorum import Quorum
from cloister.manifest.rule import AcceptedRule, Rule, accept_rule
from cloister.manifest.signed import Kind, Signed, sign
from cloister.manifest.signers import Ed25519Signer

NOW = 1_790_000_000


@functools.cache
def owner(name: str) -> Ed25519Signer:
    """The same key for the same name, always."""
    return Ed25519Signer(hashlib.sha256(name.encode()).digest())


def keys(*names: str) -> dict[str, str]:
    return {name: owner(name).key for name in names}


def policy_text(mark: str = "11", *, root: str = "aa" * 32) -> str:
    """A policy that pins one launch of the simulated TEE; another ``mark`` is another policy."""
    return f"""format = "cloister/policy/v1"
max_age_seconds = 3600
[roots]
simulated = "{root}"
[tcb]
accepted_statuses = ["UpToDate"]
min_evaluation_number = 1
[tdx]
mrtd = ["{mark * 48}"]
rtmr0 = "any"
rtmr1 = "any"
rtmr2 = "any"
rtmr3 = "any"
"""


def manifest(**changes: Any) -> Manifest:
    """Three owners; any two of them decide about the next version, bob alone about his resources."""
    plain = Manifest(
        application="clinic",
        version=1,
        previous="",
        issued=NOW,
        owners=keys("alice", "bob", "carol"),
        update=Quorum(owners=("alice", "bob", "carol"), threshold=2),
        broker=(),
        workloads={"inference": Workload(policies=(policy_text("11"),))},
        resources={
            "default": Quorum(owners=("alice",), threshold=1),
            "default/key": Quorum(owners=("bob",), threshold=1),
        },
        witnesses="none",
        operators=keys("oscar"),
        auditors={},
    )
    return structs.replace(plain, **changes)


def quorum(*names: str, threshold: int | None = None) -> Quorum:
    return Quorum(owners=names, threshold=len(names) if threshold is None else threshold)


def signed(document: Manifest | Rule | Order, *names: str) -> Signed:
    """Signed by these owners."""
    kind: Kind = (
        "manifest" if isinstance(document, Manifest) else "rule" if isinstance(document, Rule) else "order"
    )
    return sign(kind, encode_json(document), [owner(name) for name in names])


def accepted(document: Manifest | None = None) -> AcceptedManifest:
    """A first version that everybody signed."""
    first = document or manifest()
    return accept_genesis(signed(first, *first.owners), origin=origin(first))


def successor(before: AcceptedManifest, **changes: Any) -> Manifest:
    """The next version, with ``changes``."""
    changes = {"version": before.manifest.version + 1, "previous": before.digest, **changes}
    return structs.replace(before.manifest, **changes)


def succeed(before: AcceptedManifest, by: Iterable[str], **changes: Any) -> AcceptedManifest:
    return accept_successor(signed(successor(before, **changes), *by), predecessor=before)


def rule(**changes: Any) -> Rule:
    """The inference workload may read bob's key whenever it likes."""
    plain = Rule(
        application="clinic",
        resource="default/key/demo",
        version=1,
        previous="",
        workloads={"inference": "manifest"},
        policies=(),
        purposes="any",
        window="always",
        releases="unlimited",
    )
    return structs.replace(plain, **changes)


def accepted_rule(document: Rule | None = None, *, by: str = "bob") -> AcceptedRule:
    return accept_rule(signed(document or rule(), by), manifest=accepted(), predecessor=None)


def two_witnesses(threshold: int = 2) -> Witnesses:
    return Witnesses(keys=keys("wanda", "willy"), threshold=threshold)
