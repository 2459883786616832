"""Google Cloud KMS over REST, against a stand-in with the documented answers, real AES-GCM and a real service account."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from cloister.broker.keystores.crc32c import crc32c
from cloister.broker.keystores.gcp import GcpKeystore
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from keystore_attacks import NetworkContract, impatient  # noqa: F401 - a fixture for every test here
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from keystore_servers import GcpServer, KeyServer, Unasked, broken_answers, edited

KEYS = f"/v1/{GcpServer.ring}/cryptoKeys"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcpServer]:
    with GcpServer(tmp_path_factory.mktemp("gcp")) as running:
        yield running


def opened(server: GcpServer) -> GcpKeystore:
    return GcpKeystore(server.ring, server.service_account(), address=server.base, ca_file=server.ca_file)


@pytest.fixture
def open_store(server: GcpServer) -> Callable[[], GcpKeystore]:
    server.faults.clear()
    return lambda: opened(server)


@pytest.fixture(scope="module")
def one_store(server: GcpServer) -> GcpKeystore:
    """Making one takes a fifth of a second, so most tests share it."""
    return opened(server)


class TestContract(KeystoreContract):
    @pytest.fixture
    def open_store(self, server: GcpServer) -> Callable[[], GcpKeystore]:
        server.faults.clear()
        return lambda: opened(server)

    @pytest.fixture
    def store(self, one_store: GcpKeystore) -> GcpKeystore:
        return one_store


class TestNetwork(NetworkContract):
    @pytest.fixture
    def store(self, one_store: GcpKeystore, server: GcpServer) -> GcpKeystore:
        server.faults.clear()
        return one_store

    wraps = "POST .*:encrypt"
    unwraps = "POST .*:decrypt"
    reads = "GET .*/cryptoKeyVersions"
    makes = (f"POST {KEYS}(\\?|/[^/]*/cryptoKeyVersions$)",)
    destroys = ("POST .*:destroy",)
    canaries = (GcpServer.token.removeprefix("ya29."), "BEGIN PRIVATE")

    def is_shredded(self, server: KeyServer, key: str) -> None:
        assert isinstance(server, GcpServer)
        assert server.keys[f"cloister-{key}"]["versions"][1]["state"] == "DESTROY_SCHEDULED"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_rfc_3720(data: bytes, value: int) -> None:
    assert crc32c(data) == value


def _edit(**changes: object) -> object:
    return edited(lambda answer: {**answer, **changes})


OTHER = f"{GcpServer.ring}/cryptoKeys/cloister-answers/cryptoKeyVersions/2"
ANSWERS = {
    "encrypted by another version": ("POST .*:encrypt", {"name": OTHER}),
    "the plaintext's checksum unseen": ("POST .*:encrypt", {"verifiedPlaintextCrc32c": False}),
    "the aad's checksum unseen": ("POST .*:encrypt", {"verifiedAdditionalAuthenticatedDataCrc32c": None}),
    "a wrap altered on its way": ("POST .*:encrypt", {"ciphertext": "AAAA"}),
    "a swapped wrap": (
        "POST .*:encrypt",
        {"ciphertext": "CiQBAAAA", "ciphertextCrc32c": str(crc32c(b"\x0a\x24\x01\0\0\0"))},
    ),
    "a wrap of nothing": ("POST .*:encrypt", {"ciphertext": "", "ciphertextCrc32c": "0"}),
    "a wrap that is a number": ("POST .*:encrypt", {"ciphertext": 7}),
    "a wrap without checksum": ("POST .*:encrypt", {"ciphertextCrc32c": None}),
    "another secret": ("POST .*:decrypt", {"plaintext": "AAAA", "plaintextCrc32c": str(crc32c(bytes(3)))}),
    "a secret altered on its way": ("POST .*:decrypt", {"plaintext": "AAAA"}),
    "a secret that is no base64": ("POST .*:decrypt", {"plaintext": "!"}),
    "a key without owner": ("GET .*cloister-answers-[0-9]+$", {"labels": {}}),
    "a key of somebody else": ("GET .*cloister-answers-[0-9]+$", {"purpose": "MAC"}),
    "versions of another key": (
        "GET .*/cryptoKeyVersions",
        {"cryptoKeyVersions": [{"name": OTHER, "state": "ENABLED", "createTime": "2026-01-01T00:00:00Z"}]},
    ),
    "versions that are none": ("GET .*/cryptoKeyVersions", {"cryptoKeyVersions": [7]}),
    "a page token that is a number": ("GET .*/cryptoKeyVersions", {"nextPageToken": 7}),
}


@pytest.mark.parametrize("attack", ANSWERS)
def test_a_wrap_is_only_handed_out_when_cloud_kms_opens_it_again(
    server: GcpServer, open_store: Callable[[], GcpKeystore], attack: str
) -> None:
    store = open_store()
    key = f"answers-{list(ANSWERS).index(attack)}"
    store.generate(key, owner=OWNER, now=NOW)
    operation, changes = ANSWERS[attack]
    server.fail(operation, *[_edit(**changes)] * 3)  # type: ignore[arg-type]
    with pytest.raises(KeystoreError) as refusal:
        store.wrap(key, SECRET, AAD)
    is_one_line(refusal.value)


def test_pages_without_end_are_not_followed_for_ever(
    server: GcpServer, open_store: Callable[[], GcpKeystore]
) -> None:
    store = open_store()
    store.generate("endless", owner=OWNER, now=NOW)
    server.fail("GET .*/cryptoKeyVersions", *[_edit(nextPageToken="0", cryptoKeyVersions=[])] * 100)  # type: ignore[list-item]
    with pytest.raises(KeystoreError, match="too many versions"):
        store.describe("endless")


def test_a_rotation_whose_date_was_not_written_is_complete_and_dated_by_google(
    server: GcpServer, open_store: Callable[[], GcpKeystore]
) -> None:
    store = open_store()
    store.generate("undated", owner=OWNER, now=NOW)
    server.fail("PATCH ", *[Unasked()] * 3)  # type: ignore[list-item]
    with pytest.raises(KeystoreUnavailable):
        store.rotate("undated", now=NOW + 1)
    assert store.rotate("undated", now=NOW + 2).version == 2
    assert store.describe("undated")[1].created == 1795867200


@pytest.mark.parametrize("state", ["DESTROYED", "DESTROY_SCHEDULED"])
def test_what_google_says_is_destroyed_is_refused(
    server: GcpServer, open_store: Callable[[], GcpKeystore], state: str
) -> None:
    store = open_store()
    key = f"state-{state}"
    store.generate(key, owner=OWNER, now=NOW)
    wrapped = store.wrap(key, SECRET, AAD)
    server.keys[f"cloister-{key}"]["versions"][1]["state"] = state
    refuses(store, key, wrapped)
    assert store.describe(key)[0].state == "destroyed"


def test_a_wrong_service_account_is_one_clear_line(server: GcpServer) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {**json.loads(server.service_account()), "private_key": other.decode()}
    store = GcpKeystore(
        server.ring, json.dumps(account).encode(), address=server.base, ca_file=server.ca_file
    )
    with pytest.raises(KeystoreError, match="does not let this broker") as refusal:
        store.describe("any")
    assert not isinstance(refusal.value, KeystoreUnavailable)
    is_one_line(refusal.value)


def test_a_token_that_ended_is_replaced(
    server: GcpServer, open_store: Callable[[], GcpKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.generate("ended", owner=OWNER, now=NOW)
    monkeypatch.setattr(server, "token", "ya29.another")
    assert [one.version for one in store.describe("ended")] == [1]


@pytest.mark.parametrize("operation", ["POST /token"])
@pytest.mark.parametrize("broken", ["no answer", "internal error", "a page", "a list", "an empty object"])
def test_a_broken_answer_of_the_token_endpoint_is_refused(
    server: GcpServer, open_store: Callable[[], GcpKeystore], operation: str, broken: str
) -> None:
    store = open_store()
    server.fail(operation, *[broken_answers()[broken][0]] * 30)
    with pytest.raises(KeystoreError) as refusal:
        store.describe("any")
    is_one_line(refusal.value)


def test_a_server_that_no_named_ca_signed_gets_no_token(server: GcpServer) -> None:
    asked = len(server.requests)
    store = GcpKeystore(server.ring, server.service_account(), address=server.base)
    with pytest.raises(KeystoreUnavailable):
        store.describe("any")
    assert len(server.requests) == asked


def test_nothing_is_taken_from_the_environment(
    server: GcpServer, open_store: Callable[[], GcpKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nonexistent")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nonexistent")
    monkeypatch.setenv("GOOGLE_API_USE_CLIENT_CERTIFICATE", "true")
    with pytest.raises(KeystoreError, match="no key"):
        open_store().describe("environment")


@pytest.mark.parametrize(
    "account", [b"", b"{}", b"[]", b"\xff", b'{"type": "service_account", "private_key": "canary"}']
)
def test_what_is_no_service_account_is_refused_without_showing_it(account: bytes) -> None:
    with pytest.raises(UsageError) as refusal:
        GcpKeystore(GcpServer.ring, account)
    assert "canary" not in str(refusal.value)


@pytest.mark.parametrize(
    "ring", ["", "cloister", "projects/a/locations/b/keyRings/c/cryptoKeys/d", "projects/../x"]
)
def test_what_is_no_key_ring_is_refused(ring: str) -> None:
    with pytest.raises(UsageError):
        GcpKeystore(ring, b"{}")
