"""The allow-list of machines: every list that speaks of a kind of evidence must hold the machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.appraisal.hardware import Hardware, judge_hardware
from cloister.endorsements.roots import INTEL_ROOT
from cloister.errors import AppraisalRefused
from cloister.evidence.bundle import TeeKind
from cloister.verifier.claims import Claims
from cloister.verifier.intel import verify
from cloister.verifier.trail import Trail
from intel_vectors import SERVER, at, collateral, quote

PPID, PCK, CHIP, EK = "aa" * 16, "bb" * 32, "cc" * 64, "dd" * 32


def claims(tee: TeeKind, **shown: str) -> Claims:
    genuine = verify(
        quote("phala-dcap-qvl/tdx_quote"),
        collateral("tdx_quote_collateral"),
        root=INTEL_ROOT,
        now=at("2025-06-27"),
        rules=SERVER,
    )
    return replace(genuine, tee=tee, hardware=shown)


def test_a_machine_on_every_list_is_accepted_and_said() -> None:
    trail = Trail()
    judge_hardware(claims("tdx", ppid=PPID, pck_sha256=PCK), Hardware(ppid=(PPID,), pck_sha256=(PCK,)), trail)
    assert [(check.number, check.name) for check in trail.passed] == [(11, "hardware allow-list")]


def test_without_lists_nothing_is_asked() -> None:
    trail = Trail()
    judge_hardware(claims("tdx", ppid=PPID), None, trail)
    assert trail.passed == ()


@pytest.mark.parametrize(
    ("shown", "hardware", "words"),
    [
        (claims("tdx", ppid=PPID, pck_sha256=PCK), Hardware(ppid=("00" * 16,)), "ppid is aaaa"),
        (claims("tdx", ppid=PPID, pck_sha256=PCK), Hardware(ppid=(PPID,), pck_sha256=(EK,)), "pck_sha256 is bb"),
        (claims("tdx", ppid=PPID, pck_sha256=PCK), Hardware(chip_id=(CHIP,)), "none by what tdx evidence shows"),
        (claims("snp"), Hardware(chip_id=(CHIP,)), "chip_id, which this evidence does not show"),
        (
            claims("az-snp-vtpm", ek_sha256=EK),
            Hardware(chip_id=(CHIP,), ek_sha256=(EK,)),
            "chip_id, which this evidence does not show",
        ),
        (
            claims("az-snp-vtpm", chip_id=CHIP),
            Hardware(chip_id=(CHIP,), ek_sha256=(EK,)),
            "ek_sha256, which this evidence does not show",
        ),
        (claims("tpm"), Hardware(ek_sha256=(EK,)), "ek_sha256, which this evidence does not show"),
    ],
    ids=[
        "another-processor", "another-key", "listed-by-another-kind", "masked-chip",
        "azure-hides-the-chip", "azure-hides-the-key", "key-without-identity",
    ],
)  # fmt: skip
def test_a_machine_that_is_not_listed_or_hides_is_refused(
    shown: Claims, hardware: Hardware, words: str
) -> None:
    with pytest.raises(AppraisalRefused, match=words):
        judge_hardware(shown, hardware, Trail())
