"""Parquet modular encryption: column keys, their wraps, and what a reader without a key gets."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import FormatError, KeyUnavailable, TamperedFile, UsageError, WrongKey
from cloister.sealing.parquet import decryption_properties, encryption_properties, unwrap_key, wrap_key
from sealing_samples import Keys, counted_entropy

FOOTER, SALARY, NAME = (f"kbs:///staff/parquet/{name}" for name in ("footer", "salary", "name"))
TABLE = {uri: hashlib.sha256(uri.encode()).digest() for uri in (FOOTER, SALARY, NAME)}
ROWS = pa.table(
    {
        "name": ["ALICE-IN-THE-CLEAR", "BOB-IN-THE-CLEAR"],
        "salary": [1, 2],
        "nested": [{"note": "NOTE-IN-THE-CLEAR"}, {"note": "x"}],
    }
)
PAGE = (Path(__file__).parents[2] / "docs/spec/parquet-keys.md").read_text()
KEK = bytes(range(32))
DATA_KEY = bytes(range(64, 96))
SALT = bytes(range(32, 64))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "staff.parquet"
    properties = encryption_properties(
        Keys(TABLE),
        footer_key=FOOTER,
        column_keys={SALARY: ["salary"], NAME: ["name"]},
        schema=ROWS.schema,
    )
    pq.write_table(ROWS, path, encryption_properties=properties, compression="none")
    return path


def test_who_has_all_keys_reads_all_columns(file: Path) -> None:
    assert pq.read_table(file, decryption_properties=decryption_properties(Keys(TABLE))).equals(ROWS)


def test_no_column_is_in_the_clear_also_without_a_key_of_its_own(file: Path) -> None:
    content = file.read_bytes()
    assert content[:4] == content[-4:] == b"PARE"
    assert b"IN-THE-CLEAR" not in content


def test_who_has_some_keys_reads_those_columns_and_is_refused_the_others(file: Path) -> None:
    keys = Keys({FOOTER: TABLE[FOOTER], SALARY: TABLE[SALARY]})
    properties = decryption_properties(keys)
    found = pq.read_table(file, columns=["salary", "nested"], decryption_properties=properties)
    assert found.equals(ROWS.select(["salary", "nested"]))
    assert set(keys.asked) == {FOOTER, SALARY}
    with pytest.raises(KeyUnavailable, match="no key at kbs:///staff/parquet/name"):
        pq.read_table(file, columns=["name"], decryption_properties=properties)
    with pytest.raises(KeyUnavailable):
        pq.read_table(file, decryption_properties=properties)


def test_without_keys_not_even_the_columns_names_are_read(file: Path) -> None:
    with pytest.raises(OSError, match="encrypted metadata"):
        pq.read_schema(file)
    with pytest.raises(KeyUnavailable):
        pq.read_schema(file, decryption_properties=decryption_properties(Keys({})))


def test_a_key_is_asked_for_once(file: Path) -> None:
    keys = Keys(TABLE)
    properties = decryption_properties(keys)
    for _ in range(3):
        pq.read_table(file, decryption_properties=properties)
    assert sorted(keys.asked) == sorted(TABLE)


def test_the_wrong_key_is_told_from_a_damaged_file(file: Path) -> None:
    keys = Keys({**TABLE, NAME: bytes(32)})
    with pytest.raises(WrongKey):
        pq.read_table(file, decryption_properties=decryption_properties(keys))


def test_swapped_column_keys_are_refused(tmp_path: Path) -> None:
    salts = counted_entropy(b"salts")
    properties = encryption_properties(
        Keys(TABLE),
        footer_key=FOOTER,
        column_keys={SALARY: ["salary"], NAME: ["name"]},
        schema=ROWS.schema,
        entropy=salts,
    )
    path = tmp_path / "staff.parquet"
    pq.write_table(ROWS, path, encryption_properties=properties)

    class Swapping(Keys):
        """As if the wraps in the file had been exchanged: each is opened with the other's key and name."""

        def key(self, uri: str) -> bytes:
            return super().key({SALARY: NAME, NAME: SALARY}.get(uri, uri))

    with pytest.raises(WrongKey):
        pq.read_table(path, decryption_properties=decryption_properties(Swapping(TABLE)))


def test_a_wrap_opens_under_its_own_uri_and_key_alone() -> None:
    wrapped = wrap_key(DATA_KEY, uri=SALARY, kek=KEK, salt=SALT)
    assert unwrap_key(wrapped, uri=SALARY, kek=KEK) == DATA_KEY
    with pytest.raises(WrongKey):
        unwrap_key(wrapped, uri=NAME, kek=KEK)
    with pytest.raises(WrongKey):
        unwrap_key(wrapped, uri=SALARY, kek=bytes(32))
    with pytest.raises(WrongKey):
        unwrap_key(wrapped, uri=SALARY, kek=b"short")


@pytest.mark.parametrize(
    "wrapped",
    [
        pytest.param("", id="nothing"),
        pytest.param("not base64url!", id="another alphabet"),
        pytest.param("AAAA", id="too short"),
        pytest.param(wrap_key(DATA_KEY, uri=SALARY, kek=KEK, salt=SALT) + "AA", id="too long"),
        pytest.param(wrap_key(DATA_KEY, uri=SALARY, kek=KEK, salt=SALT) + "=", id="padded"),
    ],
)
def test_what_is_no_wrap_is_refused(wrapped: str) -> None:
    with pytest.raises(TamperedFile):
        unwrap_key(wrapped, uri=SALARY, kek=KEK)


@given(st.integers(0, 149), st.sampled_from("ABCxyz019-_"))
def test_any_changed_character_of_a_wrap_is_refused(position: int, character: str) -> None:
    wrapped = wrap_key(DATA_KEY, uri=SALARY, kek=KEK, salt=SALT)
    changed = wrapped[:position] + character + wrapped[position + 1 :]
    if changed != wrapped:
        with pytest.raises((TamperedFile, WrongKey)):
            unwrap_key(changed, uri=SALARY, kek=KEK)


def test_the_published_vector_holds() -> None:
    lines = re.findall(r"^    (key URI|KEK|salt|data key|wrapped) +(\S+)$", PAGE, re.MULTILINE)
    vector = dict(lines)
    kek, salt, data_key = (bytes.fromhex(vector[name]) for name in ("KEK", "salt", "data key"))
    assert wrap_key(data_key, uri=vector["key URI"], kek=kek, salt=salt) == vector["wrapped"]
    assert unwrap_key(vector["wrapped"], uri=vector["key URI"], kek=kek) == data_key


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"footer_key": "https://keys"}, "is not a key URI", id="no key URI"),
        pytest.param({"column_keys": {NAME: ["nam"]}}, "there is no column 'nam'", id="unknown column"),
        pytest.param(
            {"column_keys": {NAME: ["name"], SALARY: ["name"]}}, "is given two keys", id="two keys for one"
        ),
        pytest.param({"schema": pa.schema({"a:b": pa.int8()})}, "has a colon", id="a name that splits"),
    ],
)
def test_columns_and_keys_that_cannot_be_meant_are_refused(changes: dict[str, object], says: str) -> None:
    arguments: dict[str, object] = {"footer_key": FOOTER, "schema": ROWS.schema, **changes}
    with pytest.raises(UsageError, match=says):
        encryption_properties(Keys(TABLE), **arguments)


def test_a_data_key_of_another_size_is_not_wrapped() -> None:
    with pytest.raises(FormatError):
        wrap_key(b"short", uri=SALARY, kek=KEK, salt=SALT)
