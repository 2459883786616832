"""The sealed records: what the disk's owner can do to them, and what comes of it."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_parts import CHEAP, NOW, PASSPHRASE
from cloister.broker.keystores.local import LocalKeystore, read_passphrase
from cloister.broker.store import DATABASE, MAX_RESOURCE, Store, associated_data
from cloister.errors import KeystoreError, UsageError

ONE, TWO = "models/key/one", "models/key/two"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "state", PASSPHRASE, cost=CHEAP)
    store.put("resource", ONE, b"1" * 32, now=NOW)
    store.put("resource", TWO, b"2" * 32, now=NOW)
    store.put("rule", ONE, b"rule of one", now=NOW)
    store.put("rule", TWO, b"rule of two", now=NOW)
    return store


@pytest.fixture
def execute(tmp_path: Path) -> Callable[[str], None]:
    def run(statement: str) -> None:
        database = sqlite3.connect(tmp_path / "state" / DATABASE, isolation_level=None)
        database.executescript(statement)
        database.close()

    return run


def test_records_come_back_after_opening_again(store: Store, tmp_path: Path) -> None:
    again = Store.open(tmp_path / "state", PASSPHRASE)
    assert again.get("resource", ONE) == b"1" * 32
    assert again.get("rule", TWO) == b"rule of two"
    assert again.get("rule", "models/key/none") is None


def test_a_put_is_seen_by_a_store_that_was_open_before(store: Store, tmp_path: Path) -> None:
    other = Store.open(tmp_path / "state", PASSPHRASE)
    assert store.put("resource", ONE, b"new", now=NOW) == 2
    assert other.get("resource", ONE) == b"new"


def test_the_associated_data_is_the_documented_vector(shared_spec: str) -> None:
    vector = associated_data("resource", "models/key/demo", 1).hex()
    assert f"`{vector}`" in shared_spec


@pytest.fixture
def shared_spec() -> str:
    return (Path(__file__).parents[2] / "docs/spec/broker-state.md").read_text()


DISK_ATTACKS = {
    "rows swapped": """
        UPDATE records SET path = 'x' WHERE kind = 'resource' AND path = 'models/key/one';
        UPDATE records SET path = 'models/key/one' WHERE kind = 'resource' AND path = 'models/key/two';
        UPDATE records SET path = 'models/key/two' WHERE kind = 'resource' AND path = 'x';""",
    "wrapped key copied": """
        UPDATE records SET wrapped_key = (SELECT wrapped_key FROM records WHERE kind = 'resource'
          AND path = 'models/key/two') WHERE kind = 'resource' AND path = 'models/key/one';""",
    "whole content copied": """
        UPDATE records SET (wrapped_key, body) = (SELECT wrapped_key, body FROM records WHERE kind = 'resource'
          AND path = 'models/key/two') WHERE kind = 'resource' AND path = 'models/key/one';""",
    "rule put in a resource's place": """
        DELETE FROM records WHERE kind = 'resource' AND path = 'models/key/one';
        UPDATE records SET kind = 'resource', policy = '' WHERE kind = 'rule' AND path = 'models/key/one';""",
    "version raised": "UPDATE records SET version = 2 WHERE kind = 'resource';",
    "version negative": "UPDATE records SET version = -1 WHERE kind = 'resource';",
    "body edited": "UPDATE records SET body = zeroblob(60) WHERE kind = 'resource';",
    "body emptied": "UPDATE records SET body = x'' WHERE kind = 'resource';",
    "wrapped key emptied": "UPDATE records SET wrapped_key = x'' WHERE kind = 'resource';",
    "table dropped": "DROP TABLE records;",
}


@pytest.mark.parametrize("attack", DISK_ATTACKS.values(), ids=DISK_ATTACKS.keys())
def test_a_record_edited_on_disk_does_not_open(
    store: Store, execute: Callable[[str], None], attack: str
) -> None:
    execute(attack)
    with pytest.raises(KeystoreError):
        store.get("resource", ONE)


def test_a_rule_moved_to_another_resource_does_not_open(store: Store, execute: Callable[[str], None]) -> None:
    execute("""
        DELETE FROM records WHERE kind = 'rule' AND path = 'models/key/one';
        UPDATE records SET path = 'models/key/one' WHERE kind = 'rule' AND path = 'models/key/two';""")
    with pytest.raises(KeystoreError):
        store.get("rule", ONE)


def test_an_edited_hint_hides_a_rule_but_opens_nothing(store: Store, execute: Callable[[str], None]) -> None:
    assert sorted(store.distinct_rules(9)) == [b"rule of one", b"rule of two"]
    execute("UPDATE records SET policy = 'same' WHERE kind = 'rule';")
    assert store.distinct_rules(9) == [b"rule of one"]


def test_equal_rules_are_read_once(store: Store) -> None:
    for number in range(20):
        store.put("rule", f"models/key/k{number}", b"rule of one", now=NOW)
    assert sorted(store.distinct_rules(9)) == [b"rule of one", b"rule of two"]


def test_no_content_is_readable_on_disk(store: Store, tmp_path: Path) -> None:
    marker = b"CANARY-d41f-THAT-NOBODY-SEES"
    store.put("resource", ONE, marker, now=NOW)
    store.put("rule", ONE, marker, now=NOW)
    assert all(marker not in path.read_bytes() for path in (tmp_path / "state").iterdir())


@pytest.mark.parametrize("column", ["wrapped_key", "body"])
def test_a_flipped_bit_in_a_sealed_column_is_refused(store: Store, tmp_path: Path, column: str) -> None:
    database = sqlite3.connect(tmp_path / "state" / DATABASE, isolation_level=None)
    where = "WHERE kind = 'resource' AND path = ?"
    (sealed,) = database.execute(f"SELECT {column} FROM records {where}", (ONE,)).fetchone()  # noqa: S608
    for index in range(len(sealed)):
        altered = bytearray(sealed)
        altered[index] ^= 1 << (index % 8)
        database.execute(f"UPDATE records SET {column} = ? {where}", (bytes(altered), ONE))  # noqa: S608
        with pytest.raises(KeystoreError):
            store.get("resource", ONE)
    database.execute(f"UPDATE records SET {column} = ? {where}", (sealed, ONE))  # noqa: S608
    database.close()
    assert store.get("resource", ONE) == b"1" * 32


def test_a_wrong_passphrase_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(KeystoreError, match="passphrase"):
        Store.open(tmp_path / "state", b"another passphrase")


@pytest.mark.parametrize(
    "column",
    ["salt = zeroblob(16)", "iterations = 2", "lanes = 2", "wrapped = zeroblob(60)", "wrapped = x''"],
)
def test_an_edited_state_row_is_refused(
    store: Store, execute: Callable[[str], None], tmp_path: Path, column: str
) -> None:
    execute("UPDATE state SET " + column)  # noqa: S608 -- from the table above
    with pytest.raises(KeystoreError):
        Store.open(tmp_path / "state", PASSPHRASE)


@pytest.mark.parametrize("column", ["memory_kib = 1 << 30", "iterations = 1000000", "salt = x''"])
def test_a_forged_cost_cannot_exhaust_the_machine(
    store: Store, execute: Callable[[str], None], tmp_path: Path, column: str
) -> None:
    execute("UPDATE state SET " + column)  # noqa: S608 -- from the table above
    with pytest.raises(KeystoreError, match="bounds"):
        Store.open(tmp_path / "state", PASSPHRASE)


def test_what_fails_before_the_commit_changes_nothing(store: Store) -> None:
    def fail(_version: int) -> None:
        raise UsageError("no audit line")

    with pytest.raises(UsageError):
        store.put("resource", ONE, b"new", now=NOW, before_commit=fail)
    assert store.get("resource", ONE) == b"1" * 32


def test_a_state_is_never_made_twice(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already"):
        Store.create(tmp_path / "state", PASSPHRASE, cost=CHEAP)
    assert store.get("resource", ONE) == b"1" * 32


def test_files_and_directory_are_for_their_owner_alone(store: Store, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in directory.iterdir())


def test_a_state_directory_that_others_can_write_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "state").chmod(0o770)
    with pytest.raises(UsageError, match="others can write"):
        Store.open(tmp_path / "state", PASSPHRASE)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="others can write"):
        Store.create(tmp_path / "open", PASSPHRASE, cost=CHEAP)
    assert not any((tmp_path / "open").iterdir())


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(KeystoreError):
        Store.open(tmp_path, PASSPHRASE)


def test_a_missing_state_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--init"):
        Store.open(tmp_path, PASSPHRASE)


@pytest.mark.parametrize("size", [0, MAX_RESOURCE + 1])
def test_a_resource_out_of_its_bounds_is_refused(store: Store, size: int) -> None:
    with pytest.raises(UsageError):
        store.put("resource", ONE, b"x" * size, now=NOW)


def test_a_passphrase_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(PASSPHRASE + b"\n")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="chmod"):
        read_passphrase(file)
    file.chmod(0o600)
    assert read_passphrase(file) == PASSPHRASE


@pytest.mark.parametrize("content", [b"", b"short\n", b"x" * 1100], ids=["empty", "short", "long"])
def test_a_passphrase_out_of_its_bounds_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(UsageError) as caught:
        read_passphrase(file)
    assert "short\n" not in str(caught.value)


def test_a_wrapped_key_opens_for_its_own_record_only() -> None:
    keystore = LocalKeystore(bytes(32))
    wrapped = keystore.wrap(b"k" * 32, b"one")
    assert keystore.unwrap(wrapped, b"one") == b"k" * 32
    for bad in (wrapped[:-1], wrapped + b"\x00", bytes(60)):
        with pytest.raises(KeystoreError):
            keystore.unwrap(bad, b"one")
    with pytest.raises(KeystoreError):
        keystore.unwrap(wrapped, b"two")
