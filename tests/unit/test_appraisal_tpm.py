"""[tpm] and [azure]: what may be written, and each way in which a genuine quote is not the one that the policy names."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from cloister.appraisal.judge_tpm import judge_tpm, judge_tpm_platform, observed_tpm
from cloister.appraisal.policy import load_policy
from cloister.appraisal.reference_tpm import AzureReference, TpmReference, check_azure, check_tpm
from cloister.errors import AppraisalRefused, FormatError, PolicyError
from cloister.evidence.tpm import read_quote
from cloister.verifier.claims import Claims
from cloister.verifier.tpm import pcr_measurements, quote_details
from cloister.verifier.trail import Trail
from handmade_tpm import PCRS, Quote

A32, B32, A48 = "aa" * 32, "bb" * 32, "aa" * 48
HEX = {str(number): value.hex() for number, value in PCRS.items()}


def claims(quote: Quote | None = None, **changes: Any) -> Claims:
    parsed = read_quote((quote or Quote()).wire)
    found = Claims(
        tee="tpm",
        root_sha256="00" * 32,
        simulated=False,
        report=parsed,
        measurements=pcr_measurements(parsed),
        report_data=parsed.extra_data,
        debug=False,
        tcb_status=None,
        advisory_ids=(),
        tcb_evaluation_number=None,
        issued_at=0,
        collateral_expires=1,
        details=quote_details(parsed),
    )
    return replace(found, **changes)


def reference(**changes: Any) -> TpmReference:
    pcrs = {name: (value,) for name, value in HEX.items()}
    fields: dict[str, Any] = {"pcrs": pcrs, "revocation": "required", **changes}
    return TpmReference(**fields)


def test_what_was_measured_as_listed_is_accepted() -> None:
    trail = Trail()
    check_tpm(reference())
    judge_tpm_platform(claims(), reference(), trail)
    judge_tpm(claims(), reference(), trail)
    assert [(check.number, check.outcome) for check in trail.passed] == [
        (11, "safe"),
        (14, "PCR 0, 4, 7, 15 as the policy lists"),
        (15, "none required"),
    ]


def test_a_pcr_that_does_not_matter_is_said_to() -> None:
    pcrs = {**reference().pcrs, "4": "any", "9": "any"}
    judge_tpm(claims(), reference(pcrs=pcrs), Trail())
    judge_tpm(claims(), AzureReference(pcrs=pcrs), Trail())


EVENTS = {"cloister.config": (A32,)}

REFUSED = {
    "another value": ({"pcrs": {**reference().pcrs, "7": (A32, B32)}}, {}, f"PCR 7 is {HEX['7']}, which the"),
    "a quoted PCR that nobody decided": (
        {"pcrs": {name: value for name, value in reference().pcrs.items() if name != "15"}},
        {},
        "PCR 15 was quoted, and the policy does not decide it",
    ),
    "a listed PCR that was not quoted": (
        {"pcrs": {**reference().pcrs, "8": (A32,)}},
        {},
        "PCR 8 is listed in the policy, and was not quoted",
    ),
    "a value of another bank": (
        {"pcrs": {**reference().pcrs, "7": (A48,)}},
        {},
        "which the policy does not list",
    ),
    "a required event that did not happen": ({"events": EVENTS}, {}, "'cloister.config' is required"),
    "another payload": (
        {"events": EVENTS},
        {"events": {"cloister.config": bytes(32)}},
        "launch event 'cloister.config' is 0000",
    ),
    "an event that nobody listed": (
        {"events": EVENTS},
        {"events": {"cloister.config": bytes.fromhex(A32), "more": b""}},
        "'more' happened, which the policy does not list",
    ),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_another_workload_is_refused(attack: str) -> None:
    policy, changes, reason = REFUSED[attack]
    with pytest.raises(AppraisalRefused, match=re.escape(reason)):
        judge_tpm(claims(**changes), reference(**policy), Trail())


def test_a_clock_that_may_have_gone_back_is_refused_unless_the_policy_accepts_it() -> None:
    unsafe = claims(Quote(safe=0))
    with pytest.raises(AppraisalRefused, match="clock may have gone back"):
        judge_tpm_platform(unsafe, reference(), Trail())
    judge_tpm_platform(unsafe, reference(clock="any"), Trail())


def test_what_was_observed_is_what_a_policy_lists() -> None:
    found = claims(events={"cloister.config": b"\1"})
    assert observed_tpm(claims()) == {"pcrs": {name: [value] for name, value in HEX.items()}}
    assert observed_tpm(found)["events"] == {"cloister.config": ["01"]}
    judge_tpm(
        claims(),
        reference(pcrs={name: tuple(v) for name, v in observed_tpm(claims())["pcrs"].items()}),
        Trail(),
    )


TABLES = {
    "no PCRs": ({"pcrs": {}}, "pcrs is an empty table"),
    "nothing pinned": ({"pcrs": {"0": "any", "7": "any"}}, 'pcrs says "any" for every PCR'),
    "an empty list": ({"pcrs": {"0": ()}}, "pcrs.0 is an empty list"),
    "a value twice": ({"pcrs": {"0": (A32, A32)}}, "pcrs.0 lists a value twice"),
    "a short value": ({"pcrs": {"0": ("aa",)}}, "pcrs.0 lists a value of 2 digits"),
    "upper case": ({"pcrs": {"0": (A32.upper(),)}}, "pcrs.0 must be 64 lower-case"),
    "no hexadecimal": ({"pcrs": {"0": ("g" * 64,)}}, "pcrs.0 must be 64 lower-case"),
    "a PCR that does not exist": ({"pcrs": {"24": (A32,)}}, "pcrs names '24'"),
    "a PCR by another name": ({"pcrs": {"pcr7": (A32,)}}, "pcrs names 'pcr7'"),
    "a leading zero": ({"pcrs": {"07": (A32,)}}, "pcrs names '07'"),
    "no events": ({"events": {}}, "events is an empty table"),
    "an event without a name": ({"events": {"": "any"}}, "events names ''"),
    "an event without payloads": ({"events": {"a": ()}}, "events.a is an empty list"),
    "a long payload": ({"events": {"a": ("00" * 4097,)}}, "events.a has a payload over 4096 bytes"),
    "an odd payload": ({"events": {"a": ("000",)}}, "events.a must be"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_does_not_decide_is_refused(name: str) -> None:
    changes, reason = TABLES[name]
    with pytest.raises(FormatError, match=f"^encoding: {re.escape(reason)}"):
        check_tpm(reference(**changes))
    azure = {"pcrs": reference().pcrs, **changes}
    with pytest.raises(FormatError, match=f"^encoding: {re.escape(reason)}"):
        check_azure(AzureReference(**azure))


POLICY = f"""\
format = "cloister/policy/v1"
max_age_seconds = 60

[roots]
tpm = ["{A32}"]

[tpm]
revocation = "required"

[tpm.pcrs]
0 = ["{A32}"]
7 = ["{A32}", "{B32}"]
8 = "any"
"""


def test_a_policy_file_names_pcrs() -> None:
    policy = load_policy(POLICY, name="p.toml")
    assert policy.tees == ("tpm",)
    assert policy.tpm is not None
    assert policy.tpm.pcrs == {"0": (A32,), "7": (A32, B32), "8": "any"}
    assert [root.sha256 for root in policy.roots_of("tpm")] == [A32]
    assert policy.tpm.clock == "safe"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        pytest.param('revocation = "required"\n', "", "revocation", id="revocation is not decided"),
        pytest.param('"required"', '"sometimes"', "revocation", id="another word"),
        pytest.param("[roots]", "[root]", "root", id="no roots"),
        pytest.param(f'tpm = ["{A32}"]', "tpm = []", "tpm is an empty list", id="an empty list of roots"),
        pytest.param("[tpm]\n", '[tpm]\nclock = "off"\n', "clock", id="another clock"),
        pytest.param("[tpm]\n", "[tpm]\ndebug = true\n", "debug", id="an unknown field"),
        pytest.param("8 = ", "80 = ", "pcrs names '80'", id="a PCR that does not exist"),
    ],
)
def test_a_policy_file_that_does_not_decide_is_refused(old: str, new: str, reason: str) -> None:
    assert old in POLICY
    with pytest.raises(PolicyError, match=reason):
        load_policy(POLICY.replace(old, new), name="p.toml")
