"""Plaintext problems: what a gateway says, and the one claim that a client acts on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.channel import problems
from cloister.errors import (
    ChannelError,
    ChunkRefused,
    DecapsulationFailed,
    FormatError,
    Overloaded,
    OversizedChunk,
    PlaintextRequest,
    ReplayedRequest,
    TruncatedMessage,
    UnknownKey,
)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (UnknownKey, problems.UNKNOWN_KEY),
        (DecapsulationFailed, problems.UNDECIPHERABLE),
        (ReplayedRequest, problems.REPLAYED),
        (OversizedChunk, problems.TOO_LARGE),
        (Overloaded, problems.OVERLOADED),
        (PlaintextRequest, problems.SEALED_REQUIRED),
        (ChunkRefused, problems.MALFORMED),
        (TruncatedMessage, problems.MALFORMED),
        (FormatError, problems.MALFORMED),
        (ChannelError, problems.MALFORMED),
    ],
)
def test_each_error_has_its_problem(error: type[ChannelError], problem: problems.Problem):
    assert problems.problem_of(error("x")) == problem


def test_a_problem_reads_as_rfc_9457_and_as_openai_says_it():
    document = json.loads(problems.encode_problem(problems.SEALED_REQUIRED, "seal it"))
    assert document == {
        "type": "urn:cloister:problem:sealed-request-required",
        "title": "Sealed request required",
        "status": 403,
        "detail": "seal it",
        "error": {
            "message": "Sealed request required: seal it",
            "type": "cloister_error",
            "param": None,
            "code": "sealed_request_required",
        },
    }


@pytest.mark.parametrize("problem", [problems.UNKNOWN_KEY, problems.UNDECIPHERABLE], ids=lambda p: p.code)
def test_the_claim_that_a_key_is_gone_is_understood(problem: problems.Problem):
    body = problems.encode_problem(problem, "")
    assert problems.says_key_may_be_gone("application/problem+json; charset=utf-8", body)
    assert not problems.says_key_may_be_gone("application/json", body)


@pytest.mark.parametrize(
    "problem",
    [problems.REPLAYED, problems.MALFORMED, problems.SEALED_REQUIRED, problems.OVERLOADED],
    ids=lambda p: p.code,
)
def test_nothing_else_is_such_a_claim(problem: problems.Problem):
    body = problems.encode_problem(problem, "")
    assert not problems.says_key_may_be_gone(problems.PROBLEM_TYPE, body)


@given(st.binary(max_size=200))
def test_noise_is_no_claim_and_raises_nothing(noise: bytes):
    assert not problems.says_key_may_be_gone(problems.PROBLEM_TYPE, noise)


@pytest.mark.parametrize("body", [b'{"type":["x"]}', b'{"type":{}}', b"[]", b'"x"', b"null", b'{"type":1}'])
def test_a_claim_of_another_shape_is_none(body: bytes):
    assert not problems.says_key_may_be_gone(problems.PROBLEM_TYPE, body)
