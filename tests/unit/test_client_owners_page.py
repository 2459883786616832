"""The page's door lets in one browser of this machine's user, and what it answers runs no script but its own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker_parts import Reply, call
from cloister.client.guard import COOKIE, Guard, Secrets, require_loopback
from cloister.client.heads import Heads
from cloister.client.owners_watch import Watch
from cloister.errors import UsageError
from owners_bench import SECRETS, deployed, guarded

PORT = 8097
HOST = {"host": f"127.0.0.1:{PORT}"}
KNOWN = {**HOST, "cookie": f"{COOKIE}={SECRETS.cookie}"}
PLACE = f"/{SECRETS.place}"


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    folder: Path = tmp_path_factory.mktemp("site")
    with deployed(folder / "state") as site, site.watch(Heads(folder / "heads")) as found:
        yield found


@pytest.fixture
def page(watch: Watch) -> Guard:
    return guarded(watch, port=PORT)


def get(page: Any, path: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> Reply:
    return call(page, method, path.encode(), headers=KNOWN if headers is None else headers)


def test_the_printed_address_opens_the_page_once_and_for_one_browser(page: Guard) -> None:
    first = get(page, page.entrance, HOST)
    assert first.status == 200
    assert (
        first.headers["set-cookie"] == f"{COOKIE}={SECRETS.cookie}; HttpOnly; Path={PLACE}/; SameSite=strict"
    )
    assert get(page, page.entrance, HOST).status == 403
    assert get(page, page.entrance).status == 200, "a reload by the same browser"
    assert b"<h1" in get(page, f"{PLACE}/").body


def test_secrets_are_drawn_anew_and_never_shown() -> None:
    one, two = Secrets.draw(), Secrets.draw()
    assert len({one.place, one.token, one.cookie, two.place, two.token, two.cookie}) == 6
    assert one.token not in repr(one)
    assert one.cookie not in repr(one)


ATTACKS: dict[str, tuple[str, dict[str, str], str, int]] = {
    "DNS rebinding": (f"{PLACE}/api/overview", {**KNOWN, "host": f"evil.example:{PORT}"}, "GET", 421),
    "DNS rebinding without a port": (f"{PLACE}/api/overview", {**KNOWN, "host": "127.0.0.1"}, "GET", 421),
    "another port's name": (f"{PLACE}/api/overview", {**KNOWN, "host": "127.0.0.1:80"}, "GET", 421),
    "no Host": (f"{PLACE}/api/overview", {"cookie": KNOWN["cookie"]}, "GET", 421),
    "rebinding at the entrance": (f"{PLACE}/enter?token={SECRETS.token}", {"host": "evil.example"}, "GET", 421),
    "no cookie": (f"{PLACE}/api/overview", HOST, "GET", 403),
    "a wrong cookie": (f"{PLACE}/api/overview", {**HOST, "cookie": f"{COOKIE}=x"}, "GET", 403),
    "a malformed cookie": (f"{PLACE}/api/overview", {**HOST, "cookie": ';;="\x01'}, "GET", 403),
    "the token instead of the cookie": (
        f"{PLACE}/api/overview?token={SECRETS.token}", HOST, "GET", 403,
    ),
    "a wrong token": (f"{PLACE}/enter?token=guess", HOST, "GET", 403),
    "no token": (f"{PLACE}/enter", HOST, "GET", 403),
    "two tokens, the right one second": (f"{PLACE}/enter?token=a&token={SECRETS.token}", HOST, "GET", 403),
    "another site": (f"{PLACE}/api/overview", {**KNOWN, "sec-fetch-site": "cross-site"}, "GET", 403),
    "another port of this machine": (f"{PLACE}/api/log", {**KNOWN, "sec-fetch-site": "same-site"}, "GET", 403),
    "a form of another site": (f"{PLACE}/api/overview", KNOWN, "POST", 405),
    "a preflight": (f"{PLACE}/api/overview", KNOWN, "OPTIONS", 405),
    "deleting": (f"{PLACE}/api/overview", KNOWN, "DELETE", 405),
    "without the place": ("/api/overview", KNOWN, "GET", 404),
    "another place": ("/the-plac3/api/overview", KNOWN, "GET", 404),
    "out of the place": (f"{PLACE}/../api/overview", KNOWN, "GET", 404),
    "a file beside the page's": (f"{PLACE}/static/../owners_page.py", KNOWN, "GET", 404),
    "a file that is not listed": (f"{PLACE}/static/owners.html", KNOWN, "GET", 404),
    "a long address": (f"{PLACE}/api/log?resource={'a' * 5000}", KNOWN, "GET", 414),
}  # fmt: skip


@pytest.mark.parametrize(("path", "headers", "method", "status"), ATTACKS.values(), ids=ATTACKS)
def test_it_is_refused_at_the_door(
    page: Guard, path: str, headers: dict[str, str], method: str, status: int
) -> None:
    reply = get(page, path, headers, method=method)
    assert reply.status == status
    assert b"{" not in reply.body
    assert "set-cookie" not in reply.headers


def test_two_hosts_in_one_request_are_refused(page: Guard) -> None:
    reply = call(page, "GET", f"{PLACE}/".encode(), headers=KNOWN, more=(("host", "evil.example"),))
    assert reply.status == 421


@pytest.mark.parametrize(
    "path", ["/", "/api/overview", "/api/log", "/static/owners.js", "/evidence/0", "/none"]
)
def test_every_answer_carries_the_strict_headers(page: Guard, path: str) -> None:
    reply = get(page, PLACE + path)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_has_no_inline_script_or_style_and_loads_only_its_own_files(page: Guard) -> None:
    html = get(page, f"{PLACE}/").body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"\b(?:style|on\w+)=", html) == []
    named = re.findall(r'\b(?:src|href)="([^"#]+)"', html)
    assert named == ["static/cloister.svg", "static/owners.css", "static/owners.js"]
    for name in (*named, "static/elements.js", "static/timeline.js"):
        reply = get(page, f"{PLACE}/{name}")
        assert reply.status == 200
        assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in reply.body


def test_the_scripts_know_no_way_to_insert_markup(page: Guard) -> None:
    for name in ("owners.js", "elements.js", "timeline.js"):
        code = get(page, f"{PLACE}/static/{name}").body.decode()
        assert (
            re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|\bFunction\(", code)
            == []
        )


def test_overview_timeline_and_evidence_report_are_served(page: Guard) -> None:
    found = json.loads(get(page, f"{PLACE}/api/overview").body)
    assert found["summary"][0] == "open"
    log = json.loads(get(page, f"{PLACE}/api/log?event=release").body)
    (row,) = log["rows"]
    assert row["evidence"] is True
    report = get(page, f"{PLACE}/evidence/{row['number']}")
    assert report.status == 200
    text = report.body.decode()
    assert "genuine, matches the policy; freshness not asked" in text
    assert "the time of the entry, not now" in text
    assert "--at" not in text
    assert "SIMULATED TEE" in text
    assert "script-src" not in report.headers["content-security-policy"]


@pytest.mark.parametrize("number", ["0", "999999", "-1", "x", "1" * 40])
def test_an_entry_without_evidence_is_one_line(page: Guard, number: str) -> None:
    get(page, f"{PLACE}/api/overview")
    reply = get(page, f"{PLACE}/evidence/{number}")
    assert reply.status == 404
    assert reply.body.decode().startswith("broker: ")
    assert reply.body.count(b"\n") == 1


@pytest.mark.parametrize("before", ["-1", "x", "1" * 40, "1e3", "٣"])
def test_a_strange_number_shows_the_newest_entries(page: Guard, before: str) -> None:
    get(page, f"{PLACE}/api/overview")
    assert json.loads(get(page, f"{PLACE}/api/log?before={before}").body)["rows"]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "example.com", "", "127.0.0.1.example.com"])  # noqa: S104
def test_only_this_machine_may_be_listened_on(host: str) -> None:
    with pytest.raises(UsageError, match="ssh -L"):
        require_loopback(host)


def test_this_machine_has_three_names() -> None:
    assert [require_loopback(host) for host in ("localhost", "127.0.0.1", "::1")] == [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
    ]
