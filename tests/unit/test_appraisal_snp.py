"""``[snp]`` of a policy: what is not decided is refused with its line, what is left out has its strictest meaning."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.appraisal.judge_snp import judge_snp, judge_snp_platform
from cloister.appraisal.policy import load_policy
from cloister.appraisal.reference_snp import HARDENING, SnpReference, needed_permissions, observed_snp
from cloister.errors import AppraisalRefused, FormatError, PolicyError
from cloister.evidence.snp import PLATFORM_BITS, POLICY_BITS
from cloister.evidence.tpm import TpmQuote
from cloister.verifier.trail import Trail
from simulated_snp import Shown, claims_of, platform, policy, policy_text

M, TCB = "ab" * 48, {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "firmware": "1.55.29"}
FIELDS: dict[str, Any] = {
    "measurement": [M],
    "products": ["milan"],
    "revocation": "required",
    "min_abi": "1.51",
    "hardening": "any",
    "tcb": {"milan": TCB},
}


def load(**changes: Any) -> SnpReference:
    fields = {name: value for name, value in {**FIELDS, **changes}.items() if value is not None}
    found = load_policy(policy_text(fields), name="policy.toml").snp
    assert found is not None
    return found


def test_what_is_left_out_has_its_strictest_meaning() -> None:
    found = load()
    assert found.signing_keys == ("vcek",)
    assert found.max_vmpl == 0
    assert found.alias_check == "required"
    permissions = needed_permissions(Shown().report())
    assert all(getattr(found, name) is False for name in permissions)
    for name in ("host_data", "id_key_digest", "author_key_digest", "family_id", "image_id", "min_guest_svn"):
        assert getattr(found, name) is None


@pytest.mark.parametrize("name", ["measurement", "products", "revocation", "min_abi", "hardening"])
def test_what_has_no_strictest_meaning_must_be_written(name: str) -> None:
    with pytest.raises(PolicyError, match=f"missing required field `{name}`"):
        load(**{name: None})


def test_the_minima_must_be_written() -> None:
    text = policy_text(FIELDS).partition("[snp.tcb")[0]
    with pytest.raises(PolicyError, match="missing required field `tcb`"):
        load_policy(text, name="policy.toml")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "any measurement": ({"measurement": "any"}, "measurement"),
    "no measurement": ({"measurement": []}, r"policy.toml:4: measurement is an empty list"),
    "a measurement twice": ({"measurement": [M, M]}, r"policy.toml:4: measurement lists a value twice"),
    "a short measurement": ({"measurement": ["ab"]}, r"policy.toml:4: measurement must be 96"),
    "an upper-case measurement": ({"measurement": [M.upper()]}, "lower-case"),
    "no products": ({"products": []}, "products is an empty list"),
    "an unknown product": (
        {"products": ["naples"], "tcb": {"naples": TCB}},
        r"policy.toml:5: products names 'naples'",
    ),
    "a product without minima": ({"products": ["milan", "genoa"]}, "tcb and products do not name the same"),
    "minima without a product": (
        {"tcb": {"milan": TCB, "genoa": TCB}},
        "tcb and products do not name the same",
    ),
    "an unknown word for revocation": ({"revocation": "maybe"}, r"policy.toml:6: .*revocation"),
    "a level over one byte": (
        {"tcb": {"milan": {**TCB, "snp": 256}}},
        r"policy.toml:12: tcb.milan.snp must be 0 to 255",
    ),
    "a negative level": ({"tcb": {"milan": {**TCB, "tee": -1}}}, "tcb.milan.tee must be 0 to 255"),
    "Turin's level for Milan": ({"tcb": {"milan": {**TCB, "fmc": 1}}}, "tcb.milan.fmc is for Turin"),
    "Turin without its level": (
        {"products": ["turin"], "tcb": {"turin": TCB}},
        "tcb.turin.fmc is for Turin, and required there",
    ),
    "a level that is missing": (
        {"tcb": {"milan": {name: value for name, value in TCB.items() if name != "snp"}}},
        "missing required field `snp`",
    ),
    "an unknown level": ({"tcb": {"milan": {**TCB, "psp": 1}}}, "unknown field `psp`"),
    "a firmware that is no version": (
        {"tcb": {"milan": {**TCB, "firmware": "1.55"}}},
        "tcb.milan.firmware must be 3",
    ),
    "a firmware over one byte": ({"tcb": {"milan": {**TCB, "firmware": "1.55.256"}}}, "tcb.milan.firmware"),
    "an ABI with a leading zero": ({"min_abi": "1.051"}, r"policy.toml:7: min_abi must be 2 numbers"),
    "an ABI that is a number": ({"min_abi": 1}, "Expected `str`"),
    "no hardening": ({"hardening": []}, "hardening is an empty list"),
    "an unknown hardening": ({"hardening": ["smt"]}, "hardening names 'smt'"),
    "no signing keys": ({"signing_keys": []}, "signing_keys is an empty list"),
    "an unknown signing key": ({"signing_keys": ["none"]}, "signing_keys names 'none'"),
    "a VMPL that is none": ({"max_vmpl": 4}, r"policy.toml:9: max_vmpl must be 0 to 3"),
    "a negative guest version": ({"min_guest_svn": -1}, "min_guest_svn must be"),
    "an unknown word for aliases": ({"alias_check": "off"}, "alias_check"),
    "debug": ({"allow_debug": True}, "unknown field `allow_debug`"),
    "an empty list of host data": ({"host_data": []}, "host_data is an empty list"),
    "host data of another length": ({"host_data": ["00"]}, "host_data must be 64"),
    "an id key of another length": ({"id_key_digest": ["00" * 32]}, "id_key_digest must be 96"),
    "a family of another length": ({"family_id": ["00" * 15]}, "family_id must be 32"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_that_does_not_decide_is_refused(name: str) -> None:
    changes, says = REFUSED[name]
    with pytest.raises(PolicyError, match=says):
        load(**changes)


def test_turin_has_a_level_of_its_own() -> None:
    found = load(products=["turin"], tcb={"turin": {**TCB, "fmc": 1}})
    assert found.tcb["turin"].fmc == 1
    for version in (2, 3, 5):
        shown = Shown(product="turin", version=version)
        reference = policy(shown).snp
        assert reference is not None
        judge_snp_platform(claims_of(shown), reference, Trail())
        higher = policy(shown, tcb={"turin": {**reference_tcb(reference), "fmc": 2}}).snp
        assert higher is not None
        with pytest.raises(AppraisalRefused, match="reported TCB has fmc 1, below 2"):
            judge_snp_platform(claims_of(shown), higher, Trail())


def reference_tcb(reference: SnpReference) -> dict[str, Any]:
    minimum = reference.tcb["turin"]
    return {name: getattr(minimum, name) for name in ("bootloader", "tee", "snp", "microcode", "firmware")}


def test_hardening_and_permissions_are_all_the_bits_of_a_guests_policy() -> None:
    """A bit that nothing here judges would be accepted by silence."""
    permitted = {"smt", "migrate_ma", "single_socket", "cxl_allow"}
    assert permitted | set(HARDENING) | {"debug"} == set(POLICY_BITS)
    # Of the machine's bits two are judged; the others only say more than is asked.
    assert {"smt_en", "alias_check_complete"} < set(PLATFORM_BITS)


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
@pytest.mark.parametrize("version", [2, 3, 5])
def test_the_judges_say_what_they_found(product: str, version: int) -> None:
    shown, trail = Shown(product=product, version=version), Trail()
    reference = policy(shown).snp
    assert reference is not None
    judge_snp_platform(claims_of(shown), reference, trail)
    judge_snp(claims_of(shown), reference, trail)
    assert [check.number for check in trail.passed] == [8, 9, 10, 11, 11, 14, 15]
    said = {check.name: check.outcome for check in trail.passed}
    assert said["product and signing key"] == f"{product}, VCEK"
    assert said["VMPL and memory"] == "VMPL 0, aliased memory looked for"
    assert said["host data and ID block"] == "none"


def test_the_strictest_table_is_observed_from_an_honest_guest() -> None:
    fields = observed_snp(claims_of(Shown()))
    assert set(fields) == {"measurement", "products", "revocation", "tcb", "min_abi", "hardening"}
    assert fields["tcb"] == {
        "milan": {"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "firmware": "1.55.40"}
    }


def test_the_lowest_of_the_tcbs_is_observed() -> None:
    """A host that reports the lowest of them all, or launched under an older one, still passes what it was seen at."""
    old = replace(platform().chip.tcb, microcode=100)
    fields = observed_snp(claims_of(Shown(changes={"launch_tcb": old})))
    assert fields["tcb"]["milan"]["microcode"] == 100  # type: ignore[index]


def test_claims_of_another_kind_are_refused() -> None:
    claims = claims_of(Shown())
    other = replace(claims, report=object.__new__(TpmQuote))
    reference = load()
    for judge in (judge_snp_platform, judge_snp):
        with pytest.raises(AppraisalRefused, match="no SEV-SNP report"):
            judge(other, reference, Trail())
    with pytest.raises(FormatError, match="not of an SEV-SNP report"):
        observed_snp(other)


def test_the_example_of_the_reference_is_a_policy() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "policy-snp.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```toml\n(.*?)```", page, re.DOTALL)
    found = load_policy(example, name="policy-snp.md").snp
    assert found is not None
    assert found.allow_multi_socket
    documented = set(re.findall(r"`(\w+)`", page)) | {"tcb"}
    assert set(SnpReference.__struct_fields__) <= documented
