"""Drafted policies: what is written is what is accepted, and nothing is left open silently."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import simulated_evidence as attacks
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.draft_observed import draft_from_claims
from cloister.appraisal.policy import Platform, load_policy
from cloister.endorsements.roots import INTEL_ROOT, simulated_root
from cloister.errors import PolicyError
from cloister.evidence.eventlog import LaunchEvent
from cloister.verifier.intel import verify
from intel_vectors import SERVER, at, collateral, quote

TD = dict(attacks.platform().tee("tdx", launch=attacks.LAUNCH).measurements)


def test_a_draft_pins_every_value_it_was_given() -> None:
    text = draft_policy(
        tee="tdx",
        measurements={**TD, "rtmr0": [b"\1" * 48, b"\2" * 48], "rtmr1": "any"},
        events=[*attacks.LAUNCH, LaunchEvent(name="cloister.config", payload=b"\x22")],
        min_tcb_evaluation_number=17,
        accepted_statuses=("UpToDate", "SWHardeningNeeded"),
        simulated_root="ab" * 32,
        platform=Platform(allow_smt=True),
        max_age_seconds=60,
        title="two\nlines",
    )
    assert text.startswith("# two\n# lines\n# SIMULATED TEE")
    policy = load_policy(text, name="p")
    assert policy.tdx is not None
    assert policy.tdx.mrtd == (TD["mrtd"].hex(),)
    assert policy.tdx.rtmr0 == ("01" * 48, "02" * 48)
    assert policy.tdx.rtmr1 == "any"
    assert policy.tdx.events == {"cloister.config": ("11" * 32, "22")}
    assert policy.roots_of("tdx") == (simulated_root("ab" * 32),)
    assert policy.tcb is not None
    assert policy.platform == Platform(allow_smt=True)
    assert (policy.max_age_seconds, policy.tcb.min_evaluation_number) == (60, 17)


def test_a_draft_for_an_enclave_pins_mrenclave() -> None:
    text = draft_policy(
        tee="sgx",
        measurements={"mrenclave": b"\1" * 32, "mrsigner": b"\2" * 32},
        events=attacks.LAUNCH,
        min_tcb_evaluation_number=17,
    )
    policy = load_policy(text, name="p")
    assert policy.sgx is not None
    assert policy.sgx.mrenclave == ("01" * 32,)
    assert policy.roots_of("sgx") == (INTEL_ROOT,)


@pytest.mark.parametrize("missing", ["mrtd", "rtmr0", "rtmr3"])
def test_a_measurement_that_is_not_given_is_refused(missing: str) -> None:
    with pytest.raises(PolicyError, match=missing):
        draft_policy(
            tee="tdx",
            measurements={name: value for name, value in TD.items() if name != missing},
            min_tcb_evaluation_number=1,
        )


@pytest.mark.parametrize(
    "wrong",
    [{"mrtd": []}, {"mrtd": b"\0"}, {"mrtd": [b"\0" * 48] * 2}, {"mrtd": "everything"}],
    ids=["empty", "short", "twice", "another-word"],
)
def test_a_draft_that_could_not_be_loaded_is_never_returned(wrong: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match="mrtd"):
        draft_policy(tee="tdx", measurements={**TD, **wrong}, min_tcb_evaluation_number=1)


@given(st.text(min_size=1, max_size=64), st.binary(max_size=64), st.text(max_size=80))
def test_names_and_titles_cannot_break_out_of_their_place(name: str, payload: bytes, title: str) -> None:
    def draft() -> str:
        return draft_policy(
            tee="tdx",
            measurements=TD,
            events=[LaunchEvent(name=name, payload=payload)],
            min_tcb_evaluation_number=1,
            title=title,
        )

    text = draft()
    table = tomllib.loads(text)
    assert table["tdx"]["events"] == {name: [payload.hex()]}
    assert set(table) == {"format", "max_age_seconds", "tcb", "tdx"}


def test_a_draft_from_genuine_claims_would_have_accepted_them() -> None:
    claims = verify(
        quote("phala-dcap-qvl/tdx_quote"),
        collateral("tdx_quote_collateral"),
        root=INTEL_ROOT,
        now=at("2025-06-25"),
        rules=SERVER,
    )
    policy = load_policy(draft_from_claims(claims), name="p")
    assert policy.platform == Platform(allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True)
    assert policy.tcb is not None
    assert policy.tcb.min_evaluation_number == 17
    assert policy.roots_of("tdx") == (INTEL_ROOT,)
    assert policy.tdx is not None
    assert policy.tdx.rtmr3 == (claims.measurements["rtmr3"].hex(),)
