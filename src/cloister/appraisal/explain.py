"""A policy in words, for an auditor: what it requires, what it leaves unchecked, and which risk each relaxation has.

Every field of every table is spoken of, also where it is absent, because absence has a meaning. Nothing here decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import structs

from cloister.appraisal.explain_words import NEVER, TITLES, WORDS
from cloister.appraisal.explain_words_vendors import Words
from cloister.appraisal.policy import Policy
from cloister.encoding import Record

Kind = Literal["required", "accepted", "not checked", "never"]
"""``accepted`` is a relaxation that somebody wrote down; ``not checked`` is what nobody looks at."""

_SHOWN = 20
_OPEN_WORDS = ("any", "unchecked")


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence about one field."""

    kind: Kind
    field: str
    text: str
    risk: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One table of the policy."""

    title: str
    statements: tuple[Statement, ...]


def explain(policy: Policy) -> tuple[Section, ...]:
    """``policy`` in words, table by table; the last section is what no policy can accept."""
    sections = []
    for table, title in TITLES.items():
        value = getattr(policy, table) if table else policy
        if value is None and table == "hardware":
            risk = WORDS["hardware.ppid"].risk
            text = "any machine of these vendors may run it: no list of machines is written"
            sections.append(Section(title, (Statement("not checked", table, text, risk),)))
        elif value is not None and _concerns(policy, table):
            names = ("max_age_seconds",) if not table else tuple(name for name, _ in _fields(value))
            statements = [
                _statement(policy, f"{table}.{name}" if table else name, getattr(value, name))
                for name in names
            ]
            sections.append(Section(title, tuple(one for one in statements if one is not None)))
    never = tuple(Statement("never", "", text) for text in NEVER)
    return (*(section for section in sections if section.statements), Section("Never accepted", never))


def summary(policy: Policy) -> str:
    """In one line: what it accepts, and how far it can be trusted."""
    kinds = " or ".join(tee.upper() for tee in policy.tees)
    devices = f" with {policy.nvidia.gpus} GPUs" if policy.nvidia is not None else ""
    simulated = "SIMULATED " if policy.roots.simulated is not None else ""
    left = [
        one
        for section in explain(policy)
        for one in section.statements
        if one.kind in ("accepted", "not checked")
    ]
    relaxed = f"; {len(left)} relaxed or not checked" if left else "; nothing relaxed, nothing unchecked"
    return f"accepts {simulated}{kinds}{devices}, results stand {policy.max_age_seconds} s{relaxed}"


def _concerns(policy: Policy, table: str) -> bool:
    """``[platform]`` always has a value, and speaks of Intel only."""
    return table != "platform" or policy.tcb is not None


def _fields(table: Record) -> list[tuple[str, Any]]:
    return [(field.name, field.default) for field in structs.fields(table)]


def _statement(policy: Policy, field: str, value: Any) -> Statement | None:
    words = WORDS.get(field, Words(f"{field} is {{}}"))
    if value is None or value is False:
        return _absent(policy, field, words)
    if value in _OPEN_WORDS:
        return Statement("not checked", field, _opened(words.says), words.risk)
    open_names = [name for name, item in value.items() if item == "any"] if isinstance(value, Mapping) else []
    text = words.says.replace("{}", _shown(value))
    if open_names:
        return Statement(
            "accepted", field, f"{text}; with any value: {', '.join(open_names)}"[:2000], words.risk
        )
    if words.relaxes and value != 0:
        return Statement("accepted", field, text, words.risk)
    return (
        Statement("accepted", field, text, words.risk)
        if _loose(field, value)
        else Statement("required", field, text)
    )


def _opened(says: str) -> str:
    """The sentence about a field that may be anything."""
    if "({})" in says:
        return says.replace(" ({})", "").replace(" must ", " need not ")
    return (
        says.replace(" must be {}", " may be anything")
        .replace(" must ", " need not ")
        .replace("{}", "anything")
    )


def _loose(field: str, value: Any) -> bool:
    """Values that are weaker than the strictest, in fields that always have one."""
    if field == "tcb.accepted_statuses":
        return bool(set(value) - {"UpToDate"})
    if field == "snp.signing_keys":
        return "vlek" in value
    return field in ("snp.max_vmpl", "nvidia.rim_grace_days") and bool(value)


def _absent(policy: Policy, field: str, words: Words) -> Statement | None:
    if words.open and _asked_elsewhere(policy, field):
        return None
    if words.open:
        what = words.says.partition(":")[0].replace(" {}", " listed")
        return Statement("not checked", field, f"not asked: {what}", words.risk)
    return Statement("required", field, words.absent) if words.absent else None


def _asked_elsewhere(policy: Policy, field: str) -> bool:
    """What a field would ask is asked by another: a register pins its events, one identifier names a machine."""
    if policy.tcb is not None and field == "tcb.rejected_advisories":
        return not _loose("tcb.accepted_statuses", policy.tcb.accepted_statuses)
    if policy.tdx is not None and field == "tdx.events":
        return policy.tdx.rtmr3 != "any"
    if policy.tdx is not None and field == "tdx.firmware_events":
        return "any" not in (policy.tdx.rtmr0, policy.tdx.rtmr1, policy.tdx.rtmr2)
    table, _, name = field.partition(".")
    if table != "hardware" or policy.hardware is None:
        return False
    intel = ("ppid", "pck_sha256")
    kinds = {
        **dict.fromkeys(
            intel, policy.tcb is not None and not any(getattr(policy.hardware, one) for one in intel)
        ),
        "chip_id": policy.snp is not None,
        "ek_sha256": policy.tpm is not None,
        "device": policy.nvidia is not None,
    }
    return not kinds.get(name, True)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_shown(item)}" for name, item in list(value.items())[:_SHOWN])
    if isinstance(value, Record):
        return ", ".join(
            f"{name} {getattr(value, name)}" for name, _ in _fields(value) if getattr(value, name) is not None
        )
    if isinstance(value, tuple):
        more = f" or {len(value) - _SHOWN} more" if len(value) > _SHOWN else ""
        return " or ".join(str(item) for item in value[:_SHOWN]) + more
    return str(value)
