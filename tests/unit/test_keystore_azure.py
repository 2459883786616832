"""Azure Key Vault, through Microsoft's libraries against a stand-in with the documented answers and real RSA."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cloister.broker.keystores.azure import (
    SETTLE_SECONDS,
    AzureCredentials,
    AzureKeystore,
    azure_credential,
    azure_keys,
)
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from keystore_attacks import NetworkContract, impatient  # noqa: F401 - a fixture for every test here
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from keystore_servers import AzureServer, KeyServer, edited
from vendor_services import Answer, Fault, Says


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    with AzureServer(tmp_path_factory.mktemp("azure")) as running:
        yield running


def opened(
    server: AzureServer,
    *,
    secret: str = AzureServer.secret,
    purge: bool = True,
    sleep: Callable[[float], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> AzureKeystore:
    credentials = AzureCredentials(server.tenant, server.client, secret, server.base)
    keys = azure_keys(
        server.base,
        azure_credential(credentials, ca_file=server.ca_file),
        ca_file=server.ca_file,
        # The stand-in is not below vault.azure.net, which is what this check is about.
        verify_challenge_resource=False,
    )
    return AzureKeystore(keys, hardware=False, purge=purge, sleep=sleep, clock=clock)


@pytest.fixture
def open_store(server: AzureServer) -> Callable[[], AzureKeystore]:
    server.faults.clear()
    return lambda: opened(server)


class TestContract(KeystoreContract):
    flip_step = 17

    @pytest.fixture
    def open_store(self, server: AzureServer) -> Callable[[], AzureKeystore]:
        server.faults.clear()
        return lambda: opened(server)


class TestNetwork(NetworkContract):
    wraps = "POST /keys/.*/unwrapkey"
    """Wrapping itself needs no request: the public key is at hand. What it made is then opened there."""
    unwraps = "POST /keys/.*/unwrapkey"
    reads = "GET /keys/.*-record/versions"
    makes = ("POST /keys/.*-v[0-9]+/create", "POST /keys/.*-record/create")
    destroys = ("POST /keys/.*-record/create", "DELETE /keys/", "DELETE /deletedkeys/")
    canaries = (AzureServer.secret, "canary-token-of-entra")

    def is_shredded(self, server: KeyServer, key: str) -> None:
        assert isinstance(server, AzureServer)
        assert f"cloister-{key}-v1" not in server.keys
        assert f"cloister-{key}-v1" not in server.deleted


def test_what_is_wrapped_begins_with_key_version_and_record(
    server: AzureServer, open_store: Callable[[], AzureKeystore]
) -> None:
    store = open_store()
    store.generate("inside", owner=OWNER, now=NOW)
    wrapped = store.wrap("inside", SECRET, AAD)
    (one,) = server.keys["cloister-inside-v1"].values()
    pad = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    version = store._read("inside")[0]
    assert one["key"].decrypt(wrapped[20:], pad) == store._bound("inside", version, AAD) + SECRET
    assert wrapped[4:20].hex() == version.handle


@pytest.mark.parametrize("plain", [b"", b"x" * 31, b"x" * 32, b"x" * 33, b"x" * 160], ids=len)
def test_what_somebody_else_wrapped_with_the_public_key_does_not_open(
    server: AzureServer, open_store: Callable[[], AzureKeystore], plain: bytes
) -> None:
    store = open_store()
    key = f"public{len(plain)}"
    store.generate(key, owner=OWNER, now=NOW)
    wrapped = store.wrap(key, SECRET, AAD)
    (one,) = server.keys[f"cloister-{key}-v1"].values()
    pad = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    refuses(store, key, wrapped[:20] + one["key"].public_key().encrypt(plain, pad))


def test_without_purge_key_vault_keeps_what_was_destroyed_and_we_refuse_it(server: AzureServer) -> None:
    store = opened(server, purge=False)
    store.generate("kept", owner=OWNER, now=NOW)
    wrapped = store.wrap("kept", SECRET, AAD)
    store.destroy("kept", 1)
    assert "cloister-kept-v1" in server.deleted
    server.keys["cloister-kept-v1"] = server.deleted.pop("cloister-kept-v1")  # recovered by somebody there
    refuses(store, "kept", wrapped)
    refuses(opened(server), "kept", wrapped)


def test_a_key_that_key_vault_takes_its_time_to_delete_is_purged_when_it_is_deleted(
    server: AzureServer,
) -> None:
    waited: list[float] = []
    store = opened(server, sleep=waited.append)
    store.generate("slow", owner=OWNER, now=NOW)
    assert waited == [SETTLE_SECONDS]
    waited.clear()
    server.fail("GET /deletedkeys/", *[Says(Answer(b'{"error": {}}', "application/json", 404))] * 3)
    assert store.destroy("slow", 1).state == "destroyed"
    assert waited == [1, 1, 1]
    assert not {"cloister-slow-v1"} & {*server.keys, *server.deleted}


def test_a_key_that_key_vault_never_deletes_is_not_waited_for_without_end(server: AzureServer) -> None:
    times = iter(range(1000))
    store = opened(server, clock=lambda: float(next(times)))
    store.generate("never", owner=OWNER, now=NOW)
    server.fail("GET /deletedkeys/", *[Says(Answer(b'{"error": {}}', "application/json", 404))] * 100)
    with pytest.raises(KeystoreUnavailable):
        store.destroy("never", 1)
    server.faults.clear()
    assert store.describe("never")[0].state == "destroyed"
    assert store.destroy("never", 1).state == "destroyed"
    assert "cloister-never-v1" not in server.deleted


def test_two_brokers_that_make_one_key_for_two_owners_at_once_agree_on_one(server: AzureServer) -> None:
    other: list[KeystoreError] = []

    def meanwhile() -> None:
        # Another broker looked before our entry was there, and writes its own: by Key Vault's clock not earlier.
        late = opened(server)
        late._read = lambda key, read=late._read, seen=[]: read(key) if seen else seen.append(1) or ()  # type: ignore
        with pytest.raises(KeystoreError) as refusal:
            late.generate("raced", owner="eve", now=NOW + 1)
        other.append(refusal.value)

    store = opened(server)
    first = store._make

    def make(*given: object) -> object:
        made = first(*given)  # type: ignore[arg-type]
        for entry in server.keys["cloister-raced-record"].values():
            entry["attributes"]["created"] -= 1
        meanwhile()
        return made

    store._make = make  # type: ignore[method-assign,assignment]
    assert store.generate("raced", owner=OWNER, now=NOW).owner == OWNER
    assert len(other) == 1
    assert [one.owner for one in opened(server).describe("raced")] == [OWNER]


def test_a_version_made_by_two_brokers_at_once_is_one_version_and_both_wraps_open(
    server: AzureServer,
) -> None:
    one, other = opened(server), opened(server)
    one.generate("twice", owner=OWNER, now=NOW)
    stale = other._read("twice")
    one.rotate("twice", now=NOW + 1)
    wrapped = [one.wrap("twice", SECRET, AAD)]
    other._make("twice", stale[-1].number + 1, OWNER, NOW + 2)
    wrapped += [one.wrap("twice", SECRET, AAD), other.wrap("twice", SECRET, AAD)]
    assert [v.version for v in one.describe("twice")] == [1, 2]
    assert one.describe("twice") == other.describe("twice")
    assert [one.unwrap("twice", each, AAD) for each in wrapped] == [SECRET] * 3
    one.destroy("twice", 2)
    for each in wrapped:
        refuses(other, "twice", each)


def _edit(**changes: object) -> Fault:
    return edited(lambda answer: {**answer, **changes})


ANSWERS = {
    "another secret": ("POST /keys/.*/unwrapkey", _edit(value="AAAA")),
    "a secret that is a number": ("POST /keys/.*/unwrapkey", _edit(value=7)),
    "no secret": ("POST /keys/.*/unwrapkey", _edit(value=None)),
    "another public key": (
        "GET /keys/cloister-answers[0-9]+-v1/",
        edited(
            lambda answer: {
                **answer,
                "key": {**answer["key"], "n": "v" + answer["key"]["n"][1:-1] + "9"},
            }
        ),
    ),
    "a record that is no list": ("GET /keys/.*-record/versions", _edit(value="x")),
    "a record without tags": (
        "GET /keys/.*-record/versions",
        edited(lambda answer: {**answer, "value": [{**one, "tags": {}} for one in answer["value"]]}),
    ),
    "a record of another key": (
        "GET /keys/.*-record/versions",
        edited(
            lambda answer: {
                **answer,
                "value": [{**one, "tags": {**one["tags"], "key": "x"}} for one in answer["value"]],
            }
        ),
    ),
    "a record with a version -1": (
        "GET /keys/.*-record/versions",
        edited(
            lambda answer: {
                **answer,
                "value": [{**one, "tags": {**one["tags"], "version": "-1"}} for one in answer["value"]],
            }
        ),
    ),
}


@pytest.mark.parametrize("attack", ANSWERS)
def test_a_wrap_is_only_handed_out_when_key_vault_opens_it_again(
    server: AzureServer, open_store: Callable[[], AzureKeystore], attack: str
) -> None:
    store = open_store()
    key = f"answers{list(ANSWERS).index(attack)}"
    store.generate(key, owner=OWNER, now=NOW)
    operation, fault = ANSWERS[attack]
    server.fail(operation, *[fault] * 3)
    with pytest.raises(KeystoreError) as refusal:
        store.wrap(key, SECRET, AAD)
    is_one_line(refusal.value)


def test_a_record_of_many_pages_is_read_to_its_end(
    server: AzureServer, open_store: Callable[[], AzureKeystore]
) -> None:
    store = open_store()
    store.generate("pages", owner=OWNER, now=NOW)
    for number in range(2, 9):
        assert store.rotate("pages", now=NOW + number).version == number
    assert [one.version for one in store.describe("pages")] == list(range(1, 9))


def test_pages_without_end_are_not_followed_for_ever(
    server: AzureServer, open_store: Callable[[], AzureKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.broker.keystores.azure.MAX_ENTRIES", 20)
    store = open_store()
    store.generate("endless", owner=OWNER, now=NOW)
    again = _edit(nextLink=f"{server.base}/keys/cloister-endless-record/versions?api-version=7.5")
    server.fail("GET /keys/.*-record/versions", *[again] * 100)
    with pytest.raises(KeystoreError, match="too long"):
        store.describe("endless")


def test_a_next_page_at_another_address_does_not_get_the_token(
    server: AzureServer, open_store: Callable[[], AzureKeystore]
) -> None:
    with AzureServer(server.ca_file.parent) as elsewhere:
        seen: list[str | None] = []
        answer = elsewhere.answer
        elsewhere.answer = lambda handler, operation, body: (  # type: ignore[method-assign]
            seen.append(handler.headers.get("Authorization")) or answer(handler, operation, body)
        )
        store = open_store()
        store.generate("nextlink", owner=OWNER, now=NOW)
        link = f"{elsewhere.base}/keys/cloister-nextlink-record/versions?api-version=7.5"
        server.fail("GET /keys/.*-record/versions", *[_edit(nextLink=link)] * 3)
        with pytest.raises(KeystoreError):
            store.describe("nextlink")
        assert f"Bearer {server.token}" not in seen


def test_a_wrong_client_secret_is_one_clear_line(server: AzureServer) -> None:
    secret = f"canary{secrets.token_hex(8)}"
    with pytest.raises(KeystoreError, match="does not let this broker") as refusal:
        opened(server, secret=secret).describe("any")
    assert not isinstance(refusal.value, KeystoreUnavailable)
    assert secret not in str(refusal.value)


def test_a_token_that_ended_is_replaced(
    server: AzureServer, open_store: Callable[[], AzureKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.generate("ended", owner=OWNER, now=NOW)
    monkeypatch.setattr(server, "token", "eyJanother")
    with pytest.raises(KeystoreError, match="does not let this broker"):
        store.describe("ended")  # Entra's library keeps its token until it ends by the clock
    assert [one.version for one in opened(server).describe("ended")] == [1]


def test_a_vault_that_no_named_ca_signed_gets_no_token(server: AzureServer) -> None:
    credentials = AzureCredentials(server.tenant, server.client, server.secret, server.base)
    asked = server.asked("GET /keys/")
    credential = azure_credential(credentials, ca_file=server.ca_file)
    keys = azure_keys(server.base, credential, verify_challenge_resource=False)
    with pytest.raises(KeystoreUnavailable):
        AzureKeystore(keys, hardware=False, purge=False).describe("any")
    assert server.asked("GET /keys/") == asked


def test_a_vault_outside_microsofts_domain_gets_no_token(server: AzureServer) -> None:
    credentials = AzureCredentials(server.tenant, server.client, server.secret, server.base)
    keys = azure_keys(
        server.base, azure_credential(credentials, ca_file=server.ca_file), ca_file=server.ca_file
    )
    asked = server.asked("POST /.*token")
    with pytest.raises(KeystoreError):
        AzureKeystore(keys, hardware=False, purge=False).describe("any")
    assert server.asked("POST /.*token") == asked


@pytest.mark.parametrize("address", ["http://vault.example", "vault.example", "https://u:p@vault.example"])
def test_an_address_without_tls_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        azure_keys(address, object())


def test_credentials_are_not_shown(server: AzureServer) -> None:
    assert server.secret not in repr(AzureCredentials(server.tenant, server.client, server.secret))
