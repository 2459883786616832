"""Vault and OpenBao transit, against a stand-in with their documented answers and real AES-GCM (`keystore_servers`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cloister.broker.keystores.vault import VaultKeystore
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from keystore_attacks import NetworkContract, impatient  # noqa: F401 - a fixture for every test here
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from keystore_servers import KeyServer, VaultServer, edited
from vendor_services import Answer, Says


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultServer]:
    with VaultServer(tmp_path_factory.mktemp("vault")) as running:
        yield running


@pytest.fixture
def open_store(server: VaultServer) -> Callable[[], VaultKeystore]:
    server.faults.clear()
    return lambda: VaultKeystore(server.base, server.token.encode(), ca_file=server.ca_file)


class TestContract(KeystoreContract):
    @pytest.fixture
    def open_store(self, server: VaultServer) -> Callable[[], VaultKeystore]:
        server.faults.clear()
        return lambda: VaultKeystore(server.base, server.token.encode(), ca_file=server.ca_file)


class TestNetwork(NetworkContract):
    wraps = "POST /v1/transit/encrypt/"
    unwraps = "POST /v1/transit/decrypt/"
    reads = "GET /v1/secret/data/"
    makes = ("POST /v1/transit/keys/", "GET /v1/transit/keys/", "POST /v1/secret/data/")
    destroys = (
        "POST /v1/secret/data/",
        "GET /v1/transit/keys/",
        "POST /v1/transit/keys/.*/config",
        "DELETE /v1/transit/keys/",
    )
    canaries = (VaultServer.token,)

    def is_shredded(self, server: KeyServer, key: str) -> None:
        assert isinstance(server, VaultServer)
        assert f"cloister.{key}.v1" not in server.keys


def _data(**changes: object) -> object:
    return edited(lambda answer: {**answer, "data": {**answer["data"], **changes}})


ANSWERS = {
    "the wrap of another key version": ("POST /v1/transit/encrypt/", {"ciphertext": "vault:v2:AAAA"}),
    "a wrap in another form": ("POST /v1/transit/encrypt/", {"ciphertext": "AAAA"}),
    "a wrap that is no base64": ("POST /v1/transit/encrypt/", {"ciphertext": "vault:v1:!!"}),
    "a wrap of nothing": ("POST /v1/transit/encrypt/", {"ciphertext": "vault:v1:"}),
    "a swapped wrap": ("POST /v1/transit/encrypt/", {"ciphertext": "vault:v1:" + "A" * 80}),
    "a wrap that is a number": ("POST /v1/transit/encrypt/", {"ciphertext": 7}),
    "another secret": ("POST /v1/transit/decrypt/", {"plaintext": "AAAA"}),
    "a secret that is no base64": ("POST /v1/transit/decrypt/", {"plaintext": "!"}),
}


@pytest.mark.parametrize("attack", ANSWERS)
def test_a_wrap_is_only_handed_out_when_vault_opens_it_again(
    server: VaultServer, open_store: Callable[[], VaultKeystore], attack: str
) -> None:
    store = open_store()
    key = f"answers-{list(ANSWERS).index(attack)}"
    store.generate(key, owner=OWNER, now=NOW)
    operation, changes = ANSWERS[attack]
    server.fail(operation, _data(**changes))  # type: ignore[arg-type]
    with pytest.raises(KeystoreError) as refusal:
        store.wrap(key, SECRET, AAD)
    is_one_line(refusal.value)


@pytest.mark.parametrize(
    "setting",
    [{"exportable": True}, {"allow_plaintext_backup": True}, {"type": "rsa-2048"}, {"derived": True}],
)
def test_a_key_in_our_place_that_could_be_taken_out_is_not_used(
    server: VaultServer, open_store: Callable[[], VaultKeystore], setting: dict[str, object]
) -> None:
    key = f"foreign-{next(iter(setting))}"
    server.keys[f"cloister.{key}.v1"] = {
        "key": bytes(32),
        "type": "aes256-gcm96",
        "deletion_allowed": False,
        **setting,
    }
    with pytest.raises(KeystoreError) as refusal:
        open_store().generate(key, owner=OWNER, now=NOW)
    is_one_line(refusal.value)
    with pytest.raises(KeystoreError, match="no key"):
        open_store().describe(key)


RECORDS = {
    "an unknown field": {"extra": 1},
    "another format": {"format": "cloister/vault-key/v2"},
    "a version left out": {"versions": [{"number": 2, "created": 1, "destroyed": False}]},
    "a version twice": {"versions": [{"number": 1, "created": 1, "destroyed": False}] * 2},
    "versions that are none": {"versions": "1"},
    "no owner": {"owner": None},
}


@pytest.mark.parametrize("edit", RECORDS)
def test_a_malformed_record_is_refused(
    server: VaultServer, open_store: Callable[[], VaultKeystore], edit: str
) -> None:
    store = open_store()
    key = f"record-{list(RECORDS).index(edit)}"
    store.generate(key, owner=OWNER, now=NOW)
    server.records[f"cloister/{key}"].append({**server.records[f"cloister/{key}"][-1], **RECORDS[edit]})
    with pytest.raises(KeystoreError) as refusal:
        store.wrap(key, SECRET, AAD)
    is_one_line(refusal.value)


def test_a_record_put_back_by_vaults_operator_does_not_bring_a_destroyed_version_back(
    server: VaultServer, open_store: Callable[[], VaultKeystore]
) -> None:
    store = open_store()
    store.generate("rollback", owner=OWNER, now=NOW)
    wrapped = store.wrap("rollback", SECRET, AAD)
    before = server.records["cloister/rollback"][-1]
    store.destroy("rollback", 1)
    server.records["cloister/rollback"].append(before)
    refuses(store, "rollback", wrapped)


def test_two_brokers_that_write_one_record_at_once_lose_nothing(
    server: VaultServer, open_store: Callable[[], VaultKeystore]
) -> None:
    one, other = open_store(), open_store()
    one.generate("raced", owner=OWNER, now=NOW)
    one.rotate("raced", now=NOW)
    asked = server.asked("POST /v1/secret/data/")
    record = one._record

    def interrupted(key: str) -> object:
        found = record(key)
        one._record = record  # type: ignore[method-assign]
        other.rotate("raced", now=NOW + 5)
        return found

    one._record = interrupted  # type: ignore[method-assign,assignment]
    one._shred("raced", one._read("raced")[0])
    assert [(one.version, one.state) for one in other.describe("raced")] == [
        (1, "destroyed"),
        (2, "retired"),
        (3, "active"),
    ]
    assert server.asked("POST /v1/secret/data/") > asked + 1


def test_a_redirect_is_not_followed_with_the_token(
    server: VaultServer, open_store: Callable[[], VaultKeystore]
) -> None:
    store = open_store()
    moved = Says(Answer(b"", "text/plain", 307, {"Location": server.base + "/v1/elsewhere"}))
    server.fail("GET /v1/secret/data/", moved)
    with pytest.raises(KeystoreError) as refusal:
        store.describe("redirected")
    is_one_line(refusal.value)
    assert server.asked("GET /v1/elsewhere") == 0


def test_a_wrong_token_is_one_clear_line(server: VaultServer) -> None:
    store = VaultKeystore(server.base, b"hvs.another", ca_file=server.ca_file)
    with pytest.raises(KeystoreError, match="does not let this broker") as refusal:
        store.describe("any")
    assert not isinstance(refusal.value, KeystoreUnavailable)
    assert "hvs.another" not in str(refusal.value)


def test_a_server_that_no_named_ca_signed_gets_no_token(server: VaultServer) -> None:
    asked = len(server.requests)
    with pytest.raises(KeystoreUnavailable):
        VaultKeystore(server.base, server.token.encode()).describe("any")
    assert len(server.requests) == asked


def test_nothing_is_taken_from_the_environment(
    server: VaultServer, open_store: Callable[[], VaultKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    monkeypatch.setenv("VAULT_TOKEN", "of-somebody-else")
    monkeypatch.setenv("VAULT_NAMESPACE", "elsewhere")
    monkeypatch.setenv("VAULT_SKIP_VERIFY", "1")
    with pytest.raises(KeystoreError, match="no key"):
        open_store().describe("environment")


@pytest.mark.parametrize("token", [b"", b"\n", b"two words", b"two\nlines", b"\xff", b"bell\x07"])
def test_what_is_no_token_is_refused(token: bytes) -> None:
    with pytest.raises(UsageError):
        VaultKeystore("https://vault.example", token)


@pytest.mark.parametrize(
    "address",
    [
        "http://vault.example",
        "https://",
        "vault.example",
        "https://u:p@vault.example",
        "ftp://x",
        "https://[",
        "",
    ],
)
def test_an_address_without_tls_is_refused(address: str) -> None:
    with pytest.raises(UsageError):
        VaultKeystore(address, b"token")


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(KeystoreUnavailable):
        VaultKeystore("https://127.0.0.1:9", b"token").describe("any")
