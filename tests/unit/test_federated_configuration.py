"""What a process of a federation measures: its role and the federation's name, and nothing that its people decide later."""

from __future__ import annotations

import hashlib
from itertools import combinations, product

import pytest

from cloister.channel.verification import appraise_any
from cloister.encoding import encode_json
from cloister.errors import CloisterError, ManifestError
from cloister.evidence.bundle import parse_bundle
from cloister.federated.configuration import ROLES, FederatedConfiguration, Role, federated_events
from cloister.federated.federation import AGGREGATOR
from federation_parts import NOW, agreed, attested, evidence, launched

NONCE = bytes(range(32))


def test_the_measured_document_is_canonical_and_says_role_and_name() -> None:
    config, program = federated_events("agent", "hospitals")
    document = encode_json(FederatedConfiguration(role="agent", federation="hospitals"))
    assert document == (
        b'{"federation":"hospitals","format":"cloister/federated-configuration/v1","role":"agent"}'
    )
    assert (config.name, config.payload) == ("cloister.config", hashlib.sha256(document).digest())
    assert (program.name, len(program.payload)) == ("cloister.program", 32)


def test_no_two_roles_or_federations_measure_the_same() -> None:
    found = {
        (role, name): federated_events(role, name)[0].payload
        for role, name in product(ROLES, ("hospitals", "banks"))
    }
    assert all(one != other for one, other in combinations(found.values(), 2))


@pytest.mark.parametrize(
    "name", ["", "two words", "x" * 65, "a/b", "ligne\n", "../hospitals", "ho\u0336spitals"]
)
def test_a_name_that_is_none_is_not_measured(name: str) -> None:
    with pytest.raises(ManifestError):
        federated_events("agent", name)


@pytest.mark.parametrize(("asked", "shown"), list(product(ROLES, ROLES)))
def test_evidence_of_one_role_is_taken_for_no_other(asked: Role, shown: Role) -> None:
    found = agreed(attested())
    organisation = "host" if shown == AGGREGATOR else "north"
    policies = {
        "aggregator": found.aggregator_policies(),
        "agent": found.agent_policies("north"),
        "workload": found.workload_policies("north"),
    }[asked]
    bundle = parse_bundle(evidence(shown, organisation, NONCE))
    if asked == shown:
        assert appraise_any(bundle, policies, nonce=NONCE, now=NOW).claims.simulated
        return
    with pytest.raises(CloisterError):
        appraise_any(bundle, policies, nonce=NONCE, now=NOW)


def test_the_same_organisation_launches_every_role_differently() -> None:
    measured = {role: launched(role, "north").measurements["rtmr3"] for role in ROLES}
    assert len(set(measured.values())) == len(ROLES)
