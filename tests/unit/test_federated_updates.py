"""Updates that may not be used, and rounds that take none twice, none late, none of another: named attacks."""

from __future__ import annotations

import contextlib
import json
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError, UpdateRefused, UsageError
from cloister.federated.round import Head, Round
from cloister.federated.updates import check_update, decode_arrays, encode_arrays

MODEL = {
    "encoder.weight": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "crf.start": np.zeros(3, dtype=np.float32),
    "half": np.ones((2, 2), dtype=np.float16),
}


def changed(**arrays: Any) -> dict[str, Any]:
    return {name: array for name, array in (MODEL | arrays).items() if array is not None}


def decoded(data: bytes, limit: int = 1 << 20) -> dict[str, Any]:
    return decode_arrays(data, what="the update", limit=limit)


def test_an_update_comes_out_as_it_went_in_and_tells_how_far_it_goes() -> None:
    update = changed(**{"crf.start": np.array([3, 0, 4], dtype=np.float32)})
    found = decoded(encode_arrays(update))
    assert found.keys() == update.keys()
    assert all(
        np.array_equal(found[name], update[name]) and found[name].dtype == update[name].dtype
        for name in update
    )
    assert check_update(found, model=MODEL, largest=5.0, what="the update") == pytest.approx(5.0)


LARGE = np.full(3, 3e38, dtype=np.float32)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        pytest.param({"crf.start": np.array([0, np.nan, 0], dtype=np.float32)}, "numbers that are none", id="NaN"),
        pytest.param({"crf.start": np.array([0, -np.inf, 0], dtype=np.float32)}, "numbers that are none", id="infinity"),
        pytest.param({"half": np.full((2, 2), np.inf, dtype=np.float16)}, "numbers that are none", id="half infinity"),
        pytest.param({"crf.start": LARGE}, "goes 5.2e+38 from the model", id="giant"),
        pytest.param({"crf.start": np.array([3.1, 0, 4], dtype=np.float32)}, "goes 5.06", id="a little too far"),
        pytest.param({"crf.start": None}, "lacks 1", id="a tensor less"),
        pytest.param({"more": np.zeros(1, dtype=np.float32)}, "has 1 that it lacks", id="a tensor more"),
        pytest.param({"crf.start": np.zeros(4, dtype=np.float32)}, "the shape", id="another shape"),
        pytest.param({"crf.start": np.zeros((3, 1), dtype=np.float32)}, "the shape", id="a shape that would be broadcast"),
        pytest.param({"crf.start": np.zeros(3, dtype=np.float64)}, "is of float64", id="another kind"),
        pytest.param({"crf.start": np.zeros(3, dtype=np.float16)}, "is of float16", id="fewer bits"),
        pytest.param({"crf.start": np.zeros(3, dtype=np.int64)}, "is of int64", id="whole numbers"),
    ],
)  # fmt: skip
def test_an_update_that_is_not_one_of_the_model_is_refused(arrays: dict[str, Any], words: str) -> None:
    with pytest.raises(UpdateRefused) as refusal:
        check_update(changed(**arrays), model=MODEL, largest=5.0, what="the update of north")
    assert words in str(refusal.value)
    assert "north" in str(refusal.value)


def header(fields: object, data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(pickle.dumps({"crf.start": [1.0]}), id="pickle"),
        pytest.param((1 << 40).to_bytes(8, "little") + b"{}", id="a header without end"),
        pytest.param(header({}), id="no tensors"),
        pytest.param(
            header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, bytes(4)), id="a shape that lies"
        ),
        pytest.param(
            header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1 << 40]}}, bytes(4)), id="data that is absent"
        ),
        pytest.param(header({"": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), id="no name"),
        pytest.param(
            header({"\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
            id="a name that steers a terminal",
        ),
        pytest.param(encode_arrays({"a": np.zeros(1 << 19, dtype=np.float32)}), id="longer than the bound"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_update_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decoded(data)


GOOD = encode_arrays(MODEL)


@given(place=st.integers(0, len(GOOD) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_gives_an_update_or_our_own_error(place: int, bit: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= 1 << bit
    with contextlib.suppress(FormatError, UpdateRefused):
        check_update(decoded(bytes(data)), model=MODEL, largest=5.0, what="the update")


@given(length=st.integers(0, len(GOOD) - 1))
def test_no_beginning_of_an_update_is_one(length: int) -> None:
    with pytest.raises(FormatError):
        decoded(GOOD[:length])


@pytest.mark.parametrize(
    "array", [np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.float64), np.array(["a"])]
)
def test_what_is_no_weight_does_not_travel(array: Any) -> None:
    with pytest.raises(FormatError):
        encode_arrays({"a": array})


PARTIES = ("north", "south", "west")


def desk(*parties: str, minimum: int = 2) -> Round:
    return Round("run", 3, parties or PARTIES, minimum=minimum, begun=100.0, deadline=60.0)


@pytest.mark.parametrize(
    ("head", "now", "words"),
    [
        pytest.param(Head("run", 3, "east"), 101.0, "takes no part", id="a stranger"),
        pytest.param(Head("other", 3, "west"), 101.0, "another run", id="an update of another run"),
        pytest.param(Head("run", 2, "west"), 101.0, "round 2, and this is round 3", id="an update of an earlier round"),
        pytest.param(Head("run", 4, "west"), 101.0, "round 4", id="an update of a later round"),
        pytest.param(Head("run", 3, "north"), 101.0, "came already", id="a replayed update"),
        pytest.param(Head("run", 3, "south"), 101.0, "takes no part", id="a party that was excluded"),
        pytest.param(Head("run", 3, "west"), 171.0, "11 s late", id="a late update"),
    ],
)  # fmt: skip
def test_an_update_that_does_not_count_changes_nothing(head: Head, now: float, words: str) -> None:
    found = desk()
    found.take(Head("run", 3, "north"), now=100.5)
    found.exclude("south")
    with pytest.raises(UpdateRefused) as refusal:
        found.take(head, now=now)
    assert words in str(refusal.value)
    assert found.brought == {"north"}


def test_a_round_ends_when_all_have_come_or_time_is_over() -> None:
    found = desk()
    assert found.state(now=100.0) == "waiting"
    found.take(Head("run", 3, "north"), now=101.0)
    found.take(Head("run", 3, "south"), now=102.0)
    assert found.state(now=159.0) == "waiting"
    assert found.state(now=160.5) == "complete"
    found.take(Head("run", 3, "west"), now=160.0)
    assert found.state(now=160.0) == "complete"


def test_a_round_without_enough_parties_has_no_result() -> None:
    found = desk()
    found.take(Head("run", 3, "north"), now=101.0)
    assert found.state(now=161.0) == "too few"
    found = desk()
    for party in PARTIES[:2]:
        found.take(Head("run", 3, party), now=101.0)
    found.exclude("north")
    # What it brought counts no more, and the others go on.
    assert found.brought == {"south"}
    assert found.state(now=102.0) == "waiting"
    found.exclude("west")
    assert found.state(now=102.0) == "too few"


@pytest.mark.parametrize(("minimum", "deadline", "number"), [(0, 1.0, 1), (1, 0.0, 1), (1, 1.0, 0)])
def test_a_round_without_number_time_or_parties_is_none(minimum: int, deadline: float, number: int) -> None:
    with pytest.raises(UsageError):
        Round("run", number, PARTIES, minimum=minimum, begun=0.0, deadline=deadline)
