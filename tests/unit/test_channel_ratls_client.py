"""The client of attested TLS: where it refuses to send, what it keeps, and whose exceptions a failing network raises."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import httpcore2
import httpx2
import pytest

import ratls_parts as parts
from cloister.channel.ratls_client import AttestedTransport, connect_attested
from cloister.errors import CloisterError, PlaintextRequest, PolicyError, UsageError
from ratls_parts import NOW, Clock, honest

POLICY = honest()[1]


def test_a_request_and_its_answer_pass_and_the_connection_is_kept() -> None:
    tls = parts.serving_tls()
    with parts.https(tls.context) as served, connect_attested(served.url, policy=POLICY) as client:
        assert client.server is None
        for number in range(3):
            answer = client.post("/ask", content=b"question %d" % number)
            assert (answer.status_code, answer.text) == (200, "hello from the TEE")
        assert client.server is not None
        assert client.server.claims.simulated
        assert served.asked == [("/ask", b"question %d" % number) for number in range(3)]
        assert len(served.peers) == 1


def test_a_streamed_body_and_a_streamed_answer_pass() -> None:
    with (
        parts.https(parts.serving_tls().context) as served,
        connect_attested(served.url, policy=POLICY) as client,
        client.stream("POST", "/ask", content=(b"part" for _ in range(1000))) as answer,
    ):
        assert b"".join(answer.iter_bytes()) == b"hello from the TEE"
        assert served.asked == [("/ask", b"part" * 1000)]


def test_a_connection_is_not_used_after_its_attestation_ended_and_the_next_one_is_verified_anew() -> None:
    server_clock, client_clock = Clock(), Clock()
    tls = parts.serving_tls(server_clock)
    with (
        parts.https(tls.context) as served,
        connect_attested(served.url, policy=POLICY, now=client_clock) as client,
    ):
        client.get("/")
        first = client.server
        server_clock.now += 1800
        tls.renew()
        client.get("/")
        assert client.server is first
        client_clock.now = server_clock.now = NOW + 3600
        client.get("/")
        assert client.server is not first
        assert client.server is not None
        assert client.server.identity.not_after == NOW + 1800 + 3600
        assert len(served.peers) == 2


def test_the_clients_clock_never_falls_behind_what_collateral_proves() -> None:
    late = Clock(NOW - 400 * 86_400)
    transport = AttestedTransport("https://127.0.0.1:1", policy=POLICY, now=late)
    with pytest.raises(CloisterError, match="holds from"):
        transport._verify(parts.attested().certificate)
    late.now = NOW
    transport._verify(parts.attested().certificate)
    late.now = 0
    assert transport.server is not None
    assert transport._now() == transport.server.claims.issued_at


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "ftp://host", "https://", "https://user:word@host", "no url", ":"]
)
def test_an_address_that_is_no_attested_server_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        connect_attested(url, policy=POLICY)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/", "https://localhost:{port}/", "https://127.0.0.1:1/", "https://other/"]
)
def test_another_origin_gets_nothing(url: str) -> None:
    with (
        parts.https(parts.serving_tls().context) as served,
        connect_attested(served.url, policy=POLICY) as client,
    ):
        with pytest.raises(UsageError, match="sends nothing to"):
            client.get(url.format(port=served.port))
        assert served.asked == []


def test_a_redirect_leads_nowhere_else() -> None:
    from starlette.applications import Starlette
    from starlette.responses import RedirectResponse
    from starlette.routing import Route

    async def away(_request: object) -> RedirectResponse:
        return RedirectResponse("http://127.0.0.1:1/")

    with (
        parts.https(parts.serving_tls().context, Starlette(routes=[Route("/", away)])) as served,
        connect_attested(served.url, policy=POLICY) as client,
        pytest.raises(UsageError),
    ):
        client.get("/", follow_redirects=True)


def test_settings_that_lead_around_are_refused() -> None:
    from cloister.channel.ratls_client import AttestedClient

    transport = AttestedTransport("https://127.0.0.1:1", policy=POLICY)
    for setting in ({"proxy": "http://127.0.0.1:2"}, {"mounts": {"all://": httpx2.HTTPTransport()}}):
        with pytest.raises(UsageError, match="around the seal"):
            AttestedClient(transport, **setting)


def test_the_environments_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with (
        parts.https(parts.serving_tls().context) as served,
        connect_attested(served.url, policy=POLICY) as client,
    ):
        assert client.get("/").status_code == 200


def test_nothing_can_be_written_before_tls() -> None:
    """Even a pool that was made to speak plain HTTP finds no way through the backend."""
    transport = AttestedTransport("https://127.0.0.1:1", policy=POLICY)
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, pytest.raises(PlaintextRequest):
        transport._pool.handle_request(
            httpcore2.Request("GET", f"http://127.0.0.1:{listener.getsockname()[1]}/", headers={"host": "x"})
        )


def test_a_port_where_nobody_listens_raises_the_librarys_own_exception() -> None:
    with connect_attested("https://127.0.0.1:1", policy=POLICY) as client, pytest.raises(httpx2.ConnectError):
        client.get("/")


def test_a_silent_peer_raises_the_librarys_own_timeout() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        connect_attested(
            f"https://127.0.0.1:{listener.getsockname()[1]}", policy=POLICY, timeout=0.2
        ) as client,
        pytest.raises(httpx2.ConnectTimeout),
    ):
        client.get("/")


def test_a_peer_that_breaks_off_inside_an_answer_raises_the_librarys_own_exception() -> None:
    server = parts.attested()
    context = parts.shows(server.certificate, server.key)
    listener = socket.create_server(("127.0.0.1", 0))

    def half() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(65536)
            secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")

    thread = threading.Thread(target=half, daemon=True)
    thread.start()
    with (
        listener,
        connect_attested(f"https://127.0.0.1:{listener.getsockname()[1]}", policy=POLICY) as client,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        client.get("/")
    thread.join(5)


def test_a_policy_may_be_a_file_and_a_wrong_one_shows_at_once(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[roots]\n")
    with pytest.raises(PolicyError):
        connect_attested("https://127.0.0.1:1", policy=path)


def test_threads_share_one_client() -> None:
    failures: list[BaseException] = []
    with (
        parts.https(parts.serving_tls().context) as served,
        connect_attested(served.url, policy=POLICY) as client,
    ):

        def ask() -> None:
            try:
                for _ in range(5):
                    assert client.get("/").status_code == 200
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert len(served.asked) == 40
