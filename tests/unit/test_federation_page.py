"""The page of a run: behind its door it shows what the command made of the run, and says plainly what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from broker_parts import Reply, call
from cloister.client.federation_page import create_federation_page
from cloister.client.guard import COOKIE, Guard, Secrets
from cloister.errors import AppraisalRefused, CloisterError, NetworkError, UsageError, VerificationError
from cloister.federated.progress import Fact
from cloister.federated.report.document import live_run, report_html, report_style
from cloister.federated.report.elements import ATTRIBUTES, TAGS
from federated_run_facts import START, run

PORT = 8098
SECRETS = Secrets(place="the-place", token="the-token", cookie="the-cookie")
HOST = {"host": f"127.0.0.1:{PORT}"}
KNOWN = {**HOST, "cookie": f"{COOKIE}={SECRETS.cookie}"}
PLACE = f"/{SECRETS.place}"


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def page(read: Callable[[], tuple[Fact, ...]] = run, clock: Callable[[], float] | None = None) -> Guard:
    """As the command puts it together."""
    app = create_federation_page(
        lambda: live_run(read(), now=START),
        lambda: report_html(read()),
        style=report_style(),
        clock=clock or Clock(),
    )
    return Guard(app, SECRETS, port=PORT)


def get(app: Any, path: str, headers: dict[str, str] | None = None, *, method: str = "GET") -> Reply:
    return call(app, method, f"{PLACE}{path}".encode(), headers=KNOWN if headers is None else headers)


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        pytest.param({**KNOWN, "host": f"evil.example:{PORT}"}, "GET", 421, id="DNS rebinding"),
        pytest.param(HOST, "GET", 403, id="no cookie"),
        pytest.param({**HOST, "cookie": f"{COOKIE}=x"}, "GET", 403, id="a wrong cookie"),
        pytest.param({**KNOWN, "sec-fetch-site": "cross-site"}, "GET", 403, id="another site"),
        pytest.param({**KNOWN, "sec-fetch-site": "same-site"}, "GET", 403, id="another port of this machine"),
        pytest.param(KNOWN, "POST", 405, id="a form"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/run", "/report", "/static/report.css"])
def test_nobody_but_the_browser_that_opened_it_is_shown_anything_or_makes_us_ask(
    path: str, headers: dict[str, str], method: str, status: int
) -> None:
    asked: list[int] = []

    def read() -> tuple[Fact, ...]:
        asked.append(1)
        return run()

    reply = get(page(read), path, headers, method=method)
    assert reply.status == status
    assert b"hospitals" not in reply.body
    assert asked == []


def test_the_run_is_served_as_elements_and_whole_as_a_report() -> None:
    reply = get(page(), "/api/run")
    assert reply.status == 200
    found = json.loads(reply.body)
    assert found.keys() == {"title", "said", "over", "parts"}
    assert found["said"] == "Finished: all 10 rounds done"
    report = get(page(), "/report")
    assert report.body.decode() == report_html(run())
    assert "script-src" not in report.headers["content-security-policy"]
    assert "default-src 'none'" in report.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/api/run", "/static/federation.js", "/static/report.css", "/none"])
def test_every_answer_carries_the_strict_headers(path: str) -> None:
    reply = get(page(), path)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_page_has_no_inline_script_or_style_and_loads_only_its_own_files() -> None:
    app = page()
    html = get(app, "/").body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)", html) == []
    assert re.findall(r"\b(?:style|on\w+)=", html) == []
    named = re.findall(r'\b(?:src|href)="([^"#]+)"', html)
    files = ["static/cloister.svg", "static/report.css", "static/federation.css", "static/federation.js"]
    assert named == [*files, "report"]
    for name in (*files, "static/elements.js"):
        reply = get(app, f"/{name}")
        assert reply.status == 200
        assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in reply.body
    assert get(app, "/static/report.css").body.decode() == report_style()
    for name in ("owners.html", "federation.html", "../federation_page.py", "nothing"):
        assert get(app, f"/static/{name}").status == 404


def test_the_script_makes_the_elements_that_the_report_has_and_knows_no_way_to_insert_markup() -> None:
    code = get(page(), "/static/federation.js").body.decode()
    assert (
        re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|\bFunction\(", code
        )
        == []
    )
    lists = re.findall(r"new Set\(\s*\((.*?)\)\.split", code, re.DOTALL)
    tags, attributes = ({*" ".join(re.findall(r'"([^"]*)"', text)).split()} for text in lists)
    assert tags == TAGS
    assert attributes == ATTRIBUTES


def test_each_place_that_the_page_links_to_is_a_part_of_the_run() -> None:
    html = get(page(), "/").body.decode()
    found = json.loads(get(page(), "/api/run").body)
    ids = {part[1].get("id") for part in found["parts"]}
    assert {place for place in re.findall(r'href="#(\w+)"', html) if place != "content"} <= ids
    assert 'id="content"' in html


def test_however_many_windows_ask_the_aggregator_is_asked_once_a_second() -> None:
    asked: list[int] = []
    clock = Clock()

    def read() -> tuple[Fact, ...]:
        asked.append(1)
        return run(so_far=len(asked))

    app = page(read, clock)
    first = [get(app, "/api/run").body for _ in range(5)]
    assert len(asked) == 1
    assert set(first) == {first[0]}
    clock.now += 1.0
    assert b"Running: 2 of 10" in get(app, "/api/run").body
    assert len(asked) == 2


ERRORS: list[tuple[CloisterError, int, str]] = [
    (NetworkError("no connection", todo="see whether it runs"), 502, "The aggregator does not answer (no connection)."),
    (VerificationError("another root"), 409, "What the aggregator answers is not believed: verifier: another root"),
    (AppraisalRefused("MRTD differs"), 409, "What the aggregator answers is not believed: appraisal: MRTD differs"),
    (UsageError("there is no run"), 409, "usage: there is no run"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status", "words"), ERRORS, ids=[type(error).__name__ for error, *_ in ERRORS]
)
def test_what_is_wrong_is_said_in_plain_words_and_asked_again(
    error: CloisterError, status: int, words: str
) -> None:
    broken, clock = [True], Clock()

    def read() -> tuple[Fact, ...]:
        if broken:
            raise error
        return run()

    app = page(read, clock)
    reply = get(app, "/api/run")
    assert reply.status == status
    assert json.loads(reply.body) == {"tone": "bad", "text": words, "todo": error.todo}
    report = get(app, "/report")
    assert report.status == status
    assert report.body.decode() == f"{words}\n"
    broken.clear()
    clock.now += 1.0
    assert get(app, "/api/run").status == 200


def test_what_an_aggregator_says_of_itself_in_an_error_is_one_line_that_prints() -> None:
    def read() -> tuple[Fact, ...]:
        raise NetworkError("<b>\u202e\x1b[31m\n")

    found = json.loads(get(page(read), "/api/run").body)
    assert found["text"] == "The aggregator does not answer (<b>\\u202e\\u001b[31m\\u000a)."
