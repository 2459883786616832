"""The sealed way from end to end: the real OpenAI SDK, a real socket, the simulated TEE."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import anthropic
import httpx
import httpx2
import huggingface_hub
import openai
import pytest

import cloister
from cloister.appraisal.draft import draft_policy
from cloister.channel import httpx_adapter
from cloister.channel.hpke import Kem
from cloister.channel.keyring import KeyRing
from cloister.errors import (
    AppraisalRefused,
    ChannelError,
    NetworkError,
    PolicyError,
    TruncatedMessage,
    UsageError,
)
from cloister.evidence.key_material import KeyMaterial
from proxy import Meddler, Proxy
from sealed_service import MODEL, Service, launched, platform, policy_for, running

MESSAGES = [{"role": "user", "content": "what is the marker MARIGOLD?"}]


@pytest.fixture(scope="module")
def service():
    with running() as it:
        yield it


@pytest.fixture
def client(service: Service):
    with cloister.connect(service.url, policy=service.policy) as http_client:
        yield openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk-MARIGOLD", http_client=http_client)


def async_client(service: Service) -> openai.AsyncOpenAI:
    http_client = cloister.connect_async(service.url, policy=service.policy)
    return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="sk-MARIGOLD", http_client=http_client)


def test_a_chat_completion_comes_back_through_the_seal(client: openai.OpenAI, service: Service):
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert answer.choices[0].message.content == "Hello there."
    assert answer.usage.completion_tokens == 4
    asked = service.asked[-1]
    assert (asked.method, asked.path) == ("POST", "/v1/chat/completions")
    assert json.loads(asked.body)["messages"] == MESSAGES
    assert asked.headers["authorization"] == "Bearer sk-MARIGOLD"


def test_a_streamed_chat_completion_arrives_token_by_token(client: openai.OpenAI):
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hel", "lo", " there", "."]


def test_completions_responses_models_and_embeddings_work_unchanged(client: openai.OpenAI):
    assert client.completions.create(model=MODEL, prompt="x").choices[0].text == "Hello there."
    streamed = client.completions.create(model=MODEL, prompt="x", stream=True)
    assert "".join(part.choices[0].text for part in streamed) == "Hello there."
    assert client.responses.create(model=MODEL, input="x").output_text == "Hello there."
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.embeddings.create(model=MODEL, input="x", encoding_format="float").data[0].embedding == [
        0.5,
        -0.25,
    ]


def test_the_asynchronous_sdk_works_the_same(service: Service):
    async def ask() -> None:
        async with async_client(service) as client:
            answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)
            assert answer.choices[0].message.content == "Hello there."
            stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            assert [chunk.choices[0].delta.content async for chunk in stream] == ["Hel", "lo", " there", "."]
            assert [model.id async for model in client.models.list()] == [MODEL]
            assert (await client.embeddings.create(model=MODEL, input="x", encoding_format="float")).data
            assert (await client.responses.create(model=MODEL, input="x")).output_text == "Hello there."
            assert (await client.completions.create(model=MODEL, prompt="x")).choices[
                0
            ].text == "Hello there."

    asyncio.run(ask())


def test_many_asynchronous_requests_at_once_share_few_quotes(service: Service):
    async def ask() -> list[str]:
        async with cloister.connect_async(service.url, policy=service.policy) as http_client:
            answers = await asyncio.gather(*(http_client.post("/echo", content=b"%d" % n) for n in range(20)))
            return [answer.text for answer in answers]

    assert asyncio.run(ask()) == [str(number) for number in range(20)]


def test_the_asynchronous_client_verifies_on_entry(service: Service):
    async def enter() -> None:
        client = cloister.connect_async(service.url, policy=service.policy)
        assert client.attestation is None
        async with client:
            assert client.attestation.claims.tee == "tdx"

    asyncio.run(enter())


def test_the_asynchronous_client_verifies_before_its_first_request(service: Service):
    wrong = policy_for(launched(program=b"\x09" * 32))

    async def ask() -> None:
        client = openai.AsyncOpenAI(
            base_url=f"{service.url}/v1",
            api_key="sk",
            http_client=cloister.connect_async(service.url, policy=wrong),
        )
        async with client:
            before = len(service.asked)
            with pytest.raises(AppraisalRefused):
                await client.models.list()
            assert len(service.asked) == before

    asyncio.run(ask())


def test_an_sdk_for_httpx2_from_another_maker_takes_the_client(service: Service):
    with cloister.connect(service.url, policy=service.policy) as http_client:
        other = anthropic.Anthropic(api_key="sk", base_url=service.url, http_client=http_client)
        with pytest.raises(
            anthropic.NotFoundError
        ):  # the echo has no such path, and says so through the seal
            other.messages.create(model=MODEL, max_tokens=1, messages=MESSAGES)


def test_hugging_face_s_client_speaks_through_the_seal(service: Service):
    huggingface_hub.set_client_factory(lambda: cloister.connect(service.url, policy=service.policy))
    try:
        client = huggingface_hub.InferenceClient(base_url=f"{service.url}/v1", api_key="sk-hub")
        whole = client.chat_completion(messages=MESSAGES, model=MODEL)
        parts = client.chat_completion(messages=MESSAGES, model=MODEL, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert whole.choices[0].message.content
        assert service.asked[-1].sealed
        assert service.asked[-1].headers["authorization"] == "Bearer sk-hub"
    finally:
        huggingface_hub.set_client_factory(httpx2.Client)


def test_programs_on_httpx_take_the_adapter(service: Service):
    with httpx_adapter.connect(service.url, policy=service.policy) as http_client:
        assert isinstance(http_client, httpx.Client)
        assert http_client.post("/echo", content=b"older").content == b"older"
        answer = openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk", http_client=http_client)
        assert [model.id for model in answer.models.list()] == [MODEL]

    async def ask() -> bytes:
        async with httpx_adapter.connect_async(service.url, policy=service.policy) as http_client:
            return (await http_client.post("/echo", content=b"older")).content

    assert asyncio.run(ask()) == b"older"


def test_network_failures_reach_httpx_programs_as_its_own_exceptions(service: Service):
    with running() as other:
        http_client = httpx_adapter.connect(other.url, policy=other.policy)
    with http_client, pytest.raises(httpx.ConnectError):
        http_client.get("/echo")


def test_the_result_says_who_answers_and_why(client: openai.OpenAI, service: Service):
    result = client._client.attestation
    assert isinstance(result.keys, KeyMaterial)
    assert result.keys.replica == "replica-1"
    assert result.claims.simulated
    assert [check.number for check in result.checks] == sorted(check.number for check in result.checks)
    assert result.policy_digest == service.policy.digest


def test_nothing_of_the_outer_request_reaches_the_application(service: Service):
    with cloister.connect(service.url, policy=service.policy) as http_client:
        http_client.post("/echo?a=b%20c", content=b"x", headers={"x-mine": "1", "connection": "close"})
    asked = service.asked[-1]
    assert asked.query == "a=b%20c"
    assert asked.client is None
    assert asked.headers["x-mine"] == "1"
    assert asked.headers["host"] == service.url.removeprefix("http://")
    assert len(asked.headers["cloister-request-id"]) == 32
    assert asked.sealed["request_id"] == asked.headers["cloister-request-id"]
    for name in ("accept-encoding", "connection", "cloister-padding", "cloister-replica", "incremental"):
        assert name not in asked.headers


def test_a_policy_file_and_an_address_with_v1_are_enough(service: Service, tmp_path: Path):
    text = draft_policy(
        tee="tdx",
        measurements=service.tee.measurements,
        events=service.tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
    )
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with cloister.connect(f"{service.url}/v1", policy=str(path)) as http_client:
        assert http_client.get("models").json()["data"][0]["id"] == MODEL


@pytest.mark.parametrize("size", [0, 1, 500, 16_384, 16_385, 100_000, 3_000_000])
def test_bodies_of_any_size_come_back_unchanged(service: Service, size: int):
    body = bytes(number % 251 for number in range(size))
    with cloister.connect(service.url, policy=service.policy) as http_client:
        answer = http_client.post("/echo", content=body)
    assert answer.content == body
    assert "cloister-padding" not in answer.headers


def test_a_request_made_of_an_iterator_is_sent_whole(service: Service):
    with cloister.connect(service.url, policy=service.policy) as http_client:
        assert http_client.post("/echo", content=iter([b"ab", b"", b"cd"])).content == b"abcd"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        pytest.param("http://127.0.0.1:1", NetworkError, id="nobody listens"),
        pytest.param("ftp://127.0.0.1:1", UsageError, id="another scheme"),
        pytest.param("127.0.0.1:8000", UsageError, id="no scheme"),
        pytest.param("http://127.0.0.1:1/api/v2", UsageError, id="a path"),
        pytest.param("http://user:pw@127.0.0.1:1", UsageError, id="a password"),
    ],
)
def test_a_wrong_address_is_refused_by_connect(service: Service, url: str, error: type[Exception]):
    with pytest.raises(error):
        cloister.connect(url, policy=service.policy)


def test_a_missing_policy_file_is_one_clear_error(service: Service, tmp_path: Path):
    with pytest.raises(PolicyError, match=r"none\.toml"):
        cloister.connect(service.url, policy=tmp_path / "none.toml")


def test_another_workload_than_the_policy_names_is_refused_before_anything_is_sent(service: Service):
    before = len(service.asked)
    with pytest.raises(AppraisalRefused):
        cloister.connect(service.url, policy=policy_for(launched(program=b"\x09" * 32)))
    assert len(service.asked) == before


def test_requests_to_another_origin_are_refused(service: Service):
    with (
        cloister.connect(service.url, policy=service.policy) as http_client,
        pytest.raises(UsageError, match="connected to"),
    ):
        http_client.get("http://127.0.0.1:9/v1/models")


def test_a_workload_without_a_post_quantum_key_needs_permission():
    with running(keyring=KeyRing(kems=[Kem.X25519])) as service:
        with (
            cloister.connect(service.url, policy=service.policy) as http_client,
            pytest.raises(ChannelError, match="post-quantum"),
        ):
            http_client.get("/v1/models")
        with cloister.connect(service.url, policy=service.policy, allow_classical_kem=True) as http_client:
            assert http_client.get("/v1/models").status_code == 200


def test_application_errors_come_back_sealed_and_keep_their_status(service: Service, client: openai.OpenAI):
    with cloister.connect(service.url, policy=service.policy) as http_client:
        assert http_client.get("/nowhere").status_code == 404
        failed = [http_client.get("/failing"), http_client.get("/quarter")]
    assert [answer.status_code for answer in failed] == [500, 500]
    assert "secret" not in failed[0].text
    assert "quarter" not in failed[1].text  # nothing of it had left


def test_an_answer_that_its_application_breaks_off_is_not_taken_for_whole(service: Service):
    with (
        cloister.connect(service.url, policy=service.policy) as http_client,
        pytest.raises((TruncatedMessage, httpx2.RemoteProtocolError)),
    ):
        http_client.get("/half")


def test_a_client_that_leaves_frees_its_place():
    with (
        running(answers=["token "] * 3500, pause=0.02) as service,
        cloister.connect(service.url, policy=service.policy) as http_client,
    ):
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk", http_client=http_client)
        stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
        assert service.disconnected.wait(60)


def test_an_asynchronous_client_that_is_cancelled_frees_its_place():
    with running(answers=["token "] * 3500, pause=0.02) as service:

        async def ask() -> None:
            async with cloister.connect_async(service.url, policy=service.policy) as http_client:
                client = openai.AsyncOpenAI(
                    base_url=f"{service.url}/v1", api_key="sk", http_client=http_client
                )
                begun = asyncio.Event()

                async def read() -> None:
                    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
                    async for _ in stream:
                        begun.set()

                reading = asyncio.create_task(read())
                await asyncio.wait_for(begun.wait(), 30)
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await reading
                assert await asyncio.to_thread(service.disconnected.wait, 60)

        asyncio.run(ask())


def test_the_sdk_retries_network_failures_and_shows_refusals(service: Service):
    with running() as short:
        http_client = cloister.connect(short.url, policy=short.policy)
    client = openai.OpenAI(base_url=f"{short.url}/v1", api_key="sk", http_client=http_client, max_retries=0)
    with http_client, pytest.raises(openai.APIConnectionError) as caught:
        client.models.list()
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


def test_token_lengths_cannot_be_read_off_the_wire():
    sizes = []
    for answers in (["a", "b", "c", "d"] * 6, ["extraordinarily", " well-phrased", " and", " different"] * 6):
        with running(answers=answers, pause=0.05, cadence=0.02) as service:
            proxy = Proxy(("127.0.0.1", service.port))
            with proxy.running(), cloister.connect(proxy.url, policy=service.policy) as http_client:
                client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk", http_client=http_client)
                stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
                assert [chunk.choices[0].delta.content for chunk in stream] == answers
            sizes.append(proxy.sizes("down", "/.well-known/ohttp-gateway"))
    # All pieces between the first (which carries the response nonce) and the last (framed as final) have one size,
    # and it is the same for tokens of one letter and of fifteen.
    (one, another) = sizes
    assert (one[0], one[-1]) == (another[0], another[-1])
    assert len({*one[1:-1], *another[1:-1]}) == 1
    assert min(len(one), len(another)) > 6


def test_prompts_of_similar_length_look_the_same_on_the_wire(service: Service):
    proxy = Proxy(("127.0.0.1", service.port))
    with proxy.running(), cloister.connect(proxy.url, policy=service.policy) as http_client:
        for prompt in (b"yes", b"no, certainly not, under any circumstances"):
            http_client.post("/echo", content=prompt)
    assert len({*proxy.sizes("up", "/.well-known/ohttp-gateway")}) == 1


def test_the_network_in_between_sees_no_word(service: Service):
    proxy = Proxy(("127.0.0.1", service.port), meddler=Meddler())
    with proxy.running(), cloister.connect(proxy.url, policy=service.policy) as http_client:
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="sk-MARIGOLD", http_client=http_client)
        client.chat.completions.create(model=MODEL, messages=MESSAGES)
    wire = b"".join(
        message.start.encode() + repr(message.fields).encode() + message.body
        for exchange in proxy.messages
        for message in exchange
    )
    assert len(wire) > 2000
    for word in (b"MARIGOLD", b"chat", b"completions", b"Hello", b"openai", MODEL.encode()):
        assert word not in wire


def test_the_port_of_a_closed_service_is_an_unreachable_network(service: Service):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(NetworkError, match="does not answer"):
        cloister.connect(f"http://127.0.0.1:{port}", policy=service.policy)
