"""The rule: no way to a grant but a fresh result under the resource's own policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from msgspec import structs

import manifest_parts
from broker_parts import NOW, PATH, owners_manifest, policy_for, workload
from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import RuntimeData, parse_runtime_data
from cloister.broker.release import (
    Grant,
    NoneLeft,
    NoRule,
    Reader,
    grant_peer,
    release,
    require_allowed,
    require_readers,
)
from cloister.encoding import encode_json
from cloister.errors import ReleaseRefused, ResultExpired
from cloister.manifest.rule import AcceptedRule, Window, accept_rule

PAIR = TeeKeyPair.generate()


def _policy(config: bytes = b"the right configuration", *, max_age_seconds: int = 3600) -> Policy:
    return load_policy(policy_for(workload(config), max_age_seconds=max_age_seconds), name="test")


def _rule(**changes: Any) -> AcceptedRule:
    plain = manifest_parts.rule(resource=PATH)
    return accept_rule(
        manifest_parts.signed(structs.replace(plain, **changes), "alice", "bob"),
        manifest=manifest_parts.accepted(owners_manifest()),
        predecessor=None,
    )


def _reader(policy: Policy | None = None) -> Reader:
    return Reader("inference", policy or _policy())


def _result(purpose: str | None = None) -> AttestationResult[RuntimeData]:
    nonce = bytes(32)
    runtime = RuntimeData(nonce=protocol.encode_nonce(nonce), tee_pubkey=PAIR.public, purpose=purpose)
    return appraise(
        collect(workload(), nonce, encode_json(runtime)),
        nonce=nonce,
        policy=_policy(),
        now=NOW,
        decode=parse_runtime_data,
        not_after=lambda _: None,
    )


def _grant(rule: AcceptedRule | None = None, released: int = 0) -> Grant:
    return release(rule or _rule(), PATH, _reader(), _result(), released=released, now=NOW)


def test_a_grant_names_the_attested_key_and_what_it_rests_on() -> None:
    rule = _rule()
    grant = _grant(rule)
    assert (grant.path, grant.tee_key, grant.number) == (PATH, PAIR.public, None)
    assert (grant.rule, grant.workload, grant.policy_digest) == (rule.digest, "inference", _policy().digest)


def test_without_a_rule_nothing_is_released() -> None:
    with pytest.raises(NoRule):
        release(None, PATH, _reader(), _result(), released=0, now=NOW)


def test_the_rule_of_another_resource_releases_nothing() -> None:
    with pytest.raises(NoRule):
        release(_rule(resource="models/key/other"), PATH, _reader(), _result(), released=0, now=NOW)


@pytest.mark.parametrize(
    "other", [_policy(b"other"), _policy(max_age_seconds=3599)], ids=["another workload", "another age"]
)
def test_a_result_under_another_policy_releases_nothing(other: Policy) -> None:
    with pytest.raises(ReleaseRefused, match="another policy"):
        release(_rule(), PATH, _reader(other), _result(), released=0, now=NOW)
    with pytest.raises(ReleaseRefused, match="another policy"):
        grant_peer(PATH, _reader(other), _result(), manifest="0" * 64, now=NOW)


def test_a_result_passed_off_under_another_policy_is_no_result() -> None:
    with pytest.raises(TypeError, match="never by hand"):
        dataclasses.replace(_result(), policy_digest=_policy(b"other").digest)


def test_an_ended_result_releases_nothing() -> None:
    with pytest.raises(ResultExpired):
        release(_rule(), PATH, _reader(), _result(), released=0, now=NOW + 3600)
    with pytest.raises(ResultExpired):
        grant_peer(PATH, _reader(), _result(), manifest="0" * 64, now=NOW + 3600)


def test_nobody_reads_by_a_rule_whose_workloads_are_gone() -> None:
    with pytest.raises(ReleaseRefused, match="none of the workloads"):
        require_readers(_rule(), owners_manifest(), [])


@pytest.mark.parametrize(
    ("moment", "allowed"),
    [(9, False), (10, True), (19, True), (20, False)],
    ids=["before", "first", "last", "after"],
)
def test_a_window_is_from_its_start_to_before_its_end(moment: int, allowed: bool) -> None:
    rule = _rule(window=Window(not_before=NOW + 10, not_after=NOW + 20))
    if allowed:
        require_allowed(rule, purpose=None, now=NOW + moment)
        return
    with pytest.raises(ReleaseRefused, match="holds from"):
        require_allowed(rule, purpose=None, now=NOW + moment)
    with pytest.raises(ReleaseRefused, match="holds from"):
        release(rule, PATH, _reader(), _result(), released=0, now=NOW + moment)


@pytest.mark.parametrize(
    ("said", "allowed"),
    [("training", True), ("inference", False), ("Training", False), ("train", False), (None, False)],
    ids=str,
)
def test_a_purpose_is_said_and_is_one_of_the_rule_s(said: str | None, allowed: bool) -> None:
    rule = _rule(purposes=("training", "evaluation"))
    if allowed:
        assert release(rule, PATH, _reader(), _result(said), released=0, now=NOW).path == PATH
        return
    with pytest.raises(ReleaseRefused, match="purpose"):
        release(rule, PATH, _reader(), _result(said), released=0, now=NOW)


def test_counted_releases_are_numbered_and_end() -> None:
    rule = _rule(releases=3)
    assert [_grant(rule, released).number for released in range(3)] == [1, 2, 3]
    for released in (3, 4, 1 << 40):
        with pytest.raises(NoneLeft):
            _grant(rule, released)


def test_a_grant_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="never by hand"):
        Grant(PATH, PAIR.public, "0" * 64, "0" * 64, "inference", None)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "models/key/other"},
        {"tee_key": TeeKeyPair.generate().public},
        {"number": 1},
        {"rule": "0" * 64},
        {"workload": "training"},
    ],
    ids=["another resource", "another key", "another number", "another rule", "another workload"],
)
def test_a_grant_cannot_be_turned_into_another(change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="never by hand"):
        dataclasses.replace(_grant(), **change)
