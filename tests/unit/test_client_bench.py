from __future__ import annotations

import asyncio
import json
import random
from typing import Any
from xml.etree import ElementTree

import httpx2
import pytest

from cloister.cli.bench import parse_duration, parse_streams
from cloister.client.bench.asking import Outcome, ask
from cloister.client.bench.figures import Spread, figures, histogram, percentile
from cloister.client.bench.load import Round, Target, steady
from cloister.client.bench.mixed import Tally, mixed, usual_mixture
from cloister.client.bench.questions import Question
from cloister.client.bench.report import Report, html, markdown, svg
from cloister.errors import UsageError
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from scripted_engine import ScriptedEngine

KEY = "k" * 24
BASE = "http://service/"


def events(*values: Any, end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values) + end


def content(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}}


def answered(status: int, body: bytes, headers: dict[str, str] | None = None) -> Outcome:
    def handle(_: httpx2.Request) -> httpx2.Response:
        fields = {"content-type": "text/event-stream", **(headers or {})}
        return httpx2.Response(status, headers=fields, content=body)

    async def main() -> Outcome:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handle)) as client:
            return await ask(client, BASE, {}, {})

    return asyncio.run(main())


def test_a_stream_is_timed_and_counted_as_the_service_counts() -> None:
    outcome = answered(200, events(content("a"), content("b"), USAGE))
    assert outcome.failure is None
    assert outcome.first is not None
    assert (len(outcome.gaps), outcome.tokens, outcome.prompt_tokens) == (1, 9, 5)


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        pytest.param(503, b"{}", "status 503", id="no room"),
        pytest.param(200, events(content("a"), end=b""), "broken off", id="no end mark"),
        pytest.param(200, events({"error": {}}, end=b""), "error in the stream", id="an error event"),
        pytest.param(200, b"data: {no json}\n\n", "malformed", id="not JSON"),
        pytest.param(200, b"data: 7\n\n", "malformed", id="not an object"),
    ],
)
def test_what_a_service_does_wrong_is_a_failure(status: int, body: bytes, failure: str) -> None:
    assert answered(status, body).failure == failure


def test_a_refusal_says_when_to_come_back() -> None:
    assert answered(429, b"", {"retry-after": "12"}).retry_after == 12
    assert answered(429, b"", {"retry-after": "soon"}).retry_after is None


def test_prompts_are_made_up_the_same_from_the_same_seed_and_differ_from_their_first_words() -> None:
    question = Question("m", 40, 8)
    source = random.Random(3)
    one, two = question.body(source), question.body(source)
    assert one == question.body(random.Random(3))
    first, second = (body["messages"][0]["content"].split() for body in (one, two))
    assert len(first) == 40
    assert first[:3] != second[:3]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert Spread.of([]) is None
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_a_histogram_counts_every_value_once() -> None:
    source = random.Random(5)
    values = [source.lognormvariate(0, 1) for _ in range(500)]
    bins = histogram(values)
    assert sum(one.count for one in bins) == 500
    assert bins[0].low == min(values)
    assert bins[-1].high == max(values)
    assert histogram([]) == []
    assert [one.count for one in histogram([0.5, 0.5])] == [2]


def report(url: str = "http://host") -> Report:
    whole = Outcome(began=0, took=1, first=0.1, gaps=(0.01, 0.02), tokens=3, prompt_tokens=4)
    failed = Outcome(began=0, took=1, failure="status 503")
    one = Round(2, 1.0, (whole, failed))
    return Report(
        url=url, way="sealed", model="<m>", tokens=3, rows=(figures(one),), firsts=((2, (0.1, 0.2)),)
    )


def test_a_row_counts_whole_answers_and_names_failures() -> None:
    row = report().rows[0]
    assert (row.requests, row.answered, row.tokens_per_second, row.errors) == (2, 1, 3.0, {"status 503": 1})


def test_reports_are_well_formed_and_escape_what_a_service_says() -> None:
    hostile = report('http://h"><script>alert(1)</script>')
    assert "<script>" not in svg(hostile) + html(hostile)
    ElementTree.fromstring(svg(hostile))  # noqa: S314 -- our own
    assert markdown(report()).count("|") > 20
    assert json.loads(json.dumps(report().json()))["rows"][0]["streams"] == 2


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,,2", "9999", "1.5"])
def test_counts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_streams(text)


@pytest.mark.parametrize("text", ["", "s", "0s", "1h", "-1s", "nan", "3601s", "1.2.3s"])
def test_durations_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


def test_counts_and_durations_are_read() -> None:
    assert parse_streams("1,8,32") == [1, 8, 32]
    assert [parse_duration(text) for text in ("30s", "2m", "1.5")] == [30, 120, 1.5]


def target(client: httpx2.AsyncClient) -> Target:
    return Target(client, BASE, {"authorization": f"Bearer {KEY}"})


def service(engine: ScriptedEngine) -> httpx2.AsyncClient:
    app = create_app(engine, model_name="m", api_keys=ApiKeys([KEY]))
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))


def test_a_steady_load_keeps_its_streams_busy() -> None:
    async def main() -> Round:
        async with service(ScriptedEngine(["a"] * 4, slots=4)) as client:
            return await steady(
                target(client), Question("m", 4, 4), streams=3, seconds=0.2, source=random.Random(1)
            )

    done = asyncio.run(main())
    assert len(done.outcomes) >= 3
    assert {outcome.failure for outcome in done.outcomes} == {None}


def test_a_mixed_load_meets_what_it_expects_of_a_service_that_is_well() -> None:
    async def main() -> Tally:
        async with service(ScriptedEngine(["a"] * 4, slots=4)) as client:
            parts = [
                part
                for part in usual_mixture(context=512)
                # This engine has no context to exceed, and this transport brings an answer whole.
                if part.name != "over the context" and part.leave_at is None and part.leave_after is None
            ]
            return await mixed(target(client), "m", parts, streams=4, seconds=0.5, source=random.Random(1))

    tally = asyncio.run(main())
    assert not tally.unexpected
    assert tally.answered > 0
    assert tally.refused > 0


def test_a_mixed_load_names_what_is_not_right() -> None:
    async def main() -> Tally:
        async with service(ScriptedEngine(["a"], error=ValueError("a bug"))) as client:
            parts = [part for part in usual_mixture(context=512) if part.name == "not streamed"]
            return await mixed(target(client), "m", parts, streams=1, seconds=0.05, source=random.Random(1))

    assert set(asyncio.run(main()).unexpected) == {("not streamed", "status 500")}
