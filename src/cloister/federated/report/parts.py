"""The parts of a run's page, one function each: what it is, its rounds, refusals and audit trail. Its curves and
parties have modules of their own.

Elements only: no text here is markup. Where there is more than a page should show, the newest are shown, and what was left
out is counted.
"""

from __future__ import annotations

from cloister.federated.progress import Begun, Ended, Fact, PartyState, RoundDone
from cloister.federated.report.blocks import Bounds, code, left_out, moment_of, row, section, table
from cloister.federated.report.elements import Child, Element, el
from cloister.federated.report.run import Run, metric, run_words, traffic
from cloister.federated.report.words import (
    SIMULATED,
    Tone,
    budget_words,
    duration,
    fact_words,
    figure,
    listed,
    method_words,
    name,
    number_of_examples,
    short,
    size,
    state_words,
)
from cloister.manifest.words import moment


def banner(run: Run) -> Element | None:
    """What nobody may overlook."""
    return el("div", {"class": "banner", "role": "note"}, SIMULATED) if run.simulated else None


def heading(run: Run) -> Element:
    """Whose run this is, and how it stands."""
    words, tone = run_words(run)
    begun, ended = run.begun, run.ended
    reason = ended.reason if ended is not None else ""
    return el(
        "header",
        None,
        el("p", {"class": "kind"}, "Federated training"),
        el("h1", None, name(begun.federation) if begun else "A federation"),
        el("p", {"class": f"verdict {tone or 'plain'}"}, words),
        el("p", {"class": "problem" if tone == "bad" else "reason"}, reason) if reason else None,
    )


def tiles(run: Run) -> Element | None:
    """The newest figures, large."""
    if run.begun is None:
        return None
    last, begun = run.last, run.begun
    taking = sum(one in run.states and run.states[one].state == "ready" for one in begun.parties)
    found = [_tile("Rounds", str(len(run.rounds)), f"of {begun.rounds}")]
    if last is not None:
        for title, key in (("F1", "f1"), ("Loss", "loss")):
            value = metric(last, None, key)
            if value is not None:
                found.append(_tile(title, figure(value), f"round {last.number}, all parties"))
    if begun.epsilon is not None:
        spent = last.epsilon if last is not None else 0.0
        found.append(_tile("ε spent", figure(spent), f"of {short(begun.epsilon)}"))
    found.append(_tile("Parties", str(taking), f"of {len(begun.parties)} take part"))
    up, down = traffic(run.rounds)
    found.append(_tile("Traffic", size(up + down), f"{size(up)} up, {size(down)} down"))
    found.append(_tile("Time", duration(max(0, run.at - run.first)), "since it began"))
    return el("ul", {"class": "tiles", "aria-label": "In short"}, found)


def identity(run: Run) -> Element:
    """What the run is, to compare with what was signed."""
    begun, ended = run.begun, run.ended
    if begun is None:
        return section("run", "The run", el("p", {"class": "soft"}, "Nothing was heard of a run yet."))
    resumed = f"; it went on after round {begun.done} at {moment(begun.at)}" if begun.at > run.first else ""
    rows = [
        row("Federation", f"{name(begun.federation)}, version {begun.version}"),
        row("Its document", code(begun.digest)),
        row("Run", code(name(begun.run))),
        row("Parties", listed(begun.parties, limit=64)),
        row("Aggregation", method_words(begun), tone="good" if begun.secure else ""),
        row("Privacy", budget_words(begun)),
        row("Aggregator's evidence", code(begun.aggregator)),
        row("Began", f"{moment(run.first)}{resumed}"),
    ]
    if ended is not None:
        rows.append(row("Ended", moment(ended.at)))
        rows.append(row("Model", code(ended.model)))
    return section("run", "The run", el("dl", None, rows))


def rounds_table(run: Run, bounds: Bounds) -> Element:
    """One row a round."""
    if not run.rounds:
        return section("rounds", "Rounds", el("p", {"class": "soft"}, "No round is done yet."))
    shown = run.rounds if bounds.rounds is None else run.rounds[-bounds.rounds :]
    with_epsilon = any(one.epsilon is not None for one in run.rounds)
    titles = [
        "Round",
        "Done",
        "Took",
        "Parties",
        "Examples",
        "F1",
        "Loss",
        *(["ε spent"] if with_epsilon else []),
        "Up",
        "Down",
    ]
    body = []
    for one in shown:
        up, down = traffic([one])
        refused = len(one.refused)
        cells: list[Child] = [
            moment_of(one.at),
            duration(one.seconds),
            f"{len(one.shares)}" + (f", {refused} refused" if refused else ""),
            number_of_examples(sum(share.examples for share in one.shares.values())),
            figure(metric(one, None, "f1")),
            figure(_loss(one)),
            *([figure(one.epsilon)] if with_epsilon else []),
            size(up),
            size(down),
        ]
        body.append(
            el(
                "tr",
                {"class": "marked" if refused else None},
                el("th", {"scope": "row"}, str(one.number)),
                [el("td", None, cell) for cell in cells],
            )
        )
    caption = "F1 and loss of all parties together, weighted by examples. Up is what parties sent, down what they received."
    digests = [
        el("tr", None, el("th", {"scope": "row"}, str(one.number)), el("td", None, code(one.model)))
        for one in shown
    ]
    return section(
        "rounds",
        "Rounds",
        left_out(len(run.rounds) - len(shown), "round", "rounds"),
        table(caption, titles, body, kind="numbers"),
        el("h3", None, "The model after each round"),
        table(
            "SHA-256 of the averaged tensors, as safetensors.", ["Round", "Model"], digests, kind="digests"
        ),
    )


def refusals(run: Run, bounds: Bounds) -> Element:
    """Who was refused, excluded or left, and why."""
    if not run.refusals:
        return section("refused", "Refused and excluded", el("p", {"class": "soft"}, "Nobody was."))
    shown = run.refusals if bounds.trail is None else run.refusals[-bounds.trail :]
    body = [
        el(
            "tr",
            None,
            el("td", None, moment_of(one.at)),
            el("th", {"scope": "row"}, name(one.party)),
            el("td", None, one.what),
            el("td", None, one.reason or "no reason was given"),
        )
        for one in shown
    ]
    return section(
        "refused",
        "Refused and excluded",
        left_out(len(run.refusals) - len(shown), "one", "more"),
        table(
            "What did not count, and who did not stay, in order of time.",
            ["When", "Party", "What", "Why"],
            body,
            kind="reasons",
        ),
    )


def trail(run: Run, bounds: Bounds) -> Element:
    """Every fact, in the order in which they were written."""
    shown = run.facts if bounds.trail is None else run.facts[-bounds.trail :]
    rows = [
        el(
            "li",
            {"class": _fact_tone(fact)},
            el("p", {"class": "when"}, moment_of(fact.at)),
            el("p", {"class": "what"}, fact_words(fact)),
            [
                el("p", {"class": "proof"}, f"{title} ", code(value))
                for title, value in _proofs(fact)
                if value
            ],
        )
        for fact in shown
    ]
    return section(
        "trail",
        "Audit trail",
        left_out(len(run.facts) - len(shown), "earlier fact", "earlier facts"),
        el("ol", {"class": "trail"}, rows)
        if rows
        else el("p", {"class": "soft"}, "Nothing has happened yet."),
    )


def _proofs(fact: Fact) -> tuple[tuple[str, str], ...]:
    match fact:
        case Begun():
            return (("federation", fact.digest), ("aggregator", fact.aggregator))
        case PartyState():
            return (("agent", fact.agent), ("workload", fact.workload), ("measurements", fact.measurements))
        case RoundDone() | Ended():
            return (("model", fact.model),)


def _fact_tone(fact: Fact) -> Tone:
    match fact:
        case PartyState():
            return state_words(fact)[1]
        case RoundDone():
            return "warn" if fact.refused else ""
        case Ended():
            return "good" if fact.finished else "bad"
        case Begun():
            return "bad" if fact.simulated else ""


def _tile(title: str, value: str, more: str) -> Element:
    return el(
        "li",
        None,
        el("span", {"class": "title"}, title),
        " ",
        el("strong", None, value),
        " ",
        el("span", {"class": "more"}, more),
    )


def _loss(one: RoundDone) -> float | None:
    held_out = metric(one, None, "loss")
    return held_out if held_out is not None else metric(one, None, "loss", of="metrics")
