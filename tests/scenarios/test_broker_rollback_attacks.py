"""Named attacks on what a broker remembers: rows put back, copies, forks, clocks, races, and people who may not."""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import structs

import manifest_parts
from broker_parts import (
    NOW,
    PATH,
    SECRET,
    URI,
    Attempt,
    Bench,
    Clock,
    OwnersBench,
    attested,
    call,
    owners_manifest,
    platform,
    policy_for,
    served,
    workload,
)
from cloister.appraisal.policy import load_policy
from cloister.attester.launch import launch_events
from cloister.attester.simulated import SimulatedTee
from cloister.broker import protocol, tables
from cloister.broker.audit import AuditDamaged
from cloister.broker.client import BrokerKeys
from cloister.broker.configuration import BrokerConfiguration, broker_events, owners_configuration
from cloister.broker.limits import Buckets
from cloister.broker.release import NoneLeft
from cloister.broker.service import STATE_KEY_PATH, AttestationRefused, Witnessless
from cloister.broker.serving import seal_broker
from cloister.broker.signed_request import Nonces, NotAllowed
from cloister.broker.tree_head import ForkFound, RollbackFound
from cloister.broker.wire import CertificateAnswer, CertificateRequest
from cloister.encoding import decode_json, encode_json
from cloister.errors import (
    CloisterError,
    KeystoreError,
    ManifestError,
    QuorumMissing,
    ReleaseRefused,
    Superseded,
    UsageError,
)
from cloister.manifest.acceptance import accept_genesis, accept_successor
from cloister.manifest.manifest import Workload, origin
from cloister.manifest.rule import Window
from cloister.manifest.signed import encode_signed
from owners_site import RunningWitness, WitnessedBench, rows, snapshot

TWO = "models/key/two"
COUNTED = "models/key/counted"
THIEF = b"what an older rule let in"

Row = tuple[Any, ...]


class Scene:
    """A broker whose owners took something back, and an operator who kept every older row.

    The older rule of ``PATH`` let a second workload read it, the older manifest had carol; ``COUNTED`` was released as
    often as its rule allows; the first version of the repository's key was shredded.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bench = bench = OwnersBench(root / "state")
        self.shares = bench.share_out()
        for path, content in ((PATH, SECRET), (TWO, b"2" * 32), (COUNTED, b"c" * 32)):
            bench.have_done("put", path, content)
        self.old_rule = bench.allow(policies=(policy_for(workload(THIEF)),)).signed
        bench.allow(TWO)
        bench.allow(COUNTED, releases=2)
        self.reader, self.thief = attested(bench, workload()), attested(bench, workload(THIEF))
        assert self.thief.get() == SECRET
        self.at_first = rows(bench.directory)
        self.old_copy = snapshot(bench.directory, root / "old")
        bench.allow()
        for _ in range(2):
            self.reader.get(COUNTED)
        bench.have_done("rotate-key", "models")
        bench.have_done("destroy-key", "models", version=1)
        self.successor = bench.succeed("alice", "bob", auditors={})
        bench.state.authority.submit_manifest(self.successor)

    def disk(self, statement: str, *values: Any) -> int:
        """What the operator does; how many rows it touched."""
        with contextlib.closing(
            sqlite3.connect(self.bench.directory / tables.DATABASE, isolation_level=None)
        ) as database:
            return database.execute(statement, values).rowcount

    def row(self, kind: str, name: str) -> Row:
        """A record as it was at first."""
        return next(row for row in self.at_first["records"] if row[:2] == (kind, name))

    def put_back(self, kind: str, name: str) -> None:
        _, _, version, _, body, wrapped = self.row(kind, name)
        touched = self.disk(
            "UPDATE records SET version = ?, body = ?, wrapped = ? WHERE kind = ? AND name = ?",
            version,
            body,
            wrapped,
            kind,
            name,
        )
        assert touched == 1

    def restart(self, directory: Path | None = None) -> OwnersBench:
        """What another process opens with the owners' shares."""
        again = _started(self.bench, directory or self.bench.directory)
        for name in ("alice", "bob"):
            again.custody.offer(self.shares[name])
        assert again.custody.opened
        return again


def _started(bench: OwnersBench, directory: Path) -> OwnersBench:
    """Another broker process over a state, as it starts: locked."""
    other = copy.copy(bench)
    other.directory = directory
    other.custody = other.again()
    other.desk = other.desk_over(other.custody)
    return other


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def _old_rule(scene: Scene) -> None:
    scene.disk(
        "UPDATE records SET body = ? WHERE kind = 'rule' AND name = ?", scene.row("rule", PATH)[4], PATH
    )


def _rule_of_another(scene: Scene) -> None:
    scene.disk(
        "UPDATE records SET (version, body) = (SELECT version, body FROM records WHERE kind = 'rule' AND name = ?)"
        " WHERE kind = 'rule' AND name = ?",
        TWO,
        PATH,
    )


def _swapped(scene: Scene) -> None:
    for old, new in ((PATH, "x"), (TWO, PATH), ("x", TWO)):
        scene.disk("UPDATE records SET name = ? WHERE kind = 'resource' AND name = ?", new, old)


def _wrapped_copied(scene: Scene) -> None:
    scene.disk(
        "UPDATE records SET wrapped = (SELECT wrapped FROM records WHERE kind = 'resource' AND name = ?)"
        " WHERE kind = 'resource' AND name = ?",
        TWO,
        PATH,
    )


def _manifest_body(scene: Scene) -> None:
    scene.disk(
        "UPDATE records SET body = ? WHERE kind = 'manifest' AND name = '2'", scene.row("manifest", "1")[4]
    )


def _entry_inserted(scene: Scene) -> None:
    scene.disk("INSERT INTO entries SELECT max(number) + 1, body FROM entries")


def _entry_repeated(scene: Scene) -> None:
    scene.disk("UPDATE entries SET body = (SELECT body FROM entries WHERE number = 5) WHERE number = 6")


def _old_head(scene: Scene) -> None:
    (_, size, signed, cosigned) = scene.at_first["head"][0]
    scene.disk("UPDATE head SET size = ?, signed = ?, cosigned = ?", size, signed, cosigned)


def _old_signed_head(scene: Scene) -> None:
    scene.disk("UPDATE head SET signed = ?", scene.at_first["head"][0][2])


def _old_head_and_log(scene: Scene) -> None:
    _old_head(scene)
    scene.disk("DELETE FROM entries WHERE number >= ?", len(scene.at_first["entries"]))


def _document(scene: Scene) -> None:
    other = OwnersBench(scene.root / "other", structs.replace(owners_manifest(), application="clinic"))
    scene.disk("UPDATE state SET document = ?", rows(other.directory)["state"][0][2])


def _document_of_the_beginning(scene: Scene) -> None:
    """dora takes carol's place among those who hold shares; the operator kept the document that carol's opens."""
    bench, before = scene.bench, rows(scene.bench.directory)["state"][0][2]
    following = bench.succeed(
        *("alice", "bob"),
        owners=manifest_parts.keys("alice", "bob", "carol", "dora"),
        update=manifest_parts.quorum("alice", "bob", "dora", threshold=2),
    )
    reply = call(bench.app, "POST", b"/cloister/v1/manifests", encode_signed(following))
    assert reply.status == 200
    bench.share_out("alice", "bob", "dora")
    assert rows(bench.directory)["state"][0][2] != before
    scene.disk("UPDATE state SET document = ?", before)


def _counter_lowered(scene: Scene) -> None:
    scene.disk(
        "UPDATE records SET body = CAST(replace(body, ?, ?) AS BLOB) WHERE kind = 'counter'",
        '"released":2',
        '"released":0',
    )


ATTACKS: dict[str, tuple[Callable[[Scene], object], type[CloisterError] | None]] = {
    "old rule row put back": (lambda scene: scene.put_back("rule", PATH), AuditDamaged),
    "old rule under the newest version": (_old_rule, AuditDamaged),
    "rule of another resource": (_rule_of_another, AuditDamaged),
    "resource rows swapped": (_swapped, AuditDamaged),
    "wrapped key copied to another resource": (_wrapped_copied, None),
    "resource row put back": (lambda scene: scene.put_back("resource", PATH), None),
    "counter row lowered": (_counter_lowered, AuditDamaged),
    "counter row deleted": (
        lambda scene: scene.disk("DELETE FROM records WHERE kind = 'counter'"),
        AuditDamaged,
    ),
    "counter row's version lowered": (
        lambda scene: scene.disk("UPDATE records SET version = 1 WHERE kind = 'counter'"),
        AuditDamaged,
    ),
    "manifest row deleted": (
        lambda scene: scene.disk("DELETE FROM records WHERE kind = 'manifest' AND name = '2'"),
        AuditDamaged,
    ),
    "manifest row put back": (_manifest_body, AuditDamaged),
    "shredded key put back": (lambda scene: scene.put_back("key", "models"), AuditDamaged),
    "newest entry deleted": (
        lambda scene: scene.disk("DELETE FROM entries WHERE number = (SELECT max(number) FROM entries)"),
        AuditDamaged,
    ),
    "entry in the middle deleted": (
        lambda scene: scene.disk("DELETE FROM entries WHERE number = 5"),
        AuditDamaged,
    ),
    "entry edited": (
        lambda scene: scene.disk(
            "UPDATE entries SET body = CAST(replace(body, 'release 1', 'release 9') AS BLOB)"
        ),
        AuditDamaged,
    ),
    "entry inserted": (_entry_inserted, AuditDamaged),
    "entry repeated in place of another": (_entry_repeated, AuditDamaged),
    "older signed head": (_old_head, AuditDamaged),
    "older signed head beside the newest size": (_old_signed_head, AuditDamaged),
    "older signed head and log, newest records": (_old_head_and_log, AuditDamaged),
    "document of another state": (_document, KeystoreError),
    "older document of this state": (_document_of_the_beginning, AuditDamaged),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_an_operator_edits_opens_nothing_and_is_found_at_the_next_start(
    scene: Scene, attack: str
) -> None:
    edit, found = ATTACKS[attack]
    before = rows(scene.bench.directory)
    edit(scene)
    assert rows(scene.bench.directory) != before
    touched = snapshot(scene.bench.directory, scene.root / "touched")  # a running broker may write over it
    _nothing_more_is_released(scene.bench, scene)
    if found is None:  # a wrapped key is in no tree: it authenticates by itself, and no other takes its place
        again = scene.restart(touched)
        with pytest.raises(KeystoreError):
            attested(again, workload()).get()
        return
    with pytest.raises(found):
        scene.restart(touched)


def _nothing_more_is_released(bench: OwnersBench, scene: Scene) -> None:
    for attempt, path in ((scene.thief, PATH), (scene.reader, COUNTED)):
        with pytest.raises(CloisterError):
            attempt.get(path)
    with contextlib.suppress(
        CloisterError
    ):  # what is right may still be read, or nothing; never anything else
        assert scene.reader.get() == SECRET
    with contextlib.suppress(CloisterError):
        assert scene.reader.get(TWO) == b"2" * 32


def test_before_any_attack_the_scene_is_what_its_owners_want(scene: Scene) -> None:
    for attempt in (scene.reader, attested(scene.restart(), workload())):
        assert (attempt.get(), attempt.get(TWO)) == (SECRET, b"2" * 32)
        with pytest.raises(NoneLeft):
            attempt.get(COUNTED)
    with pytest.raises(ReleaseRefused):
        scene.thief.get()


def test_a_rule_that_was_damaged_when_it_was_new_counts_once_it_is_whole_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "state")
    bench.put()
    assert bench.broker  # it runs before the rule is there
    bench.allow(workload())
    bench.execute("UPDATE records SET name = 'away' WHERE kind = 'rule'")
    with pytest.raises(AuditDamaged):
        attested(bench, workload())
    bench.execute(f"UPDATE records SET name = '{PATH}' WHERE name = 'away'")  # noqa: S608 -- our own name
    assert attested(bench, workload()).get() == SECRET


def test_one_row_of_a_full_copy_restored_is_found(scene: Scene) -> None:
    """Row by row: none of them alone can go back, whatever it is."""
    newest = {row[:2]: row for row in rows(scene.bench.directory)["records"]}
    gone_back = [row for row in scene.at_first["records"] if row[4] != newest[row[:2]][4]]
    assert {row[0] for row in gone_back} >= {"rule", "key"}
    for kind, name, *_ in gone_back:
        scene.put_back(kind, name)
        with pytest.raises(AuditDamaged):
            scene.restart()
        _, _, version, _, body, wrapped = newest[kind, name]
        scene.disk(
            "UPDATE records SET version = ?, body = ?, wrapped = ? WHERE kind = ? AND name = ?",
            *(version, body, wrapped, kind, name),
        )
    scene.restart()


def test_an_old_signed_rule_submitted_again_is_superseded(scene: Scene) -> None:
    with pytest.raises(Superseded):
        scene.bench.state.authority.submit_rule(scene.old_rule)
    reply = scene.bench.ask("alice", "GET", f"/cloister/v1/rules/{PATH}")
    assert reply.status == 200
    with pytest.raises(ReleaseRefused):
        scene.thief.get()


def test_an_old_manifest_submitted_again_is_superseded_and_shown_to_a_client_is_refused(scene: Scene) -> None:
    authority = scene.bench.state.authority
    first, second = (one.signed for one in authority.manifests())
    for old in (first, second):
        with pytest.raises((Superseded, ManifestError)):
            authority.submit_manifest(old)
    assert authority.manifest.manifest.version == 2
    # A client that knows the second version does not take the first for its successor.
    known = accept_successor(second, predecessor=accept_genesis(first, origin=origin(scene.bench.genesis)))
    with pytest.raises(ManifestError):
        accept_successor(first, predecessor=known)


def _foreign_rules() -> dict[str, dict[str, Any]]:
    return {
        "of another application": {"application": "another clinic"},
        "of another resource's owner": {"resource": "models/key/bobs"},
        "of nobody's resource": {"resource": "elsewhere/key/x"},
        "of another predecessor": {"previous": "ab" * 32, "version": 2},
        "that skips a version": {"version": 3},
    }


@pytest.mark.parametrize("change", _foreign_rules().values(), ids=_foreign_rules().keys())
def test_a_signed_rule_is_of_one_application_resource_and_place(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    bench = OwnersBench(tmp_path / "state")
    bench.share_out()
    rule = manifest_parts.rule(resource=PATH)
    by = ("alice",) if change.get("resource") == "models/key/bobs" else ("alice", "bob")
    with pytest.raises(ManifestError):
        bench.state.authority.submit_rule(manifest_parts.signed(structs.replace(rule, **change), *by))
    assert bench.state.authority.rule(str(change.get("resource", PATH))) is None


# -- the whole copy, the fork ---------------------------------------------------------------------------------------


@pytest.fixture
def witnessed(tmp_path: Path) -> Iterator[WitnessedBench]:
    bench = WitnessedBench.opened(tmp_path, genesis=owners_manifest(witnesses=manifest_parts.two_witnesses()))
    bench.have_done("put", PATH, SECRET)
    yield bench
    bench.witnesses_away()


def _unlock(bench: WitnessedBench, other: OwnersBench) -> bool:
    progress = [other.custody.offer(bench.shares[name]) for name in ("alice", "bob")][-1]
    return progress.open


def test_a_full_snapshot_restored_is_found_by_the_witnesses(
    witnessed: WitnessedBench, tmp_path: Path
) -> None:
    copy = snapshot(witnessed.directory, tmp_path / "copy")
    witnessed.allow(releases=1)
    assert attested(witnessed, workload()).get() == SECRET
    old = _started(witnessed, copy)
    with pytest.raises(RollbackFound):
        _unlock(witnessed, old)
    assert not old.custody.opened
    # Under the running broker too, and there it needs no witness.
    snapshot(copy, witnessed.directory)
    with pytest.raises(RollbackFound):
        attested(witnessed, workload())


def test_without_witnesses_a_full_snapshot_opens_again_which_is_what_they_are_for(tmp_path: Path) -> None:
    bench = OwnersBench(tmp_path / "state")
    shares = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow(releases=1)
    copy = snapshot(bench.directory, tmp_path / "copy")
    attested(bench, workload()).get()
    old = _started(bench, copy)
    for name in ("alice", "bob"):
        old.custody.offer(shares[name])
    assert attested(old, workload()).get() == SECRET
    assert bench.desk.status().witnesses == 0


def test_of_two_brokers_forked_from_one_disk_only_one_releases_what_is_counted(
    witnessed: WitnessedBench, tmp_path: Path
) -> None:
    witnessed.allow(releases=1)
    witnessed.state.witnessing.require(
        witnessed.state.journal.size
    )  # it has just been seen, as far as it knows
    other = _started(witnessed, snapshot(witnessed.directory, tmp_path / "fork"))
    released = []
    with contextlib.suppress(CloisterError):
        _unlock(witnessed, other)
        released.append(attested(other, workload()).get())
    with contextlib.suppress(CloisterError):
        released.append(attested(witnessed, workload()).get())
    assert released == [SECRET]
    # Whoever lost is told why, and stays so.
    lost = witnessed if other.custody.opened else other
    with pytest.raises((Witnessless, ForkFound, RollbackFound)):
        attested(lost, workload()).get()


def test_two_brokers_that_were_already_open_on_one_disk_s_copies_do_not_both_release(
    witnessed: WitnessedBench, tmp_path: Path
) -> None:
    witnessed.allow(releases=1)
    witnessed.state.witnessing.require(
        witnessed.state.journal.size
    )  # it has just been seen, as far as it knows
    copies = [_started(witnessed, snapshot(witnessed.directory, tmp_path / name)) for name in ("a", "b")]
    opened = []
    for one in copies:
        with contextlib.suppress(CloisterError):
            if _unlock(witnessed, one):
                opened.append(one)
    assert len(opened) == 1
    attempts = []
    for one in (witnessed, *opened):
        with contextlib.suppress(CloisterError):
            attempts.append(attested(one, workload()))

    def get(attempt: Attempt) -> bytes | None:
        with contextlib.suppress(CloisterError):
            return attempt.get()
        return None

    with ThreadPoolExecutor(2) as pool:
        assert [found for found in pool.map(get, attempts) if found] == [SECRET]


# -- the clock ------------------------------------------------------------------------------------------------------


def test_a_clock_turned_back_revives_no_window_session_or_signed_request(tmp_path: Path) -> None:
    bench = OwnersBench(tmp_path / "state")
    shares = bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow(window=Window(not_before=NOW, not_after=NOW + 100))
    attempt = attested(bench, workload())
    assert attempt.get() == SECRET
    bench.clock.now += 100
    with pytest.raises(ReleaseRefused, match="holds from"):
        attempt.get()
    for turned_back in (1, 50, 100, 1_000_000):
        bench.clock.now = NOW + 100 - turned_back
        with pytest.raises(ReleaseRefused, match="holds from"):
            attempt.get()
        with pytest.raises(ReleaseRefused, match="holds from"):
            attested(bench, workload()).get()
    # A restart forgets the process's floor, not the log's.
    bench.clock.now = NOW + 10
    again = _started(bench, bench.directory)
    for name in ("alice", "bob"):
        again.custody.offer(shares[name])
    with pytest.raises(ReleaseRefused, match="holds from"):
        attested(again, workload()).get()


def test_a_clock_turned_back_makes_no_certificate_of_the_past_and_revives_no_nonce(tmp_path: Path) -> None:
    bench = OwnersBench(tmp_path / "state")
    bench.share_out()
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, SHA256())
    asked = CertificateRequest(workload="inference", csr=request.public_bytes(Encoding.DER))
    cookie = {"cookie": f"{protocol.COOKIE}={attested(bench, workload()).session}"}

    def issued() -> x509.Certificate:
        reply = call(bench.app, "POST", b"/cloister/v1/mesh/certificate", encode_json(asked), cookie)
        assert reply.status == 200
        answer = decode_json(reply.body, CertificateAnswer, what="answer", limit=1 << 20)
        return x509.load_der_x509_certificate(answer.chain[0])

    nonces = Nonces()
    nonce = nonces.draw(bench.custody.clock())
    first = issued()
    bench.clock.now += 250
    later = issued()
    assert later.not_valid_after_utc - first.not_valid_after_utc == datetime.timedelta(seconds=250)
    bench.clock.now = NOW
    again = issued()
    assert (again.not_valid_before_utc, again.not_valid_after_utc) == (
        later.not_valid_before_utc,
        later.not_valid_after_utc,
    )
    with pytest.raises(NotAllowed):
        nonces.spend(nonce, bench.custody.clock())


# -- counted releases -----------------------------------------------------------------------------------------------

START = int(time.time())


def _owners(now: int, **changes: Any) -> Any:
    return owners_manifest(
        workloads={"inference": Workload(policies=(policy_for(workload(now=now), now=now),))}, **changes
    )


def test_fifty_workloads_at_once_never_get_one_more_than_the_rule_allows(tmp_path: Path) -> None:
    bench = WitnessedBench.opened(
        tmp_path, genesis=_owners(START, witnesses=manifest_parts.two_witnesses()), clock=Clock(START)
    )
    bench.have_done("put", PATH, SECRET)
    bench.allow(releases=20)
    tee = platform(START).tee("tdx", launch=broker_events(owners_configuration(origin(bench.genesis))))
    gateway, keyring = seal_broker(bench.desk, tee, buckets=Buckets(rate=1e6, burst=1_000_000))
    policy = load_policy(policy_for(tee, now=START), name="broker policy")
    together = threading.Barrier(50)
    with served(gateway) as url:

        def ask(_: int) -> str:
            with BrokerKeys(url, policy=policy, attester=workload(now=START)) as keys:
                keys._attested()
                together.wait(60)
                try:
                    return keys.key(URI).hex()
                except ReleaseRefused as error:
                    return str(error.what)

        with ThreadPoolExecutor(50) as pool:
            outcomes = Counter(pool.map(ask, range(50)))
    keyring.close()
    bench.witnesses_away()
    none_left = "kbs:///models/key/demo: the resource was released as often as its rule allows (none-left)"
    assert outcomes == {SECRET.hex(): 20, none_left: 30}
    numbers = [one.reason for one in bench.told("release") if one.outcome == "accepted"]
    assert sorted(numbers) == sorted(f"release {number}" for number in range(1, 21))


def test_without_its_witnesses_nothing_counted_leaves_and_the_count_goes_back(
    witnessed: WitnessedBench,
) -> None:
    witnessed.allow(releases=1)
    attempt = attested(witnessed, workload())
    witnessed.witnesses_away()
    for _ in range(3):
        with pytest.raises(Witnessless):
            attempt.get()
    listed = {one.uri: one.released for one in witnessed.desk._administration.listing()}
    assert listed[URI] == 0
    witnessed.witnesses_back()
    assert attempt.get() == SECRET
    with pytest.raises(NoneLeft):
        attempt.get()


def test_witnesses_that_go_away_in_the_middle_of_a_counted_release_take_nothing_from_its_count(
    witnessed: WitnessedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    witnessed.allow(releases=1)
    attempt = attested(witnessed, workload())
    witnessing = witnessed.state.witnessing
    witnessing.require(witnessed.state.journal.size)
    recent = witnessing.require_recent

    def then_away(*arguments: float) -> None:
        recent(*arguments)
        witnessed.witnesses_away()

    monkeypatch.setattr(witnessing, "require_recent", then_away)
    with pytest.raises(Witnessless):
        attempt.get()
    monkeypatch.undo()
    told = witnessed.told("counter")
    assert [one.reason for one in told] == ["not released: the witnesses did not confirm it"]
    witnessed.witnesses_back()
    assert attempt.get() == SECRET


def test_one_of_two_demanded_witnesses_is_not_enough(witnessed: WitnessedBench) -> None:
    witnessed.allow(releases=1)
    attempt = attested(witnessed, workload())
    away: RunningWitness = witnessed.running["willy"]
    away.stop()
    with pytest.raises(Witnessless):
        attempt.get()


# -- who may --------------------------------------------------------------------------------------------------------


@pytest.fixture
def owned(tmp_path: Path) -> OwnersBench:
    """A broker whose manifest names its own measurement, an operator and an auditor."""
    draft = owners_manifest()
    tee = _launched(broker_events(owners_configuration(origin(draft))))
    bench = OwnersBench(tmp_path / "state", owners_manifest(broker=(policy_for(tee),)))
    bench.share_out("alice", "bob")
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    return bench


def _launched(events: Any) -> SimulatedTee:
    return platform(NOW).tee("tdx", launch=events, clock=lambda: NOW)


def _patched(pinned: str) -> Any:
    return launch_events(
        config=encode_json(owners_configuration(pinned)),
        program=hashlib.sha256(b"patched").digest(),
        model_index=None,
    )


def test_only_a_peer_of_the_measured_program_and_owners_gets_the_state_key(owned: OwnersBench) -> None:
    ours = _launched(broker_events(owners_configuration(origin(owned.genesis))))
    key = attested(owned, ours).get(STATE_KEY_PATH)
    again = owned.again()
    again.open_from_peer(key)
    assert again.opened
    assert owned.told("release")[-1].workload == "broker"
    with pytest.raises(ReleaseRefused):
        attested(owned, workload()).get(STATE_KEY_PATH)


@pytest.mark.parametrize(
    "launch",
    [
        lambda pinned: broker_events(),
        lambda pinned: broker_events(owners_configuration("ab" * 32)),
        lambda pinned: broker_events(
            BrokerConfiguration(state_key="owners", origin=pinned, protocol="9.9.9")
        ),
        _patched,
    ],
    ids=["laptop mode", "other owners", "another protocol", "another program"],
)
def test_a_peer_that_is_not_exactly_this_broker_gets_no_state_key(
    owned: OwnersBench, launch: Callable[[str], Any]
) -> None:
    stranger = _launched(launch(origin(owned.genesis)))
    with pytest.raises(AttestationRefused):
        attested(owned, stranger)
    assert "none of 2 policies accepts it" in owned.told("attestation")[-1].reason
    assert "rtmr3 is" in owned.told("attestation")[-1].reason


def test_the_key_of_another_state_from_a_lying_peer_opens_nothing(owned: OwnersBench, tmp_path: Path) -> None:
    other = OwnersBench(tmp_path / "other")
    with pytest.raises(AuditDamaged, match="none of this log's"):
        owned.again().open_from_peer(other.state.key_for_peer())
    with pytest.raises(CloisterError):
        owned.again().open_from_peer(bytes(32))


@pytest.mark.parametrize("name", ["oscar", "audrey", "mallory"])
def test_an_operator_and_an_auditor_cannot_do_what_owners_do(owned: OwnersBench, name: str) -> None:
    """mallory is nobody at all."""
    administration, authority = owned.desk._administration, owned.state.authority
    refused: type[CloisterError] | tuple[type[CloisterError], ...] = ManifestError
    acts: list[Callable[[], object]] = [
        lambda: administration.execute(
            owned.order("put", "models/key/new", b"x" * 32, by=(name,)), b"x" * 32
        ),
        lambda: administration.execute(owned.order("destroy", PATH, by=(name,)), b""),
        lambda: administration.execute(owned.order("destroy", PATH, by=("alice", name)), b""),
        lambda: administration.execute(owned.order("rotate-key", "models", by=(name, "alice")), b""),
        lambda: administration.execute(owned.order("destroy-key", "models", by=(name,), version=1), b""),
        lambda: owned.allow(by=(name,)),
        lambda: owned.allow(by=("alice", name)),
        lambda: authority.submit_manifest(owned.succeed(name)),
        lambda: authority.submit_manifest(owned.succeed("alice", name)),
    ]
    for act in acts:
        with pytest.raises(refused):
            act()
    for method, path in (("POST", "/cloister/v1/share"), ("POST", "/cloister/v1/share/kept")):
        assert owned.ask(name, method, path).problem == "not-allowed"
    looks = [owned.ask(name, "GET", f"/cloister/v1/{one}") for one in ("resources", "keys", "log/entries")]
    assert [one.status for one in looks] == [401 if name == "mallory" else 200] * 3
    assert all(SECRET.hex().encode() not in one.body for one in looks)
    assert attested(owned, workload()).get() == SECRET


def test_one_owner_of_two_is_not_enough_to_widen_a_rule(owned: OwnersBench) -> None:
    for by in (("alice",), ("bob",), ("carol",), ("alice", "carol")):
        with pytest.raises((QuorumMissing, ManifestError)):
            owned.allow(by=by, policies=(policy_for(workload(THIEF)),))
    with pytest.raises(AttestationRefused):
        attested(owned, workload(THIEF))


def test_an_order_works_once_for_one_broker_and_one_content(owned: OwnersBench, tmp_path: Path) -> None:
    administration = owned.desk._administration
    order = owned.order("put", PATH, b"n" * 32)
    with pytest.raises(ManifestError):
        administration.execute(order, b"m" * 32)
    administration.execute(order, b"n" * 32)
    with pytest.raises(Superseded):
        administration.execute(order, b"n" * 32)
    other = OwnersBench(tmp_path / "other", owned.genesis)
    other.share_out("alice", "bob")
    with pytest.raises(ManifestError):
        other.desk._administration.execute(
            owned.order("put", "models/key/x", b"x" * 32, version=1), b"x" * 32
        )


def test_a_passphrase_opens_no_state_of_owners(owned: OwnersBench) -> None:
    with pytest.raises(UsageError, match="shares"):
        owned.again().open_by_passphrase(b"correct horse battery staple")


def test_shares_that_the_operator_made_himself_open_nothing(owned: OwnersBench, tmp_path: Path) -> None:
    custody, other = owned.again(), OwnersBench(tmp_path / "other", owned.genesis)
    for name, share in other.share_out().items():
        for forged in (share, structs.replace(share, state=owned.state.id)):
            with pytest.raises(KeystoreError, match="not one of this state's"):
                custody.offer(forged)
        assert name in owned.genesis.owners
    assert not custody.opened
