"""The broker without HTTP: the whole protocol, and each way of bending it."""

from __future__ import annotations

import base64
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import structs

from broker_parts import NOW, PATH, SECRET, URI, Attempt, Bench, attested, policy_for, workload
from cloister.appraisal.policy import load_policy
from cloister.broker import administration, protocol
from cloister.broker.audit import FILE, AuditDamaged, verify
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.release import NoRule
from cloister.broker.service import AttestationRefused
from cloister.broker.session import CHALLENGE_SECONDS, SESSION_SECONDS
from cloister.broker.store import MAX_POLICIES, Kind
from cloister.encoding import encode_json
from cloister.errors import (
    CloisterError,
    FormatError,
    KeystoreError,
    ReleaseRefused,
    SessionRefused,
    UnknownResource,
    UsageError,
)

URGENT = "models/key/urgent"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "state")
    bench.put()
    bench.allow(workload())
    return bench


def test_the_right_measurement_gets_the_key_and_an_audit_line(bench: Bench) -> None:
    assert attested(bench, workload()).get() == SECRET
    attestation, release = bench.lines()[-2:]
    assert (attestation.event, attestation.outcome) == ("attestation", "accepted")
    assert (release.event, release.outcome, release.resource) == ("release", "accepted", URI)
    assert release.session == attestation.session != ""
    assert release.measurements == attestation.measurements != ""
    assert release.simulated
    assert verify(bench.directory / FILE)[0] == len(bench.lines())


def test_another_measurement_cannot_even_attest(bench: Bench) -> None:
    with pytest.raises(AttestationRefused):
        attested(bench, workload(b"another configuration"))
    assert "AppraisalRefused" in bench.lines()[-1].reason


def test_a_workload_gets_only_what_its_own_rule_names(bench: Bench) -> None:
    other = workload(b"another configuration")
    bench.put("models/key/other", b"y" * 32)
    bench.allow(other, "models/key/other")
    attempt = attested(bench, other)
    assert attempt.get("models/key/other") == b"y" * 32
    with pytest.raises(ReleaseRefused) as caught:
        attempt.get()
    assert not isinstance(caught.value, NoRule)
    assert bench.lines()[-1].outcome == "refused"


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
    attempt, get = attested(bench, workload()), bench.store.get

    def between(kind: Kind, path: str) -> bytes | None:
        """The owner acts between the rule that is read and the resource that is read."""
        if kind == "resource":
            monkeypatch.undo()
            bench.allow(workload(b"the next release"))
            bench.put(content=b"N" * 32)
        return get(kind, path)

    monkeypatch.setattr(bench.store, "get", between)
    with pytest.raises(ReleaseRefused, match="replaced during the request"):
        attempt.get()
    assert bench.lines()[-1].outcome == "refused"


def test_evidence_that_is_appraised_again_grows_no_younger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = policy_for(workload(), max_age_seconds=60)
    rule = load_policy(impatient, name="test")
    administration.put_rule(bench.store, bench.directory, URGENT, impatient.encode(), rule, now=bench.clock)
    bench.put(URGENT)
    # Which policy is tried first is chance: let the patient one be the one that accepts.
    patient = [text for text in bench.store.distinct_rules(MAX_POLICIES) if text != impatient.encode()]
    monkeypatch.setattr(bench.store, "distinct_rules", lambda _limit: patient)
    attempt = attested(bench, workload())
    bench.clock.now += 59
    assert attempt.get(URGENT) == SECRET
    bench.clock.now += 1
    with pytest.raises(SessionRefused, match="older than the rule"):
        attempt.get(URGENT)
    assert attempt.get() == SECRET


def test_more_different_policies_than_one_attestation_can_try_are_refused(bench: Bench) -> None:
    for number in range(MAX_POLICIES - 1):
        bench.store.put("rule", f"models/key/n{number}", b"# %d" % number, now=NOW)
    bench.allow(workload())
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
    bench.broker = bench.start()
    with pytest.raises(SessionRefused):
        attempt.get()


def test_the_token_is_an_ear_that_calls_a_simulated_tee_contraindicated(bench: Bench) -> None:
    token = attested(bench, workload()).token
    assert token is not None
    claims = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))
    assert claims["exp"] - claims["iat"] == SESSION_SECONDS
    assert claims["submods"]["cpu0"]["ear.status"] == "contraindicated"
    assert set(claims) == {"eat_profile", "iat", "exp", "jti", "cnf", "ear.verifier-id", "submods"}


def test_no_audit_line_means_no_release(bench: Bench) -> None:
    attempt = attested(bench, workload())
    log = bench.directory / FILE
    log.write_bytes(log.read_bytes() + b"not a line\n")
    with pytest.raises(AuditDamaged):
        attempt.get()


def test_a_damaged_rule_denies_and_is_not_taken_for_no_rule(bench: Bench) -> None:
    attempt = attested(bench, workload())
    with sqlite3.connect(bench.directory / "broker.sqlite") as database:
        database.execute("UPDATE records SET body = zeroblob(length(body)) WHERE kind = 'rule'")
    database.close()
    with pytest.raises(KeystoreError):
        attempt.get()


def test_no_secret_is_in_audit_lines_logs_or_errors(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    canary = b"CANARY-4f1d9b-THAT-NOBODY-SEES!!"
    bench.put(PATH, canary)
    with caplog.at_level(logging.DEBUG):
        attempt = attested(bench, workload())
        assert attempt.get() == canary
        bench.allow(workload(b"other"))
        with pytest.raises(ReleaseRefused) as caught:
            attempt.get()
    seen = caplog.text + str(caught.value) + repr(caught.value) + repr(bench.store) + repr(attempt.pair)
    seen += "".join(path.read_bytes().decode("latin-1") for path in bench.directory.iterdir())
    for secret in (canary.decode(), canary.hex(), attempt.session, attempt.token, attempt.text):
        assert secret is not None
        assert secret not in seen
