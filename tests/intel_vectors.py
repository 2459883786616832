"""Captured Intel quotes and collateral by name, for every test that needs real ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import cache

from cloister.verifier.rules import IntelRules
from shared_data import vectors

SERVER = IntelRules(
    min_tcb_evaluation_number=15, allow_dynamic_platform=True, allow_cached_keys=True, allow_smt=True
)
"""UpToDate alone, on genuine multi-socket servers."""

GOOGLE_EXTRA = b"\nextra bytes(only for testing purpose)\n"


def at(day: str) -> int:
    """Unix seconds of noon, UTC."""
    return int(datetime.fromisoformat(f"{day}T12:00:00").replace(tzinfo=UTC).timestamp())


@cache
def quote(name: str) -> bytes:
    if name == "dstack/quote-report.json":
        return bytes.fromhex(json.loads(vectors(name).read_text())["quote"])
    if name == "google-go-tdx-guest/without-extra-bytes":
        return quote("google-go-tdx-guest/tdx_prod_quote_SPR_E4.dat").removesuffix(GOOGLE_EXTRA)
    if name.endswith((".hex", "quote_hex.txt")):
        return bytes.fromhex(vectors(name).read_text().strip().removeprefix("0x"))
    return vectors(name).read_bytes()


@cache
def collateral(name: str) -> bytes:
    """dcap-qvl JSON; two names are put together from PCS replies as their libraries ship them."""
    if name == "google 2023":
        return _assembled(
            "google-go-tdx-guest/sample_tcbInfo_response",
            "google-go-tdx-guest/sample_qeIdentity_response",
            pck_crl=vectors("google-go-tdx-guest/pckcrl").read_bytes().hex(),
            root_ca_crl=vectors("google-go-tdx-guest/rootcrl.der").read_bytes().hex(),
        )
    if name == "coco 2025":
        return _assembled("coco-trustee/tcbInfo.json", "coco-trustee/enclaveIdentity.json")
    return vectors(f"phala-dcap-qvl/{name}.json").read_bytes()


def _assembled(tcb_info: str, identity: str, **crls: str) -> bytes:
    # The PCS sends issuer chains in HTTP headers, which nobody captured: chains and, where there are none of the
    # time, CRLs come from a later vector.
    document = json.loads(collateral("tdx_quote_outdated_collateral")) | crls
    for field, name, key in (("tcb_info", tcb_info, "tcbInfo"), ("qe_identity", identity, "enclaveIdentity")):
        head, _, signature = vectors(name).read_text().strip().removesuffix('"}').rpartition(',"signature":"')
        document[field] = head.removeprefix(f'{{"{key}":')
        document[f"{field}_signature"] = signature
    return json.dumps(document).encode()
