"""How it stands with each party: its state in plain words, what its evidence was and until when, what it brought."""

from __future__ import annotations

from cloister.federated.progress import PartyState
from cloister.federated.report.blocks import Bounds, code, left_out, row, section
from cloister.federated.report.curves import own_curve
from cloister.federated.report.elements import Element, el
from cloister.federated.report.run import Run, metric
from cloister.federated.report.words import count, figure, name, size, state_words, tee_words
from cloister.manifest.words import moment


def parties(run: Run, bounds: Bounds, *, now: int) -> Element:
    """How it stands with each, and what its evidence was."""
    shown = run.parties if bounds.parties is None else run.parties[: bounds.parties]
    cards = [_card(run, party, number, now) for number, party in enumerate(shown)]
    return section(
        "parties",
        "Parties",
        el("div", {"class": "cards"}, cards)
        if cards
        else el("p", {"class": "soft"}, "No party was heard of yet."),
        left_out(len(run.parties) - len(shown), "party", "parties"),
    )


def _card(run: Run, party: str, number: int, now: int) -> Element:
    state = run.states.get(party)
    words, tone = state_words(state)
    known = run.begun is None or party in run.begun.parties
    brought = [one for one in run.rounds if party in one.shares]
    rows: list[Element] = []
    if not known:
        rows.append(row("Membership", "no party of this federation", tone="bad"))
    if state is not None:
        rows += _evidence_rows(state, now)
    rows.append(row("Updates that counted", f"{len(brought)} of {count(len(run.rounds), 'round')}"))
    if brought:
        last = brought[-1]
        share = last.shares[party]
        told = [
            f"{title} {figure(metric(last, party, key))}"
            for title, key in (("F1", "f1"), ("loss", "loss"))
            if key in share.scores
        ]
        norm = "nobody is shown it" if share.norm is None else figure(share.norm)
        data = (
            f"{count(share.examples, 'example')} in round {last.number}"
            if share.examples
            else "it tells no number"
        )
        rows.append(row("Its data", data))
        if told:
            rows.append(row("There", ", ".join(told)))
        rows.append(row("Distance of its update", norm))
        rows.append(row("Sent in all", size(run.sent(party))))
    return el(
        "article",
        {"class": f"card {tone or 'plain'}"},
        el("h3", None, name(party), " ", el("span", {"class": f"tag {tone or 'plain'}"}, words)),
        el("p", {"class": "why"}, state.reason) if state is not None and state.reason else None,
        own_curve(run, party, number),
        el("dl", None, rows),
    )


def _evidence_rows(state: PartyState, now: int) -> list[Element]:
    holds = state.state in ("admitted", "ready")
    until, tone = moment(state.until) if state.until else "none", ""
    if holds and state.until < now:
        until, tone = f"ended at {until}", "bad"
    return [
        row("TEE", tee_words(state.tee), tone="bad" if "simulated" in state.tee.lower() else ""),
        row("Evidence holds until" if holds else "Evidence held until", until, tone=tone),
        row("Evidence of its agent", code(state.agent)),
        row("Evidence of its workload", code(state.workload)),
        row("Measurements", code(state.measurements)),
    ]
