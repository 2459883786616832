"""The journal against a dictionary: whatever two processes do, in whatever order they are killed and start again."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker_parts import NOW, all_entries
from cloister import merkle
from cloister.broker import tables
from cloister.broker.audit import Fact, Kind, state_leaf
from cloister.broker.journal import Journal
from cloister.broker.transaction import Transaction
from cloister.broker.tree_head import verify_head
from cloister.errors import BrokerError, KeystoreError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KINDS: tuple[Kind, ...] = ("resource", "rule", "counter")
NAMES = ("a", "b", "c", "a/b")

kinds = st.sampled_from(KINDS)
names = st.sampled_from(NAMES)
bodies = st.binary(max_size=40)
writes = st.lists(st.tuples(kinds, names, bodies), min_size=1, max_size=4)
which = st.integers(0, 1)


def opened(directory: Path, *, load: bool = True) -> Journal:
    journal = Journal(tables.open_database(tables.sqlite_url(directory)), KEY, now=lambda: NOW)
    if load:
        journal.load()
    return journal


class Killed(Exception):
    """The power goes, in the middle of a statement."""


class TwoProcesses(RuleBasedStateMachine):
    """``model`` is what ought to stand: (kind, name) -> (version, body, wrapped)."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp()) / "state"
        tables.make_directory(self.directory)
        tables.migrate(tables.open_database(tables.sqlite_url(self.directory)))
        self.model: dict[tuple[Kind, str], tuple[int, bytes, bytes]] = {}
        self.reasons = ["first"]
        first = opened(self.directory, load=False)
        first.transact(lambda transaction: transaction.log(Fact("start", "done", reason="first")))
        self.journals = [first, opened(self.directory)]

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            for journal in self.journals:
                journal._engine.dispose()
            shutil.rmtree(self.directory.parent)

    def _work(self, changes: list[tuple[Kind, str, bytes]], reason: str) -> Callable[[Transaction], None]:
        def work(transaction: Transaction) -> None:
            for kind, name, body in changes:
                before = self.model.get((kind, name), (0, b"", b""))[0]
                assert transaction.version(kind, name) >= before
                transaction.put(kind, name, body, body[::-1])
            transaction.log(Fact("resource", "done", reason=reason))

        return work

    def _write_down(self, changes: list[tuple[Kind, str, bytes]], reason: str) -> None:
        for kind, name, body in changes:
            version = self.model.get((kind, name), (0, b"", b""))[0] + 1
            self.model[kind, name] = (version, body, body[::-1])
        self.reasons.append(reason)

    @rule(one=which, changes=writes)
    def write(self, one: int, changes: list[tuple[Kind, str, bytes]]) -> None:
        reason = f"write {len(self.reasons)}"
        self.journals[one].transact(self._work(changes, reason))
        self._write_down(changes, reason)

    @rule(one=which, kind=kinds, name=names, wrapped=bodies)
    def rewrap(self, one: int, kind: Kind, name: str, wrapped: bytes) -> None:
        self.journals[one].catch_up()
        if (kind, name) not in self.model:
            return
        self.journals[one].transact(lambda transaction: transaction.rewrap(kind, name, wrapped))
        version, body, _ = self.model[kind, name]
        self.model[kind, name] = (version, body, wrapped)

    @rule(one=which, changes=writes)
    def change_one_s_mind(self, one: int, changes: list[tuple[Kind, str, bytes]]) -> None:
        work = self._work(changes, "not to be")

        def fails(transaction: Transaction) -> None:
            work(transaction)
            raise KeystoreError("no")

        try:
            self.journals[one].transact(fails)
        except KeystoreError:
            return
        raise AssertionError("it did not fail")

    @rule(
        one=which,
        changes=writes,
        statement=st.sampled_from(
            ["INSERT INTO records", "UPDATE records", "INSERT INTO entries", "UPDATE head", "COMMIT"]
        ),
        survives=st.booleans(),
    )
    def kill_in_the_middle(
        self, one: int, changes: list[tuple[Kind, str, bytes]], statement: str, survives: bool
    ) -> None:
        """The write never happened. The process goes on, or is dropped without closing anything and starts again."""
        journal = self.journals[one]

        def look(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
            if text.startswith(statement):
                raise Killed

        def commit(_connection: Any) -> None:
            raise Killed

        if statement == "COMMIT":
            sa.event.listen(journal._engine, "commit", commit)
        else:
            sa.event.listen(journal._engine, "before_cursor_execute", look)
        reason = f"write {len(self.reasons)}"
        try:
            journal.transact(self._work(changes, reason))
        except Killed:
            pass
        else:
            self._write_down(changes, reason)  # it had no such statement
        if statement == "COMMIT":
            sa.event.remove(journal._engine, "commit", commit)
        else:
            sa.event.remove(journal._engine, "before_cursor_execute", look)
        if not survives:
            self.start_again(one)

    @rule(one=which)
    def start_again(self, one: int) -> None:
        self.journals[one] = opened(self.directory)

    @rule(one=which)
    def catch_up(self, one: int) -> None:
        self.journals[one].catch_up()

    @rule(one=which, kind=kinds, name=names)
    def read(self, one: int, kind: Kind, name: str) -> None:
        stored = self.journals[one].read(kind, name)
        found = None if stored is None else (stored.version, stored.body, stored.wrapped)
        assert found == self.model.get((kind, name))

    @invariant()
    def state_and_log_are_what_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        for journal in self.journals:
            entries = all_entries(journal)
            assert [entry.reason for entry in entries] == self.reasons
            head = verify_head(journal.head, log_key=KEY.public_key().public_bytes_raw())
            assert (head.size, head.root) == (journal.size, journal.root(journal.size).hex())
            assert head.state == entries[-1].state == self._root(entries).hex()

    def _root(self, entries: list[Any]) -> bytes:
        """The root of the state, by an auditor who has the log alone, and by the model."""
        tree, slots = merkle.Tree(), {}
        for entry in entries:
            for change in entry.changes:
                slots[change.kind, change.name] = change.slot
                digest = bytes.fromhex(change.digest)
                leaf = merkle.leaf_hash(state_leaf(change.kind, change.name, change.version, digest))
                if change.slot == tree.size:
                    tree.append(leaf)
                else:
                    tree.set(change.slot, leaf)
        for key, (version, body, _) in self.model.items():
            leaf = merkle.leaf_hash(state_leaf(*key, version, hashlib.sha256(body).digest()))
            assert tree.leaf(slots[key]) == leaf
        return tree.root()


TestTwoProcesses = TwoProcesses.TestCase
TestTwoProcesses.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_of_what_the_trees_cover_is_found_by_whoever_loads(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "state"
        tables.make_directory(directory)
        tables.migrate(tables.open_database(tables.sqlite_url(directory)))
        journal = opened(directory, load=False)
        for number in range(3):

            def work(transaction: Transaction, number: int = number) -> None:
                transaction.put("resource", f"r{number % 2}", b"body %d" % number)
                transaction.log(Fact("resource", "done", reason=str(number)))

            journal.transact(work)
        journal._engine.dispose()
        table, column, key = data.draw(
            st.sampled_from(
                [("entries", "body", "number"), ("records", "body", "slot"), ("head", "signed", "one")]
            )
        )
        database = sqlite3.connect(directory / tables.DATABASE, isolation_level=None)
        rows = database.execute(f"SELECT {key}, {column} FROM {table}").fetchall()  # noqa: S608
        row, body = data.draw(st.sampled_from(cast("list[tuple[int, bytes]]", rows)))
        at = data.draw(st.integers(0, len(body) * 8 - 1))
        altered = bytearray(body)
        altered[at // 8] ^= 1 << (at % 8)
        database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (bytes(altered), row))  # noqa: S608
        try:
            opened(directory)
        except BrokerError:
            database.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", (body, row))  # noqa: S608
            opened(directory)
        else:
            raise AssertionError("a flipped bit was not found")
        finally:
            database.close()
