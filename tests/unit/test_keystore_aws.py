"""AWS KMS, against a real `moto` server: it keeps the encryption context, but a key that waits for its end goes on."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest

from cloister.broker.keystores.aws import AwsCredentials, AwsKeystore
from cloister.errors import KeystoreError, KeystoreUnavailable, UsageError
from keystore_attacks import NetworkContract, impatient  # noqa: F401 - a fixture for every test here
from keystore_contract import AAD, NOW, OWNER, SECRET, KeystoreContract, is_one_line, refuses
from keystore_servers import AwsFront, Instead, KeyServer, Unasked, edited
from vendor_services import Answer, Says

REGION = "eu-central-1"
CREDENTIALS = AwsCredentials(AwsFront.access_key_id, AwsFront.secret_access_key, "canary/session/token")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsFront]:
    with AwsFront(tmp_path_factory.mktemp("aws")) as running:
        yield running


@pytest.fixture
def open_store(server: AwsFront) -> Callable[[], AwsKeystore]:
    server.faults.clear()
    return lambda: AwsKeystore(REGION, CREDENTIALS, endpoint=server.base)


@pytest.fixture(scope="module")
def one_store(server: AwsFront) -> AwsKeystore:
    """Making one takes a fifth of a second, so most tests share it."""
    return AwsKeystore(REGION, CREDENTIALS, endpoint=server.base)


class TestContract(KeystoreContract):
    flip_step = 9

    @pytest.fixture
    def open_store(self, server: AwsFront) -> Callable[[], AwsKeystore]:
        server.faults.clear()
        return lambda: AwsKeystore(REGION, CREDENTIALS, endpoint=server.base)

    @pytest.fixture
    def store(self, one_store: AwsKeystore) -> AwsKeystore:
        return one_store


class TestNetwork(NetworkContract):
    @pytest.fixture
    def store(self, one_store: AwsKeystore, server: AwsFront) -> AwsKeystore:
        server.faults.clear()
        return one_store

    wraps = "Encrypt"
    unwraps = "Decrypt"
    reads = "ListResourceTags"
    makes = ("CreateKey", "CreateAlias", "TagResource")
    destroys = ("DeleteAlias", "TagResource", "ScheduleKeyDeletion")
    canaries = (AwsFront.secret_access_key, "canary/session/token")

    def is_shredded(self, server: KeyServer, key: str) -> None:
        assert isinstance(server, AwsFront)
        store = AwsKeystore(REGION, CREDENTIALS, endpoint=server.base)
        found = store._client.describe_key(KeyId=store._read(key)[0].handle)["KeyMetadata"]
        assert found["KeyState"] == "PendingDeletion"


def test_the_context_in_cloudtrail_names_key_version_and_record(
    server: AwsFront, open_store: Callable[[], AwsKeystore]
) -> None:
    store = open_store()
    store.generate("context", owner=OWNER, now=NOW)
    wrapped = store.wrap("context", SECRET, AAD)
    handle = store._read("context")[0].handle
    context = {"cloister": AAD.hex(), "cloister-key": "context", "cloister-version": "1"}
    opened = store._client.decrypt(KeyId=handle, CiphertextBlob=wrapped[4:], EncryptionContext=context)
    assert opened["Plaintext"] == SECRET
    for name in context:
        with pytest.raises(store._client.exceptions.InvalidCiphertextException):
            store._client.decrypt(
                KeyId=handle, CiphertextBlob=wrapped[4:], EncryptionContext={**context, name: "other"}
            )


def test_a_destroyed_version_is_refused_by_us_while_kms_would_still_open_it(
    server: AwsFront, open_store: Callable[[], AwsKeystore]
) -> None:
    store, other = open_store(), open_store()
    store.generate("waiting", owner=OWNER, now=NOW)
    wrapped = store.wrap("waiting", SECRET, AAD)
    handle = store._read("waiting")[0].handle
    context = {"cloister": AAD.hex(), "cloister-key": "waiting", "cloister-version": "1"}
    store.destroy("waiting", 1)
    still = store._client.decrypt(KeyId=handle, CiphertextBlob=wrapped[4:], EncryptionContext=context)
    assert still["Plaintext"] == SECRET, "moto has learnt to refuse it: say so in the docs"
    refuses(store, "waiting", wrapped)
    refuses(other, "waiting", wrapped)


def test_what_is_gone_for_good_stays_destroyed_in_the_description(
    server: AwsFront, open_store: Callable[[], AwsKeystore]
) -> None:
    store = open_store()
    store.generate("gone", owner=OWNER, now=NOW)
    store.rotate("gone", now=NOW + 1)
    store.destroy("gone", 1)
    store.destroy("gone", 2)
    # When the waiting time is over KMS forgets key, tags and alias; nothing of ours asks for them.
    assert store._key_behind("alias/cloister/id/gone/1") is None
    gone = Says(Answer(b'{"__type": "NotFoundException"}', "application/x-amz-json-1.1", 400))
    server.fail("ScheduleKeyDeletion", gone)
    server.fail("DeleteAlias", gone)
    assert [one.state for one in store.describe("gone")] == ["destroyed", "destroyed"]
    assert store.destroy("gone", 1).state == "destroyed"
    assert store.rotate("gone", now=NOW + 2).version == 3


def test_kms_refusing_to_end_a_key_counts_only_when_the_key_is_ending(
    server: AwsFront, open_store: Callable[[], AwsKeystore]
) -> None:
    store = open_store()
    store.generate("ending", owner=OWNER, now=NOW)
    refused = Instead(Answer(b'{"__type": "KMSInvalidStateException"}', "application/x-amz-json-1.1", 400))
    server.fail("ScheduleKeyDeletion", refused)
    with pytest.raises(KeystoreUnavailable):
        store.destroy("ending", 1)
    store.destroy("ending", 1)
    server.fail("ScheduleKeyDeletion", refused)
    assert store.destroy("ending", 1).state == "destroyed"


def test_a_rotation_that_another_broker_began_is_finished_and_its_key_used(
    server: AwsFront, open_store: Callable[[], AwsKeystore]
) -> None:
    one, other = open_store(), open_store()
    one.generate("begun", owner=OWNER, now=NOW)
    server.fail("TagResource", Unasked())
    with pytest.raises(KeystoreUnavailable):
        one.rotate("begun", now=NOW + 1)
    begun = one._key_behind("alias/cloister/id/begun/2")
    assert other.rotate("begun", now=NOW + 2).version == 2
    assert other._read("begun")[1].handle == begun


def test_no_more_versions_than_a_record_has_tags_for(
    server: AwsFront, open_store: Callable[[], AwsKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AwsKeystore, "max_versions", 2)
    store = open_store()
    store.generate("many", owner=OWNER, now=NOW)
    store.rotate("many", now=NOW)
    with pytest.raises(KeystoreError, match="has 2 versions"):
        store.rotate("many", now=NOW)


def _other(name: str, value: object) -> object:
    return edited(lambda answer: {**answer, name: value})


ARN = "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
ANSWERS = {
    "encrypted by another key": ("Encrypt", "KeyId", ARN),
    "a swapped wrap": ("Encrypt", "CiphertextBlob", base64.b64encode(bytes(150)).decode()),
    "a wrap of nothing": ("Encrypt", "CiphertextBlob", ""),
    "a wrap that is no base64": ("Encrypt", "CiphertextBlob", "!"),
    "a wrap that is a number": ("Encrypt", "CiphertextBlob", 7),
    "decrypted by another key": ("Decrypt", "KeyId", ARN),
    "another secret": ("Decrypt", "Plaintext", "AAAA"),
    "no tags": ("ListResourceTags", "Tags", []),
    "tags cut off": ("ListResourceTags", "Truncated", True),
    "tags of another key": ("ListResourceTags", "Tags", [{"TagKey": "cloister:key", "TagValue": "x"}]),
    "no key": ("DescribeKey", "KeyMetadata", {}),
    "a key id that is a path": ("DescribeKey", "KeyMetadata", {"KeyId": "../../x"}),
}


@pytest.mark.parametrize("attack", ANSWERS)
def test_a_wrap_is_only_handed_out_when_kms_opens_it_again(
    server: AwsFront, open_store: Callable[[], AwsKeystore], attack: str
) -> None:
    store = open_store()
    key = f"answers-{list(ANSWERS).index(attack)}"
    store.generate(key, owner=OWNER, now=NOW)
    operation, name, value = ANSWERS[attack]
    server.fail(operation, *[_other(name, value)] * 3)  # type: ignore[arg-type]
    with pytest.raises(KeystoreError) as refusal:
        store.wrap(key, SECRET, AAD)
    is_one_line(refusal.value)


ERRORS = {
    "AccessDeniedException": (400, False, "does not let this broker"),
    "UnrecognizedClientException": (400, False, "does not let this broker"),
    "ThrottlingException": (400, True, "cannot be reached"),
    "KMSInternalException": (500, True, "cannot be reached"),
    "DisabledException": (400, False, "DisabledException"),
    "KMSInvalidStateException": (400, False, "KMSInvalidStateException"),
    "NotFoundException": (400, False, "no such key"),
    "canary\nline": (400, False, "refused"),
}


@pytest.mark.parametrize("code", ERRORS)
def test_each_error_of_kms_is_one_clear_line(
    server: AwsFront, open_store: Callable[[], AwsKeystore], code: str
) -> None:
    store = open_store()
    key = f"errors-{list(ERRORS).index(code)}"
    store.generate(key, owner=OWNER, now=NOW)
    wrapped = store.wrap(key, SECRET, AAD)
    status, unavailable, words = ERRORS[code]
    body = json.dumps({"__type": code, "message": "canary words of the service"}).encode()
    server.fail("Decrypt", *[Says(Answer(body, "application/x-amz-json-1.1", status))] * 3)
    with pytest.raises(KeystoreError, match=words) as refusal:
        store.unwrap(key, wrapped, AAD)
    assert isinstance(refusal.value, KeystoreUnavailable) == unavailable
    assert "canary" not in str(refusal.value)
    is_one_line(refusal.value)


def test_nothing_is_taken_from_the_environment(
    server: AwsFront, open_store: Callable[[], AwsKeystore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_PROFILE", "somebody")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nonexistent")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    with pytest.raises(KeystoreError, match="no key"):
        open_store().describe("environment")


def test_credentials_are_not_shown() -> None:
    assert "canary" not in repr(CREDENTIALS)


def test_an_endpoint_without_tls_is_refused() -> None:
    with pytest.raises(UsageError):
        AwsKeystore(REGION, CREDENTIALS, endpoint="http://kms.example")
