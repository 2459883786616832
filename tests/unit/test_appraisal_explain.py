"""A policy in words: no field is left unexplained, no relaxation without its risk, nothing unchecked goes unsaid."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec import structs

from cloister.appraisal.explain import Section, Statement, explain, summary
from cloister.appraisal.explain_words import NEVER, TITLES, WORDS
from cloister.appraisal.hardware import Hardware
from cloister.appraisal.policy import Policy, Roots, load_policy
from cloister.appraisal.reference_intel import Platform, SgxReference, Tcb, TdxReference
from cloister.appraisal.reference_nvidia import NvidiaReference
from cloister.appraisal.reference_snp import SnpReference
from cloister.appraisal.reference_tpm import AzureReference, TpmReference

TABLES: dict[str, Any] = {
    "roots": Roots,
    "tcb": Tcb,
    "platform": Platform,
    "hardware": Hardware,
    "tdx": TdxReference,
    "sgx": SgxReference,
    "snp": SnpReference,
    "azure": AzureReference,
    "tpm": TpmReference,
    "nvidia": NvidiaReference,
}
A, E = "aa" * 48, "ee" * 32
HEAD = 'format = "cloister/policy/v1"\nmax_age_seconds = 60\n'
INTEL = "[tcb]\nmin_evaluation_number = 17\n"


def tdx(**registers: str) -> str:
    names = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")
    lines = [f"{name} = {registers.get(name, f'[{A!r}]')}" for name in names]
    return "[tdx]\n" + "\n".join(lines) + "\n"


STRICT = HEAD + INTEL + f'[hardware]\nppid = ["{"00" * 16}"]\n' + tdx()
LOOSE = (
    HEAD
    + INTEL.replace("17\n", '1\naccepted_statuses = ["OutOfDate"]\nout_of_date_grace_seconds = 60\n')
    + "[platform]\nallow_smt = true\n"
    + tdx(rtmr0='"any"', rtmr1='"any"', rtmr2='"any"', rtmr3='"any"')
    + f'service_td = ["{A}"]\n[tdx.events]\n"e" = "any"\n'
)


def said(text: str, field: str) -> Statement:
    (found,) = [
        one
        for section in explain(load_policy(text, name="p"))
        for one in section.statements
        if one.field == field
    ]
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_field_of_a_table_has_words(table: str) -> None:
    fields = {f"{table}.{field.name}" for field in structs.fields(TABLES[table])}
    assert fields == {name for name in WORDS if name.startswith(f"{table}.")}
    assert table in TITLES


def test_every_table_of_a_policy_is_spoken_of() -> None:
    tables = {field.name for field in structs.fields(Policy)} - {"format", "max_age_seconds"}
    assert tables == set(TABLES)
    assert set(TITLES) == {"", *TABLES}


def test_words_that_relax_name_their_risk() -> None:
    for name, words in WORDS.items():
        if words.relaxes or words.open:
            assert words.risk, name
        assert not words.says.endswith("."), name


def test_a_strict_policy_has_nothing_unchecked() -> None:
    kinds = {one.kind for section in explain(load_policy(STRICT, name="p")) for one in section.statements}
    assert kinds == {"required", "never"}
    assert summary(load_policy(STRICT, name="p")) == (
        "accepts TDX, results stand 60 s; nothing relaxed, nothing unchecked"
    )


@pytest.mark.parametrize(
    ("field", "kind", "words"),
    [
        ("tdx.rtmr1", "not checked", "RTMR1 (boot loader and kernel) may be anything"),
        ("tdx.mrtd", "required", f"the firmware (MRTD) must measure {A}"),
        ("tdx.events", "accepted", "with any value: e"),
        ("tdx.firmware_events", "not checked", "not asked"),
        ("tdx.service_td", "accepted", "may be bound to service TD"),
        ("tdx.mr_owner", "required", "MROWNER is zeros"),
        ("tcb.accepted_statuses", "accepted", "must be OutOfDate"),
        ("tcb.out_of_date_grace_seconds", "accepted", "for 60 seconds"),
        ("platform.allow_smt", "accepted", "hyper-threading may be on"),
        ("platform.allow_cached_keys", "required", "not held by anybody"),
        ("hardware", "not checked", "any machine"),
        ("roots.vendor", "required", "embedded roots"),
    ],
)
def test_each_statement_says_what_kind_it_is(field: str, kind: str, words: str) -> None:
    found = said(LOOSE, field)
    assert found.kind == kind
    assert words in found.text
    assert bool(found.risk) == (kind in ("accepted", "not checked"))


def test_a_simulation_is_said_loudly() -> None:
    text = HEAD + INTEL + f'[roots]\nsimulated = "{E}"\n' + tdx()
    assert said(text, "roots.simulated").kind == "accepted"
    assert "SIMULATED" in said(text, "roots.simulated").text
    assert "SIMULATED" in summary(load_policy(text, name="p"))


def test_what_no_policy_accepts_is_said_of_every_policy() -> None:
    last: Section = explain(load_policy(STRICT, name="p"))[-1]
    assert [one.text for one in last.statements] == list(NEVER)
    assert any("debug" in text for text in NEVER)


def test_a_tpm_and_a_guest_are_explained_too() -> None:
    text = HEAD + (
        f'[roots]\ntpm = ["{E}"]\n[tpm]\nrevocation = "unchecked"\nclock = "any"\n[tpm.pcrs]\n4 = ["{E}"]\n7 = "any"\n'
    )
    assert said(text, "tpm.revocation").kind == "not checked"
    assert "need not be at hand" in said(text, "tpm.revocation").text
    assert said(text, "tpm.clock").kind == "not checked"
    assert said(text, "tpm.pcrs").text.endswith("with any value: 7")
    assert re.search("TPM", summary(load_policy(text, name="p")))
