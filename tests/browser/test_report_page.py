"""The HTML report in a real Chromium: it looks as it should, and nothing in it runs or loads anything.

Run by ``make test-browser``.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser.test_browser_interop import chromium
from cloister.evidence.eventlog import LaunchEvent
from examined import AT, run, write_bundle, write_policy
from simulated_evidence import LAUNCH, NONCE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings(r"ignore:'click\.utils:DeprecationWarning"),
]

BANNER = (0xB3, 0x26, 0x1E)
HOSTILE = "</style><script>document.title='pwned'</script><img src=x onerror=document.title='pwned'>"
A4 = (595, 842)
"""Points."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an accepted simulated workload with an event that means harm."""
    folder = tmp_path_factory.mktemp("report")
    launch = (*LAUNCH, LaunchEvent(name=HOSTILE[:64], payload=HOSTILE.encode()))
    path = folder / "report.html"
    ran = run(
        "verify", write_bundle(folder, launch=launch), "--policy", write_policy(folder, launch), *AT,
        "--nonce", NONCE.hex(), "--html", str(path),
    )  # fmt: skip
    assert ran.code == 0, ran.out + ran.err
    return path


def look(folder: Path, *options: str) -> str:
    """What the browser writes to its standard output."""
    with chromium(folder / "profile", *options) as browser:
        output, _ = browser.communicate(timeout=120)
    return output


def pixels(path: Path) -> set[tuple[int, int, int]]:
    """The colours of a PNG as Chromium writes it: eight bits, RGB or RGBA, not interlaced."""
    data = path.read_bytes()
    width, _, depth, kind, _, _, interlaced = struct.unpack("!IIBBBBB", data[16:29])
    assert (depth, interlaced) == (8, 0)
    size = {2: 3, 6: 4}[kind]
    packed, at = b"", 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw, stride = zlib.decompress(packed), width * size
    found: set[tuple[int, int, int]] = set()
    above = bytes(stride)
    for start in range(0, len(raw), stride + 1):
        row = bytearray(raw[start + 1 : start + 1 + stride])
        for index in range(stride):
            left = row[index - size] if index >= size else 0
            corner = above[index - size] if index >= size else 0
            row[index] = (row[index] + _predicted(raw[start], left, above[index], corner)) & 0xFF
        found |= {(row[i], row[i + 1], row[i + 2]) for i in range(0, stride, size)}
        above = bytes(row)
    return found


def _predicted(method: int, left: int, up: int, corner: int) -> int:
    if method == 4:
        guess = left + up - corner
        return min((left, up, corner), key=lambda one: abs(guess - one))
    return (0, left, up, (left + up) // 2)[method]


@pytest.mark.parametrize(
    ("scheme", "paper"), [("0", (0x16, 0x18, 0x1C)), ("1", (0xFD, 0xFD, 0xFB))], ids=["dark", "light"]
)
def test_the_style_holds_under_its_own_policy_in_both_schemes(
    scheme: str, paper: tuple[int, int, int], page: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "page.png"
    look(
        tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=500,300",
        f"--screenshot={picture}", page.as_uri(),
    )  # fmt: skip
    colours = pixels(picture)
    assert BANNER in colours, "the banner is not red"
    assert paper in colours


def test_what_a_workload_wrote_is_text_on_the_page(page: Path, tmp_path: Path) -> None:
    document = look(tmp_path, "--dump-dom", page.as_uri())
    assert "<title>accepted: " in document
    assert "&lt;script&gt;" in document
    assert re.findall(r"<(?:script|img)\b", document) == []


@contextlib.contextmanager
def listening() -> Iterator[tuple[str, list[bytes]]]:
    """An address, and the requests that came there (a browser may open a connection ahead, and send nothing)."""
    listener = socket.create_server(("127.0.0.1", 0))
    seen: list[bytes] = []

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            request = connection.recv(4096)
            if request:
                seen.append(request)
                connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)


def test_even_a_forgotten_escape_could_neither_run_nor_load_anything(page: Path, tmp_path: Path) -> None:
    with listening() as (address, seen):
        planted = (
            f"<script>document.title='pwned'</script><script src='{address}/s'></script>"
            f"<img src='{address}/i' onerror=\"document.title='pwned'\"><iframe src='{address}/f'></iframe>"
            f"<link rel='stylesheet' href='{address}/c'><style>main{{background:url({address}/b)}}</style>"
            f"<object data='{address}/o'></object><svg onload=\"document.title='pwned'\"></svg>"
            f"<p style='background:url({address}/p)'>planted</p>"
        )
        broken = tmp_path / "broken.html"
        broken.write_text(page.read_text().replace("<header>", f"{planted}<header>"))
        document = look(tmp_path, "--dump-dom", broken.as_uri())
        control = tmp_path / "control.html"
        control.write_text(re.sub(r"<meta http-equiv[^>]*>", "", broken.read_text()))
        assert seen == []
        assert "planted" in document
        assert "<title>accepted: " in document
        # The same page without its policy does both: so it was the policy that held.
        assert "<title>pwned</title>" in look(tmp_path, "--dump-dom", control.as_uri())
        assert seen


def test_it_prints_on_a4(page: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    look(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", page.as_uri())
    boxes = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", paper.read_bytes())
    assert boxes
    for box in boxes:
        assert tuple(round(float(one)) for one in box) == A4
