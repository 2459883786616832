"""`cloister verify` and `cloister inspect` against whoever wrote the file, the endorsements or the service's answer."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import datetime
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.cli.report_html import html_of
from cloister.cli.report_words import Report, line, section
from cloister.cli.service_evidence import ask_service
from cloister.errors import (
    EXIT_NETWORK,
    EXIT_POLICY,
    EXIT_USAGE,
    EXIT_VERIFICATION,
    EvidenceError,
    NetworkError,
    UsageError,
)
from cloister.evidence.binding import NONCE_SIZE
from cloister.evidence.bundle import MAX_BUNDLE, encode_bundle
from cloister.evidence.eventlog import LaunchEvent
from examined import AT, bundle, run, steers, write_bundle, write_policy
from sealed_service import launched, policy_for, running
from shared_data import vectors
from simulated_evidence import LAUNCH, NONCE
from vendor_services import VendorServices

pytestmark = pytest.mark.filterwarnings(r"ignore:'click\.utils:DeprecationWarning")

HOSTILE = "\x1b]0;pwned\x07\x1b[2J[bold red]ok[/]<script>alert(1)</script><img src=x onerror=alert(2)>\u202e\r\n✓ accepted"
MARKED = LaunchEvent(name=HOSTILE[:64], payload=HOSTILE.encode())


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Page(HTMLParser):
    """Every element and attribute of a page, and its visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_inert(text: str) -> None:
    """Neither a terminal nor rich reads anything but text in it."""
    assert steers(text) == []
    assert "\x1b" not in text
    assert not re.search(r"^✓ accepted", text, re.MULTILINE)


def assert_inert_page(text: str) -> None:
    page = Page(text)
    assert not {"script", "img", "iframe", "object", "svg", "link", "a", "form"} & set(page.tags)
    assert not any(name.startswith("on") or name in ("src", "href", "style") for name in page.attributes)
    assert steers(page.text) == []


def test_names_and_payloads_of_events_come_out_as_text(tmp_path: Path) -> None:
    launch = (*LAUNCH, MARKED)
    path, policy = write_bundle(tmp_path, launch=launch), write_policy(tmp_path, launch)
    page = tmp_path / "report.html"
    ran = run("verify", path, "--policy", policy, *AT, "--html", str(page))
    assert ran.code == 0, ran.out + ran.err
    assert "[bold red]ok[/]" in ran.out  # shown as it stands, not interpreted
    assert_inert(ran.out)
    assert_inert_page(page.read_text())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.read_text()
    found = run("verify", path, "--policy", policy, *AT, "--json").out
    assert found.isascii()
    assert steers(found) == []
    assert json.loads(found)["claims"]["events"][MARKED.name] == MARKED.payload.hex()
    assert_inert(run("inspect", path).out)


def test_an_event_in_a_refusal_comes_out_as_text(tmp_path: Path) -> None:
    path = write_bundle(tmp_path, launch=(*LAUNCH, MARKED))
    (tmp_path / "p").mkdir()
    policy = write_policy(tmp_path / "p", (*LAUNCH, MARKED))
    text = Path(policy).read_text()
    Path(policy).write_text("\n".join(one for one in text.splitlines() if "script" not in one) + "\n")
    page = tmp_path / "report.html"
    ran = run("verify", path, "--policy", policy, *AT, "--html", str(page))
    assert ran.code == EXIT_POLICY, ran.out + ran.err
    assert_inert(ran.out)
    assert_inert_page(page.read_text())


def hostile_certificate() -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOSTILE[:64])])
    key = ec.generate_private_key(ec.SECP256R1())
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=1))
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def _dstack_log() -> bytes:
    event = {
        "imr": 0,
        "event_type": 1,
        "digest": "00" * 48,
        "event": HOSTILE,
        "event_payload": HOSTILE.encode().hex(),
    }
    return json.dumps([event]).encode()


def _rim() -> bytes:
    text = vectors("nvidia-attestation-sdk/NV_GPU_DRIVER_GH100_550.144.03.xml").read_text()
    return re.sub(r'tagId="[^"]*"', 'tagId="&lt;script&gt;[red]&#x202e;"', text).encode()


def _token() -> bytes:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    header, payload = part({"alg": "ES384", HOSTILE: HOSTILE}), part({HOSTILE: [HOSTILE]})
    return f"{header}.{payload}.AAAA".encode()


HOSTILE_FILES: dict[str, Callable[[], bytes]] = {
    "a certificate's subject": hostile_certificate,
    "a dstack log": _dstack_log,
    "fields of a manifest": _rim,
    "a token": _token,
    "TCB info": lambda: json.dumps({"tcbInfo": {HOSTILE: HOSTILE}, "signature": HOSTILE}).encode(),
    "claims of a token": lambda: json.dumps({"eat_profile": HOSTILE, "submods": {HOSTILE: 1}}).encode(),
    "a request": lambda: json.dumps(
        {"verification_requests": [{"tee": HOSTILE, "evidence": "e30"}]}
    ).encode(),
    "a quote report": lambda: json.dumps({"quote": HOSTILE, "event_log": HOSTILE}).encode(),
    "a format": lambda: json.dumps({"format": HOSTILE}).encode(),
    "a policy": f'format = "cloister/policy/v1"\n[{json.dumps(HOSTILE)}]\n'.encode,
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_nothing_in_a_hostile_file_steers_the_terminal(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(HOSTILE_FILES[name]())
    for arguments in (
        ["inspect", str(path)],
        ["inspect", str(path), "--json"],
        ["verify", str(path), "--offline"],
    ):
        ran = run(*arguments)
        assert ran.code in (0, EXIT_USAGE, EXIT_VERIFICATION)
        assert_inert(ran.out)
        assert_inert(ran.err)


def test_a_hostile_file_name_is_shown_as_text(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2J\u202e<img src=x>"
    path.write_bytes(encode_bundle(bundle()))
    page = tmp_path / "report.html"
    for arguments in (
        ["inspect", str(path)],
        ["verify", str(path), "--policy", write_policy(tmp_path), *AT, "--html", str(page)],
        ["verify", str(path) + "gone"],
        ["verify", str(path), "--endorsements", str(path) + "gone"],
    ):
        ran = run(*arguments)
        assert_inert(ran.out)
        assert_inert(ran.err)
    assert_inert_page(page.read_text())


def test_every_text_of_a_page_is_escaped() -> None:
    marked = line(HOSTILE, HOSTILE, HOSTILE)
    report = Report(
        verdict="refused",
        headline=HOSTILE.replace("\x1b", ""),
        tone="bad",
        banner="<b>",
        problem="<i>",
        todo="<u>",
        rows=(),
        sections=(section(HOSTILE, [marked]), section(HOSTILE, [marked] * 3)),
    )
    text = html_of(report, title="</title><script>")
    assert not {"script", "img", "b", "i", "u"} & set(Page(text).tags)


def test_a_file_of_two_mebibytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(b"\0" * (2 << 20))
    for command in ("verify", "inspect"):
        ran = run(command, str(path))
        assert (ran.code, ran.out) == (EXIT_USAGE, "")
        assert "is over 1048576 bytes long" in ran.err
    assert run("verify", "-", stdin=b"\0" * (2 << 20)).code == EXIT_USAGE


@contextlib.contextmanager
def _pipe(folder: Path) -> Iterator[str]:
    os.mkfifo(folder / "pipe")
    yield str(folder / "pipe")


@contextlib.contextmanager
def _unreadable(folder: Path) -> Iterator[str]:
    # Root may read everything, so a link in a circle stands for what cannot be opened.
    (folder / "loop").symlink_to(folder / "loop")
    yield str(folder / "loop")


@contextlib.contextmanager
def _socket(folder: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        yield str(folder / "s")


NOT_FILES = {
    "a named pipe": _pipe,
    "what cannot be opened": _unreadable,
    "a socket": _socket,
    "a directory": contextlib.nullcontext,
    "an endless device": lambda _: contextlib.nullcontext("/dev/zero"),
    "nothing": lambda folder: contextlib.nullcontext(str(folder / "nothing")),
    "a name that is too long": lambda _: contextlib.nullcontext("a" * 5000),
}


@pytest.mark.parametrize("name", NOT_FILES)
@pytest.mark.parametrize("place", ["evidence", "endorsements", "event log", "policy", "key"])
def test_what_is_no_file_is_refused_at_once(name: str, place: str, tmp_path: Path) -> None:
    with NOT_FILES[name](tmp_path) as path:
        options = {
            "endorsements": "--endorsements",
            "event log": "--event-log",
            "policy": "--policy",
            "key": "--ear",
        }
        first = str(path) if place == "evidence" else write_bundle(tmp_path)
        ran = run("verify", first, *([options[place], str(path)] if place in options else []))
        assert (ran.code, ran.out) == (EXIT_USAGE, "")
        assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b'{"format":"cloister/evidence/v1","tee":"tdx","quote":"' + b"A" * 900_000 + b'"}',
        b"[" + b"{}," * 300_000 + b"{}]",
        b'{"quote":"' + b"00" * 500_000 + b'"}',
        b"<SoftwareIdentity><!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]>" + b"&b;" * 100_000,
        b"<SoftwareIdentity " + b"<a>" * 200_000,
    ],
    ids=[
        "deep lists",
        "deep objects",
        "a large field",
        "many objects",
        "a large quote",
        "an XML bomb",
        "deep XML",
    ],
)
def test_a_bomb_is_one_line_in_bounded_time(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(data)
    for command in (["verify", "--offline"], ["inspect"]):
        ran = run(command[0], str(path), *command[1:])
        assert ran.code in (EXIT_USAGE, EXIT_VERIFICATION)
        assert len((ran.out + ran.err).encode()) < 20_000


def test_a_link_at_the_reports_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, page = tmp_path / "victim", tmp_path / "report.html"
    victim.write_text("precious")
    page.symlink_to(victim)
    ran = run("verify", write_bundle(tmp_path), "--policy", write_policy(tmp_path), *AT, "--html", str(page))
    assert ran.code == 0
    assert victim.read_text() == "precious"
    assert not page.is_symlink()
    assert page.read_text().startswith("<!doctype html>")


# The service at a URL.


def test_a_running_service_is_accepted_over_a_fresh_nonce(tmp_path: Path) -> None:
    with running() as service:
        policy = _write(tmp_path, service.tee)
        ran = run("verify", service.url, "--policy", policy, "--json")
        again = run("verify", service.url + "/v1", "--policy", policy)
    found = json.loads(ran.out)
    assert (ran.code, again.code) == (0, 0), ran.err
    assert (found["verdict"], found["at_is_now"]) == ("accepted", True)
    assert "✓ accepted" in again.out


def test_a_service_without_a_policy_is_refused_while_it_is_simulated() -> None:
    with running() as service:
        ran = run("verify", service.url)
    assert ran.code == EXIT_VERIFICATION
    assert '[roots] simulated = "' in " ".join(ran.out.split())


def test_another_workload_at_the_address_is_refused(tmp_path: Path) -> None:
    with running(tee=launched(b"\x66" * 32)) as service:
        ran = run("verify", service.url, "--policy", _write(tmp_path, launched()))
    assert ran.code == EXIT_POLICY


def _write(folder: Path, tee: object) -> str:
    from cloister.appraisal.draft import draft_policy

    text = draft_policy(
        tee="tdx",
        measurements=tee.measurements,  # type: ignore[attr-defined]
        events=tee.launch,  # type: ignore[attr-defined]
        min_tcb_evaluation_number=1,
        simulated_root=policy_for(tee).roots.simulated,  # type: ignore[arg-type]
    )
    path = folder / "service.toml"
    path.write_text(text)
    return str(path)


@dataclasses.dataclass
class Hostile:
    """A service that answers as it likes."""

    url: str
    asked: list[bytes] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def hostile(answer: Callable[[socket.socket, bytes], None]) -> Iterator[Hostile]:
    """``answer`` gets each connection and the request on it."""
    listener = socket.create_server(("127.0.0.1", 0))
    service = Hostile(f"http://127.0.0.1:{listener.getsockname()[1]}")
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    request = b""
                    while b"\r\n\r\n" not in request or b"}" not in request:
                        request += connection.recv(65536) or b"\r\n\r\n}"
                    service.asked.append(request)
                    answer(connection, request)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(15)


def _says(status: str, body: bytes, *fields: str) -> Callable[[socket.socket, bytes], None]:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *fields])
    return lambda connection, _: connection.sendall(head.encode() + b"\r\n\r\n" + body)


def test_an_old_bundle_does_not_answer_a_fresh_nonce(tmp_path: Path) -> None:
    recorded = encode_bundle(bundle(nonce=NONCE))
    with hostile(_says("200 OK", recorded)) as service:
        ran = run("verify", service.url, "--policy", write_policy(tmp_path), "--json")
    assert ran.code in (EXIT_VERIFICATION, EXIT_POLICY)
    assert json.loads(ran.out)["verdict"] == "refused"


def test_the_service_that_echoes_the_nonce_proves_nothing(tmp_path: Path) -> None:
    def echo(connection: socket.socket, request: bytes) -> None:
        nonce = json.loads(request.partition(b"\r\n\r\n")[2])["nonce"]
        document = json.loads(encode_bundle(bundle()))
        document["nonce_proof"] = {
            "index": 1,
            "size": 2,
            "path": [base64.b64encode(base64.urlsafe_b64decode(nonce + "=")).decode()],
        }
        _says("200 OK", json.dumps(document).encode())(connection, b"")

    with hostile(echo) as service:
        ran = run("verify", service.url, "--policy", write_policy(tmp_path))
    assert ran.code != 0
    nonces = [json.loads(one.partition(b"\r\n\r\n")[2])["nonce"] for one in service.asked]
    assert len(base64.urlsafe_b64decode(nonces[0] + "=")) == NONCE_SIZE


def test_each_question_has_a_nonce_of_its_own(tmp_path: Path) -> None:
    with hostile(_says("404 Not Found", b"")) as service:
        codes = {run("verify", service.url).code for _ in range(3)}
    assert codes == {EXIT_VERIFICATION}
    assert len({one.partition(b"\r\n\r\n")[2] for one in service.asked}) == 3


def test_a_redirect_is_not_followed() -> None:
    elsewhere = hostile(_says("200 OK", encode_bundle(bundle())))
    with elsewhere as target, hostile(_says("307 Moved", b"", f"location: {target.url}/")) as service:
        ran = run("verify", service.url)
    assert (ran.code, ran.out) == (EXIT_VERIFICATION, "")
    assert "redirects are not followed" in ran.err
    assert target.asked == []


def _endless(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")


def _dripping(connection: socket.socket, _: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.02)


def _dripping_head(connection: socket.socket, _: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"x: y\r\n")
            time.sleep(0.02)


def test_an_endless_answer_is_cut_at_its_bound() -> None:
    with (
        hostile(_endless) as service,
        pytest.raises(EvidenceError, match=f"over its bound of {MAX_BUNDLE} bytes"),
    ):
        ask_service(service.url, bytes(32))


@pytest.mark.parametrize("drip", [_dripping, _dripping_head], ids=["the body", "the head"])
def test_an_answer_that_drips_for_ever_ends_at_the_deadline(
    drip: Callable[[socket.socket, bytes], None],
) -> None:
    with hostile(drip) as service, pytest.raises((NetworkError, EvidenceError)):
        ask_service(service.url, bytes(32), deadline=0.5)


def test_a_compressed_answer_is_not_unpacked() -> None:
    import gzip

    bomb = gzip.compress(b" " * (64 << 20))
    with hostile(_says("200 OK", bomb, "content-encoding: gzip")) as service:
        assert len(ask_service(service.url, bytes(32))) == len(bomb)
        assert run("verify", service.url).code == EXIT_VERIFICATION


ANSWERS = {
    "nothing": ("200 OK", b""),
    "a page": ("200 OK", b"<html>hello</html>"),
    "another document": ("200 OK", b'{"verification_requests":[]}'),
    "a quote without a bundle": ("200 OK", b'{"quote":""}'),
    "an error": ("503 Service Unavailable", b"{}"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_no_bundle_is_one_line(name: str) -> None:
    with hostile(_says(*ANSWERS[name])) as service:
        ran = run("verify", service.url)
    assert ran.code in (EXIT_USAGE, EXIT_VERIFICATION)
    assert (ran.out, len(ran.err.splitlines())) == ("", 1)


def test_a_service_that_is_not_there_is_a_network_failure() -> None:
    assert run("verify", "http://127.0.0.1:9").code == EXIT_NETWORK


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org",
        "https://user:password@example.org",
        "https://example.org/some/path",
        "https://example.org/?query",
        "https://",
        "http://[::1",
        "http://169.254.169.254/v1",
        "http://127.0.0.1.example.org",
    ],
)
def test_an_address_that_cannot_be_meant_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(UsageError):
        ask_service(address, bytes(32))


@pytest.mark.parametrize("option", ["--nonce", "--at"])
def test_a_service_takes_no_nonce_and_no_time_of_yours(option: str) -> None:
    value = NONCE.hex() if option == "--nonce" else "2026-01-01"
    assert run("verify", "http://127.0.0.1:9", option, value).code == EXIT_USAGE


def test_what_is_missing_is_fetched_from_the_service_that_was_named(tmp_path: Path) -> None:
    whole = bundle()
    path, policy = tmp_path / "quote", write_policy(tmp_path)
    path.write_bytes(whole.quote)
    (tmp_path / "log").write_bytes(whole.event_log)
    with VendorServices() as services:
        services.serve_intel(whole.endorsements, tee="tdx", fmspc="c1015e000000", ca="platform")
        arguments = (
            "verify",
            str(path),
            "--event-log",
            str(tmp_path / "log"),
            "--policy",
            policy,
            *AT,
            "--json",
        )
        address = services.addresses().intel
        ran = run(*arguments, "--pccs", f"{address}/")
        offline = run(*arguments, "--pccs", address, "--offline")

        asked = services.asked()
    found = json.loads(ran.out)
    assert (ran.code, found["verdict"], found["endorsements"]) == (0, "matches", "fetched"), ran.err
    assert asked
    assert (offline.code, json.loads(offline.out)["endorsements"]) == (EXIT_VERIFICATION, "none")
