"""Policies that would accept too much, by mistake or by malice: each is refused, at its line, before it judges anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cloister.appraisal.policy import load_policy, read_policy
from cloister.endorsements.roots import AMD_ARK_SHA256S, INTEL_SGX_ROOT_SHA256, NVIDIA_DEVICE_ROOT_SHA256
from cloister.errors import EXIT_USAGE, PolicyError

A, B, E32, F32 = "aa" * 48, "bb" * 48, "ee" * 32, "ff" * 32
HEAD = 'format = "cloister/policy/v1"\nmax_age_seconds = 3600\n'
TCB = "[tcb]\nmin_evaluation_number = 17\n"
REGISTERS = "".join(f'rtmr{number} = ["{A}"]\n' for number in range(4))
TDX = f'[tdx]\nmrtd = ["{A}"]\n{REGISTERS}'
SNP = f"""\
[snp]
measurement = ["{A}"]
products = ["milan"]
revocation = "required"
min_abi = "1.51"
hardening = "any"
[snp.tcb.milan]
bootloader = 3
tee = 0
snp = 8
microcode = 115
firmware = "1.55.0"
"""
GPUS = """\
[nvidia]
gpus = 8
architectures = ["hopper"]
modes = ["cc"]
revocation = "required"
rims = "required"
driver_versions = "any"
vbios_versions = "any"
"""
TPM = f'[roots]\ntpm = ["{E32}"]\n[tpm]\nrevocation = "required"\n[tpm.pcrs]\n4 = ["{E32}"]\n'
SIMULATED = f'[roots]\nsimulated = "{E32}"\n'
BASE = HEAD + TCB + TDX

ATTACKS: dict[str, tuple[str, int, str]] = {
    # Nothing, or nothing that is decided
    "empty": ("", 1, "missing required field"),
    "only a comment": ("# accept everything\n", 1, "missing required field"),
    "no table of any TEE": (HEAD, 1, "accepts no kind of TEE"),
    "all registers any": (
        HEAD
        + TCB
        + "[tdx]\n"
        + "".join(f'{name} = "any"\n' for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")),
        6,
        "every trust domain in the world",
    ),
    "devices listed and none asked for": (
        BASE + f'[hardware]\ndevice = ["{E32}"]\n',
        BASE.count("\n") + 2,
        "stands without [nvidia]",
    ),
    "all PCRs any": (HEAD + TPM.replace(f'4 = ["{E32}"]', '4 = "any"'), 8, "whatever was booted"),
    "an empty list": (BASE.replace(f'mrtd = ["{A}"]', "mrtd = []"), 6, "mrtd is an empty list"),
    "an empty list of machines": (BASE + "[hardware]\nppid = []\n", 12, "ppid is an empty list"),
    "a table of machines that lists none": (BASE + "[hardware]\n", 11, "hardware lists nothing"),
    "no launch events": (BASE + "[tdx.events]\n", 11, "events is an empty table"),
    "an event without payloads": (BASE + "[tdx.events]\n'cloister.config' = []\n", 12, "is an empty list"),
    # "any" where it may not be
    "any firmware": (BASE.replace(f'mrtd = ["{A}"]', 'mrtd = "any"'), 6, "mrtd"),
    "any guest": (HEAD + SNP.replace(f'["{A}"]', '"any"'), 4, "measurement"),
    "any enclave": (HEAD + TCB + '[sgx]\nmrenclave = "any"\n', 6, "mrenclave"),
    "any status": (HEAD + TCB + 'accepted_statuses = "any"\n' + TDX, 5, "accepted_statuses"),
    "any root": (HEAD + TCB + '[roots]\nvendor = "any"\n' + TDX, 6, "vendor"),
    "any simulated root": (HEAD + TCB + '[roots]\nsimulated = "any"\n' + TDX, 6, "simulated must be 64"),
    "any machine": (BASE + '[hardware]\nchip_id = "any"\n', 12, "chip_id"),
    "any in a list": (BASE.replace(f'mrtd = ["{A}"]', f'mrtd = ["{A}", "any"]'), 6, "mrtd must be 96"),
    "any GPUs": (HEAD + SNP + GPUS.replace("gpus = 8", 'gpus = "any"'), 16, "gpus"),
    "another word for any": (BASE.replace(f'rtmr0 = ["{A}"]', 'rtmr0 = "*"'), 7, "rtmr0"),
    # Unknown
    "a field that means well": (
        BASE.replace("[tdx]", "[tdx]\nallow_debug = false"),
        6,
        "unknown field `allow_debug`",
    ),
    "a field of another vendor": (BASE + "vmpl = 0\n", 11, "unknown field `vmpl`"),
    "a table that does not exist": (BASE + "[sev]\n", 11, "unknown field `sev`"),
    "a mistyped field": (BASE.replace("rtmr3", "rtrm3"), 10, "unknown field `rtrm3`"),
    "a revoked platform": (HEAD + TCB + 'accepted_statuses = ["Revoked"]\n' + TDX, 5, "never accepted"),
    # Mixed roots
    "vendor beside simulated": (
        HEAD + TCB + f'[roots]\nvendor = ["intel"]\nsimulated = "{E32}"\n' + TDX,
        7,
        "hardware and simulation are never mixed",
    ),
    "Intel's root as simulated": (
        HEAD + TCB + SIMULATED.replace(E32, INTEL_SGX_ROOT_SHA256) + TDX,
        6,
        "vendor's root",
    ),
    "AMD's root as simulated": (
        HEAD + SIMULATED.replace(E32, AMD_ARK_SHA256S["milan"]) + SNP,
        4,
        "vendor's root",
    ),
    "NVIDIA's root as simulated": (
        HEAD + SIMULATED + f'simulated_device = "{NVIDIA_DEVICE_ROOT_SHA256}"\n' + SNP + GPUS,
        5,
        "vendor's root",
    ),
    "simulated GPUs beside real processors": (
        HEAD + f'[roots]\nsimulated_device = "{E32}"\n' + SNP + GPUS,
        4,
        "simulated_device stands without simulated",
    ),
    "real GPUs beside simulated processors": (
        HEAD + SIMULATED + SNP + GPUS,
        17,
        "needs roots.simulated_device",
    ),
    "a TPM beside a simulation": (
        HEAD + SIMULATED + f'tpm = ["{E32}"]\n' + TPM.partition("]\n")[2].partition("]\n")[2] + SNP,
        6,
        "never mixed",
    ),
    "a vendor left out": (
        HEAD + TCB + '[roots]\nvendor = ["amd"]\n' + TDX,
        6,
        "leaves out the vendor of tdx",
    ),
    "NVIDIA left out": (HEAD + '[roots]\nvendor = ["amd"]\n' + SNP + GPUS, 4, "leaves out nvidia"),
    # A table without its companion
    "tdx without tcb": (HEAD + TDX, 3, "go together"),
    "tcb without tdx": (HEAD + TCB + SNP, 3, "go together"),
    "azure without snp": (HEAD + f'[azure.pcrs]\n4 = ["{E32}"]\n', 3, "[azure] needs [snp]"),
    "tpm without a root": (HEAD + TPM.partition("]\n")[2].partition("]\n")[2], 3, "go together"),
    "a TPM root without a TPM": (BASE + f'[roots]\ntpm = ["{E32}"]\n', 12, "go together"),
    "nvidia alone": (HEAD + GPUS, 1, "accepts no kind of TEE"),
    "out of date without end": (
        HEAD + TCB + 'accepted_statuses = ["UpToDate", "OutOfDate"]\n' + TDX,
        5,
        "out_of_date_grace_seconds",
    ),
    # A draft that nobody finished
    "a mark left": (
        BASE.replace(f'rtmr0 = ["{A}"]', 'rtmr0 = "DECIDE: measured aa"'),
        7,
        "tdx.rtmr0 is not decided",
    ),
    "a mark in a list": (
        BASE.replace(f'rtmr1 = ["{A}"]', f'rtmr1 = [\n  "{A}",\n  "DECIDE",\n]'),
        10,
        "tdx.rtmr1 is not decided",
    ),
    "a mark for a number": (
        BASE.replace("max_age_seconds = 3600", 'max_age_seconds = "DECIDE"'),
        2,
        "max_age_seconds is not decided",
    ),
    "two marks": (
        BASE.replace("= 17", '= "DECIDE: measured 17"').replace(f'rtmr3 = ["{A}"]', 'rtmr3 = "DECIDE"'),
        4,
        "(and 1 more)",
    ),
    # Positions in every construct
    "a wrong element among many": (
        BASE.replace(
            f'mrtd = ["{A}"]', f'mrtd = [\n  "{A}",  # first\n  "{B}",\n\n  "bad",\n  "{"cc" * 48}",\n]'
        ),
        10,
        "mrtd must be 96",
    ),
    "a wrong type among many": (
        BASE.replace(f'mrtd = ["{A}"]', f'mrtd = [\n  "{A}",\n  12,\n]'),
        8,
        "got `int`",
    ),
    "a value twice": (
        BASE.replace(f'mrtd = ["{A}"]', f'mrtd = [\n"{B}",\n"{A}",\n"{B}"]'),
        9,
        "lists a value twice",
    ),
    "an inline table": (HEAD + 'tcb = { min_evaluation_number = "17" }\n' + TDX, 3, "got `str`"),
    "dotted keys": (
        HEAD + "tcb.min_evaluation_number = 17\ntcb.colour = 1\n" + TDX,
        4,
        "unknown field `colour`",
    ),
    "quoted keys": (
        BASE.replace("rtmr2 =", '"rtmr\\u0032" =').replace(A, "zz" * 48, 4),
        6,
        "mrtd must be 96",
    ),
    "a quoted event name": (
        BASE + f'[tdx.events]\n"a b.c" = [\n"{E32}"]\n"d e" = [\n"{E32}",\n"xyz"]\n',
        16,
        "events.d e",
    ),
    "an event of another type": (
        BASE + f'[tdx.events]\n"first" = ["{E32}"]\n"second" = "any"\n"third" = 3\n"fourth" = 4\n',
        14,
        "got `int`",
    ),
    "a minimum of another product": (
        HEAD + SNP + SNP[SNP.index("[snp.tcb") :].replace("milan", "genoa"),
        9,
        "tcb and products",
    ),
    "a PCR that is none": (HEAD + TPM + f'24 = ["{E32}"]\n', 9, "pcrs names '24'"),
    "a wrong PCR value": (HEAD + TPM + f'7 = [\n"{F32}",\n"00"]\n', 11, "pcrs.7"),
    "no TOML": (BASE + "mrtd = [\n", 11, "not TOML"),
    "no TOML in the middle": (BASE.replace("[tdx]", "[tdx"), 5, "not TOML"),
    "a field twice": (BASE.replace("[tdx]", f'[tdx]\nmrtd = ["{B}"]'), 7, "not TOML"),
    # Size and depth
    "deep arrays": (BASE + "x = " + "[" * 100_000, 11, "nested deeper than 32"),
    "deep dots": (BASE + "x" + ".x" * 100_000 + " = 1", 11, "nested deeper than 32"),
    "deep tables": (BASE + "x = " + "{x = " * 33 + "1" + "}" * 33, 11, "nested deeper than 32"),
    "a number without end": (BASE.replace("= 17", "= 1" + "0" * 5000), 4, "not TOML"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_policy_that_accepts_too_much_is_refused_at_its_line(attack: str) -> None:
    text, line, words = ATTACKS[attack]
    with pytest.raises(PolicyError) as refusal:
        load_policy(text, name="policy.toml")
    shown = str(refusal.value)
    assert shown.startswith(f"policy: policy.toml:{line}: "), shown[:200]
    assert words in shown
    assert refusal.value.exit_code == EXIT_USAGE
    assert "\n" not in shown
    assert len(shown) < 700


@pytest.mark.parametrize(
    "text", [BASE, HEAD + SNP, HEAD + TPM, HEAD + SNP + GPUS, HEAD + TCB + SIMULATED + TDX]
)
def test_the_policies_that_were_attacked_are_policies(text: str) -> None:
    assert load_policy(text, name="policy.toml").tees


@pytest.mark.parametrize("size", [256 * 1024 + 1, 8 << 20])
def test_a_huge_policy_is_refused_before_it_is_read(size: int, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(BASE + "#" * size)
    with pytest.raises(PolicyError, match=re.escape("policy.toml is longer than 262144 bytes")):
        read_policy(path)


def test_a_policy_of_many_values_is_judged_as_a_small_one() -> None:
    events = "".join(f'"event {number}" = ["{number:064x}"]\n' for number in range(250))
    assert load_policy(BASE + "[tdx.events]\n" + events, name="p").tdx is not None
    digests = ",\n".join(f'"{number:096x}"' for number in range(2000))
    many = BASE.replace(f'mrtd = ["{A}"]', f"mrtd = [\n{digests}\n]")
    assert load_policy(many, name="p").tdx is not None
    with pytest.raises(PolicyError, match=r"^policy: p:1907: mrtd must be 96"):
        load_policy(many.replace(f"{1900:096x}", "0" * 95), name="p")


def test_names_from_the_file_do_not_steer_a_terminal() -> None:
    for text in (
        BASE + '"\\u001b[31m" = 1\n',
        BASE + '[tdx.events]\n"\\u001b[2J" = "DECIDE: \\u001b[2J"\n',
        BASE.replace(f'rtmr0 = ["{A}"]', 'rtmr0 = "\\u001b[2J"'),
    ):
        with pytest.raises(PolicyError) as refusal:
            load_policy(text, name="p")
        assert str(refusal.value).isprintable()
