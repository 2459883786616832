"""Rules and orders: signed by whoever decides about the resource, one after the other, and never wider than said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from cloister.appraisal.policy import load_policy
from cloister.encoding import encode_json
from cloister.errors import ManifestError, QuorumMissing, SignatureRefused, Superseded
from cloister.manifest.manifest import Workload
from cloister.manifest.order import AcceptedOrder, Order, accept_order, parse_order
from cloister.manifest.rule import AcceptedRule, Window, accept_rule, parse_rule, recall_rule
from cloister.manifest.signed import sign
from cloister.manifest.words import order_in_words, rule_in_words
from manifest_parts import (
    accepted,
    accepted_rule,
    manifest,
    owner,
    policy_text,
    quorum,
    rule,
    signed,
    succeed,
)

D11 = load_policy(policy_text("11"), name="11").digest
D22 = load_policy(policy_text("22"), name="22").digest
D33 = load_policy(policy_text("33"), name="33").digest


def test_a_rule_reads_as_it_was_written() -> None:
    full = rule(
        workloads={"inference": (D11, D22)},
        policies=(policy_text("33"),),
        purposes=("care", "billing"),
        window=Window(not_before=1, not_after=2),
        releases=3,
    )
    for one in (rule(), full):
        assert parse_rule(encode_json(one)) == one


REFUSED: dict[str, dict[str, Any]] = {
    "another application's name": {"application": "../clinic"},
    "two parts": {"resource": "default/key"},
    "four parts": {"resource": "default/key/demo/x"},
    "a part with a dot in front": {"resource": "default/key/.demo"},
    "a path that climbs": {"resource": "default/../demo"},
    "an escaped slash": {"resource": "default/key/a%2Fb"},
    "a full-width slash": {"resource": "default/key／demo"},
    "a whole URI": {"resource": "kbs:///default/key/demo"},
    "version 0": {"version": 0},
    "version 1 with a predecessor": {"previous": D11},
    "nobody": {"workloads": {}},
    "a workload that is no name": {"workloads": {"in ference": "manifest"}},
    "anything but the manifest": {"workloads": {"inference": "any"}},
    "no digest at all": {"workloads": {"inference": ()}},
    "a digest twice": {"workloads": {"inference": (D11, D11)}},
    "a digest in capitals": {"workloads": {"inference": (D11.upper(),)}},
    "half a digest": {"workloads": {"inference": (D11[:32],)}},
    "a policy that is none": {"policies": ("",)},
    "a policy twice": {"policies": (policy_text(), policy_text())},
    "no purpose": {"purposes": ()},
    "a purpose twice": {"purposes": ("care", "care")},
    "a purpose that is no name": {"purposes": ("care for",)},
    "a word for purposes": {"purposes": "all"},
    "a window that ends before it begins": {"window": Window(not_before=2, not_after=2)},
    "a window before time": {"window": Window(not_before=-1, not_after=2)},
    "no release": {"releases": 0},
    "minus one release": {"releases": -1},
    "a word for releases": {"releases": "many"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED.keys())
def test_a_rule_that_cannot_be_meant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError):
        parse_rule(encode_json(rule(**changes)))


class TestAcceptance:
    def test_the_owner_of_the_longest_prefix_decides(self) -> None:
        assert accepted_rule(by="bob").rule == rule()
        with pytest.raises(QuorumMissing, match="signed by bob"):
            accepted_rule(by="alice")
        assert accepted_rule(rule(resource="default/other/demo"), by="alice")

    def test_where_nobody_decides_nobody_can_sign(self) -> None:
        lost = rule(resource="models/key/demo")
        with pytest.raises(ManifestError, match="names no owners"):
            accept_rule(signed(lost, "alice", "bob", "carol"), manifest=accepted(), predecessor=None)

    def test_an_operator_cannot_sign_a_rule(self) -> None:
        with pytest.raises(SignatureRefused):
            accepted_rule(by="oscar")

    def test_a_signature_for_a_manifest_is_none_for_a_rule(self) -> None:
        misused = sign("manifest", encode_json(rule()), [owner("bob")])
        with pytest.raises(SignatureRefused):
            accept_rule(misused, manifest=accepted(), predecessor=None)

    def test_a_rule_of_another_application_is_refused(self) -> None:
        with pytest.raises(ManifestError, match="rule of other"):
            accepted_rule(rule(application="other"))

    def test_a_misspelt_workload_is_refused(self) -> None:
        with pytest.raises(ManifestError, match="no workload 'inferense'"):
            accepted_rule(rule(workloads={"inferense": "manifest"}))

    def test_rules_follow_each_other(self) -> None:
        first = accepted_rule()
        second = rule(version=2, previous=first.digest, releases=5)
        assert accept_rule(signed(second, "bob"), manifest=accepted(), predecessor=first).rule.releases == 5

    @pytest.mark.parametrize(
        "changes",
        [{}, {"version": 3, "previous": "PREVIOUS"}, {"version": 2, "previous": D11}],
        ids=["the first again", "a gap", "a fork"],
    )
    def test_what_does_not_follow_is_superseded(self, changes: dict[str, Any]) -> None:
        first = accepted_rule()
        changes = {name: first.digest if value == "PREVIOUS" else value for name, value in changes.items()}
        with pytest.raises(Superseded):
            accept_rule(signed(rule(**changes), "bob"), manifest=accepted(), predecessor=first)

    def test_a_first_rule_is_version_1(self) -> None:
        with pytest.raises(Superseded):
            accepted_rule(rule(version=2, previous=D11))

    def test_an_older_rule_does_not_come_back(self) -> None:
        first = accepted_rule()
        narrow = rule(version=2, previous=first.digest, releases=1)
        second = accept_rule(signed(narrow, "bob"), manifest=accepted(), predecessor=first)
        with pytest.raises(Superseded):
            accept_rule(first.signed, manifest=accepted(), predecessor=second)

    def test_a_rule_does_not_follow_that_of_another_resource(self) -> None:
        other = accepted_rule(rule(resource="default/key/other"))
        with pytest.raises(ManifestError, match="is of default/key/other"):
            accept_rule(
                signed(rule(version=2, previous=other.digest), "bob"), manifest=accepted(), predecessor=other
            )

    def test_after_a_change_of_hands_the_new_owner_decides(self) -> None:
        resources = {**manifest().resources, "default/key": quorum("carol")}
        second = succeed(accepted(), ["alice", "bob"], resources=resources)
        next_rule = rule(version=2, previous=accepted_rule().digest)
        with pytest.raises(QuorumMissing):
            accept_rule(signed(next_rule, "bob"), manifest=second, predecessor=accepted_rule())
        assert accept_rule(signed(next_rule, "carol"), manifest=second, predecessor=accepted_rule())


UPDATED = {"inference": Workload(policies=(policy_text("22"), policy_text("33")))}


class TestPoliciesUnder:
    @staticmethod
    def names(one: AcceptedRule, manifest: Any) -> list[tuple[str, str]]:
        return [(name, policy.digest) for name, policy in one.policies_under(manifest)]

    def test_a_rule_follows_the_manifest_where_it_says_so(self) -> None:
        second = succeed(accepted(), ["alice", "carol"], workloads=UPDATED)
        assert self.names(accepted_rule(), accepted()) == [("inference", D11)]
        assert self.names(accepted_rule(), second) == [("inference", D22), ("inference", D33)]

    def test_pinned_digests_do_not_follow(self) -> None:
        pinned = accepted_rule(rule(workloads={"inference": (D11, D33)}))
        second = succeed(accepted(), ["alice", "carol"], workloads=UPDATED)
        assert self.names(pinned, accepted()) == [("inference", D11)]
        assert self.names(pinned, second) == [("inference", D33)]

    def test_a_digest_that_the_manifest_never_had_lets_nobody_in(self) -> None:
        assert self.names(accepted_rule(rule(workloads={"inference": (D22,)})), accepted()) == []

    def test_a_workload_that_is_gone_gives_no_policy(self) -> None:
        gone = succeed(
            accepted(), ["alice", "carol"], workloads={"training": Workload(policies=(policy_text(),))}
        )
        assert self.names(accepted_rule(), gone) == []

    def test_a_rules_own_policies_stay_and_have_no_name(self) -> None:
        own = accepted_rule(rule(workloads={}, policies=(policy_text("22"),)))
        assert self.names(own, accepted()) == [("", D22)]

    def test_another_applications_manifest_lets_nobody_in(self) -> None:
        other = accepted(manifest(application="other"))
        assert self.names(accepted_rule(), other) == []


class TestSeal:
    @pytest.mark.parametrize(
        "changes",
        [
            {"rule": rule(releases=99)},
            {"policies": (load_policy(policy_text("22"), name="x"),)},
            {"digest": D11},
            {"signed": signed(rule(releases=99), "bob")},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_a_copy_with_another_field_is_not_what_was_accepted(self, changes: dict[str, Any]) -> None:
        with pytest.raises(TypeError):
            replace(accepted_rule(), **changes)

    def test_no_accepted_rule_is_made_by_hand(self) -> None:
        one = accepted_rule()
        with pytest.raises(TypeError):
            AcceptedRule(one.rule, one.digest, one.signed, one.policies)

    def test_what_was_accepted_is_taken_again_by_its_digest_and_nothing_else(self) -> None:
        one = accepted_rule()
        assert recall_rule(one.signed, digest=one.digest) == one
        with pytest.raises(Superseded):
            recall_rule(signed(rule(releases=99)), digest=one.digest)


BROKER = "ab" * 32


def order(**changes: Any) -> Order:
    plain = Order(
        application="clinic",
        broker=BROKER,
        action="put",
        subject="default/key/demo",
        version=1,
        content_sha256="cd" * 32,
    )
    return structs.replace(plain, **changes)


class TestOrder:
    def test_it_is_accepted_from_its_quorum(self) -> None:
        for one in (
            order(),
            order(action="destroy", content_sha256=""),
            order(action="rotate-key", subject="default", content_sha256=""),
        ):
            done = accept_order(signed(one, "bob"), manifest=accepted(), broker=BROKER, quorum=quorum("bob"))
            assert (done.order, done.signers) == (one, {"bob"})

    def test_it_is_refused_from_others(self) -> None:
        with pytest.raises(QuorumMissing, match="the order to put default/key/demo"):
            accept_order(signed(order(), "alice"), manifest=accepted(), broker=BROKER, quorum=quorum("bob"))

    def test_an_order_to_one_broker_works_at_no_other(self) -> None:
        with pytest.raises(ManifestError, match="another broker"):
            accept_order(signed(order(), "bob"), manifest=accepted(), broker="ef" * 32, quorum=quorum("bob"))

    def test_an_order_of_another_application_is_refused(self) -> None:
        with pytest.raises(ManifestError, match="order of other"):
            accept_order(
                signed(order(application="other"), "bob"),
                manifest=accepted(),
                broker=BROKER,
                quorum=quorum("bob"),
            )

    @pytest.mark.parametrize(
        "changes",
        [
            {"action": "burn"},
            {"broker": ""},
            {"subject": "default/key"},
            {"subject": "default/key/../demo"},
            {"subject": "", "action": "rotate-key", "content_sha256": ""},
            {"version": 0},
            {"content_sha256": ""},
            {"content_sha256": "CD" * 32},
            {"action": "destroy"},
        ],
        ids=str,
    )
    def test_an_order_that_cannot_be_meant_is_refused(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ManifestError):
            parse_order(encode_json(order(**changes)))

    def test_no_accepted_order_is_made_by_hand(self) -> None:
        done = accept_order(signed(order(), "bob"), manifest=accepted(), broker=BROKER, quorum=quorum("bob"))
        with pytest.raises(TypeError):
            replace(done, order=order(version=2))
        with pytest.raises(TypeError):
            AcceptedOrder(done.order, done.digest, done.signed, done.signers)


class TestWords:
    def test_a_rule_says_all_its_limits(self) -> None:
        limited = rule(
            workloads={"inference": (D11,)},
            policies=(policy_text("33"),),
            purposes=("care",),
            window=Window(not_before=0, not_after=86400),
            releases=1,
        )
        text = "\n".join(rule_in_words(limited))
        for word in ("default/key/demo", D11, D33, "care", "1970-01-01", "1970-01-02", "1 time in all"):
            assert word in text

    def test_a_rule_says_what_it_leaves_open(self) -> None:
        text = "\n".join(rule_in_words(rule()))
        for word in (
            "whatever reference values the manifest has",
            "any purpose",
            "any time",
            "any number of times",
        ):
            assert word in text

    def test_an_order_says_what_it_does_for_ever(self) -> None:
        text = "\n".join(order_in_words(order(action="destroy", content_sha256="")))
        assert "destroys, for ever, default/key/demo" in text
        assert BROKER in text
