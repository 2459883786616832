"""The key store behind KMIP, with PyKMIP's own server over mutual TLS."""

from __future__ import annotations

import logging
import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.broker.keystores import Keystore
from cloister.broker.keystores.kmip import KmipKeystore
from cloister.broker.keystores.kmip_objects import identifier
from cloister.broker.keystores.kmip_wire import KmipWire
from cloister.broker.keystores.records import (
    CLAIM_ENDS,
    CLAIM_SECONDS,
    VersionRecord,
    claimed,
    destroyed,
    made,
)
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from kmip_server import Identity, KmipServerProcess, TestAuthority
from spec_vectors import spec_vectors

OPENED: list[KmipKeystore] = []


def open_store(port: int, client: Identity, ca: Path, timeout: float) -> KmipKeystore:
    store = KmipKeystore(
        "127.0.0.1", port, certificate=client.certificate, key=client.key, ca=ca, timeout=timeout
    )
    OPENED.append(store)
    return store


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


@dataclass(frozen=True)
class Site:
    """A server, the CA that it and its client are certified by, and the client."""

    server: KmipServerProcess
    authority: TestAuthority
    client: Identity

    def open(
        self, *, client: Identity | None = None, ca: Path | None = None, timeout: float = 10.0
    ) -> KmipKeystore:
        return open_store(self.server.port, client or self.client, ca or self.authority.file, timeout)


def make_site(directory: Path, *, address: str = "127.0.0.1") -> Site:
    authority = TestAuthority(directory / "ca", "ca")
    server = KmipServerProcess(
        directory / "server", authority, authority.issue("server", server=True, address=address)
    )
    server.start()
    return Site(server, authority, authority.issue("broker"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that leave it running."""
    site = make_site(tmp_path_factory.mktemp("kmip"))
    yield site
    site.server.kill()


@pytest.fixture
def own_site(tmp_path: Path) -> Iterator[Site]:
    """One for a test that ends it."""
    site = make_site(tmp_path)
    yield site
    site.server.kill()


class TestContract(KeystoreContract):
    @pytest.fixture
    def open_store(self, site: Site) -> Callable[[], Keystore]:
        return site.open


def test_every_state_survives_a_restart_of_the_server(own_site: Site) -> None:
    store = own_site.open()
    store.generate("k", owner=OWNER, now=NOW)
    lost = store.wrap("k", SECRET, AAD)
    store.rotate("k", now=NOW + 1)
    kept = store.wrap("k", SECRET, AAD)
    store.destroy("k", 1)
    before = store.describe("k")
    own_site.server.kill()
    own_site.server.start()
    again = own_site.open()
    assert again.describe("k") == before
    refuses(again, "k", lost)
    assert again.unwrap("k", kept, AAD) == SECRET


def keys_of(server: KmipServerProcess) -> list[bytes]:
    """Every key that is in the server's database, in the clear."""
    with closing(sqlite3.connect(server.database)) as database:
        found = database.execute(
            "SELECT value FROM managed_objects WHERE class_type = 'SymmetricKey'"
        ).fetchall()
    return [bytes(one) for (one,) in found]


def test_a_destroyed_key_is_gone_from_the_server(own_site: Site) -> None:
    store = own_site.open()
    store.generate("k", owner=OWNER, now=NOW)
    store.rotate("k", now=NOW)
    before = keys_of(own_site.server)
    assert [len(one) for one in before] == [32, 32]
    store.destroy("k", 1)
    assert len(keys_of(own_site.server)) == 1
    assert keys_of(own_site.server)[0] in before


def test_the_wrap_of_the_page_opens_under_its_key(own_site: Site) -> None:
    vectors = spec_vectors("keystores.md")
    store = own_site.open()
    from kmip.core import enums, objects  # here, behind the store's own import, which silences their warnings
    from kmip.core.factories.attributes import AttributeFactory
    from kmip.pie.factory import ObjectFactory
    from kmip.pie.objects import SymmetricKey

    mask = enums.CryptographicUsageMask.DECRYPT
    key = SymmetricKey(enums.CryptographicAlgorithm.AES, 256, bytes.fromhex(vectors["key"]), [mask])
    usage = AttributeFactory().create_attribute(enums.AttributeType.CRYPTOGRAPHIC_USAGE_MASK, [mask])
    answer = store._ask(
        "register",
        object_type=enums.ObjectType.SYMMETRIC_KEY,
        template_attribute=objects.TemplateAttribute(attributes=[usage]),
        managed_object=ObjectFactory().convert(key),
    )
    store._ask("activate", unique_identifier=identifier(answer.unique_identifier))
    store._write(made(vectors["key_id"], vectors["version"], OWNER, NOW, answer.unique_identifier))
    wrapped = bytes.fromhex(vectors["kmip"]["wrapped"])
    opened = store.unwrap(vectors["key_id"], wrapped, bytes.fromhex(vectors["aad"]))
    assert opened.hex() == vectors["plaintext"]


def test_a_record_never_leads_to_the_destruction_of_another_key(site: Site) -> None:
    store = site.open()
    store.generate("victim", owner=OWNER, now=NOW)
    store.generate("forged", owner=OWNER, now=NOW)
    wrapped = store.wrap("victim", SECRET, AAD)
    (victim,) = store._read("victim")
    store._write(made("forged", 2, OWNER, NOW, victim.handle))
    with pytest.raises(KeystoreError, match="is not its key"):
        store.destroy("forged", 2)
    assert store.unwrap("victim", wrapped, AAD) == SECRET
    refuses(store, "forged", (2).to_bytes(4, "big") + wrapped[4:])


def test_a_destruction_that_a_crash_cut_short_is_refused_and_finished(own_site: Site) -> None:
    store = own_site.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    (version,) = store._read("k")
    store._write(destroyed("k", version))
    own_site.server.kill()
    own_site.server.start()
    refuses(store, "k", wrapped)
    assert len(keys_of(own_site.server)) == 1
    assert [one.state for one in store.describe("k")] == ["destroyed"]
    assert keys_of(own_site.server) == []


def test_a_server_killed_in_the_middle_loses_nothing(own_site: Site) -> None:
    store = own_site.open(timeout=20)
    store.generate("k", owner=OWNER, now=NOW)
    wrapped: list[bytes] = []
    failures = 0
    for number in range(20):
        if number == 7:
            own_site.server.kill()
        if number == 14:
            own_site.server.start()
        try:
            wrapped.append(store.wrap("k", SECRET, AAD))
        except KeystoreUnavailable as error:
            is_one_line(error)
            failures += 1
    assert (len(wrapped), failures) == (13, 7)
    assert all(store.unwrap("k", one, AAD) == SECRET for one in wrapped)
    assert [one.state for one in store.describe("k")] == ["active"]


def test_a_server_killed_under_many_threads_loses_nothing(own_site: Site) -> None:
    store = own_site.open(timeout=20)
    store.generate("k", owner=OWNER, now=NOW)
    done = threading.Event()

    def work(_: int) -> list[bytes]:
        wrapped: list[bytes] = []
        while not done.is_set():
            try:
                wrapped.append(store.wrap("k", SECRET, AAD))
            except KeystoreUnavailable as error:
                is_one_line(error)
                done.wait(0.05)
        return wrapped

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        for _ in range(3):
            own_site.server.kill()
            own_site.server.start()
            store.wrap("k", SECRET, AAD)
        done.set()
        wrapped = [one for work in working for one in work.result()]
    assert wrapped
    assert {store.unwrap("k", one, AAD) for one in wrapped} == {SECRET}
    assert [one.version for one in store.describe("k")] == [1]


@pytest.mark.parametrize("at", ["generate", "rotate", "wrap", "unwrap", "describe", "destroy"])
def test_a_server_that_is_gone_is_unavailable_and_nothing_has_changed(own_site: Site, at: str) -> None:
    store = own_site.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    before = store.describe("k")
    own_site.server.kill()
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: store.generate("other", owner=OWNER, now=NOW),
        "rotate": lambda: store.rotate("k", now=NOW),
        "wrap": lambda: store.wrap("k", SECRET, AAD),
        "unwrap": lambda: store.unwrap("k", wrapped, AAD),
        "describe": lambda: store.describe("k"),
        "destroy": lambda: store.destroy("k", 1),
    }
    with pytest.raises(KeystoreUnavailable) as gone:
        calls[at]()
    is_one_line(gone.value)
    own_site.server.start()
    assert store.describe("k") == before
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_a_server_that_stops_answering_is_not_waited_for(own_site: Site) -> None:
    own_site.open().generate("k", owner=OWNER, now=NOW)
    store = own_site.open(timeout=0.5)
    own_site.server.stop_answering()
    with pytest.raises(KeystoreUnavailable):
        store.wrap("k", SECRET, AAD)
    own_site.server.answer_again()
    patient = own_site.open()
    assert patient.unwrap("k", patient.wrap("k", SECRET, AAD), AAD) == SECRET


def test_brokers_that_rotate_at_one_moment_never_share_a_number(site: Site) -> None:
    stores = [site.open() for _ in range(3)]
    stores[0].generate("raced", owner=OWNER, now=NOW)

    def work(number: int) -> None:
        try:
            stores[number % 3].rotate("raced", now=NOW)
        except KeystoreUnavailable as error:
            is_one_line(error)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(12)))
    versions = stores[0].describe("raced")
    assert [one.version for one in versions] == list(range(1, len(versions) + 1))
    assert stores[1].unwrap("raced", stores[2].wrap("raced", SECRET, AAD), AAD) == SECRET
    assert not claims_of(stores[0], "raced")


def claims_of(store: KmipKeystore, key: str) -> list[VersionRecord]:
    return [one for one in store._records(key) if one.state == "claimed"]


@dataclass
class Stage:
    """What happens around a broker's first record, and what of its requests goes wrong."""

    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    fails: dict[str, str] = field(default_factory=dict)
    """By state of a record: its writing is not answered "before" or "after" it was done."""
    time: float = 0.0


class StagedKeystore(KmipKeystore):
    def __init__(self, site: Site, stage: Stage) -> None:
        super().__init__(
            "127.0.0.1",
            site.server.port,
            certificate=site.client.certificate,
            key=site.client.key,
            ca=site.authority.file,
            clock=lambda: self.stage.time,
        )
        OPENED.append(self)
        self.stage = stage

    def _write(self, record: VersionRecord, *, may: Callable[[], None] = lambda: None) -> None:
        before, after = self.stage.before, self.stage.after
        self.stage.before = self.stage.after = lambda: None
        before()
        fails = self.stage.fails.pop(record.state, "")
        may()
        if fails != "before":
            super()._write(record)
        if fails:
            raise KeystoreUnavailable("the answer was lost")
        after()


def test_a_version_that_another_broker_wrapped_under_is_never_taken_back(own_site: Site) -> None:
    # Two brokers make version 4; while one has written its record and not yet looked, a third wraps and rotates.
    third = own_site.open()
    third.generate("k", owner=OWNER, now=NOW)
    third.rotate("k", now=NOW)
    third.rotate("k", now=NOW)
    wrapped: list[bytes] = []
    second_ready, second_go, second_wrote, first_done = (threading.Event() for _ in range(4))

    def between() -> None:
        wrapped.append(third.wrap("k", SECRET, AAD))
        with suppress(KeystoreUnavailable):
            third.rotate("k", now=NOW)
        wrapped.append(third.wrap("k", SECRET, AAD))
        second_go.set()
        assert second_wrote.wait(20)

    def ready() -> None:
        second_ready.set()
        assert second_go.wait(20)

    def wrote() -> None:
        second_wrote.set()
        assert first_done.wait(20)

    def rotate(stage: Stage) -> None:
        with suppress(KeystoreUnavailable):
            StagedKeystore(own_site, stage).rotate("k", now=NOW)

    def first() -> None:
        rotate(Stage(before=lambda: None if second_ready.wait(20) else pytest.fail("late"), after=between))
        first_done.set()

    with ThreadPoolExecutor(2) as pool:
        for work in [pool.submit(rotate, Stage(before=ready, after=wrote)), pool.submit(first)]:
            work.result()
    assert len(wrapped) == 2
    assert {own_site.open().unwrap("k", one, AAD) for one in wrapped} == {SECRET}
    count = len(third.describe("k"))
    assert own_site.open().rotate("k", now=NOW).version == count + 1
    assert [one.version for one in own_site.open().describe("k")] == list(range(1, count + 2))
    assert not claims_of(third, "k")
    assert len(keys_of(own_site.server)) == count + 1


def test_the_claim_of_a_broker_that_crashed_stands_in_the_way_for_ten_minutes_and_is_then_cleared(
    own_site: Site,
) -> None:
    store = own_site.open()
    store.generate("k", owner=OWNER, now=NOW)
    wrapped = store.wrap("k", SECRET, AAD)
    store._write(claimed("k", 2, OWNER, NOW, store._create("k", 2)))
    (version,) = store._read("k")
    store._write(claimed("k", 1, OWNER, NOW, version.handle))  # crashed after it made this one: its key stays
    for after in (0, CLAIM_ENDS - 1):
        with pytest.raises(KeystoreUnavailable, match="at the latest in 10 minutes") as refusal:
            own_site.open().rotate("k", now=NOW + after)
        is_one_line(refusal.value)
    assert store.wrap("k", SECRET, AAD)[:4] == (1).to_bytes(4, "big")
    assert len(keys_of(own_site.server)) == 2
    assert own_site.open().rotate("k", now=NOW + CLAIM_ENDS).version == 2
    assert not claims_of(store, "k")
    assert len(keys_of(own_site.server)) == 2
    assert store.unwrap("k", wrapped, AAD) == SECRET


def test_a_claim_that_ended_never_leads_to_the_destruction_of_another_key(site: Site) -> None:
    store = site.open()
    store.generate("bystander", owner=OWNER, now=NOW)
    store.generate("claimed", owner=OWNER, now=NOW)
    wrapped = store.wrap("bystander", SECRET, AAD)
    (bystander,) = store._read("bystander")
    store._write(claimed("claimed", 2, OWNER, NOW, bystander.handle))
    with pytest.raises(KeystoreError, match="is not its key"):
        store.rotate("claimed", now=NOW + CLAIM_ENDS)
    assert store.unwrap("bystander", wrapped, AAD) == SECRET
    assert store.rotate("claimed", now=NOW + CLAIM_ENDS).version == 2


def test_a_broker_that_is_too_slow_takes_its_claim_back(own_site: Site) -> None:
    store = StagedKeystore(own_site, Stage())
    store.generate("k", owner=OWNER, now=NOW)

    def dawdle() -> None:
        store.stage.time += CLAIM_SECONDS + 1

    store.stage.after = dawdle
    with pytest.raises(KeystoreUnavailable, match="took too long") as refusal:
        store.rotate("k", now=NOW)
    is_one_line(refusal.value)
    assert not claims_of(store, "k")
    assert len(keys_of(own_site.server)) == 1
    assert store.rotate("k", now=NOW).version == 2


@pytest.mark.parametrize("pause", [0, CLAIM_SECONDS + 1])
@pytest.mark.parametrize("state", ["claimed", "made"])
@pytest.mark.parametrize("fails", ["before", "after"])
def test_a_broker_that_was_not_answered_goes_on_when_it_is_asked_again(
    own_site: Site, state: str, fails: str, pause: float
) -> None:
    store = StagedKeystore(own_site, Stage())
    store.generate("k", owner=OWNER, now=NOW)
    store.stage.fails[state] = fails
    with pytest.raises(KeystoreUnavailable, match="lost"):
        store.rotate("k", now=NOW)
    store.stage.time += pause
    later = NOW + int(pause)
    if (state, fails) == ("made", "before") and pause:
        # It cannot know that this record never comes, so it waits as for a broker that crashed.
        with pytest.raises(KeystoreUnavailable, match="at the latest in 10 minutes"):
            store.rotate("k", now=later)
        later = NOW + CLAIM_ENDS
    assert store.rotate("k", now=later).version == 2
    assert [one.version for one in store.describe("k")] == [1, 2]
    assert store.unwrap("k", store.wrap("k", SECRET, AAD), AAD) == SECRET
    assert len(keys_of(own_site.server)) == 2
    store.rotate("k", now=NOW + 2 * CLAIM_ENDS)
    assert not claims_of(store, "k")


# Who talks to whom


def test_a_server_of_another_ca_is_refused(site: Site, tmp_path: Path) -> None:
    other = TestAuthority(tmp_path, "other")
    with pytest.raises(KeystoreError, match="is not the KMIP server that was meant") as refusal:
        site.open(ca=other.file).describe("k")
    assert not isinstance(refusal.value, KeystoreUnavailable)
    is_one_line(refusal.value)


def test_a_server_under_another_name_is_refused(tmp_path: Path) -> None:
    site = make_site(tmp_path, address="127.0.0.2")
    try:
        with pytest.raises(KeystoreError, match="is not the KMIP server that was meant"):
            site.open().describe("k")
    finally:
        site.server.kill()


def test_a_client_of_another_ca_is_refused_by_the_server(site: Site, tmp_path: Path) -> None:
    stranger = TestAuthority(tmp_path, "other").issue("broker")
    with pytest.raises(KeystoreError, match="refuses our certificate") as refusal:
        site.open(client=stranger).describe("k")
    assert not isinstance(refusal.value, KeystoreUnavailable)


def test_a_client_without_a_certificate_is_refused_by_the_server(site: Site) -> None:
    from kmip.core import enums  # here, behind the wire's own import, which silences its warnings
    from kmip.core.messages import payloads

    wire = KmipWire(
        "127.0.0.1", site.server.port, ssl.create_default_context(cafile=str(site.authority.file))
    )
    with pytest.raises(KeystoreError, match="refuses our certificate"):
        wire.ask(enums.Operation.LOCATE, payloads.LocateRequestPayload())


def test_a_certificate_that_is_not_for_clients_is_refused_by_the_server(site: Site) -> None:
    with pytest.raises(KeystoreError, match=r"AUTHENTICATION_NOT_SUCCESSFUL|refuses our certificate"):
        site.open(client=site.authority.issue("not-a-client", server=True)).describe("k")


def test_a_key_that_others_can_read_is_refused(site: Site, tmp_path: Path) -> None:
    open_key = tmp_path / "open.key"
    open_key.write_bytes(site.client.key.read_bytes())
    open_key.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others"):
        site.open(client=Identity(site.client.certificate, open_key))


@pytest.mark.parametrize("fault", ["of another certificate", "behind a passphrase", "no key", "not there"])
def test_a_key_file_that_does_not_serve_is_refused_without_its_bytes(
    site: Site, tmp_path: Path, fault: str
) -> None:
    path = tmp_path / "some.key"
    path.touch(mode=0o600)
    if fault == "of another certificate":
        path.write_bytes(TestAuthority(tmp_path, "other").issue("broker").key.read_bytes())
    elif fault == "behind a passphrase":
        key = load_pem_private_key(site.client.key.read_bytes(), None)
        path.write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"canary"))
        )
    elif fault == "no key":
        path.write_bytes(b"canary-5521")
    else:
        path.unlink()
    with pytest.raises(UsageError) as refusal:
        site.open(client=Identity(site.client.certificate, path))
    assert "canary" not in f"{refusal.value}{refusal.value!r}{refusal.value.__cause__!r}"


def test_nothing_that_is_wrapped_is_shown_or_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    store = site.open()
    store.generate("quiet", owner=OWNER, now=NOW)
    store.unwrap("quiet", store.wrap("quiet", SECRET, AAD), AAD)
    key = site.client.key.read_text().splitlines()[1]
    shown = f"{store!r}{vars(store)!r}{caplog.text}{site.server.log.read_text()}"
    assert SECRET.hex() not in shown
    assert key not in shown


# A server that is not what it seems


class HostileServer:
    """It has a good certificate, and gives ``answer`` to whatever it is asked; ``None`` says nothing.

    With a ``pause`` it gives it byte by byte; with ``then`` it takes another request on the same connection, and closes
    it or says nothing more.
    """

    def __init__(
        self,
        site: Site,
        answer: bytes | None,
        *,
        pause: float = 0,
        then: Literal["", "closes", "is silent"] = "",
    ) -> None:
        identity = site.authority.issue("hostile", server=True)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(identity.certificate, identity.key)
        self._answer = answer
        self._pause = pause
        self._then = then
        self.asked = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self._stop = threading.Event()
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> HostileServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(20)
        self._socket.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                plain, _ = self._socket.accept()
            except TimeoutError:
                continue
            plain.settimeout(5)
            try:
                with self._context.wrap_socket(plain, server_side=True) as connection:
                    connection.recv(1 << 16)
                    self.asked += 1
                    if self._answer is None:
                        self._stop.wait(5)
                    elif not self._pause:
                        connection.sendall(self._answer)
                        if self._then and connection.recv(1 << 16):
                            self.asked += 1
                            if self._then == "is silent":
                                self._stop.wait(60)
                    else:
                        for byte in self._answer:
                            connection.sendall(bytes([byte]))
                            self._stop.wait(self._pause)
            except OSError:
                pass


def _structure(tag: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes.fromhex(tag) + b"\x01" + len(content).to_bytes(4, "big") + content


def _value(tag: str, kind: int, value: bytes) -> bytes:
    return bytes.fromhex(tag) + bytes([kind]) + len(value).to_bytes(4, "big") + value + bytes(-len(value) % 8)


def _response(operation: int, *payload: bytes, status: int = 0, items: int = 1) -> bytes:
    version = _structure(
        "420069", _value("42006a", 2, bytes([0, 0, 0, 1])), _value("42006b", 2, bytes([0, 0, 0, 4]))
    )
    header = _structure(
        "42007a", version, _value("420092", 9, bytes(8)), _value("42000d", 2, items.to_bytes(4, "big"))
    )
    item = _structure(
        "42000f",
        _value("42005c", 5, operation.to_bytes(4, "big")),
        _value("42007f", 5, status.to_bytes(4, "big")),
        *payload,
    )
    return _structure("42007b", header, *[item] * items)


LOCATE, ACTIVATE = 8, 18
NAME = _value("420094", 7, b"1")
HOSTILE: dict[str, tuple[bytes | None, str]] = {
    "nothing at all": (b"", "closed the connection"),
    "silence": (None, "Timeout"),
    "half a header": (b"\x42\x00\x7b\x01", "closed the connection"),
    "HTTP": (b"HTTP/1.1 200 OK\r\n\r\n", "something else than KMIP"),
    "four gigabytes": (bytes.fromhex("42007b01ffffffff"), "something else than KMIP"),
    "an empty message": (bytes.fromhex("42007b0100000000"), "no KMIP message"),
    "a cut message": (_response(LOCATE, _structure("42007c"))[:-9], "closed the connection"),
    "garbage in its place": (bytes.fromhex("42007b0100000100") + bytes(range(256)), "no KMIP message"),
    "no items": (_response(LOCATE, items=0), "no KMIP message"),
    "two items": (_response(LOCATE, _structure("42007c"), items=2), "no KMIP message"),
    "the answer to something else": (
        _response(ACTIVATE, _structure("42007c", NAME)),
        "answered something else",
    ),
    "success without a payload": (_response(LOCATE), "answered something else"),
    "a failure without a reason": (_response(LOCATE, status=1), "refuses .locate: no reason"),
    "ten thousand names": (
        _response(LOCATE, _structure("42007c", *[_value("420094", 7, b"%08d" % n) for n in range(10_000)])),
        "more than 2100 records",
    ),
    "an endless name": (
        _response(LOCATE, _structure("42007c", _value("420094", 7, b"x" * 60_000))),
        "out of all bounds",
    ),
    "a name that steers a terminal": (
        _response(LOCATE, _structure("42007c", _value("420094", 7, b"\x1b[2J"))),
        "out of all bounds",
    ),
}


@pytest.mark.parametrize("answer", HOSTILE)
def test_a_hostile_server_ends_in_one_line_within_its_time(site: Site, answer: str) -> None:
    sent, reason = HOSTILE[answer]
    with HostileServer(site, sent) as server:
        store = open_store(server.port, site.client, site.authority.file, timeout=1 if sent is None else 20)
        with pytest.raises(KeystoreError, match=reason) as refusal:
            store.describe("k")
        is_one_line(refusal.value)


@pytest.mark.parametrize(("then", "asked"), [("closes", 3), ("is silent", 2)])
def test_a_request_goes_out_again_where_the_connection_was_closed_and_not_where_it_may_be_done_yet(
    site: Site, then: Literal["closes", "is silent"], asked: int
) -> None:
    with HostileServer(site, _response(LOCATE, _structure("42007c")), then=then) as server:
        store = open_store(
            server.port, site.client, site.authority.file, timeout=20 if then == "closes" else 5
        )
        for error, reason in (
            (KeystoreError, "there is no key k"),
            (KeystoreError, "there is no key k") if then == "closes" else (KeystoreUnavailable, "Timeout"),
        ):
            with pytest.raises(error, match=reason):
                store.describe("k")
        store.close()
    assert server.asked == asked


def test_a_server_that_drips_its_answer_is_not_waited_for(site: Site) -> None:
    with HostileServer(site, _response(LOCATE, _structure("42007c"))[:40], pause=0.1) as server:
        store = open_store(server.port, site.client, site.authority.file, timeout=1)
        with pytest.raises(KeystoreUnavailable, match=r"too long|Timeout"):
            store.describe("k")


def test_the_hostile_answers_are_refused_for_what_is_wrong_with_them(site: Site) -> None:
    # The same builder makes an answer that is taken: no objects, so no such key.
    with HostileServer(site, _response(LOCATE, _structure("42007c"))) as server:
        store = open_store(server.port, site.client, site.authority.file, timeout=20)
        with pytest.raises(KeystoreError, match="there is no key k"):
            store.describe("k")
