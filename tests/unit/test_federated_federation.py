"""The document of a federation: what it refuses to say, and whose word it takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cloister.encoding import encode_json
from cloister.errors import ManifestError, QuorumMissing, SignatureRefused, Superseded
from cloister.federated.agreement import AgreedFederation, agree_first, agree_successor
from cloister.federated.federation import Federation, Task, read_federation
from cloister.manifest.signed import Signed, sign
from federation_parts import MILLION, aggregation, federation, party, privacy, signed
from manifest_parts import owner
from spec_vectors import spec_vectors

VECTORS = spec_vectors("federation.md")


def agreed(document: Federation | None = None) -> AgreedFederation:
    found = signed(document or federation())
    return agree_first(found, digest=found.digest)


def test_the_page_has_a_document_that_is_read_and_has_its_digest() -> None:
    document = VECTORS["document"].encode()
    found, _ = read_federation(document)
    assert Signed(document=document, signatures=()).digest == VECTORS["digest"]
    assert encode_json(found) == document
    assert found == federation()


def test_what_all_parties_signed_is_in_force_and_says_what_evidence_may_meet() -> None:
    found = agreed()
    assert found.federation == federation()
    assert [one.digest for one in found.agent_policies("north")] != [
        one.digest for one in found.aggregator_policies()
    ]
    assert len(found.workload_policies("west")) == 1
    with pytest.raises(ManifestError, match="has no party 'east'"):
        found.workload_policies("east")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"parties": {"north": party("north")}}, "the number of parties", id="one party"),
        pytest.param({"parties": {"a": party("north"), "b": party("north")}}, "are one key", id="one key twice"),
        pytest.param({"aggregator": ()}, "the aggregator has no policy", id="an aggregator that nothing could be"),
        pytest.param(
            {"parties": {"north": party("north", workload=()), "south": party("south")}}, "the workload of north has no",
            id="a workload that nothing could be",
        ),
        pytest.param(
            {"parties": {"north": party("north", agent=("x = 1",)), "south": party("south")}}, "policy 1 of the agent",
            id="a policy that does not load",
        ),
        pytest.param({"minimum": 1}, "the least parties", id="a round of one, which shows its update"),
        pytest.param({"minimum": 4}, "the least parties", id="more than there are"),
        pytest.param({"rounds": 0}, "the number of rounds", id="no round"),
        pytest.param({"deadline": 0}, "the seconds of a round", id="no time"),
        pytest.param({"deadline": 10**9}, "the seconds of a round", id="waiting for ever"),
        pytest.param({"attest_minutes": 0}, "between two attestations", id="attested never again"),
        pytest.param({"receivers": ()}, "nobody receives", id="no receiver"),
        pytest.param({"receivers": ("east",)}, "receivers: 'east' is none", id="a receiver who is no party"),
        pytest.param({"metrics": ("words",)}, "'words' is none", id="a metric that would tell of the data"),
        pytest.param({"metrics": ("f1", "f1")}, "named twice", id="a metric twice"),
        pytest.param({"previous": "00" * 32}, "has no predecessor", id="version 1 with a predecessor"),
        pytest.param(
            {"task": Task(plugin="ner", code="11", model="22" * 32, settings={})}, "the digest of the task's code",
            id="code without a digest",
        ),
        pytest.param(
            {"aggregation": aggregation(method="median", secure=True)}, "looks at each update",
            id="the median of what nobody may see",
        ),
        pytest.param(
            {"aggregation": aggregation(method="krum", tolerated=1, secure=True)}, "looks at each update",
            id="Krum of what nobody may see",
        ),
        pytest.param(
            {"aggregation": aggregation(secure=True), "privacy": privacy()}, "cuts each update",
            id="clients' privacy by an aggregator that sees none",
        ),
        pytest.param(
            {"aggregation": aggregation(secure=True), "everyone": False}, "by the aggregator's word",
            id="hidden updates between parties that know each other by the aggregator's word",
        ),
        pytest.param(
            {"aggregation": aggregation(method="krum", tolerated=1)}, "needs 5 in a round", id="Krum of too few",
        ),
        pytest.param(
            {"aggregation": aggregation(method="trimmed-mean", tolerated=1)}, "needs 3 in a round",
            id="a trimmed mean that trims all",
        ),
        pytest.param({"aggregation": aggregation(tolerated=1)}, "may be poisoned", id="an average that stands poison"),
        pytest.param({"aggregation": aggregation(method="krum")}, "in a round", id="Krum that stands nobody"),
        pytest.param({"aggregation": aggregation(method="fedprox")}, "FedProx", id="FedProx without μ"),
        pytest.param({"aggregation": aggregation(proximal_ppm=1)}, "FedProx", id="μ without FedProx"),
        pytest.param({"aggregation": aggregation(largest_ppm=0)}, "largest norm", id="updates of any size"),
        pytest.param({"privacy": privacy(noise_ppm=0)}, "the noise multiplier", id="privacy without noise"),
        pytest.param({"privacy": privacy(epsilon_ppm=0)}, "the privacy budget", id="no budget"),
        pytest.param({"privacy": privacy(delta_inverse=1)}, "1 / delta", id="a delta of one"),
        pytest.param(
            {"privacy": privacy(of="examples")}, "only the party can say", id="privacy that nobody hears spent"
        ),
        pytest.param(
            {"privacy": privacy(), "aggregation": aggregation(method="median")}, "accounted for the plain average",
            id="a budget that is not accounted",
        ),
    ],
)  # fmt: skip
def test_a_federation_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        read_federation(encode_json(federation(**changes)))
    assert words in str(refusal.value)


def test_methods_that_stand_poison_are_had_with_enough_parties() -> None:
    names = ("a", "b", "c", "d", "e")
    krum = federation(
        *names, minimum=5, aggregation=aggregation(method="krum", tolerated=1), receivers=("a",)
    )
    private = federation(
        privacy=privacy(of="examples"), aggregation=aggregation(secure=True), metrics=("epsilon",)
    )
    for document in (
        krum,
        private,
        federation(aggregation=aggregation(method="fedprox", proximal_ppm=MILLION // 10)),
    ):
        assert agreed(document).federation == document


def test_an_unknown_field_another_spelling_or_a_flipped_bit_is_refused() -> None:
    good = signed(federation())
    for document in (
        good.document.replace(b'"everyone":true', b'"everyone":true,"except":"north"'),
        good.document.replace(b'"everyone":true', b'"everyone": true'),
        good.document.replace(b'"rounds":5', b'"rounds":6'),
    ):
        assert document != good.document
        edited = Signed(document=document, signatures=good.signatures)
        with pytest.raises(ManifestError):
            agree_first(edited, digest=edited.digest)


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_edit_after_signing_holds(place: int, bit: int) -> None:
    good = signed(federation())
    document = bytearray(good.document)
    document[place % len(document)] ^= 1 << bit
    edited = Signed(document=bytes(document), signatures=good.signatures)
    with pytest.raises(ManifestError):
        agree_first(edited, digest=edited.digest)


@pytest.mark.parametrize(
    ("names", "error"),
    [
        pytest.param(("north", "south"), QuorumMissing, id="one party did not sign"),
        pytest.param(("north", "south", "west", "mallory"), SignatureRefused, id="somebody else signed"),
    ],
)
def test_nobody_is_in_a_federation_that_it_did_not_sign(
    names: tuple[str, ...], error: type[Exception]
) -> None:
    found = signed(federation(), *names)
    with pytest.raises(error):
        agree_first(found, digest=found.digest)


def test_a_signature_under_a_manifest_is_none_under_a_federation() -> None:
    document = encode_json(federation())
    found = sign("manifest", document, [owner(name) for name in ("north", "south", "west")])
    with pytest.raises(SignatureRefused):
        agree_first(found, digest=found.digest)


def test_another_federation_than_the_one_that_was_looked_at_is_refused() -> None:
    with pytest.raises(ManifestError, match="not the one that is pinned"):
        agree_first(signed(federation(rounds=6)), digest=signed(federation()).digest)


def following(old: AgreedFederation, *names: str, **changes: Any) -> Federation:
    return federation(*names, version=2, previous=old.digest, **changes)


def test_a_party_leaves_and_another_comes_by_the_word_of_all_who_are_in_it() -> None:
    old = agreed()
    new = following(old, "north", "south", "east")
    found = agree_successor(signed(new), predecessor=old)
    assert set(found.federation.parties) == {"north", "south", "east"}
    with pytest.raises(QuorumMissing, match="south"):
        agree_successor(signed(new, "north", "east"), predecessor=old)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        pytest.param({"name": "banks"}, ManifestError, "not hospitals", id="another federation"),
        pytest.param({"version": 3}, Superseded, "does not follow", id="a gap"),
        pytest.param({"previous": "00" * 32}, Superseded, "does not follow", id="a fork"),
        pytest.param({"issued": 5}, Superseded, "before its predecessor", id="issued earlier"),
        pytest.param(
            {"parties": {"north": party("north"), "south": party("mallory")}}, ManifestError, "the key of south",
            id="a party whose key somebody changed",
        ),
    ],
)  # fmt: skip
def test_what_does_not_follow_is_refused(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    old = agreed()
    new = structs.replace(following(old), **changes)
    with pytest.raises(error) as refusal:
        agree_successor(signed(new), predecessor=old)
    assert words in str(refusal.value)


def test_version_1_is_not_taken_for_a_later_one_nor_a_later_one_for_it() -> None:
    old = agreed()
    later = signed(following(old))
    with pytest.raises(Superseded, match="begins with version 1"):
        agree_first(later, digest=later.digest)
    with pytest.raises(Superseded):
        agree_successor(old.signed, predecessor=old)


def test_an_agreed_federation_is_not_made_by_hand() -> None:
    found = agreed()
    with pytest.raises(TypeError, match="never by hand"):
        dataclasses.replace(found, federation=federation(rounds=6))
