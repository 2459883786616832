"""Every captured file, examined as a person would: the outcome that its source states, and at which check.

``gpu`` and ``switch`` files, quotes, reports and manifests are evidence; everything else vouches for evidence, is a
log or a key, or is of no format that is read, and is never taken for evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cloister.appraisal.asked import Asked
from cloister.appraisal.examination import examine
from cloister.appraisal.given import gather
from cloister.errors import EvidenceError, UsageError
from cloister.evidence.recognise import recognise
from intel_vectors import at, collateral
from shared_data import vectors
from vector_kinds import VECTORS

PHALA, COCO, GOOGLE, VIRTEE = "phala-dcap-qvl", "coco-trustee", "google-go-sev-guest", "virtee-sev"
SDK, NVTRUST = "nvidia-attestation-sdk", "nvidia-nvtrust"


@dataclass(frozen=True)
class Case:
    """One examination without a policy. ``given`` are vectors, or names of assembled collateral."""

    name: str
    given: tuple[str, ...] = ()
    day: str = "2025-06-25"
    stops: int | None = None
    """The check that fails; None where it is genuine."""
    says: str = ""
    """Part of the refusal, or the TCB status."""


MILAN = f"{COCO}/milan_ask_ark_asvk.pem"
CASES = (
    Case(
        f"{PHALA}/sgx_quote",
        (f"{PHALA}/sgx_quote_collateral.json",),
        says="ConfigurationAndSWHardeningNeeded",
    ),
    Case(f"{PHALA}/sgx_quote", (f"{PHALA}/sgx_quote_collateral.json",), "2025-07-20", 6, "expired"),
    Case(f"{PHALA}/tdx_quote", (f"{PHALA}/tdx_quote_collateral.json",), says="UpToDate"),
    Case(f"{PHALA}/quote_hex.txt", (f"{PHALA}/quote_collateral.json",), "2025-09-10", says="UpToDate"),
    Case(
        f"{PHALA}/tdx_quote_outdated",
        (f"{PHALA}/tdx_quote_outdated_collateral.json",),
        "2026-03-01",
        9,
        "No matching TCB level",
    ),
    Case(f"{PHALA}/quote-from-tappd.hex", stops=6, says="no collateral"),
    Case(f"{PHALA}/tdx-quote.hex", stops=6, says="no collateral"),
    Case(f"{COCO}/occlum_quote.dat", stops=4, says="debug"),
    Case(f"{COCO}/request.json", stops=4, says="debug"),
    Case(f"{COCO}/tdx_quote_5.dat", stops=6, says="no collateral"),
    Case(f"{COCO}/tdx_quote_6.dat", stops=6, says="no collateral"),
    Case(
        "dstack/quote-report.json",
        (f"{PHALA}/tdx_quote_outdated_collateral.json",),
        "2026-03-01",
        says="UpToDate",
    ),
    Case("google-go-tdx-guest/tdx_prod_quote_SPR_E4.dat", stops=3, says="39 bytes behind its end"),
    Case(f"{COCO}/snp/test-report.bin", (f"{COCO}/snp/test-vcek.der", MILAN)),
    Case(f"{COCO}/snp/test-report.bin", (f"{COCO}/snp/test-vcek-invalid-legacy.der", MILAN), stops=7),
    Case(f"{COCO}/snp/test-vlek-report.bin", (f"{COCO}/snp/test-vlek.der", MILAN)),
    Case(f"{COCO}/snp/test-vlek-report.bin", (f"{COCO}/snp/test-vlek.der", MILAN), "2026-01-01", 6),
    Case(f"{COCO}/snp/test-vlek-report.bin", (f"{COCO}/snp/test-vcek.der", MILAN), stops=7),
    Case(f"{COCO}/snp/test-report.bin", stops=6, says="no endorsements"),
    Case(
        f"{GOOGLE}/attestation.bin",
        (f"{GOOGLE}/vcek.testcer", f"{GOOGLE}/ask_ark_milan.pem"),
        stops=4,
        says="debug",
    ),
    Case(f"{VIRTEE}/report_milan.hex", (f"{VIRTEE}/vcek_milan.der", f"{VIRTEE}/cert_chain_milan")),
    Case(f"{VIRTEE}/report_milan.hex", (f"{VIRTEE}/vcek_milan.der", f"{VIRTEE}/snp_milan_ask.pem")),
    Case(f"{VIRTEE}/report_milan.hex", (f"{VIRTEE}/vcek_turin.der", f"{VIRTEE}/cert_chain_turin"), stops=7),
    Case(f"{COCO}/nvidia/hopperAttestationReport.txt", (f"{COCO}/nvidia/hopper_cert_chain_case1.txt",)),
    Case(
        f"{COCO}/nvidia/hopperAttestationReport.txt",
        (f"{COCO}/nvidia/hopper_cert_chain_case2.txt",),
        stops=16,
    ),
    Case(f"{COCO}/nvidia/hopperAttestationReport.txt", stops=3, says="does not say whose key"),
    Case(f"{SDK}/hopper_evidence.json"),
    Case(f"{SDK}/multi_gpu_hopper.json"),
    Case(f"{SDK}/switch_evidence_ls10.json"),
    Case(f"{NVTRUST}/gpu_evidence.json"),
    Case(f"{NVTRUST}/switch_evidence.json"),
    Case(f"{SDK}/NV_GPU_DRIVER_GH100_550.144.03.xml"),
    Case(f"{SDK}/incorrect_signature_driver_rim.xml", stops=7, says="does not hold"),
    Case(f"{SDK}/incorrect_cert_chain_driver_rim.xml", stops=7),
    Case(f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag", day="2025-06-01"),
    Case(f"{NVTRUST}/1010_0200_882_96005E0001_PROD.swidtag", stops=6, says="ended"),
)
EVIDENCE = {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}, {case.day}, {len(case.given)} given")
def test_a_captured_file_has_the_outcome_that_its_source_states(case: Case) -> None:
    given = gather([recognise(vectors(name).read_bytes()) for name in case.given])
    found = examine(recognise(vectors(case.name).read_bytes()), Asked(now=at(case.day), given=given))
    failed = [row.number for row in found.rows if row.state == "failed"]
    assert failed == ([] if case.stops is None else [case.stops]), found.error
    if case.stops is None:
        assert (found.verdict, found.exit_code, found.simulated) == ("genuine", 0, False)
        assert found.claims is None or found.claims.tcb_status in (None, case.says)
    else:
        assert (found.verdict, found.claims) == ("refused", None)
        assert case.says in str(found.error)


@pytest.mark.parametrize("name", sorted(set(VECTORS) - EVIDENCE))
def test_every_other_captured_file_is_never_taken_for_evidence(name: str) -> None:
    with pytest.raises((EvidenceError, UsageError)):
        examine(recognise(vectors(name).read_bytes()), Asked(now=at("2025-06-25")))


def test_assembled_collateral_is_recognised_too() -> None:
    assert recognise(collateral("google 2023")).kind == "intel-collateral"
