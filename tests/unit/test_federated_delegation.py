"""By which a party lets one attested agent act for it: for nobody else, nowhere else, and not for longer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.encoding import encode_json
from cloister.errors import CloisterError, FederationError, ManifestError, QuorumMissing, SignatureRefused
from cloister.federated.agreement import AgreedFederation, agree_first
from cloister.federated.delegation import MAX_DELEGATION, Delegation, accept_delegation, delegate
from cloister.manifest.signed import Signed, encode_signed, parse_signed, sign
from federation_parts import federation, signed
from manifest_parts import NOW, owner
from spec_vectors import spec_vectors

VECTOR = spec_vectors("federation.md")["delegation"]
AGENT, OTHER = "ab" * 32, "cd" * 32
END = NOW + 86_400


def agreed(**changes: Any) -> AgreedFederation:
    found = signed(federation(**changes))
    return agree_first(found, digest=found.digest)


AGREED = agreed()


def delegation(**changes: Any) -> Delegation:
    plain = Delegation(federation=AGREED.digest, party="north", agent_key=AGENT, not_after=END)
    return structs.replace(plain, **changes)


def signed_by(name: str, document: Delegation) -> Signed:
    return sign("delegation", encode_json(document), [owner(name)])


def accept(found: Signed, **changes: Any) -> Delegation:
    return accept_delegation(
        found, **({"agreed": AGREED, "party": "north", "agent_key": AGENT, "now": NOW} | changes)
    )


def test_the_page_has_a_delegation_that_is_accepted() -> None:
    found = sign("delegation", VECTOR["document"].encode(), [owner("north")])
    assert found.digest == VECTOR["digest"]
    assert found.signatures[0].signature.hex() == VECTOR["signature"]
    assert accept(found) == delegation()


def test_a_party_lets_its_agent_act_until_the_end() -> None:
    found = delegate(AGREED, party="north", agent_key=AGENT, not_after=END, signer=owner("north"))
    travelled = parse_signed(encode_signed(found))
    assert accept(travelled, now=END - 1) == delegation()


@pytest.mark.parametrize(
    ("found", "asked", "error", "words"),
    [
        pytest.param(
            signed_by("north", delegation(federation=agreed(rounds=6).digest)), {}, FederationError,
            "another federation", id="of another federation",
        ),
        pytest.param(
            signed_by("north", delegation()), {"agreed": agreed(rounds=6)}, FederationError, "another version",
            id="shown to another federation",
        ),
        pytest.param(
            signed_by("south", delegation()), {}, SignatureRefused, "may not sign", id="signed by another party"
        ),
        pytest.param(
            signed_by("south", delegation()), {"party": "south"}, FederationError, "for north, and not for south",
            id="of another party, whose key signed",
        ),
        pytest.param(
            signed_by("mallory", delegation(party="mallory")), {"party": "mallory"}, ManifestError, "no party",
            id="of who is no party",
        ),
        pytest.param(
            signed_by("north", delegation()), {"agent_key": OTHER}, FederationError, "another agent",
            id="another agent's key",
        ),
        pytest.param(signed_by("north", delegation()), {"now": END}, FederationError, "is over", id="ended"),
        pytest.param(
            Signed(document=encode_json(delegation()), signatures=()), {}, QuorumMissing, "none of them signed",
            id="signed by nobody",
        ),
        pytest.param(
            Signed(
                document=encode_json(delegation(agent_key=OTHER)),
                signatures=signed_by("north", delegation()).signatures,
            ),
            {"agent_key": OTHER}, SignatureRefused, "does not hold", id="edited to another agent",
        ),
        pytest.param(
            Signed(
                document=encode_json(delegation(not_after=END + 1)),
                signatures=signed_by("north", delegation()).signatures,
            ),
            {"now": END}, SignatureRefused, "does not hold", id="edited to a later end",
        ),
        pytest.param(
            sign("federation", encode_json(delegation()), [owner("north")]), {}, SignatureRefused, "does not hold",
            id="signed as a federation",
        ),
        pytest.param(
            sign("delegation", encode_json(federation()), [owner("north")]), {}, ManifestError, "the form it should",
            id="a federation signed as a delegation",
        ),
        pytest.param(
            sign("delegation", encode_json(delegation()), [owner("north"), owner("south")]), {}, SignatureRefused,
            "may not sign", id="signed by a second party too",
        ),
        pytest.param(
            sign("delegation", encode_json(delegation()) + b"\n", [owner("north")]), {}, ManifestError, "canonical",
            id="in another spelling",
        ),
        pytest.param(
            sign("delegation", b" " * (MAX_DELEGATION + 1), [owner("north")]), {}, ManifestError, "over its bound",
            id="too long",
        ),
        pytest.param(
            signed_by("north", delegation(agent_key=AGENT.upper())), {"agent_key": AGENT.upper()}, ManifestError,
            "64 lower-case", id="a key in another spelling",
        ),
        pytest.param(
            signed_by("north", delegation(not_after=2**53)), {}, ManifestError, "over 2^53",
            id="an end beyond all numbers",
        ),
    ],
)  # fmt: skip
def test_an_agent_that_may_not_act_is_refused(
    found: Signed, asked: dict[str, Any], error: type[CloisterError], words: str
) -> None:
    with pytest.raises(error) as refusal:
        accept(found, **asked)
    assert words in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_edit_after_signing_holds(place: int, bit: int) -> None:
    good = signed_by("north", delegation())
    document = bytearray(good.document)
    document[place % len(document)] ^= 1 << bit
    with pytest.raises(ManifestError):
        accept(Signed(document=bytes(document), signatures=good.signatures))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"signer": owner("south")}, "not that of north", id="the key of another party"),
        pytest.param({"party": "east", "signer": owner("east")}, "no party", id="who is no party"),
        pytest.param({"agent_key": "ab"}, "64 lower-case", id="what is no digest"),
        pytest.param({"not_after": 0}, "the end", id="no end"),
    ],
)
def test_what_nobody_would_accept_is_not_signed(changes: dict[str, Any], words: str) -> None:
    plain: dict[str, Any] = {
        "party": "north",
        "agent_key": AGENT,
        "not_after": END,
        "signer": owner("north"),
    }
    with pytest.raises(ManifestError, match=words):
        delegate(AGREED, **(plain | changes))
