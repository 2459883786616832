"""Drafts from evidence: a policy that is pinned to what was measured, and asks a person for everything else.

What evidence can tell is pinned: digests, and what it was measured to be. What is a judgement (how old, how high, which
relaxation) stands there as ``"DECIDE: …"``, which no policy may hold: :func:`~cloister.appraisal.policy.load_policy`
refuses it with its line until somebody has written what they accept. No default stands in for a decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args, get_origin

from msgspec import NODEFAULT, structs

from cloister.appraisal.document import DECIDE, parse_document
from cloister.appraisal.draft import DEFAULT_MAX_AGE, render_policy
from cloister.appraisal.explain_words import WORDS
from cloister.appraisal.judge_nvidia import observed_nvidia
from cloister.appraisal.judge_tpm import observed_tpm
from cloister.appraisal.observed_intel import observed_sgx, observed_tdx
from cloister.appraisal.policy import FORMAT, load_policy
from cloister.appraisal.reference_intel import SgxReference, TdxReference
from cloister.appraisal.reference_nvidia import NvidiaReference
from cloister.appraisal.reference_snp import SnpReference, observed_snp
from cloister.appraisal.reference_tpm import AzureReference, TpmReference
from cloister.encoding import Record
from cloister.errors import PolicyError
from cloister.verifier.claims import Claims

DRAFT_GRACE = 365 * 24 * 3600
_LOOSEST: Final = {"revocation": "unchecked", "rims": "unchecked", "clock": "any"}
"""For fields that evidence says nothing about: what would have accepted it in any case."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What would have accepted the evidence, where a person has to decide; ``value`` None proposes nothing."""

    value: object
    question: str

    @property
    def mark(self) -> str:
        """The text that stands in its place."""
        return f"{DECIDE}: {self.question}"


Draft = dict[str, Any]
"""A policy's table with :class:`Proposal` where a person decides."""


def draft_from_claims(
    claims: Claims, *, max_age_seconds: int = DEFAULT_MAX_AGE, title: str = "observed, not yet judged"
) -> str:
    """The policy that would have accepted ``claims``: a start for review, not a recommendation.

    Raises :class:`~cloister.errors.PolicyError` for claims that no policy can accept.
    """
    draft = {**_draft(claims), "max_age_seconds": max_age_seconds}
    text = render_policy(_settled(draft), title=title)
    load_policy(text, name="draft policy")
    return text


def draft_for_review(claims: Claims, *, title: str = "") -> str:
    """The same policy, unusable until a person decided what evidence cannot say.

    Raises :class:`~cloister.errors.PolicyError` for claims that no policy can accept.
    """
    draft_from_claims(claims)  # decided as measured, it must be a policy
    text = render_policy(_marked(_draft(claims)), title=title)
    if not parse_document(text, name="draft policy").marks:
        raise PolicyError("a draft came out decided", todo="report this")
    return text


def _draft(claims: Claims) -> Draft:
    age = Proposal(DEFAULT_MAX_AGE, "for how many seconds may a result be used? 3600 is an hour")
    draft: Draft = {"format": FORMAT, "max_age_seconds": age}
    draft |= _intel(claims) if claims.tee in ("tdx", "sgx") else {}
    draft["roots"] = _roots(claims)
    machines = {name: [value] for name, value in claims.hardware.items()}
    if claims.devices:
        machines["device"] = [device.identity for device in claims.devices]
    draft["hardware"] = {
        name: Proposal(
            None,
            f"measured {', '.join(values)}: list what you guard, or remove the line and accept every other one",
        )
        for name, values in machines.items()
    }
    if claims.tee == "tdx":
        draft["tdx"] = _reference("tdx", observed_tdx(claims), TdxReference)
    elif claims.tee == "sgx":
        draft["sgx"] = _reference("sgx", observed_sgx(claims), SgxReference)
    elif claims.tee == "tpm":
        draft["tpm"] = _reference("tpm", observed_tpm(claims), TpmReference)
    else:
        draft["snp"] = _reference("snp", observed_snp(claims), SnpReference)
        if claims.tee == "az-snp-vtpm":
            draft["azure"] = _reference("azure", observed_tpm(claims), AzureReference)
    if claims.devices:
        draft["nvidia"] = _reference("nvidia", observed_nvidia(claims), NvidiaReference)
    return draft


def _roots(claims: Claims) -> Draft:
    if claims.tee == "tpm":
        return {"tpm": [claims.root_sha256]}
    if claims.simulated:
        roots: Draft = {"simulated": claims.root_sha256}
        if claims.devices:
            roots["simulated_device"] = claims.devices[0].root_sha256
            roots["simulated_rim"] = Proposal(None, "the root of the simulated reference manifests")
        return roots
    vendor = "intel" if claims.tee in ("tdx", "sgx") else "amd"
    return {"vendor": [vendor, "nvidia"] if claims.devices else [vendor]}


def _intel(claims: Claims) -> Draft:
    status = claims.tcb_status or ""
    advisories = f" with {', '.join(claims.advisory_ids)}" if claims.advisory_ids else ""
    tcb: Draft = {
        "min_evaluation_number": Proposal(
            claims.tcb_evaluation_number, f"measured {claims.tcb_evaluation_number}; how old may it be?"
        ),
        "accepted_statuses": [status]
        if status == "UpToDate"
        else Proposal([status], f"measured {status}{advisories}; which statuses do you accept?"),
    }
    if status.startswith("OutOfDate"):
        tcb["out_of_date_grace_seconds"] = Proposal(
            DRAFT_GRACE, f"measured {status}; for how long after its TCB date do you accept that?"
        )
    platform = {
        field: Proposal(True, f"measured true; {risk}? write true or false")
        for name, field, risk in (
            ("dynamic_platform", "allow_dynamic_platform", "may processors be added to the machine"),
            ("cached_keys", "allow_cached_keys", "may Intel's registration service hold the platform's keys"),
            ("smt_enabled", "allow_smt", "may sibling threads share a core"),
        )
        if claims.details.get(name) == "True"
    }
    return {"tcb": tcb, **({"platform": platform} if platform else {})}


def _reference(table_name: str, observed: Mapping[str, object], kind: type[Record]) -> Draft:
    """The table of a kind: lists as measured, everything else and every relaxation as a proposal."""
    table: Draft = {}
    for field in structs.fields(kind):
        name = field.encode_name
        if name in observed and observed[name] == field.default:
            continue  # what is absent is at its strictest
        if name in observed:
            value = observed[name]
            words = WORDS[f"{table_name}.{name}"]
            relaxed = words.relaxes or field.default not in (NODEFAULT, None)
            table[name] = _proposed(value, relaxed=relaxed, risk=words.risk)
        elif field.required:
            choices = get_args(field.type) if get_origin(field.type) is Literal else ()
            question = " or ".join(str(choice) for choice in choices) or "no value can be measured"
            table[name] = Proposal(_LOOSEST.get(name), question)
    return table


def _proposed(value: object, *, relaxed: bool, risk: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _proposed(item, relaxed=relaxed, risk=risk) for name, item in value.items()}
    if isinstance(value, list | tuple) and not relaxed:
        return list(value)
    shown = ", ".join(value) if isinstance(value, list | tuple) else str(value).lower()
    loose = relaxed or value in ("any", "unchecked")
    return Proposal(
        value, f"measured {shown}; to accept it risks this: {risk}" if loose and risk else f"measured {shown}"
    )


def _settled(draft: Draft) -> Draft:
    """Decided as measured; what proposes nothing is left out."""
    settled: Draft = {}
    for name, value in draft.items():
        if isinstance(value, Proposal):
            if value.value is not None:
                settled[name] = value.value
        elif isinstance(value, dict):
            inner = _settled(value)
            if inner:
                settled[name] = inner
        else:
            settled[name] = value
    return settled


def _marked(draft: Draft) -> Draft:
    return {
        name: value.mark
        if isinstance(value, Proposal)
        else _marked(value)
        if isinstance(value, dict)
        else value
        for name, value in draft.items()
    }
