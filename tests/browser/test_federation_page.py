"""The page and the report of a federated run in a real Chromium: they look as they should, go on by themselves, run nothing.

Run by ``make test-browser``. With ``CLOISTER_SCREENSHOT=FOLDER`` the pictures are kept there, to look at the page.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from broker_parts import served
from browser.test_browser_interop import chromium
from browser.test_owners_page import Late
from browser.test_report_page import A4, listening, pixels
from cloister.client.federation_page import create_federation_page
from cloister.client.guard import Guard, Secrets
from cloister.errors import NetworkError, VerificationError
from cloister.federated.progress import Fact
from cloister.federated.report.document import live_run, report_html, report_style
from federated_run_facts import HOSTILE, START, begun, done, ended, run, share, state

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

ALARM = (0xB3, 0x26, 0x1E)
LIGHT, DARK = (0xFD, 0xFD, 0xFB), (0x16, 0x18, 0x1C)
NOW = START + 100
ReadFacts = Callable[[], tuple[Fact, ...]]


@contextlib.contextmanager
def page(read: ReadFacts, bend: Callable[[bytes], bytes] = lambda body: body) -> Iterator[str]:
    """The page as a command serves it, what it answers bent on the way; the address that opens it once."""

    def look() -> bytes:
        return bend(live_run(read(), now=NOW))

    late = Late()
    with served(late) as url:
        # The browser's time runs ahead of ours: each question is a second after the one before it.
        app = create_federation_page(
            look, lambda: report_html(read()), style=report_style(), clock=itertools.count().__next__
        )
        late.app = Guard(app, Secrets.draw(), port=urlsplit(url).port or 0)
        yield url + late.app.entrance


def look(folder: Path, *options: str, seconds: int = 3) -> str:
    """What the browser writes to its standard output after so many seconds of its own time."""
    with chromium(folder / "profile", f"--virtual-time-budget={seconds * 1000}", *options) as browser:
        output, _ = browser.communicate(timeout=120)
    return output


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("CLOISTER_SCREENSHOT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_the_page_shows_curves_parties_evidence_and_trail(tmp_path: Path) -> None:
    facts = run(so_far=6)
    with page(lambda: facts) as address:
        document = look(tmp_path, "--dump-dom", address)
    assert 'data-state="shown"' in document
    assert "<title>hospitals: running: 6 of 10 rounds done (Cloister)</title>" in document
    assert '<p id="said" class="heard" role="status">Running: 6 of 10 rounds done</p>' in document
    assert len(re.findall(r'<svg [^>]*role="img"', document)) == 5 + 3
    for party in ("north", "south", "west"):
        assert f"<h3>{party} " in document
    assert '<span class="tag bad">excluded</span>' in document
    assert len(re.findall(r'<ol class="trail">.*?</ol>', document, re.DOTALL)[0].split("<li")) - 1 == len(
        facts
    )
    assert "SIMULATED" not in document
    assert "enter?token" not in document


def test_the_page_goes_on_by_itself_and_touches_only_what_differs(tmp_path: Path) -> None:
    asked: list[int] = []

    def read() -> tuple[Fact, ...]:
        asked.append(1)
        return run(so_far=min(len(asked), 9))

    with page(read) as address:
        document = look(tmp_path, "--dump-dom", address, seconds=15)
    assert len(asked) > 2
    rounds = re.search(r"Running: (\d) of 10 rounds done</p>", document)
    assert rounds is not None
    assert int(rounds[1]) > 2
    assert document.count("<h1>") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NetworkError("no connection to 127.0.0.1:9"), "The aggregator does not answer (no connection to 127.0.0.1:9)."),
        (VerificationError("the chain ends elsewhere"), "is not believed: verifier: the chain ends elsewhere"),
    ],
    ids=["gone", "another"],
)  # fmt: skip
def test_an_aggregator_without_an_answer_is_said_plainly_and_what_was_known_stays(
    error: Exception, words: str, tmp_path: Path, pictures: Path
) -> None:
    asked: list[int] = []

    def read() -> tuple[Fact, ...]:
        asked.append(1)
        if len(asked) > 1:
            raise error
        return run(so_far=4)

    with page(read) as address:
        document = look(tmp_path, "--dump-dom", address, seconds=15)
    assert 'data-state="failed"' in document
    assert words in document
    assert "Running: 4 of 10 rounds done" in document
    asked.clear()
    picture = pictures / "silent.png"
    with page(read) as address:
        look(tmp_path, "--window-size=1200,900", f"--screenshot={picture}", address, seconds=15)
    assert ALARM in pixels(picture)


def hostile() -> tuple[Fact, ...]:
    """A run in which every text that a stranger can choose means harm."""
    there = state(HOSTILE, reason=HOSTILE, tee=HOSTILE, agent=HOSTILE, workload=HOSTILE, measurements=HOSTILE)
    return (
        there,
        begun(
            federation=HOSTILE, run=HOSTILE, digest=HOSTILE, method=HOSTILE, aggregator=HOSTILE,
            parties=(HOSTILE, "north"), simulated=True,
        ),
        done(1, {HOSTILE: share(0, 1), "north": share(1, 1)}, refused={HOSTILE: HOSTILE}, model=HOSTILE),
        state(HOSTILE, state="excluded", reason=HOSTILE),
        ended(1, finished=False, reason=HOSTILE, model=HOSTILE),
    )  # fmt: skip


def test_what_a_party_wrote_is_text_on_the_page_and_in_the_report(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(report_html(hostile()))
    with page(hostile) as address:
        live = look(tmp_path, "--dump-dom", address)
    for document in (live, look(tmp_path, "--dump-dom", report.as_uri())):
        assert document.count("&lt;img src=x onerror") >= 10
        assert "<title>pwned" not in document
        assert re.findall(r"<img\b|<script(?! type=\"module\" src=\"static/federation.js\")", document) == []
        assert "\u202e" not in document
        assert "\x1b" not in document
    assert 'data-state="failed"' not in live


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        pytest.param(["script", {}, ["document.title='pwned'"]], "the page has no element script", id="a script"),
        pytest.param(["iframe", {}, []], "the page has no element iframe", id="a frame"),
        pytest.param(["p", {"onclick": "x()"}, []], "the page has no attribute onclick", id="a handler"),
        pytest.param(["p", {"style": "color:red"}, []], "the page has no attribute style", id="a style"),
        pytest.param(["svg", {}, [["image", {}, []]]], "the page has no element image", id="an image in a drawing"),
    ],
)  # fmt: skip
def test_the_page_makes_no_element_that_could_run_or_load_anything(
    planted: list[Any], words: str, tmp_path: Path
) -> None:
    def bend(body: bytes) -> bytes:
        found = json.loads(body)
        found["parts"].append(planted)
        return json.dumps(found).encode()

    with page(lambda: run(so_far=1), bend) as address:
        document = look(tmp_path, "--dump-dom", address)
    assert words in document
    assert "<title>pwned</title>" not in document


@pytest.mark.parametrize("width", ["420", "1280"], ids=["narrow", "wide"])
@pytest.mark.parametrize(("scheme", "paper"), [("0", DARK), ("1", LIGHT)], ids=["dark", "light"])
def test_the_page_looks_as_it_should(
    scheme: str, paper: tuple[int, int, int], width: str, tmp_path: Path, pictures: Path
) -> None:
    picture = pictures / f"federation-{'dark' if scheme == '0' else 'light'}-{width}.png"
    with page(lambda: run(so_far=6, simulated=True)) as address:
        look(
            tmp_path, f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},3000",
            f"--screenshot={picture}", address,
        )  # fmt: skip
    colours = pixels(picture)
    assert paper in colours
    assert ALARM in colours, "that a TEE is simulated is not red"


@pytest.mark.parametrize(("scheme", "paper"), [("0", DARK), ("1", LIGHT)], ids=["dark", "light"])
def test_the_report_keeps_its_style_under_its_own_policy(
    scheme: str, paper: tuple[int, int, int], tmp_path: Path, pictures: Path
) -> None:
    report, picture = tmp_path / "report.html", pictures / f"federation-report-{scheme}.png"
    report.write_text(report_html(run(simulated=True)))
    look(
        tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,1400",
        f"--screenshot={picture}", report.as_uri(),
    )  # fmt: skip
    colours = pixels(picture)
    assert paper in colours
    assert ALARM in colours
    assert ((0x7E, 0xA6, 0xEA) if scheme == "0" else (0x3A, 0x66, 0xB0)) in colours, (
        "the first curve has no colour"
    )


def test_even_a_forgotten_escape_could_neither_run_nor_load_anything(tmp_path: Path) -> None:
    with listening() as (address, seen):
        planted = (
            f"<script>document.title='pwned'</script><script src='{address}/s'></script>"
            f"<img src='{address}/i' onerror=\"document.title='pwned'\"><iframe src='{address}/f'></iframe>"
            f"<link rel='stylesheet' href='{address}/c'><svg onload=\"document.title='pwned'\"></svg>"
            f"<svg><image href='{address}/v'/></svg><p style='background:url({address}/p)'>planted</p>"
        )
        broken = tmp_path / "broken.html"
        broken.write_text(report_html(run(so_far=2)).replace("<header>", f"{planted}<header>"))
        document = look(tmp_path, "--dump-dom", broken.as_uri())
        control = tmp_path / "control.html"
        control.write_text(re.sub(r"<meta http-equiv[^>]*>", "", broken.read_text()))
        assert seen == []
        assert "planted" in document
        assert "<title>pwned</title>" not in document
        # The same page without its policy does both: so it was the policy that held.
        assert "<title>pwned</title>" in look(tmp_path, "--dump-dom", control.as_uri())
        assert seen


def test_the_report_prints_on_a4(tmp_path: Path, pictures: Path) -> None:
    report, paper = tmp_path / "report.html", pictures / "federation-report.pdf"
    report.write_text(report_html(run(simulated=True)))
    look(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", report.as_uri())
    boxes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", paper.read_bytes())
    assert boxes
    for box in boxes:
        assert tuple(round(float(one)) for one in box) == A4
