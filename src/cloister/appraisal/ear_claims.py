"""Claims as JSON, so that a token can carry them to a relying party that never saw the evidence (docs/spec/ear.md).

One form for each value: what decodes must encode to the same JSON again, so that nothing unknown hides in it. Binary
values are standard base64; integers beyond 2⁵³ (I-JSON) are decimal texts. A firmware log's events travel only where
they have a name and their digest vouches for them: the log itself stays with the evidence.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Final, get_type_hints

import msgspec

from cloister.encoding import MAX_SAFE_INTEGER
from cloister.errors import FormatError
from cloister.evidence.sgx import SgxReport
from cloister.evidence.snp import SnpReport
from cloister.evidence.tdx import TdReport
from cloister.evidence.tpm import TpmQuote
from cloister.verifier.claims import Claims

_REPORTS: Final[dict[object, type]] = {
    "tdx": TdReport,
    "sgx": SgxReport,
    "snp": SnpReport,
    "az-snp-vtpm": SnpReport,
    "tpm": TpmQuote,
}
_HINTS: Final = {name: hint for name, hint in get_type_hints(Claims).items() if name != "report"}


def encode_claims(claims: Claims) -> dict[str, Any]:
    """``claims`` as JSON values."""
    named = tuple(event for event in claims.measured_events if event.name and event.vouched)
    plain = msgspec.to_builtins(replace(claims, measured_events=named), str_keys=True)
    return {name: _safe(value) for name, value in plain.items()}


def decode_claims(value: Any) -> Claims:
    """The claims that encode to ``value``. Raises :class:`~cloister.errors.FormatError`."""
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(Claims)}:
        raise FormatError("the claims have other fields than they should")
    kind = _REPORTS.get(value["tee"]) if isinstance(value["tee"], str) else None
    if kind is None:
        raise FormatError("the claims are of no known kind of TEE")
    try:
        # Not strict, because large integers are texts; the comparison below is.
        parts = {name: _convert(value[name], hint) for name, hint in _HINTS.items()}
        claims = Claims(report=_convert(value["report"], kind), **parts)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError, RecursionError):
        raise FormatError("the claims do not have the form they should") from None
    if encode_claims(claims) != value:
        raise FormatError("the claims hold something that no claim has")
    return claims


def _convert(value: object, kind: Any) -> Any:
    return msgspec.convert(value, kind, strict=False, str_keys=True)


def _safe(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) <= MAX_SAFE_INTEGER else str(value)
    if isinstance(value, dict):
        return {key: _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value
