"""Addresses and events of an upstream: what they must be, byte for byte."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import InferenceError, UsageError
from cloister.inference.engines import EngineSettings
from cloister.inference.engines.upstream import UpstreamEngine, check_upstream
from cloister.inference.engines.upstream_address import parse_upstream
from cloister.inference.engines.upstream_events import MAX_EVENT, MAX_LINE, Events, chunk_of, decoded


@pytest.mark.parametrize(
    ("address", "socket", "url", "model"),
    [
        ("unix:/run/vllm.sock", "/run/vllm.sock", "http://upstream", None),
        ("unix:/run/a b.sock#llama 3", "/run/a b.sock", "http://upstream", "llama 3"),
        ("http://127.0.0.1:8000", None, "http://127.0.0.1:8000", None),
        ("http://[::1]:8000/#m", None, "http://[::1]:8000", "m"),
    ],
)
def test_an_address_inside_the_machine_is_taken(
    address: str, socket: str | None, url: str, model: str | None
) -> None:
    found = parse_upstream(address)
    assert (found.socket, found.url, found.model) == (socket, url, model)
    check_upstream(address, "tdx")


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("http://localhost:8000", id="a name"),
        pytest.param("http://127.0.0.2:8000", id="another loopback"),
        pytest.param("http://10.0.0.1:8000", id="another machine"),
        pytest.param("http://0.0.0.0:8000", id="any address"),
        pytest.param("http://127.0.0.1:8000@evil.example:80", id="a name behind a user"),
        pytest.param("http://127.0.0.1.evil.example:80", id="a name that begins so"),
        pytest.param("https://127.0.0.1:8000", id="https"),
        pytest.param("http://127.0.0.1", id="no port"),
        pytest.param("http://127.0.0.1:0", id="port 0"),
        pytest.param("http://127.0.0.1:65536", id="a port too far"),
        pytest.param("http://127.0.0.1:8000/v1", id="a path"),
        pytest.param("http://127.0.0.1:8000?x", id="a query"),
        pytest.param("http://127.0.0.1:8000\n", id="a line break"),
        pytest.param("http://[::1%eth0]:8000", id="a zone"),
        pytest.param("unix:relative", id="a relative path"),
        pytest.param("unix:/a/../b", id="a path that climbs"),
        pytest.param("unix:/" + "a" * 200, id="a long path"),
        pytest.param("unix:/a\0b", id="a zero byte"),
        pytest.param("", id="nothing"),
    ],
)
def test_any_other_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        parse_upstream(address)


@pytest.mark.parametrize("tee", ["sgx", "SGX", "gramine-sgx"])
def test_an_enclave_of_sgx_has_no_upstream(tee: str) -> None:
    with pytest.raises(UsageError, match="SGX"):
        check_upstream("http://127.0.0.1:8000", tee)


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 2},
        {"precision": "int8"},
        {"kv_cache": "q8_0"},
        {"speculation": "ngram"},
        {"prefill_chunk": 64},
        {"slots": 0},
        {"context_length": 1},
        {"upstream": None},
    ],
)
def test_settings_of_a_model_are_refused(settings: dict[str, object]) -> None:
    known: dict[str, object] = {"context_length": 256, "slots": 1, "upstream": "unix:/nothing"}
    with pytest.raises(UsageError):
        UpstreamEngine.open(None, EngineSettings(**(known | settings)))  # type: ignore[arg-type]


def test_a_server_that_is_not_there_is_an_error_of_one_line() -> None:
    settings = EngineSettings(context_length=256, slots=1, upstream="unix:/nothing")
    with pytest.raises(InferenceError, match="cannot be asked"):
        UpstreamEngine.open(None, settings)


@given(
    st.lists(st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), min_size=1)),
    st.integers(1, 7),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_are_the_same_however_their_bytes_come(texts: list[str], size: int, end: bytes) -> None:
    sent = b"".join(b": ping" + end + b"data: " + text.encode() + end + end for text in texts)
    events = Events()
    found = [data for at in range(0, len(sent), size) for data in events.feed(sent[at : at + size])]
    assert found == [text.encode() for text in texts]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"data: " + b"a" * (MAX_LINE + 1), id="a line without an end"),
        pytest.param(b"data: " + b"a" * (MAX_LINE + 1) + b"\n", id="a long line"),
        pytest.param((b"data: " + b"a" * (1 << 19) + b"\n") * 5, id="an event of many lines"),
        pytest.param(b"<html>\n", id="a page"),
        pytest.param(b"HTTP/1.1 200 OK\n", id="an answer in the answer"),
    ],
)
def test_what_is_no_event_or_too_long_is_refused(sent: bytes) -> None:
    with pytest.raises(InferenceError):
        list(Events().feed(sent))


def test_a_chunk_is_told_without_what_the_server_adds() -> None:
    sent = {
        "id": "x",
        "object": "anything",
        "created": 5,
        "model": "secret-name",
        "timings": {"a": 1},
        "choices": [
            {
                "index": 0,
                "delta": {"content": "Hi", "evil": 1},
                "stop_reason": 7,
                "finish_reason": None,
                "logprobs": {
                    "content": [
                        {"token": "Hi", "logprob": -1.5, "bytes": [72], "top_logprobs": [], "rank": 1}
                    ]
                },
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 99, "energy": 4},
    }
    found = chunk_of(json.dumps(sent).encode(), "chat")
    entry = {"token": "Hi", "logprob": -1.5, "bytes": [72], "top_logprobs": []}
    assert found == {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "model",
        "choices": [
            {
                "index": 0,
                "delta": {"content": "Hi"},
                "logprobs": {"content": [entry]},
                "finish_reason": None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 1,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_log_probabilities_of_the_older_shape_are_told_in_the_newer() -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.0}]}
    sent = {"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]}
    (choice,) = chunk_of(json.dumps(sent).encode(), "text")["choices"]
    (entry,) = choice["logprobs"]["content"]
    assert entry["logprob"] == -0.5
    assert entry["top_logprobs"] == [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"{", id="no JSON"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"choices": 1}', id="choices that are none"),
        pytest.param(b'{"choices": [{"index": 64, "text": "a"}]}', id="a choice nobody asked for"),
        pytest.param(b'{"choices": [{"index": -1, "text": "a"}]}', id="a choice below 0"),
        pytest.param(b'{"choices": [{"index": 0, "delta": {"content": 5}}]}', id="content that is a number"),
        pytest.param(b'{"choices": [], "choices": []}', id="a name twice"),
        pytest.param(b'{"usage": {"prompt_tokens": -1}}', id="fewer than no tokens"),
        pytest.param(b'{"usage": {"prompt_tokens": 1e30}}', id="more tokens than there are"),
        pytest.param(b"[" * 10_000, id="depth"),
    ],
)
def test_a_chunk_of_another_form_is_refused_without_quoting_it(sent: bytes) -> None:
    with pytest.raises(InferenceError, match="does not have the form") as error:
        chunk_of(sent, "chat")
    assert "choices" not in str(error.value)


def test_an_answer_over_its_bound_is_refused() -> None:
    with pytest.raises(InferenceError):
        decoded(b" " * (MAX_EVENT + 1), dict)
