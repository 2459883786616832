"""What the owners' page shows was verified on the owner's machine; a broker that rewrote its past is not believed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

import manifest_parts
from broker_parts import PATH, URI, Bench, Clock, call
from cloister.broker.audit import AuditDamaged
from cloister.broker.desk import Desk
from cloister.broker.tree_head import ForkFound, RollbackFound, cosign, with_cosignatures
from cloister.client.heads import Heads, KeptHead
from cloister.client.owners_ledger import Wanted
from cloister.client.owners_seen import Reading
from cloister.client.owners_timeline import timeline
from cloister.client.owners_view import Overview, Progress, overview
from cloister.encoding import decode_json, encode_json
from cloister.errors import CloisterError, UnknownResource, UsageError
from owners_bench import START, Deployed, deployed, reader, seen, view, witnessed


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Deployed]:
    with deployed(tmp_path / "state") as found:
        yield found


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    return Heads(tmp_path / "heads")


def reds(found: Overview) -> list[str]:
    return [one.text for one in found.notices if one.tone == "bad"]


def test_an_auditor_sees_resources_rules_and_receivers_out_of_a_proven_log(
    site: Deployed, heads: Heads
) -> None:
    site.released(2, purpose="training")
    with site.watch(heads) as watch:
        found = view(watch)
    size = site.bench.state.journal.size
    assert found.summary[:2] == ("open", "1 resource")
    assert f"log: {size} entries verified" in found.summary
    (card,) = found.cards
    assert card.uri == URI
    assert card.owners == "all of alice, bob"
    assert card.rule == "rule version 1, signed by alice, bob under manifest version 1"
    assert "It may be read for any purpose." in card.rule_words
    (receiver,) = card.receivers
    assert (receiver.workload, receiver.times, receiver.purpose) == ("inference", 3, "training")
    assert card.released == "3 under this rule"
    assert {one.name for one in found.people} == {"alice", "bob", "carol", "audrey", "oscar"}
    assert [(one.version, one.state) for one in found.keys] == [(1, "active")]


def test_what_protects_nothing_is_said_first(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        found = view(watch)
    assert [text.split(".")[0].split(":")[0] for text in reds(found)][:2] == ["SIMULATED TEE", "WITNESSES"]
    assert any("of a simulated TEE" in text for text in reds(found))
    assert found.notices[0].tone == "bad"
    assert found.tone == "warn"


def test_without_a_key_only_what_anybody_may_see_is_shown(site: Deployed, heads: Heads) -> None:
    with site.watch(heads, by=None) as watch:
        found = view(watch)
    assert not found.cards
    assert not found.keys
    assert found.proven == 0
    assert any("give --key" in one.todo for one in found.notices)
    assert f"log: {site.bench.state.journal.size} entries under a verified head" in found.summary


def test_a_key_of_nobody_is_refused_and_the_public_part_stays(site: Deployed, heads: Heads) -> None:
    with site.watch(heads, by="mallory") as watch:
        found = view(watch)
    assert reds(found)[0].endswith("(not-allowed)")
    assert found.manifests
    assert not found.cards


def test_another_owner_than_the_pinned_one_is_not_believed(site: Deployed, heads: Heads) -> None:
    with site.watch(heads, pinned="ab" * 32) as watch:
        found = view(watch)
    assert found.tone == "bad"
    assert not found.manifests
    assert not found.cards


def test_owners_whom_nobody_pinned_are_not_shown(site: Deployed, heads: Heads) -> None:
    with site.watch(heads, pinned=None) as watch:
        found = seen(watch)
    assert isinstance(found.problem, UsageError)
    assert not found.manifests


def test_the_log_is_read_in_steps(site: Deployed, heads: Heads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.client.owners_watch.MAX_STEP", 3)
    with site.watch(heads) as watch:
        first = watch.look(lambda found, _: found)
        assert first.reading == Reading("entries", 3, site.bench.state.journal.size)
        assert first.head is None
        assert watch.ledger.size == 0
        site.released()  # what comes meanwhile belongs to the next look
        assert view(watch).proven == site.bench.state.journal.size - 2
        assert view(watch).proven == site.bench.state.journal.size


def test_many_rules_are_asked_for_a_few_at_a_time(
    site: Deployed, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.client.owners_watch.MAX_RULES", 2)
    for number in range(4):
        site.bench.allow(f"models/key/n{number}")
    with site.watch(heads) as watch:
        first = watch.look(overview)
        assert first.reading == Progress(what="rules", have=2, want=5)
        assert [card.rule.startswith("rule version 1") for card in first.cards] == [
            True,
            True,
            False,
            False,
            False,
        ]
        assert all(card.rule.startswith("rule version 1") for card in view(watch).cards)
        site.bench.allow("models/key/n1", releases=7)
        assert "It may be read 7 times in all." in view(watch).cards[2].rule_words


def test_the_head_of_a_visit_is_extended_at_the_next(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        assert any("first visit" in one.text for one in view(watch).notices)
    size = site.bench.state.journal.size
    site.released()
    with site.watch(heads) as watch:
        found = view(watch)
    assert not any("first visit" in one.text for one in found.notices)
    (fact,) = [one for one in found.log if one.name == "since the last visit"]
    assert fact.value.startswith(f"extends the {size} entries seen on ")


def test_the_evidence_of_an_attestation_is_found_with_its_policy(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        view(watch)
        entries, _ = watch.page(Wanted(event="release"), before=10**9, limit=5)
        entry, evidence, policy = watch.evidence(entries[0].number)
        assert json.loads(evidence)["format"] == "cloister/evidence/v1"
        assert policy is not None
        assert policy.digest == entry.policy
        with pytest.raises(UnknownResource):
            watch.evidence(0)


def test_pages_of_the_timeline_are_bounded_and_meet_their_filters(site: Deployed, heads: Heads) -> None:
    site.released(4)
    with site.watch(heads) as watch:
        view(watch)
        first = timeline(*watch.page(Wanted(resource=URI, event="release"), before=10**9, limit=2))
        assert [row.event for row in first.rows] == ["release", "release"]
        assert first.before is not None
        rest = timeline(*watch.page(Wanted(resource=URI, event="release"), before=first.before, limit=50))
        assert [row.number for row in rest.rows] == sorted((row.number for row in rest.rows), reverse=True)
        assert len(rest.rows) == 3
        assert rest.before is None


def test_witnesses_are_counted_by_their_signatures(tmp_path: Path, heads: Heads) -> None:
    with witnessed(tmp_path / "site") as site, site.watch(heads) as watch:
        found = view(watch)
    assert found.summary[-1] == "witnessed by 2 of 2"
    (fact,) = [one for one in found.log if one.name == "co-signed by"]
    assert fact.value.startswith("wanda, willy: the first ")
    assert not any("WITNESSES" in text for text in reds(found))


# -- attacks ----------------------------------------------------------------------------------------------------------


def fork(site: Deployed, tmp_path: Path) -> Desk:
    """The same log, another history: a copy of the state that went its own way, and is longer."""
    other = site.copied(tmp_path / "fork")
    site.released()
    Deployed(other).released(5)
    return other.desk


@pytest.mark.parametrize("signing", [True, False], ids=["with a key", "without a key"])
def test_a_broker_that_rewrote_its_log_is_red_and_nothing_new_of_it_is_believed(
    site: Deployed, heads: Heads, tmp_path: Path, signing: bool
) -> None:
    by = "audrey" if signing else None
    forked = fork(site, tmp_path)
    with site.watch(heads, by=by) as watch:
        before = view(watch)
        kept = heads.of(site.bench.state.log)
        site.serve(forked)
        found = view(watch)
        assert found.tone == "bad"
        assert found.notices[0].text.startswith("FOUND ")
        assert "the log was rewritten" in found.notices[0].text
        assert not found.cards
        assert not any(one.name == "root" for one in found.log)
        assert found.proven == before.proven
        assert heads.of(site.bench.state.log) == kept
        site.serve(site.bench.desk)
        assert "the log was rewritten" in view(watch).notices[0].text, "an alarm stays"
    site.serve(forked)
    with site.watch(heads, by=by) as watch:
        assert isinstance(seen(watch).problem, AuditDamaged)


def test_a_broker_that_came_back_from_an_old_copy_is_found(
    site: Deployed, heads: Heads, tmp_path: Path
) -> None:
    other = site.copied(tmp_path / "old")
    site.released(10)
    with site.watch(heads) as watch:
        view(watch)
    site.serve(other.desk)
    with site.watch(heads) as watch:
        found = view(watch)
    assert "the log was cut" in found.notices[0].text
    assert not found.cards


def test_a_broker_with_a_new_log_at_the_old_address_is_found(
    site: Deployed, heads: Heads, tmp_path: Path
) -> None:
    with site.watch(heads) as watch:
        view(watch)
    with deployed(tmp_path / "another") as another:
        site.serve(another.bench.desk)
        with site.watch(heads) as watch:
            found = seen(watch)
    assert isinstance(found.problem, ForkFound)
    assert found.head is None
    assert not found.manifests


def test_an_older_manifest_than_the_one_seen_before_is_found(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        view(watch)
    kept = heads.of(site.bench.state.log)
    assert kept is not None
    heads.path(kept.head.log).write_bytes(encode_json(structs.replace(kept, manifest_version=2)))
    with site.watch(heads) as watch:
        found = seen(watch)
    assert isinstance(found.problem, RollbackFound)


def test_another_manifest_of_the_same_version_is_found(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        view(watch)
    kept = heads.of(site.bench.state.log)
    assert kept is not None
    heads.path(kept.head.log).write_bytes(encode_json(structs.replace(kept, manifest="ab" * 32)))
    with site.watch(heads) as watch:
        assert isinstance(seen(watch).problem, ForkFound)


@pytest.mark.parametrize("damage", ["half", "other", "empty", "signature"])
def test_a_damaged_memory_is_an_error_and_not_a_first_visit(
    site: Deployed, heads: Heads, damage: str
) -> None:
    with site.watch(heads) as watch:
        view(watch)
    path = heads.path(site.bench.state.log)
    data = path.read_bytes()
    kept = decode_json(data, KeptHead, what="kept")
    signature = bytes([kept.signed.signature[0] ^ 1]) + kept.signed.signature[1:]
    forged = structs.replace(kept, signed=structs.replace(kept.signed, signature=signature))
    path.write_bytes(
        {"half": data[: len(data) // 2], "other": b"{}", "empty": b"", "signature": encode_json(forged)}[
            damage
        ]
    )
    with site.watch(heads) as watch:
        found = seen(watch)
    assert isinstance(found.problem, UsageError)
    assert "cannot be read" in found.problem.what
    assert found.head is None


def test_a_longer_head_is_never_replaced_by_a_shorter_one(site: Deployed, heads: Heads) -> None:
    with site.watch(heads) as watch:
        view(watch)
        short = heads.of(site.bench.state.log)
        site.released()
        view(watch)
    long = heads.of(site.bench.state.log)
    assert short is not None
    assert long is not None
    heads.keep(short)
    assert heads.of(site.bench.state.log) == long
    assert oct(heads.directory.stat().st_mode & 0o777) == "0o700"
    assert oct(heads.path(short.head.log).stat().st_mode & 0o777) == "0o600"


def test_a_rule_that_the_log_does_not_name_is_found(
    site: Deployed, heads: Heads, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = manifest_parts.signed(
        structs.replace(site.bench.state.authority.rule(PATH).rule.rule, releases=99),  # type: ignore[union-attr]
        "alice",
        "bob",
    )
    with site.watch(heads) as watch:
        monkeypatch.setattr(watch._client, "rule", lambda _path: wide)
        found = seen(watch)
    assert isinstance(found.problem, AuditDamaged)
    assert not found.rules


@pytest.mark.parametrize(
    ("cosigners", "why"),
    [
        ((), "0 witnesses co-signed"),
        (("wanda",), "1 witnesses co-signed"),
        (("wanda", "mallory"), "a stranger"),
        (("wanda", "wanda"), "one witness's twice"),
    ],
)
def test_cosignatures_that_do_not_reach_the_threshold_are_red(
    tmp_path: Path, heads: Heads, cosigners: tuple[str, ...], why: str
) -> None:
    with witnessed(tmp_path / "site") as site, site.watch(heads) as watch:
        client = watch._client
        head, answer = client.head()
        some = tuple(cosign(answer.signed.head, manifest_parts.owner(name)) for name in cosigners)
        bent = structs.replace(answer, cosigned=with_cosignatures(answer.signed, some))
        client.head = lambda: (head, bent)  # type: ignore[method-assign]
        found = view(watch)
    assert found.summary[-1] == "witnessed by 0 of 2"
    assert any(text.startswith("WITNESSES: ") and why in text for text in reds(found)), reds(found)


def test_a_rule_outlives_the_manifest_under_which_it_was_signed(site: Deployed, heads: Heads) -> None:
    carol = {
        "resources": {
            "models": manifest_parts.quorum("carol"),
            "models/key/bobs": manifest_parts.quorum("bob"),
        }
    }
    site.bench.state.authority.submit_manifest(site.bench.succeed("alice", "bob", **carol))
    with site.watch(heads) as watch:
        found = view(watch)
    assert found.summary[2].startswith("manifest version 2, signed by alice, bob")
    (card,) = found.cards
    assert card.rule == "rule version 1, signed by alice, bob under manifest version 1"
    assert card.owners == "carol"


def test_a_destroyed_resource_and_a_refusal_are_shown_as_such(site: Deployed, heads: Heads) -> None:
    site.bench.have_done("destroy", PATH)
    with pytest.raises(CloisterError):
        site.released()
    with site.watch(heads) as watch:
        found = view(watch)
        entries, before = watch.page(Wanted(event="release"), before=10**9, limit=1)
    (card,) = found.cards
    assert card.stored.startswith("destroyed")
    assert card.refused == 1
    row = timeline(entries, before).rows[0]
    assert row.tone == "bad"
    assert "there is no such resource" in row.why


def test_a_locked_broker_says_how_many_shares_it_has(site: Deployed, heads: Heads, tmp_path: Path) -> None:
    site.serve(site.bench.desk_over(site.bench.again()))
    with site.watch(heads) as watch:
        found = view(watch)
    assert found.summary == ("locked: 0 of 2 shares are there",)


def test_laptop_mode_is_red_and_shows_what_it_can(tmp_path: Path, heads: Heads) -> None:
    bench = Bench(tmp_path / "laptop", clock=Clock(START))
    bench.put()
    bench.allow(reader(), now=START)
    with deployed(tmp_path / "state") as site:
        site.serve(bench.start())
        with site.watch(heads, by=None, pinned=None) as watch:
            found = view(watch)
    assert found.notices[1].text.startswith("LAPTOP MODE")
    assert any("Nobody said whose broker" in one.text for one in found.notices)
    assert found.manifests
    assert found.summary[0] == "open"


def test_the_broker_itself_serves_no_page(site: Deployed) -> None:
    assert call(site.bench.app, "GET", b"/").status == 404
