"""What a hostile upstream can do to us, which is nothing; and what llama.cpp's own server behind us answers."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import openai
import pytest

from app_server import served
from cloister.errors import CloisterError, InferenceError, UsageError
from cloister.inference.api_errors import RequestRefused
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.engines.upstream_exchange import Bounds
from tinyllamas_gguf import write_gguf
from upstream_servers import Script, event, llama_server, response, stream_head, upstream, written_server

KEY = "sk-" + "u" * 40
MODEL = "stories"
ONCE: list[Any] = [{"role": "user", "content": "Once upon a time"}]
CANARY = "canary-4711-quokka"
ENDLESS = {"1": -100, "2": -100}
CHUNK = {"id": "x", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("upstream") / "stories.gguf")


@pytest.fixture(scope="module", params=["a Unix socket", "loopback"])
def client(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    host = (
        str(tmp_path_factory.mktemp("s") / "llama.sock") if request.param == "a Unix socket" else "127.0.0.1"
    )
    with llama_server(model, host) as address, upstream(address, bounds=Bounds()) as engine:
        app = create_app(engine, model_name=MODEL, api_keys=ApiKeys([KEY]))
        with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
            yield made


def test_chats_completions_responses_and_embeddings_pass_through(client: openai.OpenAI) -> None:
    greedy = ", there was a little girl named Lily. She"
    chat = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
    assert chat.choices[0].message.content == greedy
    assert chat.usage is not None
    assert chat.usage.completion_tokens == 12
    text = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=5, temperature=0, logprobs=2
    )
    assert text.choices[0].text == ", there was a little"
    assert text.choices[0].logprobs is not None
    assert len(text.choices[0].logprobs.tokens or []) == 5
    said = client.responses.create(model=MODEL, input="Once upon a time", max_output_tokens=12, temperature=0)
    assert said.output_text == greedy
    vectors = client.embeddings.create(model=MODEL, input=["Once upon a time", "Tom"])
    assert len(vectors.data) == 2
    assert sum(number**2 for number in vectors.data[1].embedding) == pytest.approx(1, abs=1e-3)


def test_a_refusal_of_the_server_reaches_who_asked(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="word " * 2000)
    assert refused.value.code == "context_length_exceeded"


def test_a_client_that_leaves_frees_the_servers_slots(client: openai.OpenAI) -> None:
    for _ in range(4):
        with client.chat.completions.create(
            model=MODEL, messages=ONCE, logit_bias=ENDLESS, max_tokens=400, stream=True
        ) as stream:
            next(iter(stream))
    started = time.monotonic()
    client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=1)
    assert time.monotonic() - started < 10


def told(address: str, **request: Any) -> list[Mapping[str, Any]]:
    chunks: list[Mapping[str, Any]] = []

    def sink(chunk: Mapping[str, Any]) -> bool:
        chunks.append(chunk)
        return False

    with upstream(address) as engine:
        engine.generate("chat", {"messages": ONCE} | request, sink)
    return [chunk for chunk in chunks if chunk]


def says(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)

    return script


def says_for_ever(head: bytes, part: bytes, pause: float = 0.0) -> Script:
    def script(connection: socket.socket) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(part)
            time.sleep(pause)

    return script


def is_silent(*parts: bytes) -> Script:
    def script(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        connection.recv(1)  # until the other side has had enough
        while connection.recv(65536):
            pass

    return script


HEAD = stream_head()
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(says_for_ever(HEAD, b"a" * 65536), id="a line without an end"),
        pytest.param(says_for_ever(HEAD, b"data: " + b"a" * 65536), id="data without an end"),
        pytest.param(says_for_ever(HEAD, b"data: aaaa\n"), id="an event without an end"),
        pytest.param(says_for_ever(HEAD, event(CHUNK)), id="an answer without an end"),
        pytest.param(says_for_ever(HEAD, b": ping\n\n", 0.05), id="only comments"),
        pytest.param(says_for_ever(HEAD, b":", 0.05), id="a byte now and then"),
        pytest.param(is_silent(), id="no answer"),
        pytest.param(is_silent(HEAD), id="no event"),
        pytest.param(is_silent(HEAD, event(CHUNK)), id="silence in the middle"),
        pytest.param(says(), id="a closed connection"),
        pytest.param(says(HEAD, event(CHUNK)), id="closed in the middle"),
        pytest.param(says(HEAD, event(CHUNK)[:-10]), id="closed in an event"),
        pytest.param(says(HEAD, event(CHUNK), event(USAGE)), id="closed without a last event"),
        pytest.param(says(HEAD, event(CHUNK), DONE), id="no usage"),
        pytest.param(says(HEAD, DONE), id="nothing at all"),
        pytest.param(says(HEAD, b"data: {]\n\n"), id="no JSON"),
        pytest.param(says(HEAD, event({"error": CANARY, "choices": CANARY})), id="an error that quotes"),
        pytest.param(says(b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000), id="a head without an end"),
        pytest.param(says(b"\0\1\2\3"), id="no HTTP"),
        pytest.param(says(response(b"<html>", kind="text/html")), id="a page"),
        pytest.param(says(response(event(CHUNK) + DONE)), id="no stream"),
        pytest.param(says(stream_head("content-encoding: gzip\r\n"), b"\x1f\x8b\0\0"), id="compressed"),
        pytest.param(says(response(CANARY.encode(), status="500 No")), id="a failure that quotes"),
        pytest.param(says(response(CANARY.encode(), status="401 No")), id="a key that is asked for"),
    ],
)
def test_an_upstream_that_breaks_the_rules_is_an_error_that_quotes_nothing(
    script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    started = time.monotonic()
    with written_server(script) as address, pytest.raises(InferenceError) as error:
        told(address)
    assert not isinstance(error.value, RequestRefused)
    assert CANARY not in str(error.value)
    assert CANARY not in caplog.text
    assert time.monotonic() - started < 20


def test_a_refusal_that_quotes_the_prompt_reaches_who_asked_and_no_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    body = b'{"error": {"message": "cannot parse %s", "code": "invalid_value"}}' % CANARY.encode()
    script = says(response(body, status="400 Bad Request"))
    with written_server(script) as address, upstream(address) as engine:
        app = create_app(engine, model_name=MODEL, api_keys=ApiKeys([KEY]))
        with (
            served(app) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client,
            pytest.raises(openai.BadRequestError, match=CANARY),
        ):
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": CANARY}])
    ours = [
        record for record in caplog.records if record.name.startswith(("cloister", "httpx2", "httpcore2"))
    ]
    assert not any(CANARY in record.getMessage() for record in ours)
    captured = capfd.readouterr()
    assert CANARY not in captured.out + captured.err


def test_a_redirect_is_not_followed() -> None:
    asked = threading.Event()
    elsewhere = socket.create_server(("127.0.0.1", 0))
    elsewhere.settimeout(0.5)
    place = f"location: http://127.0.0.1:{elsewhere.getsockname()[1]}/v1/chat/completions\r\n"
    try:
        for status in ("302 Found", "307 Temporary Redirect", "308 Permanent Redirect"):
            script = says(response(b"", status=status, more=place))
            with written_server(script) as address, pytest.raises(InferenceError, match="status 30"):
                told(address)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    finally:
        elsewhere.close()
    assert not asked.is_set()


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = socket.create_server(("127.0.0.1", 0))
    proxy.settimeout(0.5)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    try:
        with written_server(says(HEAD, event(CHUNK), event(USAGE), DONE)) as address:
            assert told(address)[0]["choices"][0]["delta"] == {"content": "a"}
        with pytest.raises(TimeoutError):
            proxy.accept()
    finally:
        proxy.close()


def test_a_request_that_waits_for_the_first_byte_is_broken_off_at_once() -> None:
    closed = threading.Event()

    def script(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass
        closed.set()

    with written_server(script) as address, upstream(address, bounds=Bounds()) as engine:
        started = time.monotonic()
        engine.generate("chat", {"messages": ONCE}, lambda _: True)
        assert closed.wait(30)
        assert time.monotonic() - started < 30


def test_closing_breaks_off_what_runs() -> None:
    with (
        written_server(is_silent(HEAD, event(CHUNK))) as address,
        upstream(address, bounds=Bounds()) as engine,
    ):
        first = threading.Event()
        thread = threading.Thread(
            target=lambda: engine.generate(
                "chat", {"messages": ONCE}, lambda chunk: bool(chunk and first.set())
            )
        )
        thread.start()
        assert first.wait(10)
        engine.close()
        thread.join(30)
        assert not thread.is_alive()
        with pytest.raises(RequestRefused):
            engine.generate("chat", {"messages": ONCE}, lambda _: False)


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(b'{"object": "list", "data": []}', id="no model"),
        pytest.param(b'{"object": "list", "data": [{"id": "a"}, {"id": "b"}]}', id="two models"),
        pytest.param(b'{"object": "list", "data": [{"id": ""}]}', id="a model without a name"),
        pytest.param(b"{", id="no JSON"),
        pytest.param(b'{"object": "list", "data": "' + b"a" * (3 << 20) + b'"}', id="a list without an end"),
    ],
)
def test_a_server_that_does_not_serve_one_model_is_refused(models: bytes) -> None:
    with (
        written_server(says(), models=models) as address,
        pytest.raises(CloisterError),
        upstream(address),
    ):
        pass


def test_one_of_several_models_is_named_with_the_address() -> None:
    models = b'{"object": "list", "data": [{"id": "a"}, {"id": "b", "max_model_len": 100}]}'
    with written_server(says(), models=models) as address:
        with upstream(f"{address}#b") as engine:
            assert engine.context_length == 100
        with pytest.raises(UsageError), upstream(f"{address}#c"):
            pass


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"data": [], "usage": {"prompt_tokens": 1}}', id="none"),
        pytest.param(
            b'{"data": [{"index": 1, "embedding": [1]}], "usage": {"prompt_tokens": 1}}', id="another's"
        ),
        pytest.param(
            b'{"data": [{"index": 0, "embedding": ["x"]}], "usage": {"prompt_tokens": 1}}', id="words"
        ),
        pytest.param(
            b'{"data": [{"index": 0, "embedding": [1e999]}], "usage": {"prompt_tokens": 1}}', id="no number"
        ),
    ],
)
def test_embeddings_that_are_not_those_asked_for_are_refused(body: bytes) -> None:
    with written_server(says(), embeddings=response(body)) as address, upstream(address) as engine:
        engine.embedding_length = 1
        with pytest.raises(InferenceError):
            engine.embed({"input": ["a"]})


def test_each_request_has_a_salt_that_no_other_tenant_has() -> None:
    bodies: list[bytes] = []

    def script(connection: socket.socket) -> None:
        data = b""
        while not (b'"cache_salt":"' in data and data.endswith(b"}")) and (part := connection.recv(65536)):
            data += part
        bodies.append(data)
        for part in (HEAD, event(CHUNK), event(USAGE), DONE):
            connection.sendall(part)

    def salts(tenants: list[bytes | None], **settings: Any) -> list[bytes]:
        bodies.clear()
        # The script's server reads the head first: what is left of the body is what it sees.
        with written_server(script) as address, upstream(address, **settings) as engine:
            for tenant in tenants:
                engine.generate("chat", {"messages": ONCE * 2000}, lambda _: False, tenant=tenant)
        return [data.partition(b'"cache_salt":"')[2][:64] for data in bodies]

    mine, other = b"m" * 32, b"o" * 32
    without = salts([mine, mine, other, None])
    assert len(set(without)) == 4
    assert all(len(salt) == 64 for salt in without)
    kept = salts([mine, mine, other, None], prefix_cache=True)
    assert kept[0] == kept[1] == mine.hex().encode()
    assert len({*kept}) == 3
