"""Requests and replies as Flower moves them: what goes in comes out, and what a party made up is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.common.serde import make_message, message_from_proto, message_to_proto
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError
from cloister.federated.exchange import Reply, Request
from cloister.federated.flower.wire import (
    CONFIG,
    CONTENT,
    METRICS,
    read_reply,
    read_request,
    reply_content,
    request_content,
)

REQUEST = Request("train", "5e" * 16, 3, "ab" * 32, b"model")
METADATA = Metadata(1, "", 2, 3, "", "3", 0.0, 60.0, "train")


def travelled(content: RecordDict | None, error: Error | None = None) -> Message:
    """Through Flower's own encoding."""
    message = make_message(METADATA, content) if error is None else make_message(METADATA, error=error)
    return message_from_proto(message_to_proto(message))


def reply(**changes: Any) -> RecordDict:
    plain: dict[str, Any] = {"content": b"update", "examples": 7, "metrics": {"loss": 0.5}, "error": ""}
    return reply_content(REQUEST, **(plain | changes))


@given(
    kind=st.sampled_from(("train", "score")), run=st.text(max_size=40), number=st.integers(0, 2**62),
    model=st.text(max_size=70), content=st.binary(max_size=200),
)  # fmt: skip
def test_a_request_comes_out_as_it_went_in(
    kind: str, run: str, number: int, model: str, content: bytes
) -> None:
    request = Request(kind, run, number, model, content)
    assert read_request(travelled(request_content(request)).content) == request


@given(
    content=st.binary(max_size=200), examples=st.integers(-(2**62), 2**62),
    metrics=st.dictionaries(st.sampled_from(("loss", "f1", "epsilon")), st.floats(allow_nan=False)),
    error=st.text("abc: ", max_size=40),
)  # fmt: skip
def test_a_reply_comes_out_as_it_went_in(
    content: bytes, examples: int, metrics: dict[str, float], error: str
) -> None:
    """What is unbelievable in it is for who counts it, in rounds.py."""
    found = read_reply(travelled(reply_content(REQUEST, content, examples, metrics, error)), "north")
    assert found == Reply("north", REQUEST.run, REQUEST.number, content, examples, metrics, error)


def test_whose_reply_it_is_is_not_for_the_reply_to_say() -> None:
    content = reply()
    content[CONFIG]["party"] = "south"
    assert read_reply(travelled(content), "north").party == "north"


def test_a_reply_that_flower_could_not_get_says_why_in_one_line() -> None:
    found = read_reply(travelled(None, Error(2, "the ClientApp\nfailed\x1b[31m" + "x" * 999)), "north")
    assert found.error.startswith("its workload failed: the ClientApp failed [31m")
    assert len(found.error) <= 330
    assert found.error.isprintable()
    assert (found.content, found.examples) == (b"", 0)


def test_an_error_of_a_workload_steers_no_terminal_and_is_bounded() -> None:
    assert read_reply(travelled(reply(error="a\x1b]0;b\u202ec" + "x" * 400)), "north").error.isprintable()
    assert len(read_reply(travelled(reply(error="x" * 100_000)), "north").error) == 300
    unbounded = reply()
    unbounded[CONFIG]["error"] = "y" * 100_000  # by a ClientApp that is not ours
    assert len(read_reply(travelled(unbounded), "north").error) == 300


def config(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[CONFIG] = ConfigRecord({**content.config_records[CONFIG], **changes})

    return change


def without(record: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        del content[record]

    return change


def lacking(name: str) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        del content.config_records[CONFIG][name]

    return change


def array(name: str = "bytes", stype: str = "safetensors") -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[CONTENT] = ArrayRecord({name: Array(dtype="uint8", shape=(5,), stype=stype, data=b"model")})

    return change


def two_arrays(content: RecordDict) -> None:
    one = Array(dtype="uint8", shape=(5,), stype="safetensors", data=b"model")
    content[CONTENT] = ArrayRecord({"bytes": one, "more": one})


def of_numpy(content: RecordDict) -> None:
    """As Flower's own strategies send: NumPy's format, whose reader can be made to unpickle."""
    content[CONTENT] = ArrayRecord({"bytes": Array(np.zeros(5))})


ANY = [
    pytest.param(without(CONTENT), "the one array", id="no content"),
    pytest.param(array("weights"), "the one array", id="an array by another name"),
    pytest.param(array(stype="numpy.ndarray"), "the one array", id="an array of another kind"),
    pytest.param(of_numpy, "the one array", id="an array in NumPy's format"),
    pytest.param(two_arrays, "the one array", id="two arrays"),
    pytest.param(without(CONFIG), "does not say what it is", id="no config"),
    pytest.param(config(run=7), "does not say", id="a run that is a number"),
    pytest.param(config(round="3"), "of which round", id="a round that is a text"),
    pytest.param(config(round=3.0), "of which round", id="a round that is a fraction"),
    pytest.param(config(round=True), "of which round", id="a round that is a truth"),
    pytest.param(config(round=[3]), "of which round", id="a round that is a list"),
    pytest.param(lacking("run"), "does not say", id="of no run"),
    pytest.param(lacking("round"), "of which round", id="of no round"),
]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *ANY,
        pytest.param(config(kind=1), "what it asks", id="a kind that is a number"),
        pytest.param(lacking("kind"), "what it asks", id="of no kind"),
        pytest.param(config(model=b"\0"), "what it asks", id="a model that is no text"),
    ],
)
def test_what_is_no_request_is_refused(change: Callable[[RecordDict], None], words: str) -> None:
    content = request_content(REQUEST)
    change(content)
    with pytest.raises(FormatError, match=words):
        read_request(travelled(content).content)


def metrics(**changes: Any) -> Callable[[RecordDict], None]:
    def change(content: RecordDict) -> None:
        content[METRICS] = MetricRecord(changes)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *ANY,
        pytest.param(config(error=1), "does not say", id="an error that is a number"),
        pytest.param(without(METRICS), "count its examples", id="no numbers at all"),
        pytest.param(metrics(loss=0.5), "count its examples", id="without its examples"),
        pytest.param(metrics(examples=7.0), "count its examples", id="a fraction of examples"),
        pytest.param(metrics(examples=[7]), "count its examples", id="a list of examples"),
        pytest.param(
            metrics(examples=7, **{f"metric:{number}": 0.5 for number in range(16)}), "count its examples",
            id="metrics without end",
        ),
    ],
)  # fmt: skip
def test_what_is_no_reply_is_refused(change: Callable[[RecordDict], None], words: str) -> None:
    content = reply()
    change(content)
    with pytest.raises(FormatError, match=words):
        read_reply(travelled(content), "north")


def test_metrics_that_are_lists_and_those_by_other_names_are_left_out() -> None:
    content = reply()
    content[METRICS] = MetricRecord({"examples": 7, "metric:loss": 1, "metric:f1": [0.5], "f1": 0.5})
    assert read_reply(travelled(content), "north").metrics == {"loss": 1.0}
