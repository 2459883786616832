"""What a policy says of Intel platforms: each field of a report is judged, and what is not named is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import simulated_evidence as attacks
from cloister.appraisal.judge_intel import judge_sgx, judge_sgx_platform, judge_tdx, judge_tdx_platform
from cloister.appraisal.observed_intel import observed_sgx, observed_tdx
from cloister.appraisal.policy import load_policy
from cloister.appraisal.reference_intel import (
    MISC_SELECT_BITS,
    SGX_ATTRIBUTES,
    TDX_ATTRIBUTES,
    Platform,
    SgxReference,
    Tcb,
    TdxReference,
    check_sgx,
    check_tdx,
    firmware_digests,
)
from cloister.attester.simulation.quote import Layout
from cloister.encoding import convert
from cloister.endorsements.roots import simulated_root
from cloister.errors import AppraisalRefused, FormatError, PolicyError
from cloister.evidence.measured import MeasuredEvent, replay_registers
from cloister.evidence.quote import parse_quote
from cloister.evidence.sgx import ATTRIBUTES as SGX_BITS
from cloister.evidence.sgx import SgxReport
from cloister.evidence.tdx import ATTRIBUTES as TDX_BITS
from cloister.evidence.tdx import TdReport
from cloister.verifier import intel
from cloister.verifier.claims import Claims
from cloister.verifier.rules import TCB_STATUSES, IntelRules
from cloister.verifier.trail import Trail
from intel_vectors import quote
from simulated_evidence import NOW

SEPT_VE_DISABLE = 1 << 28
PAGES = Path(__file__).resolve().parents[2] / "docs"


@cache
def claims(layout: Layout = Layout.TDX_V4) -> Claims:
    shown = attacks.honest(layout)
    return intel.verify(
        shown.quote,
        shown.collateral.encode(),
        root=simulated_root(attacks.platform().root_sha256),
        now=NOW,
        rules=IntelRules(min_tcb_evaluation_number=1),
    )


def changed(layout: Layout = Layout.TDX_V4, **fields: Any) -> Claims:
    """Honest claims whose report differs in ``fields``."""
    honest = claims(layout)
    return dataclasses.replace(honest, report=dataclasses.replace(honest.report, **fields))


def tdx(**fields: object) -> TdxReference:
    """Today's trust domain, with further fields of the policy."""
    table = {name: [value.hex()] for name, value in claims().measurements.items()} | fields
    reference = convert(table, TdxReference, what="policy")
    check_tdx(reference)
    return reference


def sgx(**fields: object) -> SgxReference:
    table = {"mrenclave": [claims(Layout.SGX_V3).measurements["mrenclave"].hex()]} | fields
    reference = convert(table, SgxReference, what="policy")
    check_sgx(reference)
    return reference


def judge(found: Claims, reference: TdxReference | SgxReference) -> list[int]:
    """The numbers of the checks that passed, or the refusal."""
    trail = Trail()
    if isinstance(reference, TdxReference):
        judge_tdx_platform(found, reference, trail)
        judge_tdx(found, reference, trail)
    else:
        judge_sgx_platform(found, reference, trail)
        judge_sgx(found, reference, trail)
    return [check.number for check in trail.passed]


def test_honest_evidence_passes_the_plainest_policy() -> None:
    assert judge(claims(), tdx()) == [11, 11, 11, 14, 15]
    assert judge(claims(Layout.TDX_V5_TD15), tdx()) == [11, 11, 11, 14, 15]
    assert judge(claims(Layout.SGX_V3), sgx()) == [11, 11, 14, 15]


def bits(value: int) -> dict[str, bytes]:
    return {"td_attributes": value.to_bytes(8, "little")}


@pytest.mark.parametrize("bit", [bit for bit in range(64) if bit != 28])
def test_no_td_attribute_is_accepted_unless_it_is_named(bit: int) -> None:
    found = changed(**bits(SEPT_VE_DISABLE | 1 << bit))
    name = TDX_BITS.get(bit, f"bit {bit}")
    with pytest.raises(AppraisalRefused, match=f"TD attribute {name} is set"):
        judge(found, tdx())
    if name in TDX_ATTRIBUTES:
        judge(found, tdx(attributes=[name]))
        judge(found, tdx(required_attributes=[name]))
        other = next(other for other in TDX_ATTRIBUTES if other != name)
        with pytest.raises(AppraisalRefused, match=f"TD attribute {name} is set"):
            judge(found, tdx(attributes=[other]))
    else:
        with pytest.raises(FormatError, match="which no policy can accept"):
            tdx(attributes=[name])


def test_required_attributes_must_be_set() -> None:
    with pytest.raises(AppraisalRefused, match="TD attribute ICSSD is off"):
        judge(claims(), tdx(required_attributes=["ICSSD"]))
    with pytest.raises(AppraisalRefused, match="enclave attribute AEX_NOTIFY is off"):
        judge(claims(Layout.SGX_V3), sgx(required_attributes=["AEX_NOTIFY"]))
    with pytest.raises(AppraisalRefused, match="SEPT_VE_DISABLE is off"):
        judge(changed(**bits(0)), tdx())


def test_googles_trust_domain_is_refused_for_its_attributes() -> None:
    # PKS, and no SEPT_VE_DISABLE: its collateral of 2023 is not complete, so only the judge meets it.
    report = parse_quote(quote("google-go-tdx-guest/without-extra-bytes")).report
    assert isinstance(report, TdReport)
    assert report.attribute_names == {"PKS"}
    found = dataclasses.replace(claims(), report=report)
    with pytest.raises(AppraisalRefused, match="TD attribute SEPT_VE_DISABLE is off"):
        judge(found, tdx(attributes=["PKS"]))


XFAM = {
    # name: (bits, accepted without a list)
    "nothing": (0, False),
    "x87 alone": (1, False),
    "x87 and SSE": (0x3, True),
    "a server's": (0x602E7, True),
    "with CET": (0x61AE7, True),
    "with PASID": (0x3 | 1 << 10, False),
    "with HDC": (0x3 | 1 << 13, False),
    "with an unknown bit": (0x3 | 1 << 40, False),
}


@pytest.mark.parametrize("case", XFAM)
def test_only_known_features_are_accepted_without_a_list(case: str) -> None:
    value, accepted = XFAM[case]
    found = changed(xfam=value.to_bytes(8, "little"))
    if accepted:
        judge(found, tdx())
    else:
        with pytest.raises(AppraisalRefused, match=r"xfam is .* features that are not known"):
            judge(found, tdx())
    judge(found, tdx(xfam=[value.to_bytes(8, "little").hex()]))
    with pytest.raises(AppraisalRefused, match="xfam is"):
        judge(found, tdx(xfam=["0f" * 8]))


@pytest.mark.parametrize("field", ["mr_config_id", "mr_owner", "mr_owner_config"])
def test_what_the_launcher_wrote_must_be_zeros_unless_listed(field: str) -> None:
    found = changed(**{field: b"\x0f" * 48})
    with pytest.raises(AppraisalRefused, match=f"{field} is 0f0f.* says nothing of it"):
        judge(found, tdx())
    judge(found, tdx(**{field: ["0f" * 48]}))
    judge(found, tdx(**{field: "any"}))
    with pytest.raises(AppraisalRefused, match=f"{field} is 0f0f"):
        judge(found, tdx(**{field: ["1f" * 48]}))
    # A list without zeros wants the field to be written.
    with pytest.raises(AppraisalRefused, match=f"{field} is 0000"):
        judge(claims(), tdx(**{field: ["0f" * 48]}))


def test_a_tdx_module_can_be_pinned() -> None:
    report = claims().report
    assert isinstance(report, TdReport)
    judge(claims(), tdx(mr_seam=[report.mr_seam.hex()]))
    with pytest.raises(AppraisalRefused, match="mr_seam is"):
        judge(claims(), tdx(mr_seam=["0f" * 48]))


SGX_FLAGS = 1 << 0 | 1 << 2


def flags(value: int, xfrm: int = 0xE7) -> dict[str, bytes]:
    return {"attributes": value.to_bytes(8, "little") + xfrm.to_bytes(8, "little")}


@pytest.mark.parametrize("bit", [bit for bit in range(64) if bit not in (0, 2)])
def test_no_enclave_attribute_is_accepted_unless_it_is_named(bit: int) -> None:
    found = changed(Layout.SGX_V3, **flags(SGX_FLAGS | 1 << bit))
    name = SGX_BITS.get(bit, f"bit {bit}")
    with pytest.raises(AppraisalRefused, match=f"enclave attribute {name} is set"):
        judge(found, sgx())
    if name in SGX_ATTRIBUTES:
        judge(found, sgx(attributes=[name]))
    else:
        with pytest.raises(FormatError, match="which no policy can accept"):
            sgx(attributes=[name])


SGX_REFUSED = {
    # name: (changes of the report, fields of the policy that accept it, part of the text)
    "not initialised": (flags(1 << 2), None, "INIT is off"),
    "an enclave of 32 bits": (flags(1), None, "MODE64BIT is off"),
    "unknown features": (
        flags(SGX_FLAGS, 0x3 | 1 << 63),
        {"xfrm": ["0300000000000080"]},
        "xfrm is 0300000000000080",
    ),
    "no SSE": (flags(SGX_FLAGS, 1), {"xfrm": ["0100000000000000"]}, "xfrm is"),
    "exception information": (
        {"misc_select": b"\1\0\0\0"},
        {"misc_select": ["EXINFO"]},
        "MISCSELECT bit EXINFO is set",
    ),
    "control protection information": (
        {"misc_select": b"\2\0\0\0"},
        {"misc_select": ["CPINFO"]},
        "MISCSELECT bit CPINFO is set",
    ),
    "an unknown MISCSELECT bit": ({"misc_select": b"\0\1\0\0"}, None, "MISCSELECT bit bit 8 is set"),
    "a configuration": ({"config_id": b"\x0f" * 64}, {"config_id": ["0f" * 64]}, "config_id is 0f0f"),
    "a configuration, any": ({"config_id": b"\x0f" * 64}, {"config_id": "any"}, "config_id is 0f0f"),
    "a configuration's version": ({"config_svn": 2}, {"min_config_svn": 2}, "config_svn is 2"),
    "a family": ({"isv_family_id": b"\x0f" * 16}, {"family_id": ["0f" * 16]}, "family_id is 0f0f"),
    "an extended product": (
        {"isv_ext_prod_id": b"\x0f" * 16},
        {"ext_prod_id": ["0f" * 16]},
        "ext_prod_id is 0f0f",
    ),
}


@pytest.mark.parametrize("case", SGX_REFUSED)
def test_an_enclave_that_says_more_is_refused_unless_the_policy_says_so(case: str) -> None:
    changes, accepting, text = SGX_REFUSED[case]
    found = changed(Layout.SGX_V3, **changes)
    with pytest.raises(AppraisalRefused, match=text):
        judge(found, sgx())
    if accepting is not None:
        judge(found, sgx(**accepting))


def test_an_older_configuration_is_refused() -> None:
    with pytest.raises(AppraisalRefused, match="config_svn is 1, below 2"):
        judge(changed(Layout.SGX_V3, config_svn=1), sgx(min_config_svn=2))


def test_claims_of_another_kind_are_refused() -> None:
    with pytest.raises(AppraisalRefused, match="no TD report"):
        judge_tdx_platform(claims(Layout.SGX_V3), tdx(), Trail())
    with pytest.raises(AppraisalRefused, match="no enclave report"):
        judge_sgx_platform(claims(), sgx(), Trail())


FORMS = {
    # name: (table, fields, part of the text)
    "an attribute twice": (tdx, {"attributes": ["PKS", "PKS"]}, "attributes lists a value twice"),
    "no attribute": (tdx, {"attributes": []}, "attributes is an empty list"),
    "debug": (tdx, {"attributes": ["DEBUG"]}, "attributes names 'DEBUG'"),
    "migration": (tdx, {"required_attributes": ["MIGRATABLE"]}, "required_attributes names 'MIGRATABLE'"),
    "a short xfam": (tdx, {"xfam": ["e7"]}, "xfam must be 16"),
    "any xfam": (tdx, {"xfam": "any"}, "xfam"),
    "a short owner": (tdx, {"mr_owner": ["00"]}, "mr_owner must be 96"),
    "no owner": (tdx, {"mr_owner": []}, "mr_owner is an empty list"),
    "an upper-case module": (tdx, {"mr_seam": ["AB" * 48]}, "mr_seam must be 96"),
    "an enclave's debug": (sgx, {"attributes": ["DEBUG"]}, "attributes names 'DEBUG'"),
    "an unknown MISCSELECT": (sgx, {"misc_select": ["FOO"]}, "misc_select names 'FOO'"),
    "a negative version": (sgx, {"min_config_svn": -1}, "min_config_svn must be 0 to 65535"),
    "a short configuration": (sgx, {"config_id": ["00" * 32]}, "config_id must be 128"),
    "no firmware events": (tdx, {"firmware_events": {}}, "firmware_events is an empty table"),
    "a firmware event of no value": (
        tdx,
        {"firmware_events": {"kernel": []}},
        "firmware_events.kernel is an empty list",
    ),
    "any firmware event": (tdx, {"firmware_events": {"kernel": "any"}}, "firmware_events"),
    "a firmware digest of 32 bytes": (
        tdx,
        {"firmware_events": {"kernel": ["00" * 32]}},
        "firmware_events.kernel must be 96",
    ),
    "an empty text": (tdx, {"firmware_events": {"cmdline": ["text:"]}}, "firmware_events.cmdline has a text"),
    "a long text": (
        tdx,
        {"firmware_events": {"cmdline": ["text:" + "x" * 4097]}},
        "firmware_events.cmdline has a text",
    ),
    "a long label": (
        tdx,
        {"firmware_events": {"x" * 65: ["00" * 48]}},
        "names have 1 to 64 characters",
    ),
}


@pytest.mark.parametrize("case", FORMS)
def test_a_table_that_cannot_be_meant_is_refused(case: str) -> None:
    table, fields, text = FORMS[case]
    with pytest.raises(FormatError, match=text):
        table(**fields)


# Firmware events.

KERNEL, EVIL, CMDLINE = b"\x11" * 48, b"\x66" * 48, "console=ttyS0 ro"


def event(digest: bytes, register: int = 1, name: str = "kernel") -> MeasuredEvent:
    return MeasuredEvent(
        register=register,
        kind="EV_EFI_BOOT_SERVICES_APPLICATION",
        digest=digest,
        data=b"",
        vouched=False,
        name=name,
    )


def line(encoding: str = "utf-8", ending: str = "") -> MeasuredEvent:
    return event(hashlib.sha384((CMDLINE + ending).encode(encoding)).digest(), 2, "kernel-command-line")


def booted(*events: MeasuredEvent, **registers: bytes) -> Claims:
    """Claims after a log of ``events`` replayed; ``registers`` are quoted otherwise."""
    quoted = {f"rtmr{n}": bytes(48) for n in range(4)} | {
        f"rtmr{n}": value for n, value in replay_registers(events, algorithm="sha384").items()
    }
    measured = {**claims().measurements, **quoted, **registers}
    return dataclasses.replace(claims(), measurements=measured, measured_events=events)


def firmware(**fields: object) -> TdxReference:
    table = {"kernel": [KERNEL.hex()], "command line": [f"text:{CMDLINE}"]}
    unpinned = {f"rtmr{n}": "any" for n in range(4)}
    return tdx(**{**unpinned, "firmware_events": table, **fields})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("ending", ["", "\0"])
def test_a_text_is_found_in_whatever_form_it_was_measured(encoding: str, ending: str) -> None:
    judge(booted(event(KERNEL), line(encoding, ending)), firmware())


def test_a_text_stands_for_four_digests_and_a_digest_for_itself() -> None:
    assert len(firmware_digests(f"text:{CMDLINE}")) == 4
    assert firmware_digests(KERNEL.hex()) == {KERNEL}


BOOTS = {
    # name: (claims, policy, part of the text)
    "nothing was logged": (booted(), firmware(), "'kernel' is required and did not happen"),
    "another kernel": (booted(event(EVIL), line()), firmware(), "'kernel' is required and did not happen"),
    "another command line": (
        booted(event(KERNEL), event(EVIL, 2)),
        firmware(),
        "'command line' is required and did not happen",
    ),
    "another kernel, and the good one's digest extended afterwards": (
        booted(event(EVIL, name="nothing to see"), event(KERNEL), line()),
        firmware(),
        "rtmr1 holds an event that the policy does not list: 6666",
    ),
    "something before the command line": (
        booted(event(KERNEL), event(EVIL, 2), line()),
        firmware(),
        "rtmr2 holds an event that the policy does not list",
    ),
    "a register that no log speaks of": (
        booted(event(KERNEL), line(), rtmr0=b"\x0f" * 48),
        firmware(),
        "rtmr0 is not pinned, and no log says",
    ),
    "the good digests in the launcher's register only": (
        booted(event(KERNEL, 3), dataclasses.replace(line(), register=3)),
        firmware(),
        "'kernel' is required and did not happen",
    ),
}


@pytest.mark.parametrize("case", BOOTS)
def test_a_boot_that_the_policy_does_not_describe_is_refused(case: str) -> None:
    found, policy, text = BOOTS[case]
    with pytest.raises(AppraisalRefused, match=text):
        judge(found, policy)


def test_a_pinned_register_needs_no_list_of_its_events() -> None:
    found = booted(event(EVIL, 0), event(KERNEL), line())
    with pytest.raises(AppraisalRefused, match="rtmr0 holds an event"):
        judge(found, firmware())
    judge(found, firmware(rtmr0=[found.measurements["rtmr0"].hex()]))


# Drafts.


def test_what_was_observed_is_what_accepts_it() -> None:
    found = changed(
        **bits(SEPT_VE_DISABLE | 1 << 30 | 1 << 63), xfam=b"\x03" + b"\xff" * 7, mr_owner=b"\x0f" * 48
    )
    found = dataclasses.replace(found, events={"cloister.config": b"\x11"})
    fields = observed_tdx(found)
    assert fields["attributes"] == ["PERFMON", "PKS"]
    assert fields["events"] == {"cloister.config": ["11"]}
    assert {"mr_config_id", "mr_owner_config", "service_td", "mr_seam"} & set(fields) == set()
    reference = convert(fields, TdxReference, what="policy")
    check_tdx(reference)
    judge(found, reference)
    with pytest.raises(AppraisalRefused):
        judge(claims(), reference)
    assert set(observed_tdx(claims())) == set(claims().measurements)


def test_what_was_observed_of_an_enclave_is_what_accepts_it() -> None:
    found = changed(
        Layout.SGX_V3,
        **flags(SGX_FLAGS | 1 << 7, 0x3 | 1 << 50),
        misc_select=b"\1\0\0\0",
        config_id=b"\x0f" * 64,
        config_svn=3,
        isv_family_id=b"\x0f" * 16,
        isv_ext_prod_id=b"\x0f" * 16,
    )
    reference = convert(observed_sgx(found), SgxReference, what="policy")
    check_sgx(reference)
    judge(found, reference)
    assert set(observed_sgx(claims(Layout.SGX_V3))) == {"mrenclave"}


def test_there_is_no_draft_for_what_no_policy_accepts() -> None:
    with pytest.raises(PolicyError, match="no policy accepts bit 40"):
        observed_tdx(changed(**bits(SEPT_VE_DISABLE | 1 << 40)))
    with pytest.raises(PolicyError, match="no policy accepts bit 8"):
        observed_sgx(changed(Layout.SGX_V3, misc_select=b"\0\1\0\0"))
    with pytest.raises(PolicyError, match=r"no \[tdx\] table"):
        observed_tdx(claims(Layout.SGX_V3))
    with pytest.raises(PolicyError, match=r"no \[sgx\] table"):
        observed_sgx(claims())
    assert isinstance(claims(Layout.SGX_V3).report, SgxReport)


# The pages.


def test_the_example_of_the_reference_is_a_policy() -> None:
    page = (PAGES / "reference" / "policy-intel.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```toml\n(.*?)```", page, re.DOTALL)
    policy = load_policy(example, name="policy-intel.md")
    assert policy.tees == ("tdx", "sgx")


def test_the_reference_names_every_field_and_every_name() -> None:
    page = (PAGES / "reference" / "policy-intel.md").read_text()
    for table in (TdxReference, SgxReference, Tcb, Platform):
        for field in table.__struct_fields__:
            assert f"`{field}`" in page, field
    for name in (*TDX_ATTRIBUTES, *SGX_ATTRIBUTES, *MISC_SELECT_BITS, *TCB_STATUSES):
        assert f"`{name}`" in page, name
