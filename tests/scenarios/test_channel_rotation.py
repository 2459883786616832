"""Keys rotate under a living client: it verifies once more and goes on, and no further."""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

import cloister
from cloister.appraisal.draft import draft_policy
from cloister.appraisal.policy import load_policy
from cloister.channel.keyring import KeyRing
from cloister.errors import AppraisalRefused, UnknownKey
from proxy import Meddler, Message, Proxy
from sealed_service import MODEL, Service, launched, platform, policy_for, running

GATEWAY = "/.well-known/ohttp-gateway"
ATTESTATION = "/.well-known/attestation"


@pytest.fixture
def service():
    with running() as it:
        yield it


@pytest.fixture
def proxy(service: Service):
    it = Proxy(("127.0.0.1", service.port), meddler=Meddler())
    with it.running():
        yield it


def asked(proxy: Proxy) -> list[str]:
    return [request.path for request, _ in proxy.messages]


def test_a_client_that_meets_a_rotated_key_verifies_once_and_succeeds(service: Service, proxy: Proxy):
    with cloister.connect(proxy.url, policy=service.policy) as client:
        before = client.attestation
        assert client.post("/echo", content=b"one").content == b"one"
        service.keyring.rotate(revoke=True)
        assert client.post("/echo", content=b"two").content == b"two"
        assert client.attestation is not before
        assert client.attestation.keys.ohttp_keys != before.keys.ohttp_keys
        assert client.post("/echo", content=b"three").content == b"three"
    assert asked(proxy) == [ATTESTATION, GATEWAY, GATEWAY, ATTESTATION, GATEWAY, GATEWAY]
    assert [request.body for request in service.asked] == [b"one", b"two", b"three"]


def test_the_asynchronous_client_does_the_same(service: Service, proxy: Proxy):
    async def ask() -> None:
        async with cloister.connect_async(proxy.url, policy=service.policy) as client:
            assert (await client.post("/echo", content=b"one")).content == b"one"
            service.keyring.rotate(revoke=True)
            answers = await asyncio.gather(*(client.post("/echo", content=b"%d" % n) for n in range(5)))
            assert [answer.content for answer in answers] == [b"%d" % number for number in range(5)]

    asyncio.run(ask())
    assert len(service.asked) == 6


def test_a_stream_goes_on_when_its_key_is_erased_meanwhile():
    with (
        running(answers=["a", "b", "c", "d", "e"], pause=0.1) as service,
        cloister.connect(service.url, policy=service.policy) as http_client,
    ):
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="sk", http_client=http_client)
        messages = [{"role": "user", "content": "x"}]
        stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        said = [next(stream).choices[0].delta.content]
        service.keyring.rotate(revoke=True)
        said += [chunk.choices[0].delta.content for chunk in stream]
    assert said == ["a", "b", "c", "d", "e"]


def test_a_second_unknown_key_in_a_row_fails(service: Service, proxy: Proxy):
    class Rotating(Meddler):
        """Every key is gone by the time a request for it arrives."""

        def request(self, request: Message) -> Message:
            if request.path == GATEWAY:
                service.keyring.rotate(revoke=True)
            return request

    with cloister.connect(proxy.url, policy=service.policy) as client:
        proxy.meddler = Rotating()
        with pytest.raises(UnknownKey, match="again"):
            client.post("/echo", content=b"x")
    assert asked(proxy).count(GATEWAY) == 2
    assert service.asked == []


def test_a_workload_that_changed_with_its_keys_is_refused(service: Service, proxy: Proxy):
    with running(tee=launched(program=b"\x77" * 32)) as other:
        with cloister.connect(proxy.url, policy=service.policy) as client:
            proxy.target = ("127.0.0.1", other.port)
            with pytest.raises(AppraisalRefused):
                client.post("/echo", content=b"x")
        assert other.asked == []


def test_a_result_that_ended_is_made_anew_before_the_next_request(service: Service, proxy: Proxy):
    text = draft_policy(
        tee="tdx",
        measurements=service.tee.measurements,
        events=service.tee.launch,
        min_tcb_evaluation_number=1,
        simulated_root=platform().root_sha256,
        max_age_seconds=60,
    )
    later = 0
    policy = load_policy(text, name="short")
    with cloister.connect(proxy.url, policy=policy, now=lambda: int(time.time()) + later) as client:
        client.post("/echo", content=b"x")
        later = 61
        client.post("/echo", content=b"y")
        client.post("/echo", content=b"z")
    assert asked(proxy) == [ATTESTATION, GATEWAY, ATTESTATION, GATEWAY, GATEWAY]


def test_a_clock_before_the_collateral_counts_as_the_collaterals_issue_date(service: Service):
    offset = 0
    with cloister.connect(
        service.url, policy=service.policy, now=lambda: int(time.time()) + offset
    ) as client:
        issued = client.attestation.claims.issued_at
        offset = -10 * 365 * 86400
        assert client._sealed._verification.now() == issued


def test_a_full_replay_table_rotates_and_no_client_notices(proxy: Proxy):
    with running(keyring=KeyRing(capacity=4)) as service:
        proxy.target = ("127.0.0.1", service.port)
        with cloister.connect(proxy.url, policy=policy_for(service.tee)) as client:
            for number in range(12):
                assert client.post("/echo", content=b"%d" % number).content == b"%d" % number
    assert asked(proxy).count(ATTESTATION) == 3


def test_the_request_id_stays_the_same_over_the_retry(service: Service):
    with cloister.connect(service.url, policy=service.policy) as client:
        service.keyring.rotate(revoke=True)
        answer = client.post("/echo", content=b"x")
    assert [request.sealed["request_id"].encode() for request in service.asked] == [
        answer.extensions["cloister_request_id"]
    ]
