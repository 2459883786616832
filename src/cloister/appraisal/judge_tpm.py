"""Did this TPM measure what the policy names? Checks 11, 14 and 15 for quotes of TPMs and vTPMs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from cloister.appraisal.judge_intel import required_events
from cloister.appraisal.reference_tpm import AzureReference, TpmReference
from cloister.appraisal.values import Values, one_of
from cloister.errors import AppraisalRefused
from cloister.verifier.claims import Claims
from cloister.verifier.trail import Trail

_PREFIX: Final = "pcr"


def judge_tpm_platform(claims: Claims, reference: TpmReference, trail: Trail) -> None:
    """11. The TPM's clock. Raises :class:`~cloister.errors.AppraisalRefused`."""
    with trail.check(11, name="TPM clock") as found:
        safe = claims.details.get("clock_safe") == "true"
        if not safe and reference.clock != "any":
            raise AppraisalRefused(
                "the TPM's clock may have gone back: it lost power uncleanly, and has not caught up",
                todo='shut the machine down cleanly, wait, or decide for clock = "any"',
            )
        found("safe" if safe else "not safe, which the policy accepts")


def judge_tpm(claims: Claims, reference: TpmReference | AzureReference, trail: Trail) -> None:
    """14. and 15. PCRs and launch events. Raises :class:`~cloister.errors.AppraisalRefused`."""
    with trail.check(14, name="PCRs") as found:
        pinned = _judge_pcrs(claims, reference.pcrs)
        found(f"PCR {', '.join(pinned)} as the policy lists")
    with trail.check(15, name="launch events") as found:
        if reference.events is not None:
            required_events(claims.events, reference.events)
        found(", ".join(reference.events or ()) or "none required")


def observed_tpm(claims: Claims) -> dict[str, object]:
    """What a policy would have to list for exactly these claims: the fields of ``[tpm]`` or ``[azure]`` that are seen.

    ``revocation`` and ``clock`` are decisions, and not among them.
    """
    pcrs = {name: [value.hex()] for name, value in _pcrs(claims).items()}
    events = {name: [payload.hex()] for name, payload in claims.events.items()}
    return {"pcrs": pcrs, "events": events} if events else {"pcrs": pcrs}


def _judge_pcrs(claims: Claims, decided: Mapping[str, Values]) -> list[str]:
    quoted = _pcrs(claims)
    for number in quoted:
        if number not in decided:
            raise AppraisalRefused(
                f"PCR {number} was quoted, and the policy does not decide it",
                todo='list its accepted values, or "any" if it does not matter',
            )
    pinned = []
    for number, accepted in decided.items():
        if accepted == "any":
            continue
        if number not in quoted:
            raise AppraisalRefused(
                f"PCR {number} is listed in the policy, and was not quoted", todo="quote it on the machine"
            )
        one_of(f"PCR {number}", quoted[number].hex(), accepted)
        pinned.append(number)
    return pinned


def _pcrs(claims: Claims) -> dict[str, bytes]:
    return {
        name.removeprefix(_PREFIX): value
        for name, value in claims.measurements.items()
        if name.startswith(_PREFIX)
    }
