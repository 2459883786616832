"""The bundle inside what a broker keeps of an attestation: Cloister's own form, or that of a Trustee guest. Pure."""

from __future__ import annotations

from cloister.broker.profiles import KEPT_FORMAT, KeptTrustee
from cloister.encoding import decode_json, parse_json
from cloister.evidence.bundle import MAX_BUNDLE, encode_bundle

MAX_KEPT = 2 * MAX_BUNDLE


def bundle_of(evidence: bytes) -> bytes:
    """The evidence bundle. Raises :class:`~cloister.errors.FormatError`."""
    document = parse_json(evidence, what="the evidence", limit=MAX_KEPT)
    if isinstance(document, dict) and document.get("format") == KEPT_FORMAT:
        kept = decode_json(evidence, KeptTrustee, what="the evidence", limit=MAX_KEPT)
        return encode_bundle(kept.evidence)
    return evidence
