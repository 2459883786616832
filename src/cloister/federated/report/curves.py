"""Which curves a run has: loss and F1 per party and of all, ε against its budget, bytes; and each party's own, small."""

from __future__ import annotations

from typing import Final

from cloister.federated.report.blocks import section
from cloister.federated.report.chart import STYLES, Chart, Line, chart_figure, chart_svg
from cloister.federated.report.elements import Element, el
from cloister.federated.report.run import Of, Run, epsilon_points, traffic
from cloister.federated.report.words import figure, name, short, size

_METRICS: Final[tuple[tuple[str, str, Of, str], ...]] = (
    ("f1", "F1 of the averaged model on held-out data", "scores", "f1"),
    ("loss", "Loss of the averaged model on held-out data", "scores", "loss"),
    ("training", "Loss of training", "metrics", "loss"),
)


def curves(run: Run) -> Element:
    """Loss and F1 per party and of all, ε against its budget, bytes."""
    charts = [*_metric_charts(run), *_other_charts(run)]
    told = [chart_figure(chart) for chart in charts]
    if not told:
        return section(
            "curves", "Curves", el("p", {"class": "soft"}, "There are curves once a round is done.")
        )
    missing = None
    if not any(chart.key in {key for key, *_ in _METRICS} for chart in charts):
        missing = el(
            "p",
            {"class": "soft"},
            "The federation lets no loss and no F1 leave a party, so there are no such curves.",
        )
    return section("curves", "Curves", missing, el("div", {"class": "charts"}, told))


def _metric_charts(run: Run) -> list[Chart]:
    found = []
    for key, title, of, metric_name in _METRICS:
        lines = [
            Line(party, run.points(party, metric_name, of=of), number)
            for number, party in enumerate(run.parties)
        ]
        lines.insert(0, Line("all parties", run.points(None, metric_name, of=of), None))
        kept = tuple(line for line in lines if line.points)
        if kept:
            ceiling = 1.0 if metric_name == "f1" else None
            found.append(Chart(key, title, kept, figure, _until(run), tick=short, ceiling=ceiling))
    return found


def _other_charts(run: Run) -> list[Chart]:
    if not run.rounds:
        return []
    found = []
    budget = run.begun.epsilon if run.begun else None
    spent = epsilon_points(run)
    if spent:
        bound = (f"budget {short(budget)}", budget) if budget is not None else None
        found.append(
            Chart(
                "epsilon",
                "ε spent of the privacy budget",
                (Line("spent", spent, None),),
                figure,
                _until(run),
                tick=short,
                bound=bound,
                floor=0.0,
            )
        )
    moved = [(one.number, traffic([one])) for one in run.rounds]
    sides = (
        Line("from parties", tuple((number, float(up)) for number, (up, _) in moved), 0),
        Line("to parties", tuple((number, float(down)) for number, (_, down) in moved), 1),
    )
    found.append(Chart("bytes", "Bytes in each round, of all parties", sides, size, _until(run), floor=0.0))
    return found


def _until(run: Run) -> int:
    """All rounds that were agreed on, unless what is done would be a corner of that."""
    done = run.rounds[-1].number if run.rounds else 1
    planned = run.begun.rounds if run.begun else done
    return planned if planned <= max(12, 3 * done) else done


def own_curve(run: Run, party: str, number: int) -> Element | None:
    """Its F1, or else its loss, beside that of all: readable however many parties there are."""
    for key, _, of, metric_name in _METRICS:
        own = run.points(party, metric_name, of=of)
        if own:
            everybody = run.points(None, metric_name, of=of)
            lines = [
                Line(party, own, number % STYLES),
                *([Line("all parties", everybody, None)] if everybody else []),
            ]
            title = "F1" if key == "f1" else "Loss" if key == "loss" else "Loss of training"
            ceiling = 1.0 if metric_name == "f1" else None
            small = Chart(
                f"own{number}",
                f"{title}: {name(party)} and all",
                tuple(lines),
                figure,
                _until(run),
                tick=short,
                ceiling=ceiling,
                small=True,
            )
            return el(
                "figure",
                {"class": "own"},
                el("figcaption", None, f"{title} per round; the bold line is all parties together"),
                chart_svg(small),
            )
    return None
