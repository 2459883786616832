"""Examination: one piece of evidence against everything that is at hand, with a table of what was checked.

The relying parties of this project call ``appraise()`` and get a result or an error. A person who looks at a file
wants to see which checks passed, which failed, and which nobody asked for. :func:`examine` is pure and decides
nothing of its own: it calls the same verifiers, judges and, for a whole bundle with nonce and policy, the same
``appraise()``. An examination holds no keys and authorises nothing.

Without a policy only the vendors' roots count, every TCB status but ``Revoked`` is reported rather than refused,
debug is refused always, and simulated evidence is refused, because only a policy can name its root.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from cloister.appraisal.asked import Asked, Found
from cloister.appraisal.examined_cpu import (
    examine_azure,
    examine_bundle,
    examine_hcl_report,
    examine_intel_quote,
    examine_snp_report,
    examine_tpm_quote,
)
from cloister.appraisal.examined_devices import examine_devices, examine_rim
from cloister.appraisal.examined_token import examine_token
from cloister.appraisal.policy import Policy
from cloister.errors import (
    AppraisalRefused,
    CloisterError,
    EndorsementError,
    PolicyError,
    UsageError,
    VerificationError,
)
from cloister.evidence.recognise import Recognised
from cloister.verifier.claims import Claims, DeviceClaims
from cloister.verifier.trail import CHECKS

State = Literal["passed", "failed", "not asked"]
Verdict = Literal["accepted", "matches", "genuine", "refused"]
VERDICTS: Final[Mapping[Verdict, str]] = {
    "accepted": "accepted",
    "matches": "genuine, matches the policy; freshness not asked",
    "genuine": "genuine, not appraised",
    "refused": "refused",
}
_ENDORSEMENTS: Final = "an endorsement, not evidence: it vouches for others"
_NO_EVIDENCE: Final[Mapping[str, str]] = {
    "certificates": _ENDORSEMENTS,
    "crl": _ENDORSEMENTS,
    "ocsp": _ENDORSEMENTS,
    "intel-collateral": _ENDORSEMENTS,
    "intel-tcb-info": _ENDORSEMENTS,
    "intel-qe-identity": _ENDORSEMENTS,
    "snp-endorsements": _ENDORSEMENTS,
    "nvidia-endorsements": _ENDORSEMENTS,
    "tpm-endorsements": _ENDORSEMENTS,
    "endorsement-bundle": _ENDORSEMENTS,
    "public-key": "a key, not evidence",
    "policy": "a policy, not evidence",
    "ear-claims": "the claims of a token without its signature: anybody could have written them",
    "event-log": "a log, which proves nothing by itself",
    "dstack-log": "a log, which proves nothing by itself",
    "launch-log": "a log, which proves nothing by itself",
}
_NO_TEE: Final = ("nvidia-evidence", "spdm-report", "rim")
_NEXT_STEP: Final[Mapping[str, str]] = {
    "policy": "check it with `cloister policy check`; give it here as --policy",
    "public-key": "a token's key is given as --ear KEY",
    "ear-claims": "give the signed token (three parts with dots between)",
    "event-log": "give the quote, and the log beside it as --event-log; `cloister inspect` shows it",
    "dstack-log": "give the quote, and the log beside it as --event-log; `cloister inspect` shows it",
    "launch-log": "give the quote, and the log beside it as --event-log; `cloister inspect` shows it",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One of the numbered checks."""

    number: int
    name: str
    state: State
    outcomes: tuple[str, ...]
    """What was found; or what failed; or why it was not asked."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What came of it. Times are Unix seconds."""

    subject: Recognised
    verdict: Verdict
    rows: tuple[Row, ...]
    """Check 1 to 17, each once."""
    now: int
    claims: Claims | None
    """What the vendor's signature vouches for; also of genuine evidence that the policy refuses. Never permission."""
    devices: tuple[DeviceClaims, ...]
    facts: Mapping[str, str]
    """What else was verified, such as a manifest's or token's fields."""
    error: CloisterError | None
    """Why it was refused."""
    policy_digest: str | None
    evidence_sha256: str
    """Of the bytes that were examined, unwrapped from text."""

    @property
    def simulated(self) -> bool:
        """A root that is no vendor's: nothing protects this workload."""
        return any(device.simulated for device in self.devices) or bool(self.claims and self.claims.simulated)

    @property
    def exit_code(self) -> int:
        return 0 if self.error is None else self.error.exit_code


def examine(subject: Recognised, asked: Asked) -> Examination:
    """Examine ``subject``. What is wrong with the evidence is in the examination; raised are only
    :class:`~cloister.errors.UsageError` and :class:`~cloister.errors.PolicyError`, for questions that make no sense."""
    if subject.kind in _NO_EVIDENCE:
        raise UsageError(
            f"this is {_NO_EVIDENCE[subject.kind]} ({subject.what})",
            todo=_NEXT_STEP.get(subject.kind, "give the evidence, and this beside it as --endorsements"),
        )
    found, error = Found(), None
    try:
        _STEPS[subject.kind](subject, asked, found)
    except (UsageError, PolicyError):
        raise
    except CloisterError as caught:
        error = _with_way(caught, asked.policy)
        found.trail.stop(_guess(caught), caught)
    verdict: Verdict = "refused"
    if error is None:
        verdict = "genuine" if asked.policy is None else "accepted" if found.fresh else "matches"
    return Examination(
        subject=subject,
        verdict=verdict,
        rows=_rows(found, subject, asked),
        now=asked.now,
        claims=found.claims,
        devices=found.devices or (found.claims.devices if found.claims else ()),
        facts=found.facts,
        error=error,
        policy_digest=asked.policy.digest if asked.policy else None,
        evidence_sha256=hashlib.sha256(subject.data).hexdigest(),
    )


def _with_way(error: CloisterError, policy: Policy | None) -> CloisterError:
    """The same refusal, with the line that a policy for a simulated TEE would need."""
    digest = re.search(r"the chain ends in root ([0-9a-f]{64})", error.what)
    if isinstance(error, VerificationError) and digest and policy is None:
        return VerificationError(
            error.what,
            todo=f'a simulated TEE needs a policy with: [roots] simulated = "{digest.group(1)}"',
        )
    return error


def _guess(error: CloisterError) -> int:
    """The check of a refusal for which no step took the blame; the innermost word stands (Trail.stop)."""
    if isinstance(error, EndorsementError):
        return 6
    if isinstance(error, VerificationError):
        return 7
    return 9 if isinstance(error, AppraisalRefused) else 3


def _rows(found: Found, subject: Recognised, asked: Asked) -> tuple[Row, ...]:
    trail, rows = found.trail, []
    for number, name in CHECKS.items():
        passed = tuple(
            check.outcome if check.name == name else f"{check.name}: {check.outcome}"
            for check in trail.passed
            if check.number == number
        )
        state: State = "passed" if passed else "not asked"
        stopped = trail.stopped[0] if trail.stopped else len(CHECKS)
        outcomes = passed or (
            _reason(number, subject, asked, whole=trail.stopped is None)
            if number <= stopped
            else "it stopped before",
        )
        if trail.stopped is not None and trail.stopped[0] == number:
            state, outcomes = "failed", (*passed, trail.stopped[1].what)
        rows.append(Row(number, name, state, outcomes))
    return tuple(rows)


def _reason(number: int, subject: Recognised, asked: Asked, *, whole: bool) -> str:
    """Why nobody asked for check ``number``."""
    if subject.kind in _NO_TEE and not (number == 1 and subject.kind != "rim"):
        return "not part of this kind of evidence"
    nonce = "no nonce was given: recorded evidence may be old"
    reasons = {
        1: nonce if asked.nonce is None else "nothing in it answers a nonce",
        12: nonce if asked.nonce is None else "nothing came with it that it could bind",
        13: "no event log",
        16: "no device evidence",
        17: "no keys to use came with it" if asked.policy and asked.nonce else nonce,
    }
    if number in (2, 10, 11, 14, 15) and asked.policy is None:
        return "no policy was given: shown, not judged"
    return reasons.get(number, "not part of this kind of evidence" if whole else "it stopped before")


_STEPS: Final[Mapping[str, Callable[[Recognised, Asked, Found], None]]] = {
    "bundle": examine_bundle,
    "intel-quote": examine_intel_quote,
    "snp-report": examine_snp_report,
    "azure-evidence": examine_azure,
    "hcl-report": examine_hcl_report,
    "tpm-quote": examine_tpm_quote,
    "nvidia-evidence": examine_devices,
    "spdm-report": examine_devices,
    "rim": examine_rim,
    "ear-token": examine_token,
}
