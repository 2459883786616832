"""Intel's collateral: what a quote is checked against besides its own chain.

The form is dcap-qvl's JSON (nine fields; binary ones in hexadecimal), as PCCS tools write it and as a workload
may carry it in its evidence. Here it is only bounded and parsed, strictly and once per document; signatures, dates
and revocation are the verifier's. Signed texts (``tcb_info``, ``qe_identity``) are kept as the bytes that were signed.
"""

from __future__ import annotations

import re
from functools import lru_cache

from cloister.encoding import Record, decode_json
from cloister.errors import EndorsementError, FormatError

MAX_COLLATERAL = 512 * 1024
_CACHED = 8
_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")
_HEX_FIELDS = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


class Collateral(Record, frozen=True, kw_only=True):
    """The nine parts, as text. Chains are PEM, CRLs and signatures hexadecimal, the rest JSON that Intel signed."""

    pck_crl_issuer_chain: str
    root_ca_crl: str
    pck_crl: str
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: str
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: str
    pck_certificate_chain: str | None = None
    """Some tools repeat the quote's own chain here; it is not used."""


def parse_collateral(data: bytes) -> Collateral:
    """Decode collateral. Raises :class:`~cloister.errors.EndorsementError`."""
    if not data:
        raise EndorsementError(
            "no collateral came with the quote, and none was given",
            todo="fetch it (PCCS) and pass it as dcap-qvl's JSON, or let the workload carry it",
        )
    if len(data) > MAX_COLLATERAL:
        raise EndorsementError(
            f"the collateral is {len(data)} bytes long, over its bound of {MAX_COLLATERAL}"
        )
    return _parse(data)


@lru_cache(maxsize=_CACHED)
def _parse(data: bytes) -> Collateral:
    try:
        collateral = decode_json(data, Collateral, what="collateral", limit=MAX_COLLATERAL)
    except FormatError as error:
        raise EndorsementError(error.what, todo="fetch the collateral again") from None
    for name in _HEX_FIELDS:
        if not _HEX.fullmatch(getattr(collateral, name)):
            raise EndorsementError(f"{name} of the collateral is not hexadecimal", todo="fetch it again")
    return collateral
