"""The real OpenAI SDK, sync and async, against the API on the real engine over a real socket."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from app_server import served
from cloister.errors import InferenceError
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.inference.demo_model import demo_model
from opened_engine import engine_on
from real_parts import absent
from tinyllamas_gguf import write_gguf

MODEL = "stories"
KEY = "sk-" + "s" * 40
ONCE: list[Any] = [{"role": "user", "content": "Once upon a time"}]
GREEDY = ", there was a little girl named Lily. She"
ENDLESS = {"1": -100, "2": -100}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = write_gguf(tmp_path_factory.mktemp("tinyllamas") / "stories260K.gguf")
    engine = engine_on(model, slots=4)
    try:
        with served(create_app(engine, model_name=MODEL, api_keys=ApiKeys([KEY]))) as base:
            yield base
    finally:
        engine.close()


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def text_of(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_a_chat_answers_with_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == GREEDY
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_streamed_chat_says_the_same_chunk_by_chunk(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL,
        messages=ONCE,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        chunks = list(stream)
    assert text_of(chunks) == GREEDY
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len(chunks) > 10


def test_the_sdks_own_stream_accumulator_agrees(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=ONCE, max_tokens=60, temperature=0, stop=[" named"]
    ) as stream:
        assert stream.get_final_completion().choices[0].message.content == ", there was a little girl"


def test_several_choices_have_log_probabilities_and_one_prompts_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ONCE, max_tokens=5, temperature=0, n=3, logprobs=True, top_logprobs=2
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {", there was a little"}
    assert answer.choices[0].logprobs is not None
    entries = answer.choices[0].logprobs.content
    assert entries is not None
    assert [entry.token for entry in entries] == [",", " there", " was", " a", " little"]
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in entries)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 15)


def test_completions_answer_single_and_several_prompts(client: openai.OpenAI) -> None:
    one = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0, logprobs=1
    )
    assert one.choices[0].text == GREEDY
    assert one.choices[0].logprobs is not None
    assert one.choices[0].logprobs.tokens is not None
    assert "".join(one.choices[0].logprobs.tokens) == GREEDY
    two = client.completions.create(model=MODEL, prompt=["Once upon", "The"], max_tokens=2, temperature=0)
    assert [(choice.index, bool(choice.text)) for choice in two.choices] == [(0, True), (1, True)]
    with client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=12, temperature=0, stream=True
    ) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == GREEDY


def test_responses_answer_and_stream(client: openai.OpenAI) -> None:
    whole = client.responses.create(
        model=MODEL, input="Once upon a time", max_output_tokens=12, temperature=0
    )
    assert whole.output_text == GREEDY
    assert whole.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None
    assert whole.usage.output_tokens == 12
    with client.responses.create(
        model=MODEL, input=ONCE, max_output_tokens=12, temperature=0, stream=True
    ) as stream:
        events = list(stream)
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == GREEDY
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == GREEDY


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_embeddings_of_like_texts_are_alike(client: openai.OpenAI) -> None:
    texts = ["The dog ran to the park.", "A dog runs in the park.", '"," "," ","']
    answer = client.embeddings.create(model=MODEL, input=texts)
    vectors = [item.embedding for item in answer.data]
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert {len(vector) for vector in vectors} == {64}
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-3)

    def likeness(left: list[float], right: list[float]) -> float:
        return sum(a * b for a, b in zip(left, right, strict=True))

    assert likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2])
    assert answer.usage.prompt_tokens > 0


def test_the_same_seed_says_the_same_and_another_does_not(client: openai.OpenAI) -> None:
    def story(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model=MODEL, messages=ONCE, max_tokens=40, temperature=1.2, seed=seed
        )
        return answer.choices[0].message.content

    assert story(7) == story(7)
    assert len({story(seed) for seed in range(4)}) > 1


def test_a_stop_word_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ONCE, max_tokens=60, temperature=0, stop=[" named"]
    )
    assert answer.choices[0].message.content == ", there was a little girl"
    assert answer.choices[0].finish_reason == "stop"


def test_a_schema_shapes_the_answer(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"sky": {"enum": ["blue", "grey"]}},
        "required": ["sky"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ONCE,
        max_tokens=60,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}},
    )
    content = answer.choices[0].message.content or ""
    assert content.replace(" ", "").replace("\n", "") in ('{"sky":"blue"}', '{"sky":"grey"}')


def test_errors_arrive_as_the_sdks_own_exceptions(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=ONCE)
    assert missing.value.code == "model_not_found"
    long: list[Any] = [{"role": "user", "content": "word " * 2000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as too_long:
            client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.embeddings.create(model=MODEL, input="word " * 2000)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.completions.create(model=MODEL, prompt=[10**6])
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input="a", previous_response_id="resp_1")
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="sk-wrong-wrong-wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.models.list()
    assert refused.value.code == "invalid_api_key"


def test_eight_clients_on_four_slots_are_all_answered_right(url: str) -> None:
    def ask(number: int) -> str:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as own:
            stream = own.chat.completions.create(
                model=MODEL, messages=ONCE, max_tokens=12, temperature=0, stream=True, seed=number
            )
            return text_of(stream)

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [GREEDY] * 8


def test_the_async_client_chats_streams_and_embeds_at_once(url: str) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as own:

            async def streamed() -> str:
                stream = await own.chat.completions.create(
                    model=MODEL, messages=ONCE, max_tokens=12, temperature=0, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            chat, said, response, embedding = await asyncio.gather(
                own.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=12, temperature=0),
                streamed(),
                own.responses.create(model=MODEL, input=ONCE, max_output_tokens=12, temperature=0),
                own.embeddings.create(model=MODEL, input="a dog"),
            )
            assert chat.choices[0].message.content == said == response.output_text == GREEDY
            assert len(embedding.data[0].embedding) == 64

    asyncio.run(main())


def test_clients_that_leave_free_every_slot(url: str, client: openai.OpenAI) -> None:
    def attempt() -> float:
        streams = [
            client.chat.completions.create(
                model=MODEL, messages=ONCE, max_tokens=480, logit_bias=ENDLESS, stream=True, temperature=0
            )
            for _ in range(4)
        ]
        for stream in streams:
            next(iter(stream))
        for stream in streams:
            stream.close()
        return one_token(client)

    # The bound is the issue's: without the cancellation, four times 480 tokens would come first.
    assert any(attempt() < 1 for _ in range(3))


def one_token(client: openai.OpenAI) -> float:
    """The seconds to an answer."""
    started = time.monotonic()
    client.chat.completions.create(model=MODEL, messages=ONCE, max_tokens=1)
    return time.monotonic() - started


def test_a_client_that_times_out_without_a_stream_frees_its_slot_too(url: str, client: openai.OpenAI) -> None:
    def attempt() -> float:
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=0.05) as hasty:
            for _ in range(4):
                with pytest.raises(openai.APITimeoutError):
                    hasty.completions.create(
                        model=MODEL, prompt=["Once"] * 8, max_tokens=480, logit_bias=ENDLESS, temperature=0
                    )
        return one_token(client)

    assert any(attempt() < 1 for _ in range(3))


def test_prompts_answers_and_keys_are_in_no_log_and_on_no_output(
    client: openai.OpenAI, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canary = "quokka-4711-canary"
    # The server's side alone: the SDK is the client's, and may say in the client's log what it sends.
    for name in ("openai", "httpx2", "httpcore2"):
        caplog.set_level(logging.CRITICAL, logger=name)
    caplog.set_level(logging.DEBUG)
    said: list[Any] = [{"role": "user", "content": canary}]
    client.chat.completions.create(model=MODEL, messages=said, max_tokens=3)
    client.embeddings.create(model=MODEL, input=canary)
    for body in (
        {"model": canary, "messages": said},
        {"model": MODEL, "messages": said, canary: canary},
        {"model": MODEL, "messages": [{"role": "user", "content": canary * 300}]},
        {"model": MODEL, "messages": said, "tools": canary},
        {"model": MODEL, "messages": said, "stop": canary * 300},
    ):
        with pytest.raises(openai.APIStatusError):
            client.post("/chat/completions", body=body, cast_to=object)
    printed = "".join(capfd.readouterr()) + caplog.text
    assert canary not in printed
    assert KEY not in printed


def test_the_packaged_demonstration_model_answers() -> None:
    try:
        path = demo_model()
    except InferenceError as error:
        absent(str(error))
    engine = engine_on(path)
    try:
        with (
            served(create_app(engine, model_name="medquad-demo", api_keys=ApiKeys.nobody_asks())) as base,
            openai.OpenAI(base_url=f"{base}/v1", api_key="unused", max_retries=0) as client,
        ):
            question: list[Any] = [{"role": "user", "content": "What are the symptoms of glaucoma?"}]
            answer = client.chat.completions.create(
                model="medquad-demo", messages=question, max_tokens=120, temperature=0
            )
            assert len((answer.choices[0].message.content or "").split()) > 5
            response = client.responses.create(model="medquad-demo", input="What is asthma?", temperature=0)
            assert response.output_text
    finally:
        engine.close()
