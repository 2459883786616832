"""The simulated vendor's collateral: TCB info v3 and QE identity v2, signed, in dcap-qvl's JSON form.

Its TCB levels form a ladder: a platform on the newest simulated microcode is up to date, one on an older
microcode has the status of its step, one below the last step has no level. So a status is a property of the
processor, as on hardware, and one set of collateral serves them all. What is signed is the exact JSON text.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection
from typing import Final

from cloister.attester.simulation.chain import DAY, Chain, Signer, Window, issue_crl, sign_raw
from cloister.attester.simulation.hardware import CPU_SVN, PCE_SVN, QE_MRSIGNER, QE_SVN, TEE_TCB_SVN, Hardware
from cloister.evidence.bundle import TeeKind

EVALUATION_NUMBER: Final = 20
"""``tcbEvaluationDataNumber`` of everything this vendor signs."""

TCB_LADDER: Final = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
"""Statuses from the newest microcode down, one step each."""

MODULE_LADDER: Final = ("UpToDate", "OutOfDate", "Revoked")
"""Statuses of the TDX module by its ISVSVN, from the newest down."""

QE_LADDER: Final = ("UpToDate", "OutOfDate", "Revoked")
"""Statuses of the quoting enclave by its ISVSVN, from the newest down: a QE identity knows no others."""

_STEP_DAYS: Final = 30
"""Each step of a ladder is a month older; the newest was released a month before its collateral."""


def microcode_for(status: str) -> bytes:
    """The CPUSVN of a processor whose platform TCB has ``status``; one below the ladder for ``""``."""
    step = TCB_LADDER.index(status) if status else len(TCB_LADDER)
    return bytes([CPU_SVN[0] - step, CPU_SVN[1] - step]) + CPU_SVN[2:]


def tcb_info(
    kind: TeeKind, hardware: Hardware, window: Window, *, evaluation: int = EVALUATION_NUMBER
) -> str:
    """TCB info v3 for ``hardware``'s FMSPC, as JSON text (Intel PCS API v4, "Get TCB Info")."""
    document: dict[str, object] = {
        "id": kind.upper(),
        "version": 3,
        "issueDate": _date(window.issued),
        "nextUpdate": _date(window.next_update),
        "fmspc": hardware.fmspc.hex().upper(),
        "pceId": hardware.pce_id.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": evaluation,
    }
    if kind == "tdx":
        module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
        document["tdxModule"] = module
        document["tdxModuleIdentities"] = [
            {
                "id": f"TDX_{TEE_TCB_SVN[1]:02X}",
                **module,
                "tcbLevels": _levels(MODULE_LADDER, TEE_TCB_SVN[0], window),
            }
        ]
    document["tcbLevels"] = [_platform_level(kind, step, window) for step in range(len(TCB_LADDER))]
    return _text(document)


def qe_identity(kind: TeeKind, window: Window, *, evaluation: int = EVALUATION_NUMBER) -> str:
    """QE identity v2, as JSON text (Intel PCS API v4, "Get Quoting Enclave Identity")."""
    return _text(
        {
            "id": "TD_QE" if kind == "tdx" else "QE",
            "version": 2,
            "issueDate": _date(window.issued),
            "nextUpdate": _date(window.next_update),
            "tcbEvaluationDataNumber": evaluation,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": QE_MRSIGNER.hex().upper(),
            "isvprodid": QE_PRODUCT[kind],
            "tcbLevels": _levels(QE_LADDER, QE_SVN, window),
        }
    )


QE_PRODUCT: Final[dict[TeeKind, int]] = {"sgx": 1, "tdx": 2}
"""ISVPRODID of the quoting enclave."""


def issue_collateral(
    chain: Chain,
    kind: TeeKind,
    hardware: Hardware,
    window: Window,
    *,
    revoked_by_root: Collection[int] = (),
    revoked_by_pck_ca: Collection[int] = (),
) -> str:
    """Everything a verifier needs for quotes of ``hardware``, as JSON (``QuoteCollateralV3.from_json``).

    ``revoked_by_…`` are certificate serial numbers for the two revocation lists.
    """
    return assemble_collateral(
        chain,
        tcb_info(kind, hardware, window),
        qe_identity(kind, window),
        root_crl=issue_crl(chain.root, window, revoked_by_root),
        pck_crl=issue_crl(chain.pck_ca, window, revoked_by_pck_ca),
    )


def assemble_collateral(
    chain: Chain, tcb_info_text: str, qe_identity_text: str, *, root_crl: bytes, pck_crl: bytes
) -> str:
    """Sign both documents with the chain's TCB signing key and lay everything out."""
    signing: Signer = chain.tcb_signing
    issuers = signing.pem + chain.root.pem
    return _text(
        {
            "pck_crl_issuer_chain": chain.pck_ca.pem + chain.root.pem,
            "root_ca_crl": root_crl.hex(),
            "pck_crl": pck_crl.hex(),
            "tcb_info_issuer_chain": issuers,
            "tcb_info": tcb_info_text,
            "tcb_info_signature": sign_raw(signing.key, tcb_info_text.encode()).hex(),
            "qe_identity_issuer_chain": issuers,
            "qe_identity": qe_identity_text,
            "qe_identity_signature": sign_raw(signing.key, qe_identity_text.encode()).hex(),
        }
    )


def _platform_level(kind: TeeKind, step: int, window: Window) -> dict[str, object]:
    tcb: dict[str, object] = {
        "sgxtcbcomponents": [{"svn": svn} for svn in microcode_for(TCB_LADDER[step])],
        "pcesvn": PCE_SVN,
    }
    if kind == "tdx":
        # Components 0 and 1 are the TDX module's, which its own identity judges.
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in bytes(2) + TEE_TCB_SVN[2:]]
    return {"tcb": tcb, **_status(TCB_LADDER, step, window)}


def _levels(ladder: tuple[str, ...], newest: int, window: Window) -> list[dict[str, object]]:
    return [
        {"tcb": {"isvsvn": newest - step}, **_status(ladder, step, window)} for step in range(len(ladder))
    ]


def _status(ladder: tuple[str, ...], step: int, window: Window) -> dict[str, object]:
    dated = window.issued - (step + 1) * _STEP_DAYS * DAY
    level: dict[str, object] = {"tcbDate": _date(dated), "tcbStatus": ladder[step]}
    if step:
        level["advisoryIDs"] = [f"SIMULATED-SA-{n:05d}" for n in range(1, step + 1)]
    return level


def _date(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
