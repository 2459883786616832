"""What owners signed, as it is in force: the chain of manifests, and rules that nobody else can change or bring back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import manifest_parts
from broker_parts import NOW, PATH, SECRET, OwnersBench, attested, owners_manifest, policy_for, workload
from cloister.broker.audit import AuditDamaged
from cloister.broker.authority import Authority
from cloister.errors import BrokerError, CloisterError, ManifestError, QuorumMissing, Superseded, UsageError
from cloister.manifest.manifest import Workload
from cloister.manifest.rule import Rule
from cloister.manifest.signed import Signed


@pytest.fixture
def bench(tmp_path: Path) -> OwnersBench:
    bench = OwnersBench(tmp_path / "state")
    bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    return bench


def authority(bench: OwnersBench) -> Authority:
    return bench.state.authority


def rule(bench: OwnersBench, *by: str, **changes: Any) -> Signed:
    before = authority(bench).rule(PATH)
    assert before is not None
    said = {
        "application": "clinic",
        "resource": PATH,
        "version": before.rule.rule.version + 1,
        "previous": before.rule.digest,
        "workloads": {"inference": "manifest"},
        "policies": (),
        "purposes": "any",
        "window": "always",
        "releases": "unlimited",
        **changes,
    }
    return manifest_parts.signed(Rule(**said), *(by or ("alice", "bob")))


def test_the_first_manifest_and_its_origin_are_in_force(bench: OwnersBench) -> None:
    assert authority(bench).manifest.manifest == bench.genesis
    assert bench.told("genesis")[0].manifest == authority(bench).manifest.digest
    with pytest.raises(ManifestError):
        _opened(bench, "00" * 32)


def _opened(bench: OwnersBench, origin: str) -> None:
    found = Authority(bench.state.journal, origin=origin)
    found.load()


def test_a_successor_takes_effect_here_and_in_every_other_process(bench: OwnersBench) -> None:
    other = bench.again()
    other.open_from_peer(bench.state.key_for_peer())
    accepted = authority(bench).submit_manifest(bench.succeed("alice", "carol", auditors={}))
    assert authority(bench).manifest == accepted
    other.state.journal.catch_up()
    assert other.state.authority.manifest.digest == accepted.digest
    assert [one.manifest.version for one in other.state.authority.manifests()] == [1, 2]
    assert bench.told("manifest")[0].signers == ("alice", "carol")


MANIFESTS: dict[str, tuple[Callable[[OwnersBench], Signed], type[CloisterError]]] = {
    "one signature": (lambda bench: bench.succeed("alice"), QuorumMissing),
    "no owner's": (lambda bench: bench.succeed("mallory", "oscar"), ManifestError),
    "an owner's and a stranger's": (lambda bench: bench.succeed("alice", "bob", "mallory"), ManifestError),
    "a version skipped": (lambda bench: bench.succeed("alice", "bob", version=3), ManifestError),
    "the version again": (lambda bench: bench.succeed("alice", "bob", version=1), ManifestError),
    "another predecessor": (lambda bench: bench.succeed("alice", "bob", previous="00" * 32), ManifestError),
    "older than its predecessor": (
        lambda bench: bench.succeed("alice", "bob", issued=NOW - 1),
        ManifestError,
    ),
    "the first again": (lambda bench: manifest_parts.signed(bench.genesis, "alice", "bob"), ManifestError),
    "another application": (lambda bench: bench.succeed("alice", "bob", application="bank"), ManifestError),
    "an owner's resource taken": (
        lambda bench: bench.succeed("alice", "carol", resources={"models": manifest_parts.quorum("carol")}),
        ManifestError,
    ),
}


@pytest.mark.parametrize(("make", "error"), MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_manifest_that_does_not_follow_is_refused(
    bench: OwnersBench, make: Callable[[OwnersBench], Signed], error: type[CloisterError]
) -> None:
    size = bench.state.journal.size
    with pytest.raises(error):
        authority(bench).submit_manifest(make(bench))
    assert authority(bench).manifest.manifest.version == 1
    assert bench.state.journal.size == size


def test_of_two_successors_the_first_counts(bench: OwnersBench) -> None:
    one, two = bench.succeed("alice", "bob", auditors={}), bench.succeed("bob", "carol", operators={})
    authority(bench).submit_manifest(one)
    with pytest.raises((ManifestError, UsageError)):
        authority(bench).submit_manifest(two)


def test_two_processes_accept_one_of_two_successors(bench: OwnersBench) -> None:
    """The second looks before the first has written, and writes after it."""
    other = bench.again()
    other.open_from_peer(bench.state.key_for_peer())
    bench.state.journal.catch_up()
    two = bench.succeed("bob", "carol", operators={})
    journal, transact = other.state.journal, other.state.journal.transact

    def late(work: Any) -> Any:
        authority(bench).submit_manifest(bench.succeed("alice", "bob", auditors={}))
        return transact(work)

    journal.transact = late  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="came first"):
        other.state.authority.submit_manifest(two)


RULES: dict[str, tuple[Callable[[OwnersBench], Signed], type[CloisterError]]] = {
    "one signature": (lambda bench: rule(bench, "alice"), QuorumMissing),
    "other owners'": (lambda bench: rule(bench, "carol", "alice"), QuorumMissing),
    "a stranger's": (lambda bench: rule(bench, "mallory"), ManifestError),
    "a version skipped": (lambda bench: rule(bench, version=3), Superseded),
    "the version again": (lambda bench: rule(bench, version=1, previous=""), Superseded),
    "another predecessor": (lambda bench: rule(bench, previous="00" * 32), Superseded),
    "another application": (lambda bench: rule(bench, application="bank"), ManifestError),
    "a workload that is not": (lambda bench: rule(bench, workloads={"training": "manifest"}), ManifestError),
    "nobody's resource": (
        lambda bench: rule(bench, resource="elsewhere/key/x", version=1, previous=""),
        ManifestError,
    ),
    "the quorum of a more general entry": (
        lambda bench: rule(bench, "alice", resource="models/key/bobs", version=1, previous=""),
        ManifestError,
    ),
}


@pytest.mark.parametrize(("make", "error"), RULES.values(), ids=RULES.keys())
def test_a_rule_that_does_not_follow_is_refused(
    bench: OwnersBench, make: Callable[[OwnersBench], Signed], error: type[CloisterError]
) -> None:
    before = authority(bench).rule(PATH)
    with pytest.raises(error):
        authority(bench).submit_rule(make(bench))
    assert authority(bench).rule(PATH) == before


def test_an_older_rule_does_not_come_back(bench: OwnersBench) -> None:
    first = authority(bench).rule(PATH)
    assert first is not None
    authority(bench).submit_rule(rule(bench, releases=1))
    with pytest.raises(Superseded):
        authority(bench).submit_rule(first.rule.signed)


def test_a_rule_stays_when_the_manifest_moves_on_and_its_owners_replace_it(bench: OwnersBench) -> None:
    owners = {**bench.genesis.owners, **manifest_parts.keys("dora")}
    resources = {**bench.genesis.resources, "models": manifest_parts.quorum("dora")}
    authority(bench).submit_manifest(bench.succeed("alice", "bob", owners=owners, resources=resources))
    assert attested(bench, workload()).get() == SECRET
    with pytest.raises(QuorumMissing):
        authority(bench).submit_rule(rule(bench, "alice", "bob"))
    authority(bench).submit_rule(rule(bench, "dora", releases=1))
    assert attested(bench, workload()).get() == SECRET


@pytest.mark.parametrize("changed", ["rule", "manifest"])
def test_a_rule_that_another_process_overtook_is_refused(bench: OwnersBench, changed: str) -> None:
    journal, transact = bench.state.journal, bench.state.journal.transact
    mine, theirs = rule(bench, releases=1), rule(bench, releases=2)
    other = bench.again()
    other.open_from_peer(bench.state.key_for_peer())
    manifest = bench.succeed("alice", "bob", auditors={})

    def late(work: Any) -> Any:
        if changed == "rule":
            other.state.authority.submit_rule(theirs)
        else:
            other.state.authority.submit_manifest(manifest)
        return transact(work)

    journal.transact = late  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="changed just now"):
        authority(bench).submit_rule(mine)


def test_policies_in_force_are_those_of_the_manifest_and_of_rules_and_go_with_them(
    bench: OwnersBench,
) -> None:
    own = policy_for(workload(b"a guest"))
    assert len(authority(bench).policies()) == 1
    authority(bench).submit_rule(rule(bench, workloads={}, policies=(own,)))
    assert len(authority(bench).policies()) == 2
    assert attested(bench, workload(b"a guest")).get() == SECRET
    authority(bench).submit_rule(rule(bench))
    assert len(authority(bench).policies()) == 1
    with pytest.raises(BrokerError):
        attested(bench, workload(b"a guest"))
    changed = {"inference": Workload(policies=(policy_for(workload(b"next")),))}
    authority(bench).submit_manifest(bench.succeed("alice", "bob", workloads=changed))
    assert [one.digest for one in authority(bench).policies()] == [
        one.digest for one in authority(bench).manifest.policies("inference")
    ]


ATTACKS = {
    "the manifest edited": "UPDATE records SET body = x'7b7d' WHERE kind = 'manifest'",
    "the manifest removed": "DELETE FROM records WHERE kind = 'manifest'",
    "the rule edited": "UPDATE records SET body = CAST(replace(body, 'a', 'b') AS BLOB) WHERE kind = 'rule'",
    "an old manifest in place of the newest": """DELETE FROM records WHERE kind = 'manifest' AND name = '2';
        UPDATE records SET name = '2' WHERE kind = 'manifest' AND name = '1'""",
}


@pytest.mark.parametrize("script", ATTACKS.values(), ids=ATTACKS.keys())
def test_what_owners_signed_is_not_exchanged_on_disk(bench: OwnersBench, script: str) -> None:
    authority(bench).submit_manifest(bench.succeed("alice", "bob", auditors={}))
    attempt = attested(bench, workload())
    bench.execute(script)
    again = bench.again()
    with pytest.raises(BrokerError):
        again.open_from_peer(bench.state.key_for_peer())
    if "rule" in script:
        with pytest.raises(AuditDamaged):
            attempt.get()


def test_a_manifest_of_its_own_owners_is_none_of_another_origin(tmp_path: Path) -> None:
    mallory = owners_manifest(
        owners=manifest_parts.keys("mallory"), update=manifest_parts.quorum("mallory"), resources={}
    )
    bench = OwnersBench(tmp_path / "state", genesis=mallory)
    honest = OwnersBench(tmp_path / "honest")
    assert authority(bench).origin != authority(honest).origin
    with pytest.raises(ManifestError):
        _opened(bench, authority(honest).origin)
