"""The certificates that a host hands its SEV-SNP guests with each report, as endorsements to carry along.

They come from the host and prove nothing by themselves; the relying party verifies them. What is incomplete or
malformed is left out with a warning: then endorsements are fetched, or the relying party brings its own.
"""

from __future__ import annotations

import logging

from cloister.endorsements.amd import encode_snp_endorsements
from cloister.endorsements.amd_table import parse_certificate_table
from cloister.errors import EndorsementError

_log = logging.getLogger("cloister.attester")


def carried_endorsements(table: bytes, signing_key: str) -> bytes:
    """Endorsements for a report signed by its ``signing_key`` (``vcek`` or ``vlek``), or empty without its certificate."""
    if not table:
        return b""
    try:
        return encode_snp_endorsements(parse_certificate_table(table).endorsements(signing_key))
    except EndorsementError as error:
        _log.warning("the host's certificate table is not carried along: %s", error.what)
        return b""
