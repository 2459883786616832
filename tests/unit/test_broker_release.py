"""The rule: no way to a grant but a fresh result under the resource's own policy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from broker_parts import NOW, PATH, platform, policy_for, workload
from cloister.appraisal.appraise import appraise
from cloister.appraisal.policy import Policy, load_policy
from cloister.appraisal.result import AttestationResult
from cloister.broker import protocol
from cloister.broker.client import collect
from cloister.broker.jwe import TeeKeyPair
from cloister.broker.protocol import RuntimeData, parse_runtime_data
from cloister.broker.release import Grant, NoRule, Rule, release
from cloister.encoding import encode_json
from cloister.errors import ReleaseRefused, ResultExpired

PAIR = TeeKeyPair.generate()


def _policy(config: bytes = b"the right configuration", *, max_age_seconds: int = 3600) -> Policy:
    return load_policy(policy_for(workload(config), max_age_seconds=max_age_seconds), name="test")


def _result() -> AttestationResult[RuntimeData]:
    nonce = bytes(32)
    runtime = RuntimeData(nonce=protocol.encode_nonce(nonce), tee_pubkey=PAIR.public)
    return appraise(
        collect(workload(), nonce, encode_json(runtime)),
        nonce=nonce,
        policy=_policy(),
        now=NOW,
        decode=parse_runtime_data,
        not_after=lambda _: None,
    )


def test_a_grant_names_the_attested_key() -> None:
    grant = release(Rule(PATH, _policy()), PATH, _result(), now=NOW)
    assert (grant.path, grant.tee_key) == (PATH, PAIR.public)
    assert platform().root_sha256


def test_without_a_rule_nothing_is_released() -> None:
    with pytest.raises(NoRule):
        release(None, PATH, _result(), now=NOW)


def test_the_rule_of_another_resource_releases_nothing() -> None:
    with pytest.raises(NoRule):
        release(Rule("models/key/other", _policy()), PATH, _result(), now=NOW)


@pytest.mark.parametrize(
    "other", [_policy(b"other"), _policy(max_age_seconds=3599)], ids=["another workload", "another age"]
)
def test_a_result_under_another_policy_releases_nothing(other: Policy) -> None:
    with pytest.raises(ReleaseRefused, match="another policy"):
        release(Rule(PATH, other), PATH, _result(), now=NOW)


def test_a_result_passed_off_under_another_policy_is_no_result() -> None:
    with pytest.raises(TypeError, match="never by hand"):
        dataclasses.replace(_result(), policy_digest=_policy(b"other").digest)


def test_an_ended_result_releases_nothing() -> None:
    with pytest.raises(ResultExpired):
        release(Rule(PATH, _policy()), PATH, _result(), now=NOW + 3600)


def test_a_grant_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="never by hand"):
        Grant(PATH, PAIR.public, "0" * 64)


@pytest.mark.parametrize(
    "change",
    [{"path": "models/key/other"}, {"tee_key": TeeKeyPair.generate().public}],
    ids=["another resource", "another key"],
)
def test_a_grant_cannot_be_turned_into_another(change: dict[str, Any]) -> None:
    grant = release(Rule(PATH, _policy()), PATH, _result(), now=NOW)
    with pytest.raises(TypeError, match="never by hand"):
        dataclasses.replace(grant, **change)
