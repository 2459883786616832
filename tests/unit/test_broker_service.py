"""The broker without HTTP: the whole protocol, and each way of bending it."""

from __future__ import annotations

import base64
import copy
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec import structs

import manifest_parts
from broker_parts import (
    NOW,
    PASSPHRASE,
    PATH,
    SECRET,
    URI,
    Attempt,
    Bench,
    OwnersBench,
    attested,
    owners_manifest,
    policy_for,
    workload,
)
from cloister.broker import protocol
from cloister.broker.audit import AuditDamaged
from cloister.broker.authority import MAX_POLICIES
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.laptop import Laptop
from cloister.broker.release import NoneLeft, NoRule
from cloister.broker.service import STATE_KEY_PATH, AttestationRefused
from cloister.broker.session import CHALLENGE_SECONDS, SESSION_SECONDS, Sessions
from cloister.broker.state_key import StateKey
from cloister.encoding import encode_json
from cloister.errors import (
    CloisterError,
    FormatError,
    KeystoreUnavailable,
    ReleaseRefused,
    SessionRefused,
    UnknownResource,
    UsageError,
)
from cloister.manifest.manifest import Workload
from cloister.manifest.rule import Window

URGENT = "models/key/urgent"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    return bench


def test_the_right_measurement_gets_the_key_and_an_audit_entry(bench: Bench) -> None:
    assert attested(bench, workload()).get() == SECRET
    attestation, release = bench.entries()[-2:]
    assert (attestation.event, attestation.outcome) == ("attestation", "accepted")
    assert (release.event, release.outcome, release.resource) == ("release", "accepted", URI)
    assert release.session == attestation.session != ""
    assert release.measurements == attestation.measurements != ""
    assert release.simulated
    assert (release.policy, release.tee_key) == (attestation.policy, attestation.tee_key)
    assert "" not in (release.rule, release.manifest, release.evidence, release.tee_key, release.policy)
    assert bench.laptop.state.journal.evidence(release.evidence) is not None
    Laptop.open(bench.directory, PASSPHRASE, now=bench.clock)


def test_another_measurement_cannot_even_attest(bench: Bench) -> None:
    with pytest.raises(AttestationRefused):
        attested(bench, workload(b"another configuration"))
    assert "AppraisalRefused" in bench.entries()[-1].reason


def test_a_workload_gets_only_what_its_own_rule_names(bench: Bench) -> None:
    other = workload(b"another configuration")
    bench.put("models/key/other", b"y" * 32)
    bench.allow(other, "models/key/other")
    attempt = attested(bench, other)
    assert attempt.get("models/key/other") == b"y" * 32
    with pytest.raises(ReleaseRefused) as caught:
        attempt.get()
    assert not isinstance(caught.value, NoRule)
    assert bench.entries()[-1].outcome == "refused"


def test_without_a_rule_nobody_reads_it_and_nobody_learns_whether_it_exists(bench: Bench) -> None:
    bench.put("models/key/lonely")
    attempt = attested(bench, workload())
    for path in ("models/key/lonely", "models/key/absent"):
        with pytest.raises(NoRule):
            attempt.get(path)


def test_a_rule_without_a_resource_says_so_to_those_it_allows(bench: Bench) -> None:
    bench.allow(workload(), "models/key/later")
    with pytest.raises(UnknownResource):
        attested(bench, workload()).get("models/key/later")


def test_a_changed_rule_holds_for_sessions_that_are_open(bench: Bench) -> None:
    attempt = attested(bench, workload())
    bench.allow(workload(b"the next release"))
    with pytest.raises(ReleaseRefused):
        attempt.get()


def test_a_rule_narrowed_during_a_request_holds_for_the_resource_that_replaced_the_old_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = attested(bench, workload())
    resources = bench.desk.custody.state.resources
    read = resources.read

    def between(path: str) -> tuple[int, bytes] | None:
        """The owner acts between the rule that is read and the resource that is read."""
        monkeypatch.undo()
        bench.allow(workload(b"the next release"))
        bench.put(content=b"N" * 32)
        return read(path)

    monkeypatch.setattr(resources, "read", between)
    with pytest.raises(ReleaseRefused, match="replaced during the request"):
        attempt.get()
    assert bench.entries()[-1].outcome == "refused"


@pytest.mark.parametrize("change", ["rule", "resource", "manifest"])
def test_what_changes_after_the_resource_was_read_stops_the_release(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    attempt = attested(bench, workload())
    resources = bench.desk.custody.state.resources
    read = resources.read

    def then(path: str) -> tuple[int, bytes] | None:
        monkeypatch.undo()
        found = read(path)
        if change == "rule":
            bench.allow(workload())
        elif change == "resource":
            bench.put(content=b"N" * 32)
        else:
            bench.put("another-repository/key/x")  # in laptop mode a new repository is a new manifest
        return found

    monkeypatch.setattr(resources, "read", then)
    with pytest.raises(ReleaseRefused, match="replaced during the request"):
        attempt.get()
    assert attempt.get() in (SECRET, b"N" * 32)


def test_evidence_that_is_appraised_again_grows_no_younger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = policy_for(workload(), max_age_seconds=60)
    bench.laptop.allow(URGENT, (impatient,))
    bench.put(URGENT)
    # Which policy is tried first is chance: let the patient one be the one that accepts.
    authority = bench.desk.custody.state.authority
    bench.desk.custody.state.journal.catch_up()
    patient = [policy for policy in authority.policies() if policy.max_age_seconds != 60]
    monkeypatch.setattr(authority, "policies", lambda: patient)
    attempt = attested(bench, workload())
    bench.clock.now += 59
    assert attempt.get(URGENT) == SECRET
    bench.clock.now += 1
    with pytest.raises(SessionRefused, match="older than the rule"):
        attempt.get(URGENT)
    assert attempt.get() == SECRET


def test_more_different_policies_than_one_attestation_can_try_are_refused(bench: Bench) -> None:
    ages = iter(range(100, 1000))
    for number in range(9):
        count = 7  # and one of the fixture: 64
        texts = tuple(policy_for(workload(), max_age_seconds=next(ages)) for _ in range(count))
        bench.laptop.allow(f"models/key/n{number}", texts)
    assert len(bench.laptop.state.authority.policies()) == MAX_POLICIES
    bench.allow(workload(), "models/key/same")
    with pytest.raises(UsageError, match="at most 64"):
        bench.allow(workload(b"another configuration"), "models/key/too-many")
    assert attested(bench, workload()).get() == SECRET


def test_a_debug_workload_of_the_right_measurement_is_refused(bench: Bench) -> None:
    with pytest.raises(AttestationRefused):
        attested(bench, workload(debug=True))


def _replayed(attempt: Attempt) -> None:
    body = attempt.body()
    attempt.attest(body)
    attempt.attest(body)


def _replayed_into_a_new_session(attempt: Attempt) -> None:
    body = attempt.body()
    attempt.attest(body)
    attempt.challenge()
    attempt.attest(body)


def _relayed(attempt: Attempt) -> None:
    honest = Attempt(attempt.bench, workload())
    honest.challenge()
    attempt.attest(honest.body())


def _relayed_with_our_nonce(attempt: Attempt) -> None:
    """Honest evidence over its own challenge, its runtime data rewritten to ours."""
    honest = Attempt(attempt.bench, workload())
    honest.challenge()
    bundle = structs.replace(honest.bundle(), key_material=encode_json(attempt.runtime()))
    attempt.attest(_body(attempt, bundle))


def _body(attempt: Attempt, bundle: object, runtime: object = None) -> bytes:
    return encode_json(
        {
            "runtime-data": attempt.runtime() if runtime is None else runtime,
            "tee-evidence": {"primary_evidence": bundle, "additional_evidence": ""},
        }
    )


def _key_swapped(attempt: Attempt) -> None:
    bundle = attempt.bundle()
    attempt.pair = TeeKeyPair.generate()
    bundle = structs.replace(bundle, key_material=encode_json(attempt.runtime()))
    attempt.attest(_body(attempt, bundle))


def _key_only_beside(attempt: Attempt) -> None:
    bundle = attempt.bundle()
    attempt.pair = TeeKeyPair.generate()
    attempt.attest(_body(attempt, bundle))


def _challenge_too_old(attempt: Attempt) -> None:
    body = attempt.body()
    attempt.bench.clock.now += CHALLENGE_SECONDS
    attempt.attest(body)


def _another_tee(attempt: Attempt) -> None:
    answer = attempt.bench.broker.challenge(protocol.auth_request("sgx"))
    assert answer.identifier is not None
    attempt.identifier = answer.identifier
    attempt.text, attempt.nonce = protocol.parse_challenge(answer.body)
    attempt.attest()


def _point_off_the_curve(attempt: Attempt) -> None:
    public = attempt.pair.public
    attempt.pair = TeeKeyPair(structs.replace(public, x=public.x[:-4] + "AAAA"), None)
    attempt.attest()


def _not_json(attempt: Attempt) -> None:
    attempt.attest(b"{")


def _unknown_session(attempt: Attempt) -> None:
    attempt.identifier = "A" * 43
    attempt.attest()


def _first_a_failure(attempt: Attempt) -> None:
    with pytest.raises(FormatError):
        attempt.attest(b"{}")
    attempt.attest()


ATTACKS: list[tuple[Callable[[Attempt], None], type[CloisterError]]] = [
    (_replayed, SessionRefused),
    (_replayed_into_a_new_session, AttestationRefused),
    (_relayed, AttestationRefused),
    (_relayed_with_our_nonce, AttestationRefused),
    (_key_swapped, AttestationRefused),
    (_key_only_beside, FormatError),
    (_challenge_too_old, SessionRefused),
    (_another_tee, AttestationRefused),
    (_point_off_the_curve, FormatError),
    (_not_json, FormatError),
    (_unknown_session, SessionRefused),
    (_first_a_failure, SessionRefused),
]


@pytest.mark.parametrize(("attack", "error"), ATTACKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_bent_attestation_is_refused(
    bench: Bench, attack: Callable[[Attempt], None], error: type[CloisterError]
) -> None:
    attempt = Attempt(bench, workload())
    attempt.challenge()
    with pytest.raises(error):
        attack(attempt)


def test_the_attested_session_has_another_identifier_than_the_challenge(bench: Bench) -> None:
    attempt = attested(bench, workload())
    planted = attempt.identifier
    assert attempt.session != planted
    attempt.session = planted
    attempt.token = None
    with pytest.raises(SessionRefused):
        attempt.get()


def test_a_token_alone_names_its_session(bench: Bench) -> None:
    attempt = attested(bench, workload())
    attempt.session = None
    assert attempt.get() == SECRET


def test_a_token_of_another_session_is_refused(bench: Bench) -> None:
    one, two = attested(bench, workload()), attested(bench, workload())
    one.token = two.token
    with pytest.raises(SessionRefused):
        one.get()


def test_a_stolen_session_yields_nothing_that_the_thief_can_open(bench: Bench) -> None:
    victim, thief = attested(bench, workload()), attested(bench, workload())
    thief.session, thief.token = victim.session, victim.token
    with pytest.raises(CloisterError, match="does not open"):
        thief.get()


def test_a_token_for_another_key_is_refused(bench: Bench) -> None:
    attempt = attested(bench, workload())
    assert attempt.token is not None
    head, body, signature = attempt.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["cnf"]["jwk"] = json.loads(encode_json(TeeKeyPair.generate().public))
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    attempt.token = f"{head}.{forged}.{signature}"
    with pytest.raises(SessionRefused):
        attempt.get()


@pytest.mark.parametrize("header", [{"alg": "none"}, {"alg": "HS256"}], ids=["none", "HS256"])
def test_a_token_of_another_algorithm_is_refused(bench: Bench, header: dict[str, str]) -> None:
    attempt = attested(bench, workload())
    assert attempt.token is not None
    encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    attempt.token = ".".join([encoded, *attempt.token.split(".")[1:]])
    with pytest.raises(SessionRefused):
        attempt.get()


def test_an_expired_session_and_its_token_are_refused(bench: Bench) -> None:
    attempt = attested(bench, workload())
    bench.clock.now += SESSION_SECONDS
    with pytest.raises(SessionRefused):
        attempt.get()
    attempt.session = None
    with pytest.raises(SessionRefused):
        attempt.get()


def test_a_clock_that_is_turned_back_revives_nothing(bench: Bench) -> None:
    attempt = attested(bench, workload())
    bench.clock.now += SESSION_SECONDS
    with pytest.raises(SessionRefused):
        attempt.get()
    bench.clock.now = NOW
    with pytest.raises(SessionRefused):
        attempt.get()


def test_a_token_of_the_broker_before_its_restart_is_refused(bench: Bench) -> None:
    attempt = attested(bench, workload())
    bench.desk = bench.start()
    with pytest.raises(SessionRefused):
        attempt.get()


def test_the_token_is_an_ear_that_calls_a_simulated_tee_contraindicated(bench: Bench) -> None:
    token = attested(bench, workload()).token
    assert token is not None
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["exp"] - claims["iat"] == SESSION_SECONDS
    assert claims["submods"]["cpu0"]["ear.status"] == "contraindicated"
    assert set(claims) == {"eat_profile", "iat", "exp", "jti", "cnf", "ear.verifier-id", "submods"}


def test_no_audit_entry_means_no_release(bench: Bench) -> None:
    attempt = attested(bench, workload())
    engine = bench.desk.custody._engine

    def full(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO entries"):
            raise sa.exc.OperationalError(statement, {}, OSError("disk full"))

    sa.event.listen(engine, "before_cursor_execute", full)
    with pytest.raises(KeystoreUnavailable):
        attempt.get()
    with pytest.raises(KeystoreUnavailable):
        attested(bench, workload())
    sa.event.remove(engine, "before_cursor_execute", full)
    assert bench.told("release") == []
    assert attempt.get() == SECRET


DAMAGE = {
    "the rule": "UPDATE records SET body = zeroblob(length(body)) WHERE kind = 'rule'",
    "the rule, removed": "DELETE FROM records WHERE kind = 'rule'",
    "the resource, under another version": "UPDATE records SET version = 7 WHERE kind = 'resource'",
    "the resource, its data key": "UPDATE records SET wrapped = x'056c6f63616c' WHERE kind = 'resource'",
    "the key-encryption key": "UPDATE records SET body = zeroblob(length(body)) WHERE kind = 'key'",
    "the head": "UPDATE head SET size = size + 1",
    "the log": "DELETE FROM head",
}


@pytest.mark.parametrize("script", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_damaged_denies_and_is_not_taken_for_nothing(bench: Bench, script: str) -> None:
    attempt = attested(bench, workload())
    bench.execute(script)
    with pytest.raises(CloisterError) as caught:
        attempt.get()
    assert not isinstance(caught.value, NoRule | UnknownResource)


def test_a_counter_that_is_set_back_releases_nothing(bench: Bench) -> None:
    bench.allow(workload(), releases=2)
    assert attested(bench, workload()).get() == SECRET
    bench.execute("CREATE TABLE kept AS SELECT * FROM records WHERE kind = 'counter'")
    assert attested(bench, workload()).get() == SECRET
    attempt = attested(bench, workload())
    bench.execute("DELETE FROM records WHERE kind = 'counter'; INSERT INTO records SELECT * FROM kept")
    with pytest.raises(AuditDamaged):
        attempt.get()


# -- how often ---------------------------------------------------------------------------------------------------------


def test_releases_are_counted_across_sessions_and_restarts(bench: Bench) -> None:
    bench.allow(workload(), releases=3)
    attempt = attested(bench, workload())
    assert [attempt.get(), attested(bench, workload()).get()] == [SECRET, SECRET]
    bench.desk = bench.start()
    attempt = attested(bench, workload())
    assert attempt.get() == SECRET
    with pytest.raises(NoneLeft):
        attempt.get()
    with pytest.raises(NoneLeft):
        attested(bench, workload()).get()
    accepted = [entry.reason for entry in bench.told("release") if entry.outcome == "accepted"]
    assert accepted == ["release 1", "release 2", "release 3"]


def test_a_new_version_of_the_rule_counts_anew(bench: Bench) -> None:
    for releases in (1, 1, 2):
        bench.allow(workload(), releases=releases)
        attempt = attested(bench, workload())
        for _ in range(releases):
            assert attempt.get() == SECRET
        with pytest.raises(NoneLeft):
            attempt.get()


def test_resources_are_counted_each_for_itself(bench: Bench) -> None:
    bench.put("models/key/other")
    for path in (PATH, "models/key/other"):
        bench.allow(workload(), path, releases=1)
    attempt = attested(bench, workload())
    assert [attempt.get(), attempt.get("models/key/other")] == [SECRET, SECRET]
    for path in (PATH, "models/key/other"):
        with pytest.raises(NoneLeft):
            attempt.get(path)


def test_fifty_who_race_for_five_releases_get_five(bench: Bench) -> None:
    """Through two broker processes over one state."""
    bench.allow(workload(), releases=5)
    other = copy.copy(bench)
    other.desk = bench.start(sessions=Sessions())
    sessions = [attested(one, workload()) for one in (bench, other) for _ in range(5)]

    def get(attempt: Attempt) -> bool:
        try:
            return attempt.get() == SECRET
        except NoneLeft:
            return False

    with ThreadPoolExecutor(10) as pool:
        got = list(pool.map(get, sessions * 5))
    assert len(got) == 50
    assert sum(got) == 5


# -- what owners write into their rules --------------------------------------------------------------------------------


@pytest.fixture
def owned(tmp_path: Path) -> OwnersBench:
    bench = OwnersBench(tmp_path / "owned")
    bench.share_out()
    bench.have_done("put", PATH, SECRET)
    bench.allow()
    return bench


def test_in_owners_mode_a_workload_of_the_manifest_gets_the_key(owned: OwnersBench) -> None:
    assert attested(owned, workload()).get() == SECRET
    entry = owned.entries()[-1]
    assert (entry.workload, entry.outcome) == ("inference", "accepted")
    assert entry.manifest == owned.state.authority.manifest.digest


@pytest.mark.parametrize("purpose", [None, "training", "Inference", ""])
def test_a_purpose_that_the_rule_does_not_name_is_refused(owned: OwnersBench, purpose: str | None) -> None:
    owned.allow(purposes=("inference", "evaluation"))
    try:
        attempt = attested(owned, workload(), purpose=purpose)
    except CloisterError:
        assert purpose == ""
        return
    with pytest.raises(ReleaseRefused):
        attempt.get()


def test_a_purpose_that_the_rule_names_is_logged(owned: OwnersBench) -> None:
    owned.allow(purposes=("inference", "evaluation"))
    assert attested(owned, workload(), purpose="evaluation").get() == SECRET
    assert owned.entries()[-1].purpose == "evaluation"


def test_a_window_opens_and_closes_for_sessions_that_are_open(owned: OwnersBench) -> None:
    owned.allow(window=Window(not_before=NOW + 10, not_after=NOW + 20))
    attempt = attested(owned, workload())
    for moment, allowed in ((9, False), (10, True), (19, True), (20, False)):
        owned.clock.now = NOW + moment
        if allowed:
            assert attempt.get() == SECRET
        else:
            with pytest.raises(ReleaseRefused):
                attempt.get()
    owned.clock.now = NOW + 15
    with pytest.raises(ReleaseRefused):
        attempt.get()  # a clock that is turned back opens no window again


def test_a_workload_that_the_next_manifest_drops_reads_no_more(owned: OwnersBench) -> None:
    attempt = attested(owned, workload())
    other = {"training": Workload(policies=(policy_for(workload(b"training")),))}
    owned.state.authority.submit_manifest(owned.succeed("alice", "bob", workloads=other))
    with pytest.raises(ReleaseRefused, match="none of the workloads"):
        attempt.get()
    with pytest.raises(AttestationRefused):
        attested(owned, workload())


def test_a_workload_whose_reference_values_change_reads_no_more_under_the_old_ones(
    owned: OwnersBench,
) -> None:
    attempt = attested(owned, workload())
    changed = {"inference": Workload(policies=(policy_for(workload(b"the next release")),))}
    owned.state.authority.submit_manifest(owned.succeed("alice", "bob", workloads=changed))
    with pytest.raises(ReleaseRefused):
        attempt.get()
    assert attested(owned, workload(b"the next release")).get() == SECRET


def test_a_rule_that_pins_a_policy_does_not_follow_the_manifest(owned: OwnersBench) -> None:
    pinned = owned.state.authority.manifest.policies("inference")[0].digest
    owned.allow(workloads={"inference": (pinned,)})
    changed = {"inference": Workload(policies=(policy_for(workload(b"the next release")),))}
    owned.state.authority.submit_manifest(owned.succeed("alice", "bob", workloads=changed))
    with pytest.raises(CloisterError):
        attested(owned, workload(b"the next release")).get()


# -- the key of the state ----------------------------------------------------------------------------------------------


def test_a_peer_broker_of_the_manifest_gets_the_state_s_key_and_a_workload_does_not(tmp_path: Path) -> None:
    broker = workload(b"a broker")
    bench = OwnersBench(tmp_path / "state", genesis=owners_manifest(broker=(policy_for(broker),)))
    bench.share_out()
    key = attested(bench, broker).get(STATE_KEY_PATH)
    assert key == bench.state.key_for_peer()
    another = bench.again()
    another.open_from_peer(key)
    assert another.state.id == bench.state.id
    with pytest.raises(ReleaseRefused):
        attested(bench, workload()).get(STATE_KEY_PATH)
    assert [entry.outcome for entry in bench.told("release")] == ["accepted", "refused"]
    with pytest.raises(CloisterError):
        bench.again().open_from_peer(bytes(32))


def test_a_state_without_policies_for_brokers_has_no_peers(owned: OwnersBench, bench: Bench) -> None:
    for one in (owned, bench):
        with pytest.raises(NoRule):
            attested(one, workload()).get(STATE_KEY_PATH)


def test_nobody_can_put_a_rule_in_the_place_of_the_state_s_key(owned: OwnersBench) -> None:
    """Neither does an owner of a repository called ``cloister`` get it by a rule: the path is not a resource's."""
    resources = {**owned.genesis.resources, "cloister": manifest_parts.quorum("bob")}
    owned.state.authority.submit_manifest(owned.succeed("alice", "bob", resources=resources))
    owned.have_done("put", STATE_KEY_PATH, b"something else", by=("bob",))
    owned.allow(STATE_KEY_PATH, by=("bob",))
    with pytest.raises(NoRule):
        attested(owned, workload()).get(STATE_KEY_PATH)


def test_no_secret_is_in_entries_logs_or_errors(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    canary = b"CANARY-4f1d9b-THAT-NOBODY-SEES!!"
    bench.put(PATH, canary)
    with caplog.at_level(logging.DEBUG):
        attempt = attested(bench, workload())
        assert attempt.get() == canary
        bench.allow(workload(b"other"))
        with pytest.raises(ReleaseRefused) as caught:
            attempt.get()
    state = bench.laptop.state
    seen = caplog.text + str(caught.value) + repr(caught.value) + repr(state) + repr(attempt.pair)
    seen += repr(bench.laptop) + repr(StateKey(state.key_for_peer()))
    seen += "".join(path.read_bytes().decode("latin-1") for path in bench.directory.iterdir())
    key = state.key_for_peer()
    secrets = [canary.decode(), canary.hex(), attempt.session, attempt.token, attempt.text]
    for secret in (*secrets, key.hex(), key.decode("latin-1"), repr(key), PASSPHRASE.decode()):
        assert secret is not None
        assert secret not in seen
