"""`cloister verify`, as a person and as a script sees it."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from cloister.appraisal.given import Given
from cloister.cli.endorsements_at_hand import at_hand
from cloister.cli.report_words import inert, moment
from cloister.cli.verify import parse_time
from cloister.errors import EXIT_NETWORK, EXIT_POLICY, EXIT_USAGE, EXIT_VERIFICATION, UsageError
from cloister.evidence.recognise import recognise
from cloister.verifier.trail import CHECKS
from examined import AT, bundle, run, steers, write_bundle, write_policy
from shared_data import vectors
from simulated_evidence import NONCE, NOW, platform

# Typer 0.20 (the newest that Flower allows) imports names that Click 8.5 deprecates.
pytestmark = pytest.mark.filterwarnings(r"ignore:'click\.utils:DeprecationWarning")

SGX = "phala-dcap-qvl/sgx_quote"
COLLATERAL = "phala-dcap-qvl/sgx_quote_collateral.json"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sgx(*more: str, at: str = "2025-06-25") -> tuple[str, ...]:
    return (
        "verify", str(vectors(SGX)), "--endorsements", str(vectors(COLLATERAL)), "--at", at, "--offline", *more,
    )  # fmt: skip


def test_a_genuine_quote_is_a_table_of_seventeen_checks_and_its_claims_in_words() -> None:
    ran = run(*sgx())
    assert (ran.code, ran.err) == (0, "")
    assert "genuine, not appraised" in ran.out.splitlines()[0]
    numbers = re.findall(r"^[✓✗–] +(\d+)  ", ran.out, re.MULTILINE)
    assert numbers == [str(number) for number in CHECKS]
    for words in (
        "Intel SGX: an enclave",
        "Intel SGX Root CA",
        "a setting of the platform and the workload itself have to defend",
        "INTEL-SA-00289",
        "the text 'Hello, world!'",
        "NOT NOW",
        "2025-06-25 00:00:00 UTC",
    ):
        assert words in ran.out
    assert steers(ran.out) == []
    assert not any(line != line.rstrip() for line in ran.out.splitlines())


def test_json_is_one_object_with_stable_names() -> None:
    ran = run(*sgx("--json"))
    found = json.loads(ran.out)
    assert ran.out.isascii()
    assert list(found) == [
        "format", "verdict", "verdict_in_words", "exit_code", "simulated", "source", "kind", "what", "evidence_sha256",
        "policy", "policy_digest", "endorsements", "at", "at_is_now", "error", "checks", "claims", "devices", "facts",
    ]  # fmt: skip
    assert (found["format"], found["verdict"], found["error"]) == (
        "cloister/verification/v1",
        "genuine",
        None,
    )
    assert [row["number"] for row in found["checks"]] == list(CHECKS)
    assert {row["state"] for row in found["checks"]} == {"passed", "not asked"}
    assert found["claims"]["measurements"]["mrenclave"].startswith("33d8736d")
    assert found["claims"]["advisory_ids"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    assert (found["at"], found["at_is_now"]) == (1750809600, False)


def test_a_bundle_with_policy_and_nonce_is_accepted_and_its_simulation_shouted(tmp_path: Path) -> None:
    arguments = ("verify", write_bundle(tmp_path), "--policy", write_policy(tmp_path), *AT)
    ran = run(*arguments, "--nonce", NONCE.hex())
    assert ran.code == 0, ran.out
    assert "SIMULATED TEE" in ran.out.splitlines()[1]
    assert "✓ accepted" in ran.out
    assert ran.out.count("✓") == 1 + len(CHECKS)
    found = json.loads(run(*arguments, "--nonce", NONCE.hex(), "--json").out)
    assert (found["verdict"], found["simulated"], found["claims"]["simulated"]) == ("accepted", True, True)
    assert found["endorsements"] == "carried along"
    recorded = json.loads(run(*arguments, "--json").out)
    assert recorded["verdict_in_words"] == "genuine, matches the policy; freshness not asked"


def test_standard_input_is_read_for_a_dash(tmp_path: Path) -> None:
    data = Path(write_bundle(tmp_path)).read_bytes()
    policy = write_policy(tmp_path)
    ran = run("verify", "-", "--policy", policy, *AT, "--json", stdin=data)
    assert (ran.code, json.loads(ran.out)["source"]) == (0, "-")


CODES = {
    "simulated without a policy": ((), EXIT_VERIFICATION, "[roots] simulated ="),
    "another nonce": (("--policy", "P", "--nonce", "ab" * 32), EXIT_VERIFICATION, "binds other keys"),
    "another measurement": (("--policy", "OTHER"), EXIT_POLICY, "mrtd is"),
    "a nonce of another length": (("--nonce", "abcd"), EXIT_USAGE, "--nonce is not 64 hexadecimal digits"),
    "a nonce that is no number": (("--nonce", "é" * 64), EXIT_USAGE, "--nonce is not 64 hexadecimal digits"),
    "no such policy": (("--policy", "MISSING"), EXIT_USAGE, "cannot be read (No such file"),
    "no such endorsements": (("--endorsements", "MISSING"), EXIT_USAGE, "cannot be read"),
    "a log that is none": (("--event-log", "P"), EXIT_USAGE, "no event log"),
    "a report that cannot be written": (("--html", "MISSING/report.html"), EXIT_USAGE, "cannot write"),
}


@pytest.mark.parametrize("name", CODES)
def test_each_refusal_has_its_exit_code_in_text_and_json(name: str, tmp_path: Path) -> None:
    arguments, code, part = CODES[name]
    other = tmp_path / "other"
    other.mkdir()
    mrtd = platform().tee("tdx").measurements["mrtd"].hex()
    names = {
        "P": write_policy(tmp_path),
        "OTHER": write_policy(other, **{mrtd: "ab" * 48}),
        "MISSING": str(tmp_path / "nothing"),
        "MISSING/report.html": str(tmp_path / "nothing" / "report.html"),
    }
    whole = ("verify", write_bundle(tmp_path), *AT, *(names.get(one, one) for one in arguments))
    ran, as_json = run(*whole), run(*whole, "--json")
    assert (ran.code, as_json.code) == (code, code)
    assert part in " ".join((ran.out + ran.err).split())
    if code == EXIT_USAGE:
        assert (ran.out, as_json.out) == ("", "")
        assert json.loads(as_json.err)["exit_code"] == code
    else:
        assert json.loads(as_json.out)["exit_code"] == code
        assert json.loads(as_json.out)["error"]["todo"]


def test_what_a_refused_workload_measured_is_shown_for_comparison(tmp_path: Path) -> None:
    mrtd = platform().tee("tdx").measurements["mrtd"].hex()
    ran = run("verify", write_bundle(tmp_path), "--policy", write_policy(tmp_path, **{mrtd: "ab" * 48}), *AT)
    assert "refused: genuine, but not what the policy allows" in ran.out
    assert mrtd in ran.out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1750852800", 1750852800),
        ("2025-06-25", 1750809600),
        ("2025-06-25T12:00:00Z", 1750852800),
        ("2025-06-25T14:00:00+02:00", 1750852800),
        ("2025-06-25T12:00", 1750852800),
    ],
)
def test_a_time_is_a_date_a_moment_or_seconds(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "now", "yesterday", "-1", "1e9", "99999999999999999999", "2025-13-01", "9999-12-31", "²"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--at is no time"):
        parse_time(text)


def test_an_event_log_beside_a_bare_quote_is_replayed(tmp_path: Path) -> None:
    whole = bundle()
    for name, data in (("quote", whole.quote), ("log", whole.event_log), ("collateral", whole.endorsements)):
        (tmp_path / name).write_bytes(data)
    arguments = (
        "verify", str(tmp_path / "quote"), "--event-log", str(tmp_path / "log"), "--policy", write_policy(tmp_path),
        "--endorsements", str(tmp_path / "collateral"), *AT, "--json",
    )  # fmt: skip
    assert json.loads(run(*arguments).out)["verdict"] == "matches"


def test_offline_without_endorsements_is_refused_at_their_check() -> None:
    ran = run("verify", str(vectors(SGX)), "--offline", "--json")
    found = json.loads(ran.out)
    assert (ran.code, found["error"]["check"], found["endorsements"]) == (EXIT_VERIFICATION, 6, "none")


def test_a_service_for_endorsements_that_does_not_answer_is_a_network_failure() -> None:
    ran = run("verify", str(vectors(SGX)), "--pccs", "http://127.0.0.1:9", "--json")
    assert ran.code == EXIT_NETWORK
    assert json.loads(ran.err)["layer"] == "network"


def test_endorsements_come_from_where_they_are_said_to(tmp_path: Path) -> None:
    carried = recognise(Path(write_bundle(tmp_path)).read_bytes())
    given = Given(intel=b"{}")

    def told(subject: bytes | None, given: Given) -> str:
        one = carried if subject is None else recognise(subject)
        return at_hand(one, given, offline=True, pccs=None, now=NOW, cache=tmp_path / "cache")[1]

    quote = bundle().quote
    assert told(None, Given()) == "carried along"
    assert told(None, given) == "given"
    assert told(quote, given) == "given"
    assert told(quote, Given()) == "none"
    assert told(quote[:100], Given()) == "none needed"  # malformed: nobody is asked about it


def test_the_page_is_whole_and_loads_and_runs_nothing(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    ran = run(*sgx("--html", str(page)))
    text = page.read_text(encoding="utf-8")
    assert ran.out.rstrip().endswith(f"report: {page}")
    assert re.findall(r"<(script|img|iframe|link|object|embed|a|form|svg|base)\b", text) == []
    assert "default-src 'none'" in text
    assert "https://" not in text
    assert text.count("<tr class=") == len(CHECKS)
    for part in (
        "Intel SGX Root CA",
        "33d8736db756ed49",
        "f8b81014b6e44360",
        "2025-06-25 00:00:00 UTC",
        "NOT NOW",
    ):
        assert part in text
    assert stat.S_IMODE(page.stat().st_mode) == 0o644
    assert [path.name for path in tmp_path.glob(".cloister-*")] == []


def test_the_page_of_a_simulated_workload_has_the_banner_at_both_ends(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    run("verify", write_bundle(tmp_path), "--policy", write_policy(tmp_path), *AT, "--html", str(page))
    assert page.read_text().count('class="banner" role="alert"') == 2


def test_a_report_replaces_a_file_at_once_and_never_a_directory(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("old")
    before = page.stat().st_ino
    assert run(*sgx("--html", str(page))).code == 0
    assert page.stat().st_ino != before
    assert run(*sgx("--html", str(tmp_path))).code == EXIT_USAGE


def test_help_names_every_option() -> None:
    shown = run("verify", "--help").out
    for option in (
        "--policy",
        "--endorsements",
        "--nonce",
        "--at",
        "--json",
        "--html",
        "--offline",
        "--pccs",
        "--ear",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("two\nlines\r", "two\\x0alines\\x0d"),
        ("\u202eevil", "\\u202eevil"),
        ("\U000e0001tag", "\\U000e0001tag"),
        ("a" * 5000, "a" * 4096 + "… (5000 characters)"),
    ],
)
def test_text_of_evidence_is_inert(text: str, expected: str) -> None:
    assert inert(text) == expected


def test_a_time_beyond_the_calendar_is_a_number() -> None:
    assert moment(1 << 62) == f"{1 << 62} (Unix seconds)"
