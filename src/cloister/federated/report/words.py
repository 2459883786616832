"""What a run's report, live page and terminal say: facts, states and figures, each bounded and on one line. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone
from cloister.federated.report.elements import inert
from cloister.manifest.words import moment

MAX_NAME: Final = 64
MAX_REASON: Final = 400
SIMULATED: Final = "SIMULATED TEE: no hardware protects this federation. Never for real data."
Tone = Literal["good", "warn", "bad", ""]
_STATES: Final[dict[str, tuple[str, Tone]]] = {
    "": ("no evidence yet", ""),
    "admitted": ("evidence accepted", ""),
    "ready": ("takes part", "good"),
    "excluded": ("excluded", "bad"),
    "left": ("left", "warn"),
}
_TEES: Final = {
    "tdx": "Intel TDX",
    "sgx": "Intel SGX",
    "snp": "AMD SEV-SNP",
    "az-snp-vtpm": "AMD SEV-SNP on Azure",
    "tpm": "TPM 2.0",
}


def state_words(state: PartyState | None) -> tuple[str, Tone]:
    """How it stands with a party, in two or three words."""
    return _STATES["" if state is None else state.state]


def tee_words(tee: str) -> str:
    """A kind of TEE for people."""
    return _TEES.get(tee, inert(tee, limit=MAX_NAME)) or "unknown"


def method_words(begun: Begun) -> str:
    """How updates become a model."""
    seen = "nobody sees one party's update" if begun.secure else "the aggregator sees each update"
    return f"{name(begun.method)}; {seen}"


def budget_words(begun: Begun) -> str:
    """What may be spent."""
    if begun.epsilon is None:
        return "no differential privacy"
    return f"differential privacy: training stops before ε {short(begun.epsilon)} is exceeded"


def fact_words(fact: Fact) -> str:
    """A fact as one line."""
    match fact:
        case Begun():
            warning = " SIMULATED TEE." if fact.simulated else ""
            if fact.done:
                return f"The run goes on after round {fact.done} of {fact.rounds}.{warning}"
            return (
                f"The run {name(fact.run)} of {name(fact.federation)} begins: {count(fact.rounds, 'round')}, "
                f"{count(len(fact.parties), 'party', 'parties')}, {name(fact.method)}.{warning}"
            )
        case PartyState():
            until = (
                f"; its evidence holds until {moment(fact.until)}"
                if fact.state in ("admitted", "ready")
                else ""
            )
            return f"{name(fact.party)}: {state_words(fact)[0]}{until}{_because(fact.reason)}"
        case RoundDone():
            return _round_words(fact)
        case Ended(finished=True):
            return f"The run is finished after {count(fact.rounds, 'round')}{_because(fact.reason)}"
        case Ended():
            return f"The run stopped after {count(fact.rounds, 'round')}{_because(fact.reason)}"


def figure(value: float | None) -> str:
    """A metric, a loss, an ε."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "no number"
    if value and not 0.001 <= abs(value) < 100_000:
        return f"{value:.2e}"
    return f"{value:.3f}"


def short(value: float) -> str:
    """A figure without zeros at its end: of an axis, of a budget."""
    return f"{value:.6g}"


def size(number: float) -> str:
    """Bytes, in powers of ten."""
    value = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.95 else f"{value:.1f} {unit}"


def duration(seconds: float) -> str:
    """Of a round, or of all."""
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def count(number: int, one: str, many: str = "") -> str:
    """With its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def number_of_examples(number: int) -> str:
    """Alone in a cell; 0 stands for one that is not told."""
    return f"{number:,}" if number else "–"


def name(text: str) -> str:
    """A stranger's name, bounded."""
    return inert(text, limit=MAX_NAME)


def listed(names: Sequence[str], *, limit: int = 8) -> str:
    """Names in a row, and how many more."""
    shown = ", ".join(name(one) for one in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _round_words(fact: RoundDone) -> str:
    parts = [count(len(fact.shares), "party", "parties")]
    for title, key in (("F1", "f1"), ("loss", "loss")):
        if key in fact.scores:
            parts.append(f"{title} {figure(fact.scores[key])}")
    if fact.epsilon is not None:
        parts.append(f"ε {figure(fact.epsilon)} spent")
    refused = [f"{name(party)} ({inert(reason, limit=MAX_REASON)})" for party, reason in fact.refused.items()]
    more = f"; refused: {', '.join(refused)}" if refused else ""
    return f"Round {fact.number} is done in {duration(fact.seconds)}: {', '.join(parts)}{more}"


def _because(reason: str) -> str:
    return f": {inert(reason, limit=MAX_REASON)}" if reason else ""
