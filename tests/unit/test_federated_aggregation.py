"""Updates become a model: as computed by hand, by whom they were poisoned, and with noise that hides who took part."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FederationError, UpdateRefused
from cloister.federated.aggregation import ADAPTIVITY, MAX_EXAMPLES, SERVER_RATE, Aggregator
from cloister.federated.updates import decode_arrays, encode_arrays
from federation_parts import MILLION, aggregation, federation, privacy

Found = dict[str, Any]
NAMES = ("north", "south", "west", "east", "middle")
METHODS = ("fedavg", "fedprox", "fedadam", "median", "trimmed-mean", "krum")


def aggregator(method: str, *, parties: int = 5, tolerated: int | None = None, **changes: Any) -> Aggregator:
    looks = method in ("trimmed-mean", "krum")
    how = aggregation(
        method=method,
        tolerated=(1 if looks else 0) if tolerated is None else tolerated,
        proximal_ppm=10_000 if method == "fedprox" else 0,
    )
    return Aggregator(federation(*NAMES, minimum=parties, aggregation=how), **changes)


def arrays(seed: int, scale: float = 1.0) -> Found:
    draw = np.random.default_rng(seed)
    return {
        "linear.weight": (draw.standard_normal((3, 4)) * scale).astype(np.float32),
        "crf.start": (draw.standard_normal(3) * scale).astype(np.float32),
        "scale": np.asarray(draw.standard_normal() * scale, dtype=np.float32),
        "half": (draw.standard_normal((2, 2)) * scale).astype(np.float16),
    }


MODEL = arrays(0)


def moved(model: Found, seed: int, scale: float = 0.1) -> Found:
    more = arrays(seed, scale)
    return {name: (one + more[name]).astype(one.dtype) for name, one in model.items()}


UPDATES = {name: (moved(MODEL, number), 10 * number) for number, name in enumerate(NAMES, 1)}


def flat(found: Found) -> Any:
    return np.concatenate([found[name].astype(np.float64).reshape(-1) for name in sorted(found)])


def by_hand(method: str) -> Any:
    """In 64 bits, of whole vectors."""
    rows = np.stack([flat(update) for update, _ in UPDATES.values()])
    weights = np.array([examples for _, examples in UPDATES.values()])
    mean = (rows * weights[:, None]).sum(axis=0) / weights.sum()
    match method:
        case "fedavg" | "fedprox":
            return mean
        case "median":
            return np.sort(rows, axis=0)[2]
        case "trimmed-mean":
            return np.sort(rows, axis=0)[1:-1].mean(axis=0)
        case "krum":
            scores = [np.sort(((rows - row) ** 2).sum(axis=1))[1:3].sum() for row in rows]
            return rows[int(np.argmin(scores))]
    began = flat(MODEL)
    first, second = 0.1 * (mean - began), 0.01 * (mean - began) ** 2
    rate = SERVER_RATE * math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    return began + rate * first / (np.sqrt(second) + ADAPTIVITY)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_computes_what_its_paper_says(method: str) -> None:
    found = aggregator(method).combine(MODEL, UPDATES, number=1)
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        name: (one.dtype, one.shape) for name, one in MODEL.items()
    }
    # A float16 is exact to a thousandth.
    halves = [name == "half" for name in sorted(MODEL) for _ in range(MODEL[name].size)]
    assert np.all(np.abs(flat(found) - by_hand(method)) < np.where(halves, 2e-3, 2e-6))


@pytest.mark.parametrize("method", METHODS)
def test_who_came_first_changes_no_bit(method: str) -> None:
    answers = set()
    for order in itertools.islice(itertools.permutations(NAMES), 0, 120, 17):
        updates = {name: (dict(reversed(UPDATES[name][0].items())), UPDATES[name][1]) for name in order}
        found = aggregator(method).combine(dict(reversed(MODEL.items())), updates, number=1)
        answers.add(encode_arrays(found))
    assert len(answers) == 1


def test_numbers_of_16_bits_are_averaged_in_32() -> None:
    one = np.full(1, np.float16(1.001))
    # All say the same, and so does their mean; 64 shares added up in 16 bits come to 1.002.
    updates = {f"p{number:02}": ({"half": one}, 7 + number) for number in range(64)}
    found = Aggregator(federation()).combine({"half": np.zeros(1, np.float16)}, updates, number=1)
    assert found["half"] == one


GOAL = moved(MODEL, 99, 1.0)


def towards(model: Found, seed: int, share: float = 0.5) -> Found:
    """An honest update: half the way to the goal, and a little of its own."""
    step = {name: one + share * (GOAL[name] - one) for name, one in model.items()}
    return {
        name: one.astype(MODEL[name].dtype)
        for name, one in moved({n: s.astype(np.float64) for n, s in step.items()}, seed, 0.01).items()
    }


def flipped(model: Found, seed: int) -> Found:
    """The opposite of an honest update, four times as far: as much as all honest ones together."""
    honest = towards(model, seed)
    return {name: (5 * one - 4 * honest[name]).astype(one.dtype) for name, one in model.items()}


def distance(found: Found) -> float:
    return float(np.linalg.norm(flat(found) - flat(GOAL)))


def poisoned_run(method: str) -> float:
    """How far from the goal six rounds end, in which one of five sends the opposite, and says that it has most examples."""
    way, model = aggregator(method), MODEL
    for number in range(1, 7):
        updates = {name: (towards(model, 10 * number + place), 100) for place, name in enumerate(NAMES)}
        updates["west"] = (flipped(model, number), 400)
        model = way.combine(model, updates, number=number)
    return distance(model)


@pytest.mark.parametrize("method", ["median", "trimmed-mean", "krum"])
def test_a_poisoner_among_five_does_not_keep_the_others_from_the_goal(method: str) -> None:
    assert poisoned_run(method) < 0.05 * distance(MODEL)


def test_a_poisoner_among_five_leads_the_average_away_from_the_goal() -> None:
    assert poisoned_run("fedavg") > 10 * distance(MODEL)


@pytest.mark.parametrize("method", ["median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("examples", [-1, 0, 1 << 62])
def test_who_looks_at_updates_does_not_read_how_many_examples_they_claim(method: str, examples: int) -> None:
    lying = UPDATES | {"north": (UPDATES["north"][0], examples)}
    found = aggregator(method).combine(MODEL, lying, number=1)
    assert encode_arrays(found) == encode_arrays(aggregator(method).combine(MODEL, UPDATES, number=1))


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "fedadam"])
@pytest.mark.parametrize("examples", [-1, 0, MAX_EXAMPLES + 1])
def test_a_weight_that_nobody_believes_is_refused(method: str, examples: int) -> None:
    with pytest.raises(UpdateRefused, match=r"north is said to be of .* examples"):
        aggregator(method).combine(MODEL, UPDATES | {"north": (UPDATES["north"][0], examples)}, number=1)


@given(parties=st.integers(3, 64), data=st.data())
def test_a_trimmed_mean_cuts_as_many_as_are_tolerated_and_no_fewer(parties: int, data: st.DataObject) -> None:
    tolerated = data.draw(st.integers(1, (parties - 1) // 2))
    # The poisoned are far out; with one fewer cut, the mean would show them.
    rows = [1e6] * tolerated + [1.0] * (parties - tolerated)
    updates = {f"p{n:02}": ({"a": np.full(1, row, dtype=np.float32)}, 1) for n, row in enumerate(rows)}
    way = aggregator("trimmed-mean", parties=2, tolerated=tolerated)
    assert way.combine({"a": np.zeros(1, dtype=np.float32)}, updates, number=1)["a"] == [1.0]


def test_krum_sees_small_differences_between_large_weights() -> None:
    # 64 Mi in square beside differences of 1e-4: products of whole weights in 32 bits, as Flower has them, are rounding.
    draw = np.random.default_rng(5)
    model = {"a": np.full(4096, 128, dtype=np.float32)}
    honest = [(model["a"] + 0.001 + 1e-4 * draw.standard_normal(4096)).astype(np.float32) for _ in range(4)]
    updates = {name: ({"a": one}, 1) for name, one in zip(NAMES[1:], honest, strict=True)}
    for poison in (0.005, 0.05, 0.5):
        poisoned = updates | {"north": ({"a": (model["a"] - poison).astype(np.float32)}, 1)}
        found = aggregator("krum").combine(model, poisoned, number=1)["a"]
        assert any(np.array_equal(found, one) for one in honest)


def test_krum_asks_the_nearest_alone() -> None:
    # To its two nearest 0.1 is nearest; to all four it would be 1, which the far one draws.
    updates = {
        name: ({"a": np.full(1, place, dtype=np.float32)}, 1)
        for name, place in zip(NAMES, (10, 0, 0.1, 0.2, 1), strict=True)
    }
    found = aggregator("krum").combine({"a": np.zeros(1, dtype=np.float32)}, updates, number=1)
    assert found["a"] == np.float32(0.1)


@pytest.mark.parametrize(
    ("method", "tolerated", "words"),
    [
        pytest.param("krum", 2, "krum needs 7 updates, and 5 came", id="too few for Krum"),
        pytest.param("trimmed-mean", 3, "trimmed-mean needs 7 updates, and 5 came", id="nothing left of the trimmed mean"),
    ],
)  # fmt: skip
def test_too_few_updates_for_a_method_have_no_result(method: str, tolerated: int, words: str) -> None:
    with pytest.raises(FederationError, match=words):
        aggregator(method, tolerated=tolerated).combine(MODEL, UPDATES, number=1)


@pytest.mark.parametrize("method", METHODS)
def test_less_than_the_minimum_has_no_result(method: str) -> None:
    few = {name: UPDATES[name] for name in NAMES[:4]}
    with pytest.raises(FederationError, match="4 updates came, and a round needs 5"):
        aggregator(method).combine(MODEL, few, number=1)


def run(way: Aggregator, model: Found, rounds: range) -> Found:
    for number in rounds:
        updates = {name: (towards(model, 10 * number + n), 100 + n) for n, name in enumerate(NAMES)}
        model = way.combine(model, updates, number=number)
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_killed_goes_on_with_the_same_result_bit_for_bit(method: str) -> None:
    whole = run(aggregator(method), MODEL, range(1, 8))
    before = aggregator(method)
    half = run(before, MODEL, range(1, 4))
    kept = encode_arrays(before.state()) if before.state() else b""
    after = aggregator(method)
    after.restore(decode_arrays(kept, what="the state", limit=1 << 20) if kept else {})
    assert bool(kept) == (method == "fedadam")
    assert encode_arrays(run(after, half, range(4, 8))) == encode_arrays(whole)
    if method == "fedadam":
        # That the state matters: without it the rest is another run.
        assert encode_arrays(run(aggregator(method), half, range(4, 8))) != encode_arrays(whole)


def test_fedadam_comes_nearer_to_the_goal() -> None:
    away = [distance(run(aggregator("fedadam"), MODEL, range(1, rounds))) for rounds in (1, 30, 100)]
    assert away[0] > away[1] > away[2]


@pytest.mark.parametrize("method", ["fedavg", "fedprox", "fedadam"])
def test_a_mean_that_secure_aggregation_gave_comes_to_the_same_model(method: str) -> None:
    mean = aggregator("fedavg").combine(MODEL, UPDATES, number=1)
    found = aggregator(method).follow(MODEL, mean, number=1)
    together = aggregator(method).combine(MODEL, UPDATES, number=1)
    assert all(np.allclose(found[name], together[name], atol=2e-3) for name in MODEL)


@pytest.mark.parametrize(
    ("method", "state"),
    [
        pytest.param("fedavg", {"a": np.zeros((2, 3), dtype=np.float32)}, id="a state of FedAdam"),
        pytest.param("fedadam", {"a": np.zeros((3, 2), dtype=np.float32)}, id="one moment too many"),
        pytest.param("fedadam", {"a": np.zeros((2, 3), dtype=np.float16)}, id="moments of fewer bits"),
    ],
)
def test_a_state_of_another_method_is_refused(method: str, state: Found) -> None:
    with pytest.raises(FederationError, match="the state that was kept is not of"):
        aggregator(method).restore(state)


def test_a_state_of_another_model_is_refused() -> None:
    way = aggregator("fedadam")
    way.restore({"a": np.zeros((2, 3), dtype=np.float32)})
    with pytest.raises(FederationError, match="of another model"):
        way.combine(MODEL, UPDATES, number=1)


def test_a_model_beyond_what_its_kind_holds_is_none() -> None:
    way = aggregator("fedadam", parties=2)
    model = {"half": np.full(1, 65504, dtype=np.float16)}
    mean = {"half": np.full(1, 1e9, dtype=np.float32)}
    huge = Aggregator(federation())
    with pytest.raises(FederationError, match="numbers that are none, in half"):
        huge.follow(model, mean, number=1)
    assert way.state() == {}


def private(noise: float = 1.0, clip: float = 1.0) -> Aggregator:
    hidden = privacy(noise_ppm=round(noise * MILLION), clip_ppm=round(clip * MILLION))
    document = federation(*NAMES, privacy=hidden)
    way = Aggregator(document)
    way.restore({}, bytes(32))
    return way


def test_differences_are_cut_to_the_clip_and_weigh_the_same() -> None:
    updates = {name: UPDATES[name] for name in NAMES}
    updates["west"] = (moved(MODEL, 7, 50.0), MAX_EXAMPLES)
    model = {name: one.astype(np.float32) for name, one in MODEL.items()}
    wide = {
        name: ({key: one.astype(np.float32) for key, one in update.items()}, examples)
        for name, (update, examples) in updates.items()
    }
    found = flat(private(noise=1e-6, clip=0.25).combine(model, wide, number=1)) - flat(model)
    differences = [flat(update) - flat(model) for update, _ in wide.values()]
    cut = [one * min(1, 0.25 / np.linalg.norm(one)) for one in differences]
    assert max(np.linalg.norm(one) for one in cut) <= 0.25 + 1e-12
    assert min(np.linalg.norm(one) for one in differences) > 0.25
    assert np.abs(found - np.mean(cut, axis=0)).max() < 2e-6


def test_noise_is_of_the_size_that_the_budget_is_accounted_for() -> None:
    model = {"a": np.zeros(40_000, dtype=np.float32), "b": np.zeros((100, 100), dtype=np.float32)}
    updates = dict.fromkeys(NAMES, (model, 1))
    found = flat(private(noise=2.0, clip=3.0).combine(model, updates, number=1))
    # Five parties: 2 · 3 / 5. The deviation of 50,000 numbers is known to 0.3 % (one sigma).
    assert found.std() == pytest.approx(1.2, rel=0.015)
    assert abs(found.mean()) < 5 * 1.2 / math.sqrt(50_000)
    assert len(np.unique(found)) > 49_000


def test_a_round_that_a_host_has_computed_again_gets_the_same_noise_and_no_other_does() -> None:
    document = federation(*NAMES, privacy=privacy())
    first, again, other = Aggregator(document), Aggregator(document), Aggregator(document)
    again.restore(first.state(), first.secret)
    changed = UPDATES | {"west": (moved(MODEL, 7, 0.5), 1)}
    found = [
        way.combine(MODEL, updates, number=number)
        for way, updates, number in (
            (first, UPDATES, 1), (again, UPDATES, 1), (first, UPDATES, 2), (first, changed, 1), (other, UPDATES, 1),
        )
    ]  # fmt: skip
    assert encode_arrays(found[0]) == encode_arrays(found[1])
    assert len({encode_arrays(one) for one in found}) == 4
    noise = [flat(one) - flat(private(noise=1e-6).combine(MODEL, UPDATES, number=1)) for one in found[:3]]
    assert np.abs(noise[0] - noise[2]).max() > 0.01


def test_noise_does_not_depend_on_who_came_first() -> None:
    backwards = dict(reversed(UPDATES.items()))
    found = [private().combine(MODEL, updates, number=1) for updates in (UPDATES, backwards)]
    assert encode_arrays(found[0]) == encode_arrays(found[1])


def test_the_privacy_of_examples_leaves_the_average_as_it_is() -> None:
    document = federation(*NAMES, privacy=privacy(of="examples"))
    found = Aggregator(document).combine(MODEL, UPDATES, number=1)
    assert encode_arrays(found) == encode_arrays(aggregator("fedavg").combine(MODEL, UPDATES, number=1))
