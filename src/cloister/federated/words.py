"""A federation in sentences, for the people of a party before they sign it. Pure; nothing here decides.

Every field is spoken of. What is not protected is said as plainly as what is, in capital letters: a federation without
secure aggregation or differential privacy may be what somebody wants, but not what somebody overlooks.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Final

from cloister.federated.federation import EPSILON, MILLION, Aggregation, Federation, Privacy
from cloister.federated.words_machines import machines_in_words
from cloister.manifest.signed import shown
from cloister.manifest.words import moment

AVERAGES: Final = frozenset({"fedavg", "fedprox", "fedadam"})
"""Methods whose result is computed from a sum of all updates."""
LOOSE: Final = 10 * MILLION
"""A budget in millionths over which the promise is hardly one: e to the 10th is 22,026."""
_MAX_SHOWN: Final = 1000
"""Characters of one setting."""
_LARGEST_EXPONENT: Final = 20


def federation_in_words(federation: Federation) -> list[str]:
    """One sentence, or two that belong together, for each thing that a federation decides."""
    return [_inert(line) for line in (_head(federation), *_decided(federation))]


def changes_in_words(before: Federation, after: Federation) -> list[str]:
    """What a version says that its predecessor did not, and the other way round."""
    lines = [f"{name} LEAVES." for name in sorted(before.parties.keys() - after.parties.keys())]
    lines += [f"{name} COMES." for name in sorted(after.parties.keys() - before.parties.keys())]
    old, new = list(_decided(before)), list(_decided(after))
    lines += [f"No longer: {line}" for line in old if line not in new]
    lines += [f"New: {line}" for line in new if line not in old]
    return [_inert(line) for line in lines] or ["Nothing changes but the version."]


def number(millionths: int) -> str:
    """Millionths as a person writes them."""
    text = f"{Decimal(millionths) / MILLION:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _head(federation: Federation) -> str:
    follows = f"follows the document {federation.previous}" if federation.previous else "is its first"
    return (
        f"Version {federation.version} of the federation {federation.name}, issued {moment(federation.issued)}, "
        f"{follows}. It is in force once each of its {len(federation.parties)} parties has signed it."
    )


def _decided(federation: Federation) -> Iterator[str]:
    for name, party in sorted(federation.parties.items()):
        yield f"{name} is a party, and signs with the key {shown(party.key)}."
    yield from machines_in_words(federation)
    yield from _task(federation)
    yield from _rounds(federation)
    yield from _aggregation(federation)
    if isinstance(federation.privacy, Privacy):
        yield from _privacy(federation.privacy)
        yield _without_noise(federation)
    else:
        yield (
            "NO DIFFERENTIAL PRIVACY: the model may memorise what it learns from, and show it to whoever receives or "
            "uses it."
        )
    yield from _receivers(federation)


def _task(federation: Federation) -> Iterator[str]:
    task = federation.task
    yield f"What is trained is the task {task.plugin}, by the code {task.code}."
    yield f"Training begins with the model {task.model}."
    for name, value in sorted(task.settings.items()):
        # As JSON: a number, a text and a list are not taken for each other.
        yield f"The task's setting {name} is {_bounded(json.dumps(value, ensure_ascii=False))}."


def _rounds(federation: Federation) -> Iterator[str]:
    most = federation.minimum
    yield (
        f"There are {federation.rounds:,} rounds of at most {_span(federation.deadline)} each. An update that comes later "
        f"is refused, and a round with fewer than {most} parties has no result."
    )
    private = isinstance(federation.privacy, Privacy) and federation.privacy.of == "clients"
    if federation.aggregation.method in AVERAGES and not private:
        who = (
            "EACH OF TWO parties could compute the other's update"
            if most == 2
            else f"{most - 1} parties of a round of {most} could together compute the last one's update"
        )
        yield f"{who} from the average, if their machines gave it and their own updates away."


def _aggregation(federation: Federation) -> Iterator[str]:
    how = federation.aggregation
    if federation.metrics:
        told = f"and these numbers about its data: {', '.join(sorted(federation.metrics))}"
    else:
        told = "and no number about its data"
    yield f"Out of a party may leave updates of the model, {told}. Nothing else may."
    if how.secure:
        yield (
            "Secure aggregation: nobody sees one party's update, the aggregator neither, unless other parties work "
            "together with it; what it learns is their sum."
        )
        yield (
            f"NOBODY CAN LOOK AT AN UPDATE for poison: that it goes at most {number(how.largest_ppm)} from the model, "
            "only the party's own machine can tell."
        )
    else:
        yield (
            "NO SECURE AGGREGATION: the aggregator sees each party's update. Its TEE keeps them from whoever runs the "
            "machine, as long as nobody breaks that TEE."
        )
        yield f"An update that goes further than {number(how.largest_ppm)} from the model is refused."
    yield _method(how)


def _method(how: Aggregation) -> str:
    stands = f"it stands {how.tolerated} poisoned {'party' if how.tolerated == 1 else 'parties'} in a round"
    poison = "NO DEFENCE AGAINST POISON: one party that trains on wrong data on purpose can spoil the model."
    match how.method:
        case "fedavg":
            return f"The new model is the average (fedavg), by how many examples each learned from. {poison}"
        case "fedprox":
            return (
                f"The new model is the average, and each party is held near the one before (fedprox, "
                f"μ = {number(how.proximal_ppm)}). {poison}"
            )
        case "fedadam":
            return f"The new model is a step of Adam along the average (fedadam). {poison}"
        case "median":
            return (
                "The new model is the median of each weight (median): less than half of a round's parties, poisoned, "
                "cannot take it where they like."
            )
        case "trimmed-mean":
            return (
                f"The new model is the average of each weight without its {how.tolerated} lowest and highest values "
                f"(trimmed-mean): {stands}."
            )
        case "krum":
            return (
                f"The new model is that of one party, whose update lies nearest to the others' (krum): {stands}, and "
                "what the other parties learned in it is dropped."
            )


def _privacy(privacy: Privacy) -> Iterator[str]:
    clip, noise = number(privacy.clip_ppm), number(privacy.noise_ppm)
    if privacy.of == "clients":
        yield (
            f"Differential privacy of clients: the aggregator cuts each update to the norm {clip} and adds noise of "
            f"{noise} times that, so that the model tells little of whether one party took part. The aggregator itself "
            "sees the updates before."
        )
        what = "party"
    else:
        yield (
            f"Differential privacy of examples: each party cuts what one example teaches to the norm {clip} and adds "
            f"noise of {noise} times that (DP-SGD), so that its update tells little of any one example. WHAT MANY "
            "EXAMPLES SHARE IS NOT HIDDEN, also where they are of one person."
        )
        what = "example"
    yield (
        f"The budget is ε = {number(privacy.epsilon_ppm)} with δ = 1/{privacy.delta_inverse:,}: training stops before it is "
        f"exceeded. Whether or not one {what} is in it makes no outcome more than {_factor(privacy.epsilon_ppm)} times as "
        f"likely, but for a chance of 1 in {privacy.delta_inverse:,}."
    )
    if privacy.epsilon_ppm > LOOSE:
        yield "A BUDGET OVER 10 PROMISES NEXT TO NOTHING."


def _without_noise(federation: Federation) -> str:
    told = sorted(set(federation.metrics) - {EPSILON, "examples", "seconds"})
    return (
        "NO NOISE is on what is told beside the weights, and ε does not cover it: how many examples a party has, how long "
        f"it takes{''.join(f', {name}' for name in told)}."
    )


def _receivers(federation: Federation) -> Iterator[str]:
    yield f"The final model is sealed to {_names(federation.receivers)}."
    rest = federation.parties.keys() - set(federation.receivers)
    if rest:
        yield f"It is NOT given to {_names(rest)}, whose data it learned from too."


def _factor(epsilon_ppm: int) -> str:
    exponent = epsilon_ppm / MILLION
    if exponent > _LARGEST_EXPONENT:
        return f"e^{number(epsilon_ppm)}"
    factor = math.exp(exponent)
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _span(seconds: int) -> str:
    for size, word in ((86_400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size and seconds % size == 0:
            count = seconds // size
            return f"{count:,} {word}" + ("s" if count > 1 else "")
    return f"{seconds:,} second" + ("s" if seconds > 1 else "")


def _bounded(text: str) -> str:
    """What is left out is said, so that nobody takes a part for the whole."""
    return (
        text
        if len(text) <= _MAX_SHOWN
        else f"{text[:_MAX_SHOWN]}… and {len(text) - _MAX_SHOWN:,} characters more"
    )


def _inert(text: str) -> str:
    """What somebody else wrote steers no terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
