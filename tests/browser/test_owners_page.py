"""The owners' page in a real Chromium, over a real broker: it shows what was verified, as text, and looks as it should.

Run by ``make test-browser``. With ``CLOISTER_SCREENSHOT=FOLDER`` the pictures are kept there, to look at the page.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker_parts import served
from browser.test_browser_interop import chromium
from browser.test_report_page import pixels
from cloister.broker.audit import Fact
from cloister.client.guard import Guard, Secrets
from cloister.client.heads import Heads
from cloister.client.owners_page import create_owners_page
from cloister.client.owners_watch import Watch
from owners_bench import Deployed, deployed, guarded

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ALARM = (0xB3, 0x26, 0x1E)
LIGHT, DARK = (0xFB, 0xFB, 0xF9), (0x14, 0x16, 0x1A)
HOSTILE = "<img src=x onerror=document.title='pwned'><script>document.title='pwned'</script>"
BUDGET = "--virtual-time-budget=20000"


@dataclass
class Late:
    """An application that is there once its port is known."""

    app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@contextlib.contextmanager
def page(watch: Watch) -> Iterator[str]:
    """The page as the command serves it; the address that opens it once."""
    late = Late()
    with served(late) as url:
        late.app = guarded(watch, port=urlsplit(url).port or 0, secret=Secrets.draw())
        yield url + late.app.entrance


def look(folder: Path, *options: str) -> str:
    """What the browser writes to its standard output."""
    with chromium(folder / "profile", BUDGET, *options) as browser:
        output, _ = browser.communicate(timeout=120)
    return output


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Deployed]:
    with deployed(tmp_path / "state") as found:
        yield found


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CLOISTER_SCREENSHOT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_it_shows_what_was_verified(site: Deployed, tmp_path: Path) -> None:
    site.released(3, purpose="triage")
    with site.watch(Heads(tmp_path / "heads")) as watch, page(watch) as address:
        document = look(tmp_path, "--dump-dom", address)
    assert 'data-state="shown"' in document
    size = site.bench.state.journal.size
    assert f"log: {size} entries verified" in document
    assert "kbs:///models/key/demo was released to inference for triage" in document
    assert re.search(r"<strong>inference</strong> 4 times", document)
    assert len(re.findall(r'<a href="evidence/\d+"', document)) >= 8
    assert "enter?token" not in document


def test_what_a_program_or_an_owner_wrote_is_text(site: Deployed, tmp_path: Path) -> None:
    fact = Fact(
        "release",
        "accepted",
        resource=HOSTILE,
        workload=HOSTILE,
        purpose=HOSTILE,
        signers=(HOSTILE,),
        reason=HOSTILE,
    )
    site.bench.state.journal.transact(lambda transaction: transaction.log(fact))
    with site.watch(Heads(tmp_path / "heads")) as watch, page(watch) as address:
        document = look(tmp_path, "--dump-dom", address)
    assert 'data-state="shown"' in document
    assert "<title>clinic: Cloister key broker</title>" in document
    assert document.count("&lt;img src=x onerror") >= 4
    assert re.findall(r"<img\b|<script(?! type=\"module\" src=\"static/owners.js\")", document) == []


def test_even_a_forgotten_escape_would_run_nothing(site: Deployed, tmp_path: Path) -> None:
    class Forgetful(Guard):
        """Serves a page and a script of its own that insert markup."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def bent(message: Any) -> None:
                if message["type"] == "http.response.body" and b'<main id="content">' in message["body"]:
                    planted = (
                        f"<main>{HOSTILE}<p id='planted' onclick='x()' style='color:red'>planted</p>".encode()
                    )
                    message = {**message, "body": message["body"].replace(b'<main id="content">', planted)}
                if message["type"] == "http.response.start":
                    kept = [(name, value) for name, value in message["headers"] if name != b"content-length"]
                    message = {**message, "headers": kept}
                await send(message)

            await super().__call__(scope, receive, bent)

    late = Late()
    with site.watch(Heads(tmp_path / "heads")) as watch, served(late) as url:
        app = create_owners_page(watch, lambda *_: "")
        late.app = Forgetful(app, Secrets.draw(), port=urlsplit(url).port or 0)
        document = look(tmp_path, "--dump-dom", url + late.app.entrance)
    assert "planted" in document
    assert "<title>pwned</title>" not in document


def test_a_broker_that_rewrote_its_log_is_shown_in_red(
    site: Deployed, tmp_path: Path, pictures: Path
) -> None:
    heads = Heads(tmp_path / "heads")
    other = site.copied(tmp_path / "fork")
    site.released()
    Deployed(other).released(4, purpose="forged")
    with site.watch(heads) as watch:
        with page(watch) as address:
            look(tmp_path, "--dump-dom", address)
        site.serve(other.desk)
        with page(watch) as address:
            document = look(tmp_path, "--dump-dom", address)
        picture = pictures / "rewritten.png"
        with page(watch) as address:
            look(tmp_path, "--window-size=1200,1100", f"--screenshot={picture}", address)
    assert "the log was rewritten" in document
    assert "forged" not in document
    assert ALARM in pixels(picture)


@pytest.mark.parametrize("width", ["420", "1280"], ids=["narrow", "wide"])
@pytest.mark.parametrize(("scheme", "paper"), [("0", DARK), ("1", LIGHT)], ids=["dark", "light"])
def test_it_looks_as_it_should(
    scheme: str, paper: tuple[int, int, int], width: str, site: Deployed, tmp_path: Path, pictures: Path
) -> None:
    site.released(3, purpose="triage")
    picture = pictures / f"{'dark' if scheme == '0' else 'light'}-{width}.png"
    with site.watch(Heads(tmp_path / "heads")) as watch, page(watch) as address:
        look(
            tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},2600",
            f"--screenshot={picture}", address,
        )  # fmt: skip
    colours = pixels(picture)
    assert paper in colours
    assert ALARM in colours, "that the TEE is simulated is not red"


def test_a_browser_that_did_not_open_the_page_is_shown_nothing(site: Deployed, tmp_path: Path) -> None:
    with site.watch(Heads(tmp_path / "heads")) as watch, page(watch) as address:
        document = look(tmp_path, "--dump-dom", address.partition("enter?")[0])
    assert "this browser did not open the page" in document
    assert "kbs:///" not in document
