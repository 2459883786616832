"""What verification costs, in one run: each vendor's evidence, beside dcap-qvl alone on the same quote.

Captured evidence is verified at the time it was captured, as a relying party does that has seen this platform before:
endorsements parsed and intermediates verified once, the evidence itself anew each time (the first time is shown, too).
The variants of a row are interleaved, so that drift of the machine falls on all. Medians; nothing here is asserted.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dcap_qvl
from rich.table import Table

from benchmarks.report import Result
from benchmarks.sections import Options, about, of_rich
from cloister.appraisal.appraise import appraise
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.attester.simulated import SimulatedPlatform
from cloister.attester.simulation.collateral import EVALUATION_NUMBER
from cloister.attester.simulation.nvidia import SimulatedGpus
from cloister.endorsements.amd import encode_snp_endorsements, endorsements_for
from cloister.endorsements.roots import (
    AMD_ROOTS,
    INTEL_ROOT,
    NVIDIA_DEVICE_ROOT,
    NVIDIA_RIM_ROOT,
    simulated_root,
    vendor_certificate,
)
from cloister.evidence.binding import report_data
from cloister.evidence.bundle import EvidenceBundle, NonceProof
from cloister.evidence.nvidia import encode_device_evidence, parse_sdk_evidence
from cloister.merkle import inclusion_proofs
from cloister.verifier import intel, nvidia, snp
from cloister.verifier.nvidia import NvidiaRules
from cloister.verifier.rules import IntelRules

SHARED = Path(os.environ.get("CLOISTER_SHARED") or Path(__file__).resolve().parents[3] / "shared")
QUOTE_TIME = 1_751_000_000
"""2025-06-27, inside the window of the captured collateral."""
REPORT_TIME = 1_790_000_000
"""2026-09-21, inside the life of the captured VCEK's chain."""
RULES = IntelRules(
    min_tcb_evaluation_number=15, allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True
)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(table: Table, rows: dict[str, Callable[[], object]], rounds: int, target: str) -> None:
    """Interleaved rounds of ``rows``; each row's first time, then median and 95th percentile, in milliseconds."""
    first = {name: timed(work) for name, work in rows.items()}
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, work in rows.items():
            times[name].append(timed(work))
    for name, found in times.items():
        table.add_row(
            name,
            f"{first[name]:.2f} ms",
            f"{statistics.median(found):.2f} ms",
            f"{statistics.quantiles(found, n=20)[18]:.2f} ms",
            target if name == next(iter(rows)) else "",
        )


def quotes(table: Table, rounds: int) -> None:
    folder = SHARED / "vectors" / "phala-dcap-qvl"
    quote = (folder / "tdx_quote").read_bytes()
    collateral = (folder / "tdx_quote_collateral.json").read_bytes()
    foreign = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
    verifier = dcap_qvl.QuoteVerifier(vendor_certificate(INTEL_ROOT))
    lenient = (
        dcap_qvl.QuotePolicy.strict(QUOTE_TIME)
        .allow_dynamic_platform(True)
        .allow_cached_keys(True)
        .allow_smt(True)
    )
    now = int(time.time())
    platform = SimulatedPlatform.generate(now=now)
    tee = platform.tee("tdx")
    policy = load_policy(
        draft_policy(
            tee="tdx",
            measurements=tee.measurements,
            min_tcb_evaluation_number=EVALUATION_NUMBER,
            simulated_root=platform.root_sha256,
        ),
        name="benchmark policy",
    )
    nonce, keys = os.urandom(32), b"key material"
    head, (path,) = inclusion_proofs([nonce])
    raw = tee.quote(report_data(head, keys))
    bundle = EvidenceBundle(
        tee="tdx",
        quote=raw.quote,
        key_material=keys,
        nonce_proof=NonceProof(index=0, size=1, path=path),
        endorsements=raw.endorsements,
    )
    measure(
        table,
        {
            "Intel TDX quote, verified": lambda: intel.verify(
                quote, collateral, root=INTEL_ROOT, now=QUOTE_TIME, rules=RULES
            ),
            "… by dcap-qvl alone": lambda: verifier.verify_with_policy(quote, foreign, QUOTE_TIME, lenient),
            "a whole bundle appraised (simulated TDX)": lambda: appraise(
                bundle, nonce=nonce, policy=policy, now=now, decode=bytes, not_after=lambda _: None
            ),
        },
        rounds,
        "≤ 2 ms",
    )


def reports(table: Table, rounds: int) -> None:
    folder = SHARED / "vectors" / "virtee-sev"
    report = bytes.fromhex((folder / "report_milan.hex").read_text().strip())
    endorsements = encode_snp_endorsements(endorsements_for((folder / "vcek_milan.der").read_bytes()))
    measure(
        table,
        {
            "AMD SEV-SNP report (Milan), verified": lambda: snp.verify(
                report, endorsements, roots=AMD_ROOTS, now=REPORT_TIME, revocation_required=False
            )
        },
        rounds,
        "≤ 2 ms",
    )


def devices(table: Table, rounds: int) -> None:
    captured = parse_sdk_evidence((SHARED / "vectors/nvidia-nvtrust/gpu_evidence.json").read_bytes())
    evidence = encode_device_evidence(captured)
    rules = NvidiaRules(revocation_required=False, rims_required=False)
    now = int(time.time())
    gpus = SimulatedGpus.generate(now=now, count=8)
    nonce = os.urandom(32)
    shown = gpus.collect(nonce)
    measure(
        table,
        {
            "8 NVIDIA H100, signatures and chains": lambda: nvidia.verify(
                evidence,
                b"",
                nonce=None,
                device_root=NVIDIA_DEVICE_ROOT,
                rim_root=NVIDIA_RIM_ROOT,
                now=REPORT_TIME,
                rules=rules,
            ),
            "8 GPUs with RIMs and OCSP (simulated)": lambda: nvidia.verify(
                shown.evidence,
                shown.endorsements,
                nonce=nonce,
                device_root=simulated_root(gpus.device_root_sha256),
                rim_root=simulated_root(gpus.rim_root_sha256),
                now=now,
                rules=NvidiaRules(),
            ),
        },
        max(rounds // 4, 5),
        "≤ 30 ms",
    )


def run(options: Options) -> Result:
    if not (SHARED / "vectors").is_dir():
        sys.exit(f"captured evidence is missing below {SHARED}: set CLOISTER_SHARED")
    rounds = options.rounds(200, 20)
    table = Table(title="verification, one core")
    for column in ("evidence", "first time", "median", "95 %", "target"):
        table.add_column(column, justify="left" if column == "evidence" else "right")
    quotes(table, rounds)
    reports(table, rounds)
    devices(table, rounds)
    return Result(title="Verification", text=about(__doc__), tables=(of_rich(table),))
