"""The channel from a web page: other people's packages in a real Chromium ask our gateway over a socket.

``@hpke/core``, ``@hpke/hybridkem-x-wing`` and ``bhttp-js``, unbundled, through an import map. This proves the wire
format, not trust: the page takes whatever keys it is shown and verifies no evidence, and says so. A page that came
from the server it asks could not be trusted with verifying anyhow. Run by ``make test-browser``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

import npm_packages
from cloister.channel import asgi
from cloister.channel.evidence_service import EvidenceService
from cloister.channel.keyring import KeyRing
from cloister.channel.middleware import SealedGateway
from real_parts import absent
from sealed_service import launched, listen, serving

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]  # the first test waits for npm

HERE = Path(__file__).parent
GATEWAY = "/.well-known/ohttp-gateway"
QUESTION = "What helps against “hay fever”?"
TOKENS = ["Rinse", " your nose", " with salt", " water – à 37 °C."]
ANSWER = "".join(TOKENS)
FLAGS = (
    "--headless",
    "--no-sandbox",  # its sandbox does not start for root; the page is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
NONCE = 32
"""Bytes before the first chunk of an answer under AES-256-GCM."""
WAIT = 60.0
"""Seconds after which whatever waits for the page goes on without it."""


@dataclass
class Wire:
    """What lies between page and gateway: records what passes, and meddles where the query says so."""

    app: asgi.App
    requests: list[tuple[str, bytes]] = field(default_factory=list)
    """Media type and content of each request to the gateway."""
    answers: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", GATEWAY):
            await self.app(scope, receive, send)
            return
        content, passed, attack = bytearray(), bytearray(), scope["query_string"]
        # In the order in which they begin: a client that has its answer asks on before the server is through with it.
        number, kind = len(self.requests), dict(scope["headers"])[b"content-type"].decode()
        self.requests.append((kind, b""))
        self.answers.append(b"")

        async def up() -> asgi.Message:
            message = await receive()
            content.extend(message.get("body", b""))
            return message

        async def down(message: asgi.Message) -> None:
            if message["type"] == "http.response.body":
                passed.extend(message.get("body", b""))
                self.answers[number] = bytes(passed)
                self.requests[number] = (kind, bytes(content))
                if attack:  # whole, at the end
                    last = not message.get("more_body", False)
                    message = {**message, "body": self._meddled(attack, bytes(passed)) if last else b""}
            await send(message)

        await self.app(scope, up, down)

    def _meddled(self, attack: bytes, answer: bytes) -> bytes:
        if attack == b"flipped":
            at = NONCE + 8  # behind the first chunk's length, in its ciphertext
            return answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
        if attack == b"cut":
            return answer[: _final_chunk(answer)]
        assert attack == b"swapped"
        return self.answers[0]


def _final_chunk(answer: bytes) -> int:
    """Where the final chunk begins, with its length of zero."""
    at = NONCE
    while answer[at]:
        size = 1 << (answer[at] >> 6)
        length = int.from_bytes(answer[at : at + size]) & ((1 << (8 * size - 2)) - 1)
        at += size + length
    assert at > NONCE, "there is nothing before the final chunk"
    return at


class Pages:
    """The page, its modules, and the application it asks through the seal."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.streams = 0
        self.go_ons = asyncio.Semaphore(0)
        self.finished = asyncio.Event()
        modules = npm_packages.INSTALLED / "node_modules"
        scripts = [path for path in modules.rglob("*.js") if "esm" in path.relative_to(modules).parts]
        self.files = {f"/npm/{path.relative_to(modules).as_posix()}": path for path in scripts} | {
            "/": HERE / "page.html",
            "/page.mjs": HERE / "page.mjs",
            "/ohttp.mjs": npm_packages.SOURCES / "ohttp.mjs",
        }
        self.signals = {"/go-on": self.go_on, "/finished": self.finish, "/held": self.held}

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                *(Route(path, self.file) for path in self.files),
                *(Route(path, endpoint) for path, endpoint in self.signals.items()),
            ]
        )

    async def file(self, request: Request) -> Response:
        path = self.files[request.url.path]
        return FileResponse(path, media_type="text/html" if path.suffix == ".html" else "text/javascript")

    async def go_on(self, request: Request) -> Response:
        self.go_ons.release()
        return Response(status_code=204)

    async def finish(self, request: Request) -> Response:
        self.finished.set()
        return Response(status_code=204)

    async def held(self, request: Request) -> Response:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.finished.wait(), WAIT)
        return Response(status_code=204)

    async def chat(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(body)
        if not json.loads(body)["stream"]:
            return JSONResponse({"choices": [{"message": {"role": "assistant", "content": ANSWER}}]})
        self.streams += 1
        first = self.streams == 1

        async def events() -> AsyncIterator[str]:
            for number, token in enumerate(TOKENS):
                if number and first:  # no token before the page has opened the one before it
                    await asyncio.wait_for(self.go_ons.acquire(), WAIT)
                elif number:
                    await asyncio.sleep(0.1)  # what is meddled with comes in more than one chunk, too
                yield f"data: {json.dumps({'choices': [{'delta': {'content': token}}]})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


class _Identified(HTMLParser):
    """The text of each element that has an ``id``."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self._current: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._current = dict(attrs).get("id")
        if self._current:
            self.texts[self._current] = ""

    def handle_endtag(self, tag: str) -> None:
        self._current = None

    def handle_data(self, data: str) -> None:
        if self._current:
            self.texts[self._current] += data


@dataclass
class Visit:
    """What was left when the page was finished."""

    shown: dict[str, str]
    pages: Pages
    wire: Wire


@contextlib.contextmanager
def chromium(profile: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A browser without a window; all its processes are gone at the end of the block."""
    program = shutil.which("chromium")
    if program is None:
        absent("NOT RUN: the channel from a web page; install chromium")
    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """One visit to the page, from which every test below reads its line."""
    if shutil.which("chromium") is None:
        absent("NOT RUN: the channel from a web page; install chromium")
    npm_packages.install()
    pages, keyring, tee = Pages(), KeyRing(replica="replica-1"), launched()
    allow = (*pages.files, *pages.signals)
    wire = Wire(
        SealedGateway(pages.app(), keyring=keyring, evidence=EvidenceService(tee, keyring), allow=allow)
    )
    listener = listen()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/?question={quote(QUESTION)}"
    options = ["--dump-dom", url]
    picture = os.environ.get("CLOISTER_SCREENSHOT")  # a path: to look at the page
    if picture:
        options = [f"--screenshot={picture}", "--window-size=800,1000", *options]
    profile = tmp_path_factory.mktemp("chromium")
    with serving(wire, listener), chromium(profile, *options) as browser:
        document, complaints = browser.communicate(timeout=WAIT + 60)
    shown = _Identified()
    shown.feed(document)
    assert shown.texts.get("state") == "finished", (shown.texts, complaints[-2000:])
    return Visit(shown.texts, pages, wire)


def test_the_page_reads_the_whole_answer_that_the_application_streamed(visit: Visit) -> None:
    assert visit.shown["kem"] == "0x647a"
    assert visit.shown["streamed"] == ANSWER
    first = json.loads(visit.pages.asked[0])
    assert first["messages"] == [{"role": "user", "content": QUESTION}]


def test_the_page_opens_each_token_before_the_application_writes_the_next(visit: Visit) -> None:
    # The stream would have broken off had the page not said so each time; see Pages.chat.
    assert int(visit.shown["chunks"]) >= len(TOKENS)
    assert visit.shown["streamed"] == ANSWER


def test_the_page_reads_an_answer_that_is_not_chunked(visit: Visit) -> None:
    assert visit.shown["whole"] == ANSWER
    kinds = [kind for kind, _ in visit.wire.requests[:2]]
    assert kinds == ["message/ohttp-chunked-req", "message/ohttp-req"]


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("flipped", "OperationError"),
        ("flipped-whole", "OperationError"),
        ("cut", "the message ends before its final chunk"),
        ("swapped", "OperationError"),
    ],
    ids=[
        "a flipped bit, chunked",
        "a flipped bit, not chunked",
        "cut before the final chunk",
        "of another request",
    ],
)
def test_the_page_refuses_an_answer_that_was_tampered_with(visit: Visit, attack: str, reason: str) -> None:
    assert visit.shown[attack].startswith("refused: ")
    assert reason in visit.shown[attack]


def test_the_page_is_refused_the_api_without_a_seal(visit: Visit) -> None:
    assert visit.shown["plain"] == "403 sealed_request_required"
    assert len(visit.pages.asked) == 6  # every other request of the page, and not this one


def test_nothing_between_page_and_gateway_reads_question_or_answer(visit: Visit) -> None:
    assert len(visit.wire.requests) == 6
    words = [word.encode() for word in re.findall(r"\w{4,}", QUESTION + ANSWER)]
    seen = b"".join([*(content for _, content in visit.wire.requests), *visit.wire.answers])
    assert [word for word in words if word in seen] == []
