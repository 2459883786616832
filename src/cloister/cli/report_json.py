"""The report for machines: one JSON object whose field names are stable (docs/reference/verify.md).

ASCII only: every control character and everything beyond ASCII is a JSON escape, so that printing it steers nothing.
"""

from __future__ import annotations

from typing import Any, Final

from cloister.appraisal.examination import VERDICTS, Examination
from cloister.cli.report_words import Origin
from cloister.verifier.claims import Claims, DeviceClaims

FORMAT: Final = "cloister/verification/v1"


def json_of(examination: Examination, origin: Origin) -> dict[str, Any]:
    """The object. Times are Unix seconds, binary values lower-case hexadecimal."""
    error = examination.error
    failed = [row.number for row in examination.rows if row.state == "failed"]
    return {
        "format": FORMAT,
        "verdict": examination.verdict,
        "verdict_in_words": VERDICTS[examination.verdict],
        "exit_code": examination.exit_code,
        "simulated": examination.simulated,
        "source": origin.source,
        "kind": examination.subject.kind,
        "what": examination.subject.what,
        "evidence_sha256": examination.evidence_sha256,
        "policy": origin.policy or None,
        "policy_digest": examination.policy_digest,
        "endorsements": origin.endorsements,
        "at": examination.now,
        "at_is_now": abs(examination.now - origin.clock) <= 60,
        "error": None
        if error is None
        else {
            "check": failed[0] if failed else None,
            "layer": error.layer,
            "what": error.what,
            "todo": error.todo,
        },
        "checks": [
            {"number": row.number, "name": row.name, "state": row.state, "outcomes": list(row.outcomes)}
            for row in examination.rows
        ],
        "claims": None if examination.claims is None else _claims(examination.claims),
        "devices": [_device(device) for device in examination.devices],
        "facts": dict(examination.facts),
    }


def _claims(claims: Claims) -> dict[str, Any]:
    return {
        "tee": claims.tee,
        "root_sha256": claims.root_sha256,
        "simulated": claims.simulated,
        "debug": claims.debug,
        "tcb_status": claims.tcb_status,
        "advisory_ids": list(claims.advisory_ids),
        "tcb_evaluation_number": claims.tcb_evaluation_number,
        "issued_at": claims.issued_at,
        "collateral_expires": claims.collateral_expires,
        "hardware": dict(claims.hardware),
        "measurements": {name: value.hex() for name, value in claims.measurements.items()},
        "report_data": claims.report_data.hex(),
        "events": {name: payload.hex() for name, payload in claims.events.items()},
        "measured_events": [
            {
                "register": event.register,
                "kind": event.kind,
                "name": event.name,
                "digest": event.digest.hex(),
                "vouched": event.vouched,
                "data": event.data.hex() if event.vouched else None,
            }
            for event in claims.measured_events
        ],
        "details": dict(claims.details),
    }


def _device(device: DeviceClaims) -> dict[str, Any]:
    return {
        "kind": device.kind,
        "architecture": device.architecture,
        "identity": device.identity,
        "root_sha256": device.root_sha256,
        "simulated": device.simulated,
        "driver_version": device.driver_version,
        "vbios_version": device.vbios_version,
        "matched": device.matched,
        "differing": list(device.differing),
        "rims": list(device.rims),
        "revocation": device.revocation,
        "issued_at": device.issued_at,
        "expires": device.expires,
        "details": dict(device.details),
    }
