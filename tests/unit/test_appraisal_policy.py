"""Policy files: what may be written, and every way of not deciding that is refused with file and line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.appraisal.policy import Policy, load_policy, read_policy
from cloister.appraisal.reference_intel import intel_rules
from cloister.endorsements.roots import INTEL_ROOT, INTEL_SGX_ROOT_SHA256
from cloister.errors import EXIT_USAGE, PolicyError
from spec_vectors import SPEC

A, B = "aa" * 48, "bb" * 48
E32 = "ee" * 32

HEAD = """\
format = "cloister/policy/v1"
max_age_seconds = 3600
[tcb]
min_evaluation_number = 17
"""
TDX = f"""\
[tdx]
mrtd = ["{A}", "{B}"]
rtmr0 = ["{A}"]
rtmr1 = ["{A}"]
rtmr2 = ["{A}"]
rtmr3 = "any"
"""
EVENTS = f"""\
[tdx.events]
"cloister.config" = ["{E32}"]
"cloister.program" = "any"
"""
SGX = f"""\
[sgx]
mrenclave = ["{E32}"]
"""
SIGNER = f"""\
[sgx]
mrsigner = ["{E32}"]
isv_prod_id = 1
min_isv_svn = 2
"""


def test_a_policy_says_what_it_accepts() -> None:
    policy = load_policy(HEAD + TDX + EVENTS + SGX, name="p.toml")
    assert policy.tees == ("tdx", "sgx")
    assert policy.roots_of("tdx") == policy.roots_of("sgx") == (INTEL_ROOT,)
    assert policy.tcb is not None
    assert policy.tcb.accepted_statuses == ("UpToDate",)
    rules = intel_rules(policy.tcb, policy.platform)
    assert rules.accepted_statuses == frozenset({"UpToDate"})
    assert rules.min_tcb_evaluation_number == 17
    assert (rules.allow_dynamic_platform, rules.allow_cached_keys, rules.allow_smt) == (False, False, False)
    assert rules.out_of_date_grace == 0
    assert not any("debug" in field for kind in (Policy, *type(policy.tdx).__mro__) for field in dir(kind))


def test_every_field_can_be_written() -> None:
    text = f"""\
format = "cloister/policy/v1"
max_age_seconds = 1
[tcb]
min_evaluation_number = 1
accepted_statuses = ["UpToDate", "SWHardeningNeeded", "OutOfDate"]
out_of_date_grace_seconds = 86400
rejected_advisories = ["INTEL-SA-00289"]
[platform]
allow_dynamic_platform = true
allow_cached_keys = true
allow_smt = true
[roots]
vendor = ["intel"]
[tdx]
mrtd = ["{A}"]
rtmr0 = "any"
rtmr1 = "any"
rtmr2 = "any"
rtmr3 = "any"
service_td = ["{B}"]
"""
    policy = load_policy(text + SIGNER, name="p.toml")
    assert policy.tcb is not None
    rules = intel_rules(policy.tcb, policy.platform)
    assert rules.out_of_date_grace == 86400
    assert rules.rejected_advisories == frozenset({"INTEL-SA-00289"})
    assert policy.sgx is not None
    assert policy.sgx.min_isv_svn == 2


def test_a_simulated_root_is_named_by_its_digest_only() -> None:
    policy = load_policy(HEAD + f'[roots]\nsimulated = "{E32}"\n' + TDX, name="p.toml")
    (root,) = policy.roots_of("tdx")
    assert root.simulated is True
    assert root.sha256 == E32
    assert policy.roots_of("snp") == policy.roots_of("az-snp-vtpm") == (root,)


def replaced(old: str, new: str, text: str = HEAD + TDX + EVENTS) -> str:
    assert old in text
    return text.replace(old, new, 1)


BAD = {
    # name: (text, part of the error)
    "empty": ("", "missing required field `format`"),
    "not-toml": ("format = ", "p.toml:1: not TOML"),
    "a-key-twice": (HEAD + TDX + '[tdx]\nmrtd = "any"\n', "p.toml:11: not TOML"),
    "too-deep": ("a = " + "[" * 100_000, "p.toml:1: nested deeper than 32"),
    "dots-too-deep": (HEAD + "a" + ".a" * 100_000 + " = 1", "p.toml:5: nested deeper than 32"),
    "too-long": ("#" * (256 * 1024 + 1), "longer than"),
    "another-format": (replaced("policy/v1", "policy/v2"), "p.toml:1: "),
    "no-format": (replaced('format = "cloister/policy/v1"\n', ""), "missing required field `format`"),
    "no-tee": (HEAD, "accepts no kind of TEE"),
    "no-tcb-table": (
        replaced("[tcb]\nmin_evaluation_number = 17\n", ""),
        "p.toml:3: [tcb] and [tdx] or [sgx] go together",
    ),
    "no-evaluation-number": (replaced("min_evaluation_number = 17\n", ""), "`min_evaluation_number`"),
    "evaluation-number-zero": (replaced("= 17", "= 0"), "p.toml:4: min_evaluation_number"),
    "evaluation-number-as-text": (replaced("= 17", '= "17"'), "p.toml:4: "),
    "evaluation-number-as-float": (replaced("= 17", "= 17.0"), "p.toml:4: "),
    "no-max-age": (replaced("max_age_seconds = 3600\n", ""), "`max_age_seconds`"),
    "max-age-zero": (replaced("3600", "0"), "p.toml:2: max_age_seconds"),
    "max-age-of-a-year": (replaced("3600", "31536000"), "p.toml:2: max_age_seconds"),
    "no-status": (replaced("= 17", "= 17\naccepted_statuses = []"), "accepted_statuses is an empty list"),
    "unknown-status": (replaced("= 17", '= 17\naccepted_statuses = ["OK"]'), "unknown status 'OK'"),
    "status-in-lower-case": (replaced("= 17", '= 17\naccepted_statuses = ["uptodate"]'), "'uptodate'"),
    "revoked-accepted": (replaced("= 17", '= 17\naccepted_statuses = ["Revoked"]'), "never accepted"),
    "status-twice": (
        replaced("= 17", '= 17\naccepted_statuses = ["UpToDate", "UpToDate"]'),
        "lists a value twice",
    ),
    "out-of-date-without-grace": (replaced("= 17", '= 17\naccepted_statuses = ["OutOfDate"]'), "go together"),
    "grace-without-out-of-date": (replaced("= 17", "= 17\nout_of_date_grace_seconds = 60"), "go together"),
    "grace-for-ever": (
        replaced("= 17", '= 17\naccepted_statuses = ["OutOfDate"]\nout_of_date_grace_seconds = 9999999999'),
        "out_of_date_grace_seconds must be",
    ),
    "advisory-with-a-space": (replaced("= 17", '= 17\nrejected_advisories = ["a b"]'), "no advisory id"),
    "unknown-field": (HEAD + "colour = 1\n" + TDX, "p.toml:5: "),
    "unknown-table": (HEAD + TDX + "[gpu]\n", "p.toml:11: "),
    "debug": (replaced("[tdx]", "[tdx]\ndebug = true"), "unknown field `debug`"),
    "no-rtmr3": (replaced('rtmr3 = "any"\n', ""), "`rtmr3`"),
    "empty-list": (replaced(f'mrtd = ["{A}", "{B}"]', "mrtd = []"), "p.toml:6: mrtd is an empty list"),
    "another-word-than-any": (replaced('rtmr3 = "any"', 'rtmr3 = "ANY"'), "p.toml:10: "),
    "a-digest-without-a-list": (replaced('rtmr3 = "any"', f'rtmr3 = "{A}"'), "p.toml:10: "),
    "upper-case-digest": (replaced('rtmr3 = "any"', f'rtmr3 = ["{A.upper()}"]'), "p.toml:10: rtmr3"),
    "short-digest": (replaced('rtmr3 = "any"', 'rtmr3 = ["aa"]'), "p.toml:10: rtmr3 must be 96"),
    "digest-not-hex": (replaced('rtmr3 = "any"', f'rtmr3 = ["{"g" * 96}"]'), "p.toml:10: rtmr3"),
    "a-digest-twice": (replaced(f'"{B}"', f'"{A}"'), "mrtd lists a value twice"),
    "nothing-pinned": (
        HEAD + "[tdx]\n" + "".join(f'{name} = "any"\n' for name in ("mrtd", *(f"rtmr{i}" for i in range(4)))),
        "every trust domain in the world",
    ),
    "firmware-unpinned": (replaced(f'mrtd = ["{A}", "{B}"]', 'mrtd = "any"'), "p.toml:6: mrtd"),
    "events-alone": (
        HEAD
        + "[tdx]\n"
        + "".join(f'{name} = "any"\n' for name in ("mrtd", *(f"rtmr{i}" for i in range(4))))
        + EVENTS,
        "every trust domain in the world",
    ),
    "event-without-payload": (replaced(f'["{E32}"]', "[]"), "cloister.config is an empty list"),
    "event-payload-not-hex": (replaced(f'["{E32}"]', '["xy"]'), "cloister.config"),
    "event-payload-of-odd-length": (replaced(f'["{E32}"]', '["abc"]'), "cloister.config"),
    "event-payload-too-long": (replaced(E32, "aa" * 4097), "over 4096 bytes"),
    "event-without-name": (replaced('"cloister.config"', '""'), "1 to 64"),
    "no-events": (HEAD + TDX + "[tdx.events]\n", "events is an empty table"),
    "no-service-td": (
        replaced('rtmr3 = "any"', 'rtmr3 = "any"\nservice_td = []'),
        "service_td is an empty list",
    ),
    "no-advisory": (
        replaced("= 17", "= 17\nrejected_advisories = []"),
        "rejected_advisories is an empty list",
    ),
    "five-thousand-digits": (replaced("= 17", "= " + "9" * 5000), "p.toml:4: not TOML"),
    "service-td-short": (replaced('rtmr3 = "any"', 'rtmr3 = "any"\nservice_td = ["00"]'), "service_td"),
    "sgx-empty": (HEAD + "[sgx]\n", "sgx needs mrenclave"),
    "sgx-mrenclave-any": (HEAD + '[sgx]\nmrenclave = "any"\n', "p.toml:6: "),
    "sgx-no-mrenclave": (HEAD + "[sgx]\nmrenclave = []\n", "mrenclave is an empty list"),
    "sgx-both": (HEAD + SIGNER + f'mrenclave = ["{E32}"]\n', "decide for one"),
    "sgx-signer-without-version": (
        HEAD + SIGNER.replace("min_isv_svn = 2\n", ""),
        "sgx needs mrenclave, or mrsigner with",
    ),
    "sgx-signer-without-product": (
        HEAD + SIGNER.replace("isv_prod_id = 1\n", ""),
        "sgx needs mrenclave, or mrsigner with",
    ),
    "sgx-product-out-of-range": (HEAD + SIGNER.replace("= 1", "= 65536"), "isv_prod_id must be 0 to 65535"),
    "sgx-events": (HEAD + SGX + "[sgx.events]\n", "unknown field `events`"),
    "mixed-roots": (
        HEAD + f'[roots]\nvendor = ["intel"]\nsimulated = "{E32}"\n' + TDX,
        "p.toml:7: simulated stands beside vendor roots",
    ),
    "intel-as-simulated": (HEAD + f'[roots]\nsimulated = "{INTEL_SGX_ROOT_SHA256}"\n' + TDX, "vendor's root"),
    "simulated-as-bool": (HEAD + "[roots]\nsimulated = true\n" + TDX, "p.toml:6: "),
    "simulated-not-a-digest": (HEAD + '[roots]\nsimulated = "any"\n' + TDX, "p.toml:6: simulated must be 64"),
    "no-vendor": (HEAD + "[roots]\nvendor = []\n" + TDX, "vendor is an empty list"),
    "unknown-vendor": (HEAD + '[roots]\nvendor = ["acme"]\n' + TDX, "vendor names 'acme'"),
    "platform-unknown": (HEAD + "[platform]\nallow_debug = true\n" + TDX, "unknown field `allow_debug`"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_policy_that_does_not_decide_is_refused(case: str) -> None:
    text, part = BAD[case]
    with pytest.raises(PolicyError) as refusal:
        load_policy(text, name="p.toml")
    assert refusal.value.what.startswith("p.toml")
    assert part in str(refusal.value)
    assert refusal.value.exit_code == EXIT_USAGE
    assert len(str(refusal.value)) < 600


@given(st.text(max_size=400))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    for whole in (text, HEAD + TDX + text, HEAD + "[roots]\nsimulated = '''" + text):
        try:
            load_policy(whole, name="p.toml")
        except PolicyError:
            continue


def test_a_digest_names_what_is_meant_not_how_it_is_laid_out() -> None:
    plain = load_policy(HEAD + TDX, name="a")
    assert plain.digest == load_policy("# a comment\n" + HEAD + "\n\n" + TDX, name="b").digest
    assert len(plain.digest) == 64
    for other in (HEAD + TDX + EVENTS, (HEAD + TDX).replace("3600", "3601"), HEAD + TDX + SGX):
        assert load_policy(other, name="c").digest != plain.digest


def test_a_policy_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(HEAD + TDX)
    assert read_policy(path) == read_policy(str(path)) == load_policy(HEAD + TDX, name="p")


@pytest.mark.parametrize("case", ["missing", "folder", "latin-1", "large"])
def test_a_file_that_cannot_be_read_is_a_policy_error(case: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    if case == "folder":
        path.mkdir()
    elif case == "latin-1":
        path.write_bytes(b"# \xe4\n")
    elif case == "large":
        path.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(PolicyError, match=r"policy\.toml"):
        read_policy(path)


def test_the_example_of_the_specification_is_a_policy_with_the_digest_it_states() -> None:
    page = (SPEC.parent / "reference" / "policy.md").read_text()
    (example,) = re.findall(r"<!-- example -->\n```toml\n(.*?)```", page, re.DOTALL)
    policy = load_policy(example, name="policy.md")
    assert policy.digest == re.findall(r"^    ([0-9a-f]{64})$", page, re.MULTILINE)[0]
    assert policy.tees == ("tdx", "sgx")
