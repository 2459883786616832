"""Key files and signing keys: private to their owner, of one kind each, never overwritten, never shown."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cloister.errors import IndexMismatch, KeyUnavailable, UsageError
from cloister.sealing.key_file import (
    KEK_KIND,
    KeyFile,
    create_key,
    key_fingerprint,
    read_key,
    read_kind,
    write_secret,
)
from cloister.sealing.signing import SigningKey, verify_signature

URI = "kbs:///default/key/medquad"


def test_a_key_file_is_private_and_comes_back(tmp_path: Path) -> None:
    key = create_key(tmp_path / "owner.key")
    assert stat.S_IMODE((tmp_path / "owner.key").stat().st_mode) == 0o600
    assert read_key(tmp_path / "owner.key") == key
    assert len(key) == 32
    assert read_kind(tmp_path / "owner.key") == KEK_KIND
    assert KeyFile.load(tmp_path / "owner.key", URI).key(URI) == key


def test_two_key_files_hold_two_keys(tmp_path: Path) -> None:
    assert create_key(tmp_path / "a") != create_key(tmp_path / "b")


def test_a_key_file_answers_for_its_own_uri_alone(tmp_path: Path) -> None:
    create_key(tmp_path / "owner.key")
    with pytest.raises(KeyUnavailable):
        KeyFile.load(tmp_path / "owner.key", URI).key("kbs:///default/key/other")


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    key = create_key(tmp_path / "owner.key")
    with pytest.raises(UsageError, match="never overwritten"):
        create_key(tmp_path / "owner.key")
    with pytest.raises(UsageError):
        SigningKey.create(tmp_path / "owner.key")
    assert read_key(tmp_path / "owner.key") == key


def test_a_key_file_is_not_written_through_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError):
        create_key(tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    create_key(tmp_path / "owner.key")
    (tmp_path / "owner.key").chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        read_key(tmp_path / "owner.key")


def test_a_signing_key_is_not_taken_for_a_key_nor_the_other_way_round(tmp_path: Path) -> None:
    SigningKey.create(tmp_path / "owner.sign")
    create_key(tmp_path / "owner.key")
    with pytest.raises(UsageError, match="is a cloister signing key"):
        read_key(tmp_path / "owner.sign")
    with pytest.raises(UsageError, match="is a cloister key-encryption key"):
        SigningKey.load(tmp_path / "owner.key")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\0" * 32, id="raw bytes"),
        pytest.param(b"cloister key-encryption key v1\n", id="no key"),
        pytest.param(b"cloister key-encryption key v1\nAAAA\n", id="a short key"),
        pytest.param(b"cloister key-encryption key v1\n" + b"A" * 43, id="no last newline"),
        pytest.param(b"cloister key-encryption key v1\n" + b"A" * 42 + b"B\n", id="bits behind the key"),
        pytest.param(b"cloister key-encryption key v1\n" + b"A" * 43 + b"\n\n", id="one line more"),
        pytest.param(b"cloister key-encryption key v2\n" + b"A" * 43 + b"\n", id="another version"),
        pytest.param(b"cloister key-encryption key v1\r\n" + b"A" * 43 + b"\r\n", id="carriage returns"),
        pytest.param(b"cloister key-encryption key v1\n" + b"\xc3\xa4" * 21 + b"A\n", id="not ASCII"),
        pytest.param(b"A" * 1_000_000, id="huge"),
    ],
)
def test_what_is_no_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "owner.key"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(UsageError):
        read_key(path)


def test_a_missing_key_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no key file"):
        read_key(tmp_path / "nothing")
    with pytest.raises(UsageError):
        read_key(tmp_path)
    with pytest.raises(UsageError):
        create_key(tmp_path / "no" / "folder")


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    key = create_key(tmp_path / "owner.key")
    signer = SigningKey.create(tmp_path / "owner.sign")
    seed = (tmp_path / "owner.sign").read_text().split("\n")[1]
    shown = repr(KeyFile.load(tmp_path / "owner.key")) + repr(signer) + key_fingerprint(key)
    assert key.hex() not in shown
    assert seed not in shown


def test_a_fingerprint_tells_keys_apart(tmp_path: Path) -> None:
    assert key_fingerprint(bytes(32)) == key_fingerprint(bytes(32))
    assert key_fingerprint(bytes(32)) != key_fingerprint(bytes(31) + b"\1")
    assert len(key_fingerprint(bytes(32))) == 32


def test_a_signing_key_comes_back_and_its_signature_verifies(tmp_path: Path) -> None:
    made = SigningKey.create(tmp_path / "owner.sign")
    loaded = SigningKey.load(tmp_path / "owner.sign")
    assert loaded.public_key == made.public_key
    verify_signature(
        b"m", loaded.sign(b"m"), made.public_key, signers=[bytes(32), made.public_key], what="it"
    )


def test_a_signature_of_another_message_or_signer_is_refused(tmp_path: Path) -> None:
    key = SigningKey(bytes(32))
    other = SigningKey(b"\1" * 32)
    cases = [
        (b"n", key.sign(b"m"), key),
        (b"m", other.sign(b"m"), key),
        (b"m", b"", key),
        (b"m", bytes(64), key),
    ]
    for message, signature, signer in cases:
        with pytest.raises(IndexMismatch, match="does not verify"):
            verify_signature(message, signature, signer.public_key, signers=[signer.public_key], what="it")
    with pytest.raises(IndexMismatch, match="not one of the accepted"):
        verify_signature(b"m", other.sign(b"m"), other.public_key, signers=[key.public_key], what="it")


def test_no_signers_at_all_is_an_error_and_never_means_anyone() -> None:
    key = SigningKey(bytes(32))
    with pytest.raises(UsageError, match="no signer"):
        verify_signature(b"m", key.sign(b"m"), key.public_key, signers=[], what="it")
    with pytest.raises(UsageError, match="32 bytes"):
        verify_signature(b"m", key.sign(b"m"), key.public_key, signers=[key.public_key, b"short"], what="it")


def test_a_secret_file_cannot_be_made_where_one_may_not_write(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        write_secret(tmp_path / "absent" / "x", KEK_KIND, bytes(32))
