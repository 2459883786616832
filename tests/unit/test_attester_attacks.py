"""The simulated vendor under dcap-qvl itself: honest evidence passes, every attack fails at the check it should."""

from __future__ import annotations

import json

import dcap_qvl
import pytest

import simulated_evidence as made
from cloister.attester.simulation.collateral import TCB_LADDER
from cloister.attester.simulation.quote import Layout
from simulated_attacks import ATTACKS, Attack
from simulated_evidence import NOW, Presented


def verify(shown: Presented, *statuses: str) -> dict[str, object]:
    # dcap-qvl refuses an out-of-date level by its date too, unless a grace period reaches back to it.
    policy = dcap_qvl.QuotePolicy.strict(shown.now).platform_grace_period(1 << 32).qe_grace_period(1 << 32)
    for status in statuses:
        policy = policy.allow_status(status)
    collateral = dcap_qvl.QuoteCollateralV3.from_json(shown.collateral)
    claims = dcap_qvl.QuoteVerifier(shown.root).verify_with_policy(shown.quote, collateral, shown.now, policy)
    return json.loads(claims.to_json())  # type: ignore[no-any-return]


@pytest.mark.parametrize("layout", Layout, ids=lambda layout: layout.name)
def test_honest_evidence_of_every_layout_is_accepted_by_the_strictest_policy(layout: Layout) -> None:
    claims = verify(made.honest(layout))
    assert claims["tcb"] == {"status": "UpToDate", "advisory_ids": [], "eval_data_number": 20}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_is_refused_where_it_should_be(attack: Attack) -> None:
    with pytest.raises(ValueError, match=attack.dcap_says):
        verify(attack.present())


@pytest.mark.parametrize("layout", [Layout.TDX_V4, Layout.SGX_V3], ids=lambda layout: layout.name)
@pytest.mark.parametrize("status", TCB_LADDER[:-1])
def test_a_status_that_is_allowed_by_name_is_reported_as_it_is(status: str, layout: Layout) -> None:
    claims = verify(made.with_status(status, layout), status)
    tcb = claims["tcb"]
    assert isinstance(tcb, dict)
    assert tcb["status"] == status
    assert len(tcb["advisory_ids"]) == TCB_LADDER.index(status)


def test_a_revoked_platform_cannot_be_allowed() -> None:
    with pytest.raises(ValueError, match="Revoked"):
        verify(made.with_status("Revoked"), *TCB_LADDER)


@pytest.mark.parametrize(
    ("microcode", "status"),
    [
        ("UpToDate", "TDRelaunchAdvised"),
        ("ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
    ],
)
def test_a_module_renewed_under_a_running_td_advises_to_relaunch(microcode: str, status: str) -> None:
    claims = verify(made.relaunch_advised(microcode), status)
    tcb = claims["tcb"]
    assert isinstance(tcb, dict)
    assert tcb["status"] == status


def test_a_simulated_quote_is_refused_under_the_vendors_own_root() -> None:
    shown = made.honest()
    collateral = dcap_qvl.QuoteCollateralV3.from_json(shown.collateral)
    with pytest.raises(ValueError, match=r"(?i)revoc|certificate|signature|issuer|CRL"):
        dcap_qvl.QuoteVerifier(None).verify_with_policy(
            shown.quote, collateral, NOW, dcap_qvl.QuotePolicy.strict(NOW)
        )


def test_names_in_the_attack_table_are_unique() -> None:
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
