"""How far a candidate is from its reference: the numbers, by hand; and engines that tell a few tokens only."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.errors import FormatError, InferenceError, UsageError
from cloister.inference.next_tokens import EngineNext
from cloister.inference.quality import (
    Observations,
    Prediction,
    Windows,
    all_tokens,
    compare,
    default_text,
    observe,
    read_text,
    windows_of,
)

WINDOWS = Windows(((0, 1, 2), (2, 0, 1)), 1)


class Fixed:
    """Says the same of every place."""

    def __init__(self, probabilities: Sequence[float]) -> None:
        self.prediction = all_tokens(np.log(np.array(probabilities, np.float32)))

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
        yield from [self.prediction] * (len(tokens) - start)


def few(told: Mapping[int, float]) -> Prediction:
    return Prediction(
        np.array(list(told), np.int64), np.log(np.array(list(told.values()), np.float32)), complete=False
    )


def test_a_model_is_no_distance_from_itself() -> None:
    seen = observe(Fixed([0.5, 0.25, 0.25]), WINDOWS)
    found = compare(seen, seen)
    assert (found.places, found.covered) == (4, 4)
    assert found.agreement == 1
    assert found.change == pytest.approx(0)
    assert found.divergence == pytest.approx(0, abs=1e-7)
    assert found.cosine == pytest.approx(1)


def test_the_numbers_are_those_of_the_formulas() -> None:
    first, second = [0.5, 0.25, 0.25], [0.2, 0.4, 0.4]
    found = compare(observe(Fixed(first), WINDOWS), observe(Fixed(second), WINDOWS))
    # The places ask for the tokens 1, 2, 0, 1.
    assert found.reference_perplexity == pytest.approx((0.25 * 0.25 * 0.5 * 0.25) ** -0.25)
    assert found.perplexity == pytest.approx((0.4 * 0.4 * 0.2 * 0.4) ** -0.25)
    assert found.change == pytest.approx(found.perplexity / found.reference_perplexity - 1)
    assert found.divergence == pytest.approx(
        sum(p * math.log(p / q) for p, q in zip(first, second, strict=True))
    )
    assert found.agreement == 0
    assert found.change_error > 0


def test_an_engine_that_tells_a_few_tokens_gives_a_lower_bound_and_says_what_it_covers() -> None:
    whole = observe(Fixed([0.6, 0.25, 0.1, 0.05]), WINDOWS)
    other = Fixed([0.5, 0.2, 0.2, 0.1])
    bound = compare(whole, Observations(WINDOWS, (few({0: 0.5, 1: 0.2}),) * 4))
    exact = compare(whole, observe(other, WINDOWS))
    assert bound.covered == 3  # of the tokens 1, 2, 0, 1
    assert 0 < bound.divergence <= exact.divergence + 1e-6
    assert bound.cosine is None
    assert bound.agreement == 1


def test_a_place_of_which_an_engine_tells_nothing_is_not_counted() -> None:
    whole = observe(Fixed([0.6, 0.3, 0.1]), WINDOWS)
    silent = few({})
    found = compare(whole, Observations(WINDOWS, (silent, few({0: 0.9}), silent, few({0: 0.9}))))
    assert found.places == 2
    with pytest.raises(InferenceError, match="no place in common"):
        compare(whole, Observations(WINDOWS, (silent,) * 4))


def test_observations_of_other_windows_are_refused() -> None:
    seen = observe(Fixed([0.6, 0.4]), Windows(((0, 1),), 1))
    with pytest.raises(FormatError, match="different texts"):
        compare(observe(Fixed([0.6, 0.4]), Windows(((1, 0),), 1)), seen)


def test_a_model_that_leaves_places_out_is_refused() -> None:
    class Short(Fixed):
        def predictions(self, tokens: Sequence[int], start: int) -> Iterator[Prediction]:
            yield self.prediction

    with pytest.raises(FormatError, match="each place"):
        observe(Short([0.5, 0.5]), WINDOWS)


def test_observations_survive_a_file_and_a_file_of_another_text_is_refused(tmp_path: Path) -> None:
    seen = Observations(
        WINDOWS, (few({2: 0.5}), few({}), *observe(Fixed([0.6, 0.3, 0.1]), WINDOWS).predictions[:2])
    )
    seen.save(tmp_path / "seen")
    again = Observations.load(tmp_path / "seen", WINDOWS)
    for one, other in zip(seen.predictions, again.predictions, strict=True):
        assert one.complete == other.complete
        assert one.tokens.tolist() == other.tokens.tolist()
        assert one.logprobs.tolist() == other.logprobs.tolist()
    with pytest.raises(FormatError, match="another text"):
        Observations.load(tmp_path / "seen", Windows(((0, 1, 2), (2, 0, 2)), 1))


def test_observations_that_a_disk_cannot_hold_leave_no_part_of_a_file(tmp_path: Path) -> None:
    seen = Observations(WINDOWS, tuple(observe(Fixed([0.6, 0.3, 0.1]), WINDOWS).predictions))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            seen.save(tmp_path / "seen")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(60)], ids=["empty", "pickle", "no zip"]
)
def test_a_file_that_holds_no_observations_is_refused_and_not_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seen").write_bytes(content)
    with pytest.raises(FormatError, match="no observations"):
        Observations.load(tmp_path / "seen", WINDOWS)


def test_windows_are_spread_over_the_whole_text_and_begin_as_texts_do() -> None:
    found = windows_of(list(range(1000)), count=4, length=10, first=[7])
    assert [window[0] for window in found.tokens] == [7, 7, 7, 7]
    assert found.tokens[0][1] == 0
    assert found.tokens[-1][-1] == 999
    assert found.start == 6
    assert found.places == 20


@pytest.mark.parametrize(
    ("count", "length"), [(4, 300), (0, 64), (1, 2)], ids=["short text", "none", "short windows"]
)
def test_windows_that_cannot_be_are_refused(count: int, length: int) -> None:
    with pytest.raises(UsageError):
        windows_of(list(range(1000)), count=count, length=length)


def test_the_text_that_comes_with_the_package_has_prose_code_and_chinese() -> None:
    text = default_text().decode("utf-8")
    assert 6000 < len(text.encode()) < 10000
    assert "def merged" in text
    assert sum("\u4e00" <= char <= "\u9fff" for char in text) > 300


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["not there", "not UTF-8"])
def test_a_text_that_is_none_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read"):
        read_text(tmp_path / "text")


class TellingEngine:
    """Tells tokens as OpenAI's interface does: text, bytes, logarithms; numbers where it has them."""

    def __init__(self, *, numbers: bool) -> None:
        self.numbers = numbers
        self.asked: list[tuple[Mapping[str, Any], bytes | None]] = []

    def generate(
        self, kind: str, request: Mapping[str, Any], sink: Any, *, tenant: bytes | None = None
    ) -> None:
        self.asked.append((request, tenant))
        told: list[dict[str, Any]] = [
            {"token": "a", "bytes": [97], "logprob": -0.1},
            {"token": "\ufffd", "bytes": [0xE4], "logprob": -3.0},
            {"token": "no token of ours", "bytes": None, "logprob": -4.0},
        ]
        if self.numbers:
            told = [{**entry, "id": 5 + place} for place, entry in enumerate(told)]
        sink(
            {
                "object": "text_completion",
                "choices": [{"text": "a", "logprobs": {"content": [{**told[0], "top_logprobs": told}]}}],
            }
        )
        sink({"choices": [], "usage": {"completion_tokens": 1}})


@pytest.mark.parametrize(
    ("numbers", "expected"), [(False, [3, 4]), (True, [5, 6, 7])], ids=["by bytes", "by number"]
)
def test_any_engine_is_asked_as_its_users_ask_it(numbers: bool, expected: list[int]) -> None:
    engine = TellingEngine(numbers=numbers)
    model = EngineNext(engine, {b"a": 3, b"\xe4": 4}, tenant=bytes(32))  # type: ignore[arg-type]
    (first, second) = model.predictions([1, 2, 3, 4], 2)
    assert first.tokens.tolist() == second.tokens.tolist() == expected
    assert first.likeliest == expected[0]
    assert [request["prompt"] for request, _ in engine.asked] == [[1, 2], [1, 2, 3]]
    assert all(request["max_tokens"] == 1 and tenant == bytes(32) for request, tenant in engine.asked)
