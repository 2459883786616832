"""The real OpenAI SDK against the real workload through the seal: every call that the engine supports, both clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

import cloister
from cloister.inference.demo_model import demo_model
from deployment import Deployment, Service, deployment

ASTHMA: Any = [{"role": "user", "content": "What is asthma?"}]
SLOTS = 2


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Service]]:
    root = tmp_path_factory.mktemp("sealed") / "deployment"
    root.mkdir()
    with deployment(root, demo_model(), serve_options=("--slots", str(SLOTS))) as it:
        it.prepare()
        it.write_policies()
        it.fill_broker()
        yield it, it.start_inference(it.start_broker().url)


@pytest.fixture
def client(running: tuple[Deployment, Service]) -> Iterator[OpenAI]:
    it, service = running
    with cloister.connect(service.url, policy=it.policy) as http:
        yield OpenAI(base_url=f"{service.url}/v1", api_key=it.api_key, http_client=http, max_retries=0)


def _async(it: Deployment, service: Service) -> AsyncOpenAI:
    http = cloister.connect_async(service.url, policy=it.policy)
    return AsyncOpenAI(base_url=f"{service.url}/v1", api_key=it.api_key, http_client=http, max_retries=0)


def test_chat_streamed_and_whole_say_the_same(running: tuple[Deployment, Service], client: OpenAI) -> None:
    settings: Any = {"model": running[0].model_name, "messages": ASTHMA, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert "asthma" in text.lower()
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_seed_repeats_itself_and_a_stop_stops(running: tuple[Deployment, Service], client: OpenAI) -> None:
    settings: Any = {"model": running[0].model_name, "messages": ASTHMA, "max_tokens": 24, "temperature": 1.0}
    one, same = (
        client.chat.completions.create(**settings, seed=7).choices[0].message.content for _ in range(2)
    )
    assert one == same
    stopped = client.chat.completions.create(**settings | {"temperature": 0, "max_tokens": 60}, stop=["."])
    assert "." not in (stopped.choices[0].message.content or "")
    assert stopped.choices[0].finish_reason == "stop"


def test_completions_responses_embeddings_and_models_work(
    running: tuple[Deployment, Service], client: OpenAI
) -> None:
    model = running[0].model_name
    completion = client.completions.create(model=model, prompt="Asthma is", max_tokens=8, temperature=0)
    assert completion.choices[0].text
    response = client.responses.create(
        model=model, input="What is asthma?", temperature=0, max_output_tokens=60
    )
    events = list(
        client.responses.create(
            model=model, input="What is asthma?", temperature=0, max_output_tokens=60, stream=True
        )
    )
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == response.output_text
    vectors = client.embeddings.create(model=model, input=["asthma", "gout"]).data
    assert len(vectors) == 2
    assert vectors[0].embedding != vectors[1].embedding
    assert [known.id for known in client.models.list()] == [model]
    assert client.models.retrieve(model).id == model


def test_errors_keep_openais_shape_inside_the_seal(
    running: tuple[Deployment, Service], client: OpenAI
) -> None:
    it, _ = running
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=ASTHMA)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(
            model=it.model_name, messages=[{"role": "user", "content": "asthma " * 3000}]
        )
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-wrong-and-long-enough").models.list()


def test_the_asynchronous_sdk_answers_eight_at_once(running: tuple[Deployment, Service]) -> None:
    it, service = running

    async def ask() -> list[str | None]:
        async with _async(it, service) as client:
            asked = (
                client.chat.completions.create(
                    model=it.model_name, messages=ASTHMA, temperature=0, max_tokens=30
                )
                for _ in range(8)
            )
            return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(ask())
    assert len(answers) == 8
    assert all(answers)


def test_clients_that_leave_through_the_seal_free_their_slots(running: tuple[Deployment, Service]) -> None:
    it, service = running

    async def leave_and_ask() -> float:
        async with _async(it, service) as client:
            settings: Any = {
                "model": it.model_name,
                "messages": ASTHMA,
                "max_tokens": 400,
                "temperature": 1.0,
            }
            for _ in range(4 * SLOTS):
                stream = await client.chat.completions.create(**settings, stream=True, logit_bias={"2": -100})
                await anext(aiter(stream))
                await stream.close()
            began = time.monotonic()
            await client.chat.completions.create(**settings | {"max_tokens": 1})
            return time.monotonic() - began

    # A slot that was never freed would make this wait for ever; the bound only tells "at once" from "at the end".
    assert asyncio.run(leave_and_ask()) < 30
