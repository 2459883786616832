"""`cloister proxy`: programs that know nothing of seals, by a base URL alone; and who is kept out.

Real processes and sockets. The service is a sealed one with an echo behind it (tests/sealed_service.py), and what stands
between may meddle.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from cloister.encoding import encode_json
from deployment import CLOISTER, CommandFailedError, secret, start_service, wait_until
from proxy import Meddler, Message, Proxy
from sealed_service import MODEL, Service, launched, policy_file, running

GATEWAY, ATTESTATION = "/.well-known/ohttp-gateway", "/.well-known/attestation"
SERVICE_KEY = "sk-the-services-own-key"
CANARY = "Zugzwangquark"


@dataclass
class Local:
    """A proxy of this machine, and what it stands before."""

    url: str
    key: str
    log: Path
    service: Service
    between: Proxy
    process: subprocess.Popen[str]

    def client(self, **settings: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **settings)

    def post(self, **headers: str) -> httpx2.Response:
        return httpx2.post(
            f"{self.url}/v1/chat/completions", json={"model": MODEL, "messages": []},
            headers={"authorization": f"Bearer {self.key}"} | headers,
        )  # fmt: skip


@contextmanager
def local(root: Path, *words: str | Path, unix: Path | None = None, **settings: Any) -> Iterator[Local]:
    """With whatever stands between."""
    secret(root / "service.key", SERVICE_KEY)
    with running(**settings) as service, Proxy(("127.0.0.1", service.port)).running() as between:
        own = (
            ["--unix", unix]
            if unix
            else ["--listen", "127.0.0.1:0", "--key-file", root / "own" / "proxy.key"]
        )
        policy = policy_file(root, service.tee)
        started = start_service(["proxy", between.url, "--policy", policy, *own, *words], root / "log")
        try:
            key = "" if unix else (root / "own" / "proxy.key").read_text().strip()
            yield Local(started.url, key, root / "log", service, between, started.process)
        finally:
            started.stop()


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    root = tmp_path_factory.mktemp("proxy")
    with local(root, "--service-key-file", root / "service.key") as it:
        yield it


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> None:
    if "proxied" in request.fixturenames:
        it = request.getfixturevalue("proxied")
        it.service.asked.clear()
        it.between.messages.clear()
        it.between.meddler = None


def question(**settings: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": CANARY}], **settings}


def test_an_openai_client_is_answered_by_its_base_url_alone(proxied: Local) -> None:
    with proxied.client() as client:
        assert client.models.list().data[0].id == MODEL
        whole = client.chat.completions.create(**question())
        parts = [
            one.choices[0].delta.content for one in client.chat.completions.create(**question(stream=True))
        ]
    assert whole.choices[0].message.content == "Hello there."
    assert parts == ["Hel", "lo", " there", "."]
    assert all(one.sealed for one in proxied.service.asked)
    assert CANARY.encode() in proxied.service.asked[-1].body


def test_curl_streams_through_it(proxied: Local) -> None:
    done = subprocess.run(
        [
            str(shutil.which("curl")), "-sN", f"{proxied.url}/v1/chat/completions",
            "-H", f"Authorization: Bearer {proxied.key}",
            "-H", "Content-Type: application/json", "-d", json.dumps(question(stream=True)),
        ],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    lines = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert lines[-1] == "[DONE]"
    assert (
        "".join(json.loads(line)["choices"][0]["delta"]["content"] for line in lines[:-1]) == "Hello there."
    )


def test_the_service_gets_its_own_key_and_not_the_proxys(proxied: Local) -> None:
    assert proxied.post(cookie="session=1").status_code == 200
    headers = proxied.service.asked[-1].headers
    assert headers["authorization"] == f"Bearer {SERVICE_KEY}"
    assert "cookie" not in headers
    assert proxied.key not in str(proxied.service.asked[-1])


def test_nothing_of_a_request_is_in_the_clear_beyond_the_proxy(proxied: Local) -> None:
    proxied.between.meddler = Meddler()
    with proxied.client() as client:
        client.chat.completions.create(**question())
    sent = [request for request, _ in proxied.between.messages]
    assert {request.path for request in sent} <= {GATEWAY, ATTESTATION}
    for request in sent:
        whole = request.body + str(request.fields).encode()
        assert not any(
            word.encode() in whole for word in (CANARY, SERVICE_KEY, proxied.key, "chat/completions")
        )


def test_an_answer_streams_while_it_is_made(tmp_path: Path) -> None:
    with (
        local(tmp_path, answers=["one", "two", "three"], pause=0.7, cadence=0.01) as it,
        it.client() as client,
    ):
        spread = []
        for _ in range(3):  # who reads may not have its turn for as long
            came = [time.monotonic() for _ in client.chat.completions.create(**question(stream=True))]
            spread.append(came[-1] - came[0])
            if spread[-1] > 0.7:
                break
    assert max(spread) > 0.7


def test_who_leaves_in_the_middle_is_not_answered_to_the_end(tmp_path: Path) -> None:
    with local(tmp_path, answers=["word"] * 1000, pause=0.1, cadence=0.01) as it:
        with it.client() as client:
            stream = client.chat.completions.create(**question(stream=True))
            next(iter(stream))
            stream.close()
        assert it.service.disconnected.wait(60)


# Who is kept out.


def test_a_web_page_is_refused_whatever_it_calls_itself(proxied: Local) -> None:
    refused = {
        "another site": proxied.post(origin="https://evil.example"),
        "without a word of its own": proxied.post(**{"sec-fetch-site": "cross-site"}),
        "a name rebound to this machine": proxied.post(host="evil.example:8788"),
    }
    assert {name: answer.status_code for name, answer in refused.items()} == {
        "another site": 403, "without a word of its own": 403, "a name rebound to this machine": 421,
    }  # fmt: skip
    preflight = httpx2.request(
        "OPTIONS", f"{proxied.url}/v1/chat/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )  # fmt: skip
    for answer in (*refused.values(), preflight):
        assert answer.status_code in (403, 421)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert proxied.service.asked == []


def test_a_way_up_leads_to_nothing_else_of_the_service(proxied: Local) -> None:
    port = int(proxied.url.rsplit(":", 1)[1])
    for path in (
        "/v1/../healthz",
        "/v1/%2e%2e/healthz",
        "/v1/..//echo",
        f"http://127.0.0.1:{port}/healthz",
        "//echo",
    ):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {proxied.key}\r\n\r\n"
            connection.sendall(head.encode())
            assert connection.recv(65536).split(b" ")[1] in (b"400", b"404"), path
    assert proxied.service.asked == []


def test_another_program_without_the_key_is_refused(proxied: Local) -> None:
    for headers in ({}, {"authorization": "Bearer sk-guess"}, {"authorization": f"Bearer {SERVICE_KEY}"}):
        answer = httpx2.post(f"{proxied.url}/v1/chat/completions", json=question(), headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError, match="key of its own"):
        openai.OpenAI(base_url=f"{proxied.url}/v1", api_key="sk-guess", max_retries=0).models.list()
    assert proxied.service.asked == []


def test_an_address_that_others_can_reach_is_refused(tmp_path: Path) -> None:
    policy = policy_file(tmp_path, launched())
    for address in ("0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"):
        with pytest.raises(CommandFailedError) as failed:
            start_service(
                [
                    "proxy",
                    "http://127.0.0.1:9",
                    "--policy",
                    policy,
                    "--listen",
                    address,
                    "--key-file",
                    tmp_path / "k",
                ],
                tmp_path / "log",
            )
        assert failed.value.code == 2
    assert not (tmp_path / "k").exists()


def test_the_key_is_made_once_for_its_owner_alone_and_shown_nowhere(proxied: Local) -> None:
    path = proxied.log.parent / "own" / "proxy.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(proxied.key) >= 32
    said = proxied.log.read_text()
    command = Path(f"/proc/{proxied.process.pid}/cmdline").read_bytes().decode()
    for word in (proxied.key, SERVICE_KEY, CANARY):
        assert word not in said
        assert word not in command
    assert "SIMULATED" in said


def test_a_socket_is_its_owners_alone_and_the_programs_own_key_goes_through(tmp_path: Path) -> None:
    path = tmp_path / "proxy.socket"
    with local(tmp_path, unix=path) as it:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert it.url == f"unix:{path}"
        transport = httpx2.HTTPTransport(uds=str(path))
        with httpx2.Client(transport=transport, base_url="http://proxy") as client:
            answer = client.post(
                "/v1/chat/completions", json=question(), headers={"authorization": "Bearer sk-mine"}
            )
            assert answer.json()["choices"][0]["message"]["content"] == "Hello there."
            assert it.service.asked[-1].headers["authorization"] == "Bearer sk-mine"
            assert client.post("/v1/models", headers={"origin": "https://evil.example"}).status_code == 403
        with pytest.raises(CommandFailedError) as failed:
            start_service(
                ["proxy", it.between.url, "--policy", tmp_path / "policy.toml", "--unix", path],
                tmp_path / "second",
            )
        assert failed.value.code == 4
        assert path.is_socket()
        it.process.send_signal(signal.SIGTERM)
        assert it.process.wait(60) == 0
        assert not path.exists()


def test_a_proxy_that_still_verifies_keeps_its_socket(tmp_path: Path) -> None:
    """From the moment that it is there, another cannot take it, and one that fails removes nobody else's."""
    path = tmp_path / "proxy.socket"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        words = [
            CLOISTER, "proxy", f"http://127.0.0.1:{silent.getsockname()[1]}", "--policy", policy_file(tmp_path, launched()),
            "--unix", path,
        ]  # fmt: skip
        first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            wait_until(path.is_socket, timeout=60)
            second = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert second.returncode == 4
            assert "something is there" in second.stderr
            assert path.is_socket()
            path.unlink()
            path.write_text("somebody's")
        finally:
            first.terminate()
            first.wait(60)
        assert path.read_text() == "somebody's"


def test_a_socket_that_a_killed_proxy_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "proxy.socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with local(tmp_path, unix=path) as it:
        assert it.url == f"unix:{path}"
    path.write_text("somebody's")
    with pytest.raises(CommandFailedError) as failed:
        start_service(
            ["proxy", "http://127.0.0.1:9", "--policy", tmp_path / "policy.toml", "--unix", path],
            tmp_path / "again",
        )
    assert failed.value.code == 4
    assert path.read_text() == "somebody's"


# What stands behind, and between.


def test_a_service_that_is_not_the_one_of_the_policy_gets_no_request(tmp_path: Path) -> None:
    with running(tee=launched(b"\x09" * 32)) as service:
        policy = policy_file(tmp_path, launched())
        with pytest.raises(CommandFailedError) as failed:
            start_service(
                [
                    "proxy",
                    service.url,
                    "--policy",
                    policy,
                    "--listen",
                    "127.0.0.1:0",
                    "--key-file",
                    tmp_path / "k",
                ],
                tmp_path / "log",
            )
        assert failed.value.code == 5
        assert "appraisal" in failed.value.line
        assert service.asked == []


def test_a_service_that_does_not_answer_is_said_to(tmp_path: Path) -> None:
    policy = policy_file(tmp_path, launched())
    with pytest.raises(CommandFailedError) as failed:
        start_service(
            [
                "proxy",
                "http://127.0.0.1:9",
                "--policy",
                policy,
                "--listen",
                "127.0.0.1:0",
                "--key-file",
                tmp_path / "k",
            ],
            tmp_path / "log",
        )
    assert failed.value.code == 4


def test_keys_that_rotate_lead_to_one_more_verification(proxied: Local) -> None:
    proxied.between.meddler = Meddler()
    assert proxied.post().status_code == 200
    proxied.service.keyring.rotate(revoke=True)
    assert proxied.post().status_code == 200
    asked = [request.path for request, _ in proxied.between.messages]
    assert asked == [GATEWAY, GATEWAY, ATTESTATION, GATEWAY]
    assert "verified again" in proxied.log.read_text()


class Answers(Meddler):
    """In the clear, in place of the service."""

    def instead(self, request: Message) -> Message | None:
        forged = encode_json({"choices": [{"message": {"role": "assistant", "content": "forged"}}]})
        fields = (("content-type", "application/json"), ("content-length", str(len(forged))))
        return Message("HTTP/1.1 200 OK", fields, forged) if request.path == GATEWAY else None


def test_an_answer_in_the_clear_is_refused_and_not_passed_on(proxied: Local) -> None:
    proxied.between.meddler = Answers()
    answer = proxied.post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "cloister_channel")
    assert "forged" not in answer.text
    proxied.between.meddler = None
    assert proxied.post().status_code == 200


class Cuts(Meddler):
    """The last bytes of a sealed answer."""

    def response(self, request: Message, response: Message) -> Message | None:
        if request.path != GATEWAY:
            return response
        body = response.body[:-20]
        kept = tuple(
            (name, value)
            for name, value in response.fields
            if name.lower() not in ("content-length", "transfer-encoding")
        )
        return Message(response.start, (*kept, ("content-length", str(len(body)))), body)


def test_an_answer_that_is_cut_off_is_cut_off_for_the_program_too(proxied: Local, tmp_path: Path) -> None:
    """And never looks like a whole one."""
    proxied.between.meddler = Cuts()
    whole = proxied.post()  # of one piece, which does not open
    assert (whole.status_code, whole.json()["error"]["code"]) == (502, "cloister_channel")
    with (
        local(tmp_path, answers=["one", "two", "three"], pause=0.3, cadence=0.01) as it,
        it.client() as client,
    ):
        it.between.meddler = Cuts()
        came = []

        def listen() -> None:
            for one in client.chat.completions.create(**question(stream=True)):
                came.append(one.choices[0].delta.content)

        with pytest.raises((openai.APIConnectionError, httpx2.TransportError)):
            listen()
        assert came[:2] == ["one", "two"]
        assert "cut off" in it.log.read_text()


def test_what_is_verified_can_be_asked(proxied: Local) -> None:
    found = httpx2.get(
        f"{proxied.url}/v1/cloister/verification", headers={"authorization": f"Bearer {proxied.key}"}
    ).json()
    assert found["verified"] is True
    assert found["simulated"] is True
    assert found["policy_digest"] == proxied.service.policy.digest
    assert found["expires"] > time.time()
    assert {"certificate chain", "binding"} & {one["name"] for one in found["checks"]}
    assert httpx2.get(f"{proxied.url}/v1/cloister/verification").status_code == 401


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--listen", "8788"], "no HOST:PORT", id="no host"),
        pytest.param(["--listen", "127.0.0.1:99999"], "no HOST:PORT", id="no such port"),
        pytest.param(["--unix", "s", "--listen", "127.0.0.1:1"], "--unix excludes", id="two addresses"),
        pytest.param(["--unix", "s", "--key-file", "k"], "--unix excludes", id="a key where none is asked"),
        pytest.param(["--service-key-file", "missing"], "cannot be read", id="a key file that is not there"),
        pytest.param(["--manifest", "missing"], "exactly one of", id="policy and manifest"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    policy = policy_file(tmp_path, launched())
    done = subprocess.run(
        [CLOISTER, "proxy", "http://127.0.0.1:9", "--policy", policy, *words],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False, env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy.toml"]
