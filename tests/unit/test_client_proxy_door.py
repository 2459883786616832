"""The local proxy's door: its own address, its own key, programs and no web pages."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.client.proxy_door import MAX_TARGET, Door
from cloister.encoding import parse_json

KEY = "the-proxy's-own-key-of-one-run"
DOOR = Door.of_port(8788, KEY)
HOST, BEARER = (b"host", b"127.0.0.1:8788"), (b"authorization", f"Bearer {KEY}".encode())
Fields = list[tuple[bytes, bytes]]


def refused(
    *,
    door: Door = DOOR,
    method: str = "POST",
    path: bytes = b"/v1/chat/completions",
    query: bytes = b"",
    fields: Fields | None = None,
) -> Any:
    return door.refusal(method, path, query, [HOST, BEARER] if fields is None else fields)


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param([HOST, BEARER], id="by its address"),
        pytest.param([(b"Host", b"localhost:8788"), BEARER], id="by its name"),
        pytest.param([(b"host", b"[::1]:8788"), BEARER], id="by its other address"),
        pytest.param(
            [HOST, (b"Authorization", f"bearer  {KEY} ".encode())], id="the scheme in another spelling"
        ),
    ],
)
def test_a_program_with_the_key_is_let_in(fields: Fields) -> None:
    assert refused(fields=fields) is None
    assert refused(fields=fields, method="GET", path=b"/v1/models", query=b"limit=1") is None


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        pytest.param([BEARER], 421, "misdirected", id="no Host"),
        pytest.param([(b"host", b"evil.example:8788"), BEARER], 421, "misdirected", id="a name rebound to 127.0.0.1"),
        pytest.param([(b"host", b"127.0.0.1"), BEARER], 421, "misdirected", id="Host without the port"),
        pytest.param([(b"host", b"127.0.0.1:8789"), BEARER], 421, "misdirected", id="another port's"),
        pytest.param([HOST, HOST, BEARER], 421, "misdirected", id="Host twice"),
        pytest.param([HOST, (b"host", b"evil.example"), BEARER], 421, "misdirected", id="two Hosts"),
        pytest.param([HOST, (b"origin", b"https://evil.example"), BEARER], 403, "web_page", id="a page of another site"),
        pytest.param([HOST, (b"origin", b"null"), BEARER], 403, "web_page", id="a page without an origin"),
        pytest.param([HOST, (b"origin", b"http://127.0.0.1:8788"), BEARER], 403, "web_page", id="a page of ours"),
        pytest.param([HOST, (b"Sec-Fetch-Site", b"same-site"), BEARER], 403, "web_page", id="another port's page"),
        pytest.param([HOST, (b"sec-fetch-site", b"none"), BEARER], 403, "web_page", id="an address that was typed"),
        pytest.param(
            [HOST, (b"access-control-request-method", b"POST"), BEARER], 403, "web_page", id="the question before a request"
        ),
        pytest.param([HOST], 401, "invalid_api_key", id="no key"),
        pytest.param([HOST, (b"authorization", b"Bearer sk-other")], 401, "invalid_api_key", id="another key"),
        pytest.param([HOST, (b"authorization", f"Bearer {KEY}x".encode())], 401, "invalid_api_key", id="the key and more"),
        pytest.param([HOST, (b"authorization", f"Bearer {KEY[:-1]}".encode())], 401, "invalid_api_key", id="half the key"),
        pytest.param([HOST, (b"authorization", f"Basic {KEY}".encode())], 401, "invalid_api_key", id="another scheme"),
        pytest.param([HOST, (b"authorization", KEY.encode())], 401, "invalid_api_key", id="no scheme"),
        pytest.param([HOST, (b"authorization", b"Bearer \xff\xfe")], 401, "invalid_api_key", id="a key that is no text"),
        pytest.param([HOST, BEARER, BEARER], 401, "invalid_api_key", id="the key twice"),
        pytest.param([HOST, (b"x-api-key", KEY.encode())], 401, "invalid_api_key", id="the key elsewhere"),
    ],
)  # fmt: skip
def test_whoever_else_asks_is_refused_as_an_openai_client_understands_it(
    fields: Fields, status: int, code: str
) -> None:
    found = refused(fields=fields)
    assert (found.status, found.code) == (status, code)
    error = parse_json(found.body(), what="a refusal")["error"]
    assert error["code"] == code
    assert error["message"]
    assert KEY not in found.body().decode()


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        pytest.param({"method": "OPTIONS"}, 405, id="OPTIONS"),
        pytest.param({"method": "CONNECT"}, 405, id="CONNECT"),
        pytest.param({"method": "post"}, 405, id="a method in small letters"),
        pytest.param({"path": b"/"}, 404, id="the root"),
        pytest.param({"path": b"/v1"}, 404, id="no path below"),
        pytest.param({"path": b"/v2/chat"}, 404, id="another API"),
        pytest.param({"path": b"/.well-known/attestation"}, 404, id="what is outside the seal"),
        pytest.param({"path": b"/%76%31/models"}, 404, id="the API in disguise"),
        pytest.param({"path": b"//v1/models"}, 404, id="a slash before"),
        pytest.param({"path": b"http://evil.example/v1/models"}, 404, id="a whole address"),
        pytest.param({"path": b"*"}, 404, id="a star"),
        pytest.param({"path": b""}, 404, id="nothing"),
        pytest.param({"path": b"/v1/../admin"}, 400, id="a way up"),
        pytest.param({"path": b"/v1/./models"}, 400, id="a way that stays"),
        pytest.param({"path": b"/v1/%2e%2e/admin"}, 400, id="a way up in disguise"),
        pytest.param({"path": b"/v1/%2E./admin"}, 400, id="a way up half in disguise"),
        pytest.param({"path": b"/v1/a%2fb"}, 400, id="a slash in disguise"),
        pytest.param({"path": b"/v1/a%5Cb"}, 400, id="a backslash in disguise"),
        pytest.param({"path": b"/v1/a\\b"}, 400, id="a backslash"),
        pytest.param({"path": b"/v1//models"}, 400, id="an empty part"),
        pytest.param({"path": b"/v1/"}, 400, id="an empty last part"),
        pytest.param({"path": b"/v1/a%zz"}, 400, id="a malformed escape"),
        pytest.param({"path": b"/v1/a#b"}, 400, id="a fragment"),
        pytest.param({"path": b"/v1/a\xff"}, 400, id="no ASCII"),
        pytest.param({"path": b"/v1/" + MAX_TARGET * b"a"}, 414, id="a long path"),
        pytest.param({"query": MAX_TARGET * b"a"}, 414, id="a long query"),
    ],
)
def test_nothing_but_the_api_is_passed_on(asked: dict[str, Any], status: int) -> None:
    assert refused(**asked).status == status


@pytest.mark.parametrize("path", [b"/v1/models", b"/v1/models/a-b_c.d~1", b"/v1/files/f%20x", b"/v1/a:b/@c"])
def test_plain_paths_below_the_api_are_passed_on(path: bytes) -> None:
    assert refused(path=path) is None


@pytest.mark.parametrize(
    ("port", "address", "host"),
    [
        (80, "127.0.0.1", b"localhost"),
        (80, "127.0.0.1", b"127.0.0.1:80"),
        (9, "127.0.0.2", b"127.0.0.2:9"),
        (9, "::1", b"[::1]:9"),
    ],
)
def test_a_door_answers_to_the_address_that_it_listens_on(port: int, address: str, host: bytes) -> None:
    door = Door.of_port(port, KEY, address=address)
    assert refused(door=door, fields=[(b"host", host), BEARER]) is None
    assert refused(door=door, fields=[(b"host", b"127.0.0.3"), BEARER]).status == 421


def test_who_may_open_the_socket_needs_no_key_and_a_web_page_cannot() -> None:
    door = Door.of_socket()
    assert refused(door=door, fields=[(b"host", b"whatever")]) is None
    assert refused(door=door, fields=[(b"origin", b"https://evil.example")]).status == 403


def test_the_key_is_not_in_what_a_door_shows() -> None:
    assert KEY not in repr(DOOR)
    assert "key" not in repr(DOOR)
