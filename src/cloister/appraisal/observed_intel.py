"""What a policy would have to say to accept given Intel claims: fields and values of ``[tdx]`` and ``[sgx]``.

For drafts (appraisal/draft.py). Only what is needed is named: measurements and events as they are, and a field whose
strictest reading would refuse these claims. Nothing here says that it *should* be accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.appraisal.reference_intel import (
    MISC_SELECT_BITS,
    SGX_ATTRIBUTES,
    SGX_OWNER_FIELDS,
    TDX_ATTRIBUTES,
    TDX_MEASUREMENTS,
    TDX_OWNER_FIELDS,
)
from cloister.errors import PolicyError
from cloister.evidence.sgx import XFRM_KNOWN, SgxReport
from cloister.evidence.tdx import XFAM_KNOWN, TdReport
from cloister.verifier.claims import Claims


def observed_tdx(claims: Claims) -> dict[str, object]:
    """Fields of ``[tdx]`` that accept ``claims``: strings, integers and lists of strings, ``events`` a table.

    Raises :class:`~cloister.errors.PolicyError` where no policy could.
    """
    report = claims.report
    if not isinstance(report, TdReport):
        raise PolicyError(f"{claims.tee} evidence has no [tdx] table")
    fields: dict[str, object] = {name: [claims.measurements[name].hex()] for name in TDX_MEASUREMENTS}
    fields |= _names("attributes", report.attribute_names - {"SEPT_VE_DISABLE"}, TDX_ATTRIBUTES)
    if int.from_bytes(report.xfam, "little") & ~XFAM_KNOWN:
        fields["xfam"] = [report.xfam.hex()]
    fields |= _written({name: getattr(report, name) for name in TDX_OWNER_FIELDS})
    fields |= _written({"service_td": report.service_td})
    if claims.events:
        fields["events"] = {name: [payload.hex()] for name, payload in claims.events.items()}
    return fields


def observed_sgx(claims: Claims) -> dict[str, object]:
    """Fields of ``[sgx]`` that accept ``claims`` by MRENCLAVE. Raises as :func:`observed_tdx` does."""
    report = claims.report
    if not isinstance(report, SgxReport):
        raise PolicyError(f"{claims.tee} evidence has no [sgx] table")
    fields: dict[str, object] = {"mrenclave": [claims.measurements["mrenclave"].hex()]}
    fields |= _names("attributes", report.attribute_names - {"INIT", "MODE64BIT"}, SGX_ATTRIBUTES)
    fields |= _names("misc_select", report.misc_select_names, MISC_SELECT_BITS)
    if int.from_bytes(report.xfrm, "little") & ~XFRM_KNOWN:
        fields["xfrm"] = [report.xfrm.hex()]
    values = (report.config_id, report.isv_family_id, report.isv_ext_prod_id)
    fields |= _written(dict(zip(SGX_OWNER_FIELDS, values, strict=True)))
    if report.config_svn:
        fields["min_config_svn"] = report.config_svn
    return fields


def _names(field: str, names: frozenset[str], known: tuple[str, ...]) -> dict[str, object]:
    unknown = names - set(known)
    if unknown:
        raise PolicyError(f"no policy accepts {', '.join(sorted(unknown))} in {field}")
    return {field: sorted(names)} if names else {}


def _written(values: Mapping[str, bytes]) -> dict[str, object]:
    return {name: [value.hex()] for name, value in values.items() if value.strip(b"\0")}
