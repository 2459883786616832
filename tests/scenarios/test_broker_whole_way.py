"""A key's whole way over real sockets: broker in its simulated TEE, workload in its own, the sealed channel between."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from broker_parts import PASSPHRASE, PATH, SECRET, URI, Bench, Clock, platform, policy_for, served, workload
from cloister.appraisal.policy import Policy, load_policy
from cloister.broker.client import BrokerKeys
from cloister.broker.configuration import broker_events
from cloister.broker.laptop import Laptop
from cloister.broker.limits import Buckets
from cloister.broker.serving import seal_broker
from cloister.errors import AppraisalRefused, NetworkError, ReleaseRefused, UnknownResource
from cloister.sealing import KeySource

START = int(time.time())


class Deployed:
    """A served broker and what a workload needs to know of it."""

    def __init__(self, bench: Bench, url: str, policy: Policy) -> None:
        self.bench, self.url, self.policy = bench, url, policy

    def keys(self, config: bytes = b"the right configuration") -> BrokerKeys:
        return BrokerKeys(self.url, policy=self.policy, attester=workload(config, now=START))


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    bench = Bench(tmp_path / "state", clock=Clock(START))
    bench.put()
    bench.allow(workload(now=START), now=START)
    tee = platform(START).tee("tdx", launch=broker_events())
    gateway, keyring = seal_broker(bench.desk, tee, buckets=Buckets(rate=1e6, burst=1_000_000))
    with served(gateway) as url:
        yield Deployed(bench, url, load_policy(policy_for(tee, now=START), name="broker policy"))
    keyring.close()


def test_the_right_workload_gets_its_key(deployed: Deployed) -> None:
    with deployed.keys() as keys:
        source: KeySource = keys
        assert source.key(URI) == SECRET
    assert [entry.event for entry in deployed.bench.entries()[-2:]] == ["attestation", "release"]


def test_one_attestation_serves_several_keys(deployed: Deployed) -> None:
    deployed.bench.put("models/key/second", b"2" * 32)
    deployed.bench.allow(workload(now=START), "models/key/second", now=START)
    with deployed.keys() as keys:
        assert keys.key(URI) == SECRET
        assert keys.key("kbs:///models/key/second") == b"2" * 32
    assert len(deployed.bench.told("attestation")) == 1


def test_a_put_while_the_broker_serves_is_seen_by_the_next_request(deployed: Deployed) -> None:
    with deployed.keys() as keys:
        assert keys.key(URI) == SECRET
        deployed.bench.put(PATH, b"n" * 32)
        assert keys.key(URI) == b"n" * 32


def test_another_measurement_is_refused_by_class_only(deployed: Deployed) -> None:
    with deployed.keys(b"another configuration") as keys, pytest.raises(ReleaseRefused) as caught:
        keys.key(URI)
    assert "attestation-refused" in str(caught.value)
    assert "rtmr" not in str(caught.value)
    assert "rtmr3" in deployed.bench.entries()[-1].reason


def test_a_resource_without_a_rule_is_refused(deployed: Deployed) -> None:
    deployed.bench.put("models/key/lonely", b"l" * 32)
    with deployed.keys() as keys, pytest.raises(ReleaseRefused, match="no-rule"):
        keys.key("kbs:///models/key/lonely")


def test_a_rule_without_a_resource_names_what_to_do(deployed: Deployed) -> None:
    deployed.bench.allow(workload(now=START), "models/key/later", now=START)
    with deployed.keys() as keys, pytest.raises(UnknownResource, match="put"):
        keys.key("kbs:///models/key/later")


def test_a_session_that_the_broker_forgot_is_attested_anew_once(deployed: Deployed) -> None:
    with deployed.keys() as keys:
        assert keys.key(URI) == SECRET
        pair, _ = keys._session  # type: ignore[misc]
        keys._session = (pair, "an.old.token")
        assert keys.key(URI) == SECRET


def test_a_broker_of_another_measurement_gets_no_evidence_of_ours(deployed: Deployed) -> None:
    class Silent:
        def quote(self, report_data: bytes) -> None:
            raise AssertionError("the workload must not quote for an unverified broker")

    other = load_policy(policy_for(workload(b"not the broker", now=START), now=START), name="test")
    keys = BrokerKeys(deployed.url, policy=other, attester=Silent())  # type: ignore[arg-type]
    with keys, pytest.raises(AppraisalRefused):
        keys.key(URI)
    assert deployed.bench.told("attestation", "release") == []


def test_a_request_in_the_clear_is_refused_before_the_broker_sees_it(deployed: Deployed) -> None:
    with httpx2.Client() as client:
        for method, path in (("POST", "/kbs/v0/auth"), ("GET", f"/kbs/v0/resource/{PATH}")):
            response = client.request(method, deployed.url + path)
            assert response.status_code == 403
            assert response.json()["type"] == "urn:cloister:problem:sealed-request-required"


def test_an_unreachable_broker_is_tried_a_few_times_and_then_named(deployed: Deployed) -> None:
    slept: list[float] = []
    keys = BrokerKeys(
        "http://127.0.0.1:9", policy=deployed.policy, attester=workload(now=START), sleep=slept.append
    )
    with keys, pytest.raises(NetworkError, match=r"127\.0\.0\.1:9 cannot be reached"):
        keys.key(URI)
    assert slept == [0.25, 0.5, 1.0]


def test_a_broker_that_breaks_off_is_not_asked_again(deployed: Deployed) -> None:
    connections = []

    def break_off(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection.recv(1))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=break_off, args=(listener,), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        keys = BrokerKeys(url, policy=deployed.policy, attester=workload(now=START), sleep=lambda _: None)
        with keys, pytest.raises(NetworkError, match="cannot be reached"):
            keys.key(URI)
    assert len(connections) == 1


def test_many_workloads_at_once_all_get_their_key(deployed: Deployed) -> None:
    def ask(_: int) -> bytes:
        with deployed.keys() as keys:
            return keys.key(URI)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {SECRET}
    assert [entry.outcome for entry in deployed.bench.told("attestation")] == ["accepted"] * 40
    assert [entry.outcome for entry in deployed.bench.told("release")] == ["accepted"] * 40
    Laptop.open(deployed.bench.directory, PASSPHRASE)
