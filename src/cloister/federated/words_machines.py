"""What the machines of a federation have to prove, in sentences: who meets which policy, and what each policy pins. Pure.

A simulated TEE, a policy that lets any program be the workload, or another than the one that was agreed, is said in capital
letters. The whole of a policy in words is `cloister policy explain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cloister.appraisal.explain import explain, summary
from cloister.appraisal.policy import Policy
from cloister.evidence.eventlog import PROGRAM_EVENT
from cloister.federated.federation import Federation, check_federation
from cloister.manifest.manifest import Policies

MEASURED: Final = frozenset(
    {
        "tdx.mrtd", "tdx.rtmr0", "tdx.rtmr1", "tdx.rtmr2", "tdx.rtmr3", "tdx.events",
        "sgx.mrenclave", "sgx.mrsigner", "sgx.isv_prod_id", "sgx.min_isv_svn",
        "snp.measurement", "snp.host_data", "tpm.pcrs", "tpm.events", "azure.pcrs", "azure.events",
    }
)  # fmt: skip
"""The fields of a policy that say which program it is."""
_AGGREGATOR: Final = "aggregator"
_AGENT: Final = "agent"
_WORKLOAD: Final = "workload"


Subjects = dict[tuple[str, tuple[str, ...]], list[str]]
"""Parties whose machines of a kind must meet the same policies; the aggregator is no party's."""


def machines_in_words(federation: Federation) -> Iterator[str]:
    """Whose evidence meets what, what each policy pins, and who verifies it."""
    policies = check_federation(federation)
    subjects = _subjects(federation)
    yield from _simulated(subjects, policies)
    for (kind, texts), parties in subjects.items():
        yield f"Evidence of {_who(kind, parties)} must meet the policy {_digests(texts, policies)}."
    told = {policies[text].digest: policies[text] for _, texts in subjects for text in texts}
    for digest, policy in told.items():
        yield f"The policy {digest} {summary(policy)}. {_pins(policy)}"
    yield from _programs(federation, subjects, policies)
    if federation.everyone:
        yield "Each party's agent verifies the aggregator's evidence and that of every other party."
    else:
        yield (
            "NOT EVERYBODY VERIFIES EVERYBODY: each party's agent verifies the aggregator's evidence alone, and relies on "
            "the aggregator for the other parties'."
        )
    yield f"Evidence is asked for again every {federation.attest_minutes} minutes; whose does not hold any more is excluded."


def _subjects(federation: Federation) -> Subjects:
    found: Subjects = {(_AGGREGATOR, federation.aggregator): []}
    for kind in (_AGENT, _WORKLOAD):
        for name, party in sorted(federation.parties.items()):
            texts = party.agent if kind == _AGENT else party.workload
            found.setdefault((kind, texts), []).append(name)
    return found


def _who(kind: str, parties: list[str]) -> str:
    return f"the {kind} of {', '.join(parties)}" if parties else f"the {kind}"


def _digests(texts: tuple[str, ...], policies: Policies) -> str:
    return " or ".join(policies[text].digest for text in texts)


def _simulated(subjects: Subjects, policies: Policies) -> Iterator[str]:
    found = [
        _who(kind, parties)
        for (kind, texts), parties in subjects.items()
        if any(_is_simulated(policies[text]) for text in texts)
    ]
    if found:
        who = "every machine" if len(found) == len(subjects) else ", and for ".join(found)
        yield (
            f"SIMULATED TEE, accepted for {who}: no hardware protects anything there, and whoever has the simulated root's "
            "key can pass for it. NEVER FOR REAL DATA."
        )


def _is_simulated(policy: Policy) -> bool:
    roots = policy.roots
    return any((roots.simulated, roots.simulated_device, roots.simulated_rim))


def _pins(policy: Policy) -> str:
    found = [one for section in explain(policy) for one in section.statements if one.field in MEASURED]
    pinned = [one.text for one in found if one.kind == "required"]
    # Events that are not asked for are said with the register that they stand in.
    opened = [one.text for one in found if one.kind != "required" and not one.text.startswith("not asked")]
    rest = f" NOT PINNED: {'; '.join(opened)}." if opened else ""
    return f"It pins: {'; '.join(pinned)}.{rest}"


def _programs(federation: Federation, subjects: Subjects, policies: Policies) -> Iterator[str]:
    """Whether what a workload must be is the code that was agreed, where a policy can tell."""
    for (kind, texts), parties in subjects.items():
        for policy in (policies[text] for text in texts if kind == _WORKLOAD):
            told, who = _program(policy), _who(kind, parties)
            if told == "any":
                yield (
                    f"ANY PROGRAM can be {who}, as far as the policy {policy.digest} goes: it does not ask for the task's "
                    "code."
                )
            elif told and set(told) != {federation.task.code}:
                yield (
                    f"ANOTHER PROGRAM than the task's code can be {who}: the policy {policy.digest} accepts "
                    f"{' or '.join(told)}."
                )


def _program(policy: Policy) -> tuple[str, ...] | str:
    """The programs that a policy's events name, ``any``, or ``""`` where something else than events pins them."""
    for table in (policy.tdx, policy.tpm, policy.azure):
        if table is not None and table.events is not None:
            return table.events.get(PROGRAM_EVENT, "any")
    return "any" if policy.tdx is not None and policy.tdx.rtmr3 == "any" else ""
