"""The header and the wrapped key: strict parsing, and a wrap that belongs to one file, one URI, one key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cloister.errors import ForeignFile, FormatError, SealingError, TamperedFile, TruncatedFile, WrongKey
from cloister.sealing.envelope import (
    HEADER_SIZE,
    encode_header,
    erase,
    new_header,
    parse_header,
    rewrap,
    unwrap,
)
from sealing_samples import KEK, OTHER_KEK, URI

DATA_KEY, FILE_ID, SALT = b"d" * 32, b"f" * 32, b"s" * 32
HEADER = new_header(key_uri=URI, kek=KEK, data_key=DATA_KEY, file_id=FILE_ID, salt=SALT)
BYTES = encode_header(HEADER)
URI_END = 48 + len(URI)


def changed(offset: int, new: bytes) -> bytes:
    return BYTES[:offset] + new + BYTES[offset + len(new) :]


def test_a_header_comes_back_and_gives_its_data_key() -> None:
    header = parse_header(BYTES, name="x")
    assert header == HEADER
    assert len(BYTES) == HEADER_SIZE
    assert unwrap(header, KEK, name="x") == DATA_KEY


def test_the_associated_data_is_what_the_specification_says() -> None:
    label = b"cloister/sealed-file/v1"
    expected = (23).to_bytes(8, "big") + label + (32).to_bytes(8, "big") + FILE_ID
    assert HEADER.associated_data == expected + (2).to_bytes(8, "big") + b"\0\1"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", ForeignFile, id="nothing"),
        pytest.param(b"GGUF" + BYTES[4:], ForeignFile, id="another format"),
        pytest.param(b"GG", ForeignFile, id="a short file of another format"),
        pytest.param(BYTES[:5], TruncatedFile, id="cut inside the magic"),
        pytest.param(BYTES[:-1], TruncatedFile, id="cut inside the padding"),
        pytest.param(changed(8, b"\0\2"), ForeignFile, id="version 2"),
        pytest.param(changed(10, b"\0\2"), ForeignFile, id="suite 2"),
        pytest.param(changed(44, b"\0\0"), TamperedFile, id="no URI"),
        pytest.param(changed(44, b"\xff\xff"), TamperedFile, id="a URI over the header"),
        pytest.param(changed(46, b"\0\x71"), TamperedFile, id="a longer wrap"),
        pytest.param(changed(46, b"\xff\xff"), TamperedFile, id="a wrap over the header"),
        pytest.param(changed(48, b"kms"), TamperedFile, id="another scheme"),
        pytest.param(changed(55, b"\xff"), TamperedFile, id="a URI that is not ASCII"),
        pytest.param(changed(HEADER_SIZE - 1, b"\1"), TamperedFile, id="something in the padding"),
        pytest.param(changed(URI_END + 112, b"\1"), TamperedFile, id="something right behind the wrap"),
    ],
)
def test_a_header_that_is_not_exactly_one_is_refused(data: bytes, error: type[SealingError]) -> None:
    with pytest.raises(error):
        parse_header(data, name="x")


@pytest.mark.parametrize("kek", [OTHER_KEK, bytes(32), b"", KEK[:31], KEK + b"\0"])
def test_another_key_is_a_wrong_key(kek: bytes) -> None:
    with pytest.raises(WrongKey):
        unwrap(HEADER, kek, name="x")


def test_a_wrap_moved_to_another_file_or_uri_is_refused() -> None:
    for moved in (replace(HEADER, file_id=b"g" * 32), replace(HEADER, key_uri="kbs:///default/key/other")):
        with pytest.raises(WrongKey):
            unwrap(moved, KEK, name="x")


def test_a_flipped_bit_anywhere_in_the_wrap_is_refused() -> None:
    for offset in range(len(HEADER.wrapped)):
        wrapped = bytearray(HEADER.wrapped)
        wrapped[offset] ^= 0x10
        # Salt and commitment say "wrong key", the ciphertext and its tag "tampered".
        with pytest.raises(WrongKey if offset < 64 else TamperedFile):
            unwrap(replace(HEADER, wrapped=bytes(wrapped)), KEK, name="x")


def test_a_rewrap_keeps_file_and_data_key_and_needs_the_new_key() -> None:
    uri = "kbs:///default/key/rotated-2"
    new = rewrap(HEADER, kek=KEK, new_uri=uri, new_kek=OTHER_KEK, salt=b"t" * 32, name="x")
    assert (new.file_id, new.key_uri, new.associated_data) == (FILE_ID, uri, HEADER.associated_data)
    assert unwrap(parse_header(encode_header(new), name="x"), OTHER_KEK, name="x") == DATA_KEY
    with pytest.raises(WrongKey):
        unwrap(new, KEK, name="x")


def test_a_rewrap_with_the_wrong_old_key_is_refused() -> None:
    with pytest.raises(WrongKey):
        rewrap(HEADER, kek=OTHER_KEK, new_uri=URI, new_kek=KEK, salt=SALT, name="x")


def test_keys_salts_and_ids_of_another_length_are_refused() -> None:
    good = {"key_uri": URI, "kek": KEK, "data_key": DATA_KEY, "file_id": FILE_ID, "salt": SALT}
    for field in ("kek", "data_key", "salt"):
        with pytest.raises(FormatError):
            new_header(**{**good, field: bytes(31)})  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        new_header(**{**good, "key_uri": "kbs:///one/two"})  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        encode_header(replace(HEADER, file_id=bytes(31)))


def test_neither_header_nor_errors_show_keys() -> None:
    with pytest.raises(WrongKey) as refused:
        unwrap(HEADER, OTHER_KEK, name="x")
    for secret in (KEK, OTHER_KEK, DATA_KEY):
        assert secret.hex() not in repr(HEADER) + str(refused.value) + repr(refused.value)


def test_erasing_leaves_zeros() -> None:
    secret = bytearray(DATA_KEY)
    erase(secret)
    assert secret == bytes(32)
