"""`cloister policy`: check, explain and start a policy from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import simulated_evidence as attacks
from cloister.appraisal.policy import read_policy
from cloister.evidence.bundle import encode_bundle
from ear_parts import NONCE, bundle_of
from shared_data import vectors
from simulated_evidence import NOW

CLOISTER = Path(sys.executable).parent / "cloister"
A = "aa" * 48
GOOD = f"""\
format = "cloister/policy/v1"
max_age_seconds = 3600
[tcb]
min_evaluation_number = 17
[tdx]
mrtd = ["{A}"]
rtmr0 = "any"
rtmr1 = ["{A}"]
rtmr2 = ["{A}"]
rtmr3 = ["{A}"]
"""


def cloister(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [CLOISTER, "policy", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(GOOD)
    return path


def test_check_says_in_one_line_what_is_accepted(good: Path) -> None:
    done = cloister("check", good)
    assert done.stdout == (
        f"{good}: accepts TDX, results stand 3600 s; 3 relaxed or not checked; digest {read_policy(good).digest}\n"
    )
    one = json.loads(cloister("check", good, "--json").stdout)["policies"][0]
    assert one["accepted"] is True
    assert (one["tees"], one["simulated"], one["refusals"]) == (["tdx"], False, [])
    assert one["digest"] == read_policy(good).digest


def test_check_names_the_line_of_every_file_that_is_wrong(good: Path, tmp_path: Path) -> None:
    bad, missing, loop = tmp_path / "bad.toml", tmp_path / "missing.toml", tmp_path / "undecided.toml"
    bad.write_text(GOOD.replace("rtmr2", "rtrm2"))
    loop.write_text(GOOD.replace("= 3600", '= "DECIDE: an hour?"').replace('"any"', '"DECIDE: measured bb"'))
    done = cloister("check", bad, good, missing, loop, code=2)
    assert done.stderr.splitlines() == [
        f"policy: {bad}:9: unknown field `rtrm2` in [tdx]; see docs/reference/policy.md",
        f"policy: {missing} cannot be read (No such file or directory); name an existing policy file",
        f"policy: {loop}:2: max_age_seconds is not decided; an hour?",
        f"policy: {loop}:7: tdx.rtmr0 is not decided; measured bb",
    ]
    assert done.stdout.startswith(f"{good}: accepts TDX")
    found = json.loads(cloister("check", bad, good, "--json", code=2).stdout)["policies"]
    assert [one["accepted"] for one in found] == [False, True]
    assert found[0]["refusals"][0].startswith(f"policy: {bad}:9: ")


def test_explain_says_what_is_required_and_what_is_not(good: Path) -> None:
    text = cloister("explain", good).stdout
    assert "  + the firmware (MRTD) must measure aaaa" in text
    assert "  ? RTMR0 (virtual hardware and firmware configuration) may be anything\n      risk: " in text
    assert "  x a workload in debug mode, of any kind" in text
    assert read_policy(good).digest in text
    document = json.loads(cloister("explain", good, "--json").stdout)
    fields = {one["field"]: one for section in document["sections"] for one in section["statements"]}
    assert fields["tdx.rtmr0"]["kind"] == "not checked"
    assert fields["tdx.rtmr0"]["risk"]
    assert document["digest"] == read_policy(good).digest


def test_explain_refuses_what_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("format = 1\n")
    assert cloister("explain", path, code=2).stderr.startswith(f"policy: {path}:1: ")
    error = json.loads(cloister("explain", path, "--json", code=2).stderr)
    assert (error["layer"], error["exit_code"]) == ("policy", 2)


def test_a_draft_from_a_captured_quote_waits_for_decisions(tmp_path: Path) -> None:
    out = tmp_path / "draft.toml"
    quote, collateral = (
        vectors(f"phala-dcap-qvl/{name}") for name in ("tdx_quote", "tdx_quote_collateral.json")
    )
    arguments = ("from-evidence", quote, "--endorsements", collateral, "--at", "2025-06-25")
    said = cloister(*arguments, "--out", out).stdout
    assert "7 decisions are yours" in said
    refused = cloister("check", out, code=2).stderr.splitlines()
    assert len(refused) == 7
    assert all("is not decided" in line for line in refused)
    assert cloister(*arguments, "--out", out, code=2).stderr.startswith(f"usage: {out} exists")
    assert cloister(*arguments).stdout == out.read_text()
    document = json.loads(cloister(*arguments, "--json").stdout)
    assert document["draft"] == out.read_text()
    assert [one["field"] for one in document["decisions"]][:2] == [
        "max_age_seconds",
        "tcb.min_evaluation_number",
    ]


def test_a_decided_draft_is_a_policy(tmp_path: Path) -> None:
    out = tmp_path / "draft.toml"
    evidence = tmp_path / "evidence.json"
    evidence.write_bytes(encode_bundle(bundle_of("tdx")))
    root = attacks.platform().root_sha256
    arguments = (
        "from-evidence",
        evidence,
        "--simulated-root",
        root,
        "--at",
        str(NOW),
        "--nonce",
        NONCE.hex(),
    )
    cloister(*arguments, "--out", out)
    text = out.read_text()
    assert "SIMULATED TEE" in text
    assert "nonce" not in text
    for old, new in (("max_age_seconds = ", "60"), ("min_evaluation_number = ", "17")):
        line = next(line for line in text.splitlines() if line.startswith(old))
        text = text.replace(line, old + new)
    head, _, rest = text.partition("[hardware]\n")
    out.write_text(head + "[" + rest.partition("\n[")[2])
    assert "accepts SIMULATED TDX" in cloister("check", out).stdout


def test_simulated_and_forged_evidence_gives_no_draft(tmp_path: Path) -> None:
    evidence = tmp_path / "evidence.json"
    evidence.write_bytes(encode_bundle(bundle_of("tdx")))
    done = cloister("from-evidence", evidence, "--at", str(NOW), code=3)
    assert done.stderr.startswith("verifier: the chain ends in root")
    root = attacks.platform().root_sha256
    done = cloister(
        "from-evidence", evidence, "--at", str(NOW), "--simulated-root", root, "--nonce", "11" * 32, code=3
    )
    assert "nonce" in done.stderr
    assert cloister("from-evidence", evidence, "--nonce", "00", code=2).stderr.startswith("usage: --nonce")
    assert cloister("from-evidence", evidence, "--at", "never", code=2).stderr.startswith("usage: --at")
    nothing = tmp_path / "nothing"
    nothing.write_bytes(b"")
    assert cloister("from-evidence", nothing, code=3).stderr.startswith("evidence: ")
    assert cloister("from-evidence", tmp_path / "absent", code=2).stderr.startswith("usage: ")
