"""Which manifest may be in force: each way to take an application from its owners is refused by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

import manifest_parts as parts
from cloister.encoding import encode_json
from cloister.errors import ManifestError, QuorumMissing, SignatureRefused, Superseded
from cloister.manifest.acceptance import (
    AcceptedManifest,
    accept_genesis,
    accept_successor,
    recall_manifest,
    required_of_successor,
)
from cloister.manifest.manifest import Manifest, Workload, origin
from cloister.manifest.signed import sign
from manifest_parts import (
    accepted,
    keys,
    manifest,
    policy_text,
    quorum,
    signed,
    succeed,
    successor,
    two_witnesses,
)

ORIGIN = origin(manifest())


class TestGenesis:
    def test_it_needs_the_update_quorum_and_whoever_decides_about_a_resource(self) -> None:
        first = accept_genesis(signed(manifest(), "alice", "bob"), origin=ORIGIN)
        assert first.digest == signed(manifest()).digest
        assert [policy.digest for policy in first.policies("inference")]
        assert first.broker_policies == ()

    @pytest.mark.parametrize(
        ("by", "who"),
        [
            ((), "2 of alice, bob, carol"),
            (("carol",), "only carol"),
            (("alice", "carol"), "default/key must be"),
        ],
    )
    def test_too_few_signatures_are_refused_with_names(self, by: tuple[str, ...], who: str) -> None:
        with pytest.raises(QuorumMissing, match=who):
            accept_genesis(signed(manifest(), *by), origin=ORIGIN)

    def test_a_stranger_who_signs_too_refuses_the_whole(self) -> None:
        with pytest.raises(SignatureRefused):
            accept_genesis(signed(manifest(), "alice", "bob", "mallory"), origin=ORIGIN)

    def test_an_operator_is_no_owner(self) -> None:
        with pytest.raises(SignatureRefused):
            accept_genesis(signed(manifest(), "alice", "bob", "oscar"), origin=ORIGIN)

    def test_another_application_of_the_same_owners_has_another_origin(self) -> None:
        with pytest.raises(ManifestError, match="origin"):
            accept_genesis(signed(manifest(application="other"), "alice", "bob"), origin=ORIGIN)

    def test_a_manifest_of_an_impostors_own_has_another_origin(self) -> None:
        fake = manifest(owners=keys("mallory"), update=quorum("mallory"), resources={})
        with pytest.raises(ManifestError, match="origin"):
            accept_genesis(signed(fake, "mallory"), origin=ORIGIN)

    def test_a_later_version_begins_nothing(self) -> None:
        later = manifest(version=2, previous="aa" * 32)
        with pytest.raises(Superseded):
            accept_genesis(signed(later, "alice", "bob", "carol"), origin=ORIGIN)


NEW_POLICIES = {"inference": Workload(policies=(policy_text("22"),))}


class TestSuccessor:
    def test_the_update_quorum_alone_renews_workloads(self) -> None:
        second = succeed(accepted(), ["alice", "carol"], workloads=NEW_POLICIES, issued=parts.NOW + 1)
        assert second.manifest.version == 2
        assert second.policies("inference") != accepted().policies("inference")
        third = succeed(second, ["bob", "carol"], witnesses=two_witnesses(), operators={})
        assert third.manifest.previous == second.digest

    @pytest.mark.parametrize("by", [(), ("alice",), ("carol",)])
    def test_fewer_than_the_update_quorum_renew_nothing(self, by: tuple[str, ...]) -> None:
        with pytest.raises(QuorumMissing, match="version 2 of clinic"):
            succeed(accepted(), by, workloads=NEW_POLICIES)

    @pytest.mark.parametrize(
        "changes",
        [
            {"version": 1, "previous": ""},
            {"version": 3},
            {"previous": "aa" * 32},
            {"issued": parts.NOW - 1},
        ],
        ids=["the same version", "a gap", "a fork", "issued before"],
    )
    def test_what_does_not_follow_is_superseded(self, changes: dict[str, Any]) -> None:
        with pytest.raises(Superseded):
            succeed(accepted(), ["alice", "bob", "carol"], **changes)

    def test_an_older_version_does_not_come_back(self) -> None:
        first = accepted()
        second = succeed(first, ["alice", "bob"], workloads=NEW_POLICIES)
        for old in (first, second):
            with pytest.raises(Superseded):
                accept_successor(old.signed, predecessor=second)

    def test_another_application_does_not_take_over(self) -> None:
        with pytest.raises(ManifestError, match="of other, not of clinic"):
            succeed(accepted(), ["alice", "bob", "carol"], application="other")

    def test_the_new_owners_do_not_vote_for_themselves(self) -> None:
        taken = {"owners": keys("mallory", "malice"), "update": quorum("mallory", "malice"), "resources": {}}
        with pytest.raises(QuorumMissing):
            succeed(accepted(), ["mallory", "malice"], **taken)

    def test_a_new_key_under_an_old_name_does_not_vote(self) -> None:
        mine = {"owners": {**keys("alice", "bob"), "carol": parts.owner("mallory").key}}
        with pytest.raises(QuorumMissing, match="only alice signed"):
            succeed(accepted(), ["alice", "mallory"], **mine)

    def test_owners_replace_a_key_with_the_old_keys_votes(self) -> None:
        renewed = {"owners": {**keys("alice", "bob"), "carol": parts.owner("carol's new key").key}}
        second = succeed(accepted(), ["alice", "bob", "carol's new key"], **renewed)
        third = succeed(second, ["bob", "carol's new key"])
        assert third.manifest.version == 3
        with pytest.raises(SignatureRefused):
            succeed(second, ["alice", "bob", "carol"])

    def test_a_lower_threshold_needs_the_old_one(self) -> None:
        with pytest.raises(QuorumMissing):
            succeed(accepted(), ["carol"], update=quorum("alice", "bob", "carol", threshold=1))


RESOURCES = manifest().resources
TAKEN: dict[str, tuple[dict[str, Any], str]] = {
    "removed": ({"resources": {"default": RESOURCES["default"]}}, "is removed"),
    "given to another": ({"resources": {**RESOURCES, "default/key": quorum("carol")}}, "changes hands"),
    "shared with another": (
        {"resources": {**RESOURCES, "default/key": quorum("bob", "carol", threshold=1)}},
        "changes hands",
    ),
    "a part taken out": ({"resources": {**RESOURCES, "default/key/demo": quorum("carol")}}, "taken out of default/key"),
    "the owner's key replaced": (
        {"owners": {**keys("alice", "carol"), "bob": parts.owner("mallory").key}},
        "changes hands",
    ),
    "the owner's name given away": (
        {"owners": {**keys("alice", "carol"), "bob": parts.owner("x").key, "robert": parts.owner("bob").key}},
        "changes hands",
    ),
}  # fmt: skip


class TestResources:
    @pytest.mark.parametrize(("changes", "why"), TAKEN.values(), ids=TAKEN.keys())
    def test_bobs_resources_are_not_taken_without_bob(self, changes: dict[str, Any], why: str) -> None:
        with pytest.raises(QuorumMissing, match=why):
            succeed(accepted(), ["alice", "carol"], **changes)
        assert succeed(accepted(), ["alice", "bob"], **changes).manifest.version == 2

    def test_what_nobody_decided_about_is_for_the_update_quorum(self) -> None:
        second = succeed(accepted(), ["bob", "carol"], resources={**RESOURCES, "models": quorum("carol")})
        assert second.manifest.resources["models"] == quorum("carol")

    def test_an_entry_above_takes_nothing_from_those_below(self) -> None:
        below = manifest(resources={"default/key": quorum("bob")})
        second = succeed(
            accepted(below), ["alice", "carol"], resources={**below.resources, "default": quorum("carol")}
        )
        assert second.manifest.resources["default/key"] == quorum("bob")

    def test_the_order_of_names_is_no_change(self) -> None:
        both = manifest(resources={"default": quorum("alice", "bob")})
        assert succeed(accepted(both), ["alice", "carol"], resources={"default": quorum("bob", "alice")})

    def test_who_has_to_sign_is_told_beforehand(self) -> None:
        new = successor(accepted(), resources={"default": quorum("alice"), "default/x": quorum("carol")})
        assert required_of_successor(accepted().manifest, new) == [
            ("version 2", manifest().update),
            ("that default/key is removed", quorum("bob")),
            ("that default/x is taken out of default", quorum("alice")),
        ]


class TestSeal:
    def test_no_accepted_manifest_is_made_by_hand(self) -> None:
        one = accepted()
        with pytest.raises(TypeError):
            AcceptedManifest(one.manifest, one.digest, one.signed, {})

    @pytest.mark.parametrize(
        "changes",
        [
            {"manifest": manifest(operators=keys("mallory"))},
            {"digest": "aa" * 32},
            {"signed": signed(manifest(application="other"), "alice", "bob")},
            {"_policies": {}},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_a_copy_with_another_field_is_not_what_was_accepted(self, changes: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            replace(accepted(), **changes)

    def test_a_workload_that_it_does_not_have_has_no_policies(self) -> None:
        with pytest.raises(ManifestError, match="no workload 'training'"):
            accepted().policies("training")


class TestRecall:
    def test_what_was_accepted_is_taken_again_by_its_digest(self) -> None:
        one = accepted()
        assert recall_manifest(one.signed, digest=one.digest) == one

    def test_another_document_is_not(self) -> None:
        other: Manifest = structs.replace(manifest(), operators={})
        with pytest.raises(Superseded):
            recall_manifest(sign("manifest", encode_json(other), []), digest=accepted().digest)
