"""The journal: what the owner of the disk can do to it, what other processes do beside it, and what a crash leaves."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from broker_parts import NOW, all_entries, execute
from cloister import merkle
from cloister.broker import tables
from cloister.broker.audit import AuditDamaged, Fact, encode_entry, parse_entry
from cloister.broker.journal import Journal
from cloister.broker.transaction import EVIDENCE_SWEPT, Transaction
from cloister.broker.tree_head import (
    HeadRefused,
    RollbackFound,
    TreeHead,
    encode_signed_head,
    log_id,
    parse_head,
    sign_head,
    verify_head,
)
from cloister.errors import BrokerError, KeystoreError, KeystoreUnavailable

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
FACT = Fact("resource", "done", reason="test")


def engine_of(directory: Path) -> sa.Engine:
    return tables.open_database(tables.sqlite_url(directory))


def opened(directory: Path) -> Journal:
    """As a broker that starts has it."""
    journal = Journal(engine_of(directory), KEY, now=lambda: NOW)
    journal.load()
    return journal


def put(journal: Journal, name: str, body: bytes, *, kind: Any = "resource", wrapped: bytes = b"w") -> int:
    def work(transaction: Transaction) -> int:
        version = transaction.put(kind, name, body, wrapped)
        transaction.log(FACT)
        return version

    return journal.transact(work)


def look(journal: Journal) -> None:
    """Read all there is, as a running broker would."""
    journal.catch_up()
    for kind, name in (("resource", "a"), ("resource", "b"), ("rule", "a"), ("resource", "none")):
        journal.read(kind, name)  # type: ignore[arg-type]
    all_entries(journal)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four entries over three records, one of which has an older version that ``old`` remembers."""
    directory = tmp_path_factory.mktemp("template") / "state"
    tables.make_directory(directory)
    tables.migrate(engine_of(directory))
    journal = Journal(engine_of(directory), KEY, now=lambda: NOW)
    put(journal, "a", b"the first a")
    execute(
        directory, "CREATE TABLE old AS SELECT * FROM records; CREATE TABLE old_head AS SELECT * FROM head;"
    )
    put(journal, "b", b"the only b")
    put(journal, "a", b"the second a")
    put(journal, "a", b"the rule of a", kind="rule")
    return directory / tables.DATABASE


@pytest.fixture
def directory(tmp_path: Path, template: Path) -> Path:
    tables.make_directory(tmp_path / "state")
    copy(template, tmp_path / "state" / tables.DATABASE)
    return tmp_path / "state"


@pytest.fixture
def journal(directory: Path) -> Journal:
    return opened(directory)


@dataclass(frozen=True)
class Attack:
    script: str
    running: bool = True
    """Does a broker that runs look at what was changed?"""


ATTACKS = {
    "a body edited": Attack("UPDATE records SET body = x'00' WHERE slot = 0"),
    "a body emptied": Attack("UPDATE records SET body = x'' WHERE slot = 1"),
    "a version raised": Attack("UPDATE records SET version = 3 WHERE slot = 0"),
    "a version lowered": Attack("UPDATE records SET version = 1 WHERE slot = 0"),
    "a version negative": Attack("UPDATE records SET version = -2 WHERE slot = 0"),
    "a body copied to another": Attack(
        "UPDATE records SET body = (SELECT body FROM records WHERE slot = 1) WHERE slot = 0"
    ),
    "two records' names exchanged": Attack(
        "UPDATE records SET kind = 'x' WHERE slot = 0; UPDATE records SET name = 'a' WHERE slot = 1;"
        "UPDATE records SET kind = 'resource', name = 'b' WHERE slot = 0"
    ),
    "a rule made a resource": Attack(
        "UPDATE records SET kind = 'x' WHERE slot = 0; UPDATE records SET kind = 'resource' WHERE slot = 2"
    ),
    "a record removed": Attack("DELETE FROM records WHERE slot = 1"),
    "the last record removed": Attack("DELETE FROM records WHERE slot = 2"),
    "every record removed": Attack("DELETE FROM records"),
    "a record added": Attack("INSERT INTO records VALUES ('resource', 'none', 1, 3, x'00', x'00')"),
    "one old record restored": Attack(
        "DELETE FROM records WHERE slot = 0; INSERT INTO records SELECT * FROM old"
    ),
    "an old record under the new version": Attack(
        "UPDATE records SET body = (SELECT body FROM old) WHERE slot = 0"
    ),
    "slots exchanged": Attack(
        "UPDATE records SET slot = 9 WHERE slot = 0; UPDATE records SET slot = 0 WHERE slot = 1;"
        "UPDATE records SET slot = 1 WHERE slot = 9",
        running=False,
    ),
    "a slot moved away": Attack("UPDATE records SET slot = 7 WHERE slot = 2", running=False),
    "an entry made a text": Attack("UPDATE entries SET body = CAST(body AS TEXT) WHERE number = 1"),
    "an entry made a number": Attack("UPDATE entries SET body = 7 WHERE number = 1"),
    "a body made a text": Attack("UPDATE records SET body = 'the second a' WHERE slot = 0"),
    "a version made a text": Attack("UPDATE records SET version = 'two' WHERE slot = 0"),
    "the head's size made a text": Attack("UPDATE head SET size = 'four'"),
    "the head made a text": Attack("UPDATE head SET signed = CAST(signed AS TEXT)"),
    "an entry edited": Attack(
        "UPDATE entries SET body = CAST(replace(body, 'test', 'tost') AS BLOB) WHERE number = 1"
    ),
    "an entry emptied": Attack("UPDATE entries SET body = x'' WHERE number = 0"),
    "two entries exchanged": Attack(
        "UPDATE entries SET number = 9 WHERE number = 0; UPDATE entries SET number = 0 WHERE number = 1;"
        "UPDATE entries SET number = 1 WHERE number = 9"
    ),
    "the first entry removed": Attack("DELETE FROM entries WHERE number = 0"),
    "an entry removed": Attack("DELETE FROM entries WHERE number = 2"),
    "the last entry removed": Attack("DELETE FROM entries WHERE number = 3"),
    "every entry removed": Attack("DELETE FROM entries"),
    "an entry removed and the others moved up": Attack(
        "DELETE FROM entries WHERE number = 1; UPDATE entries SET number = 1 WHERE number = 2;"
        "UPDATE entries SET number = 2 WHERE number = 3"
    ),
    "an entry added": Attack(
        "INSERT INTO entries SELECT 4, body FROM entries WHERE number = 0", running=False
    ),
    "the head removed": Attack("DELETE FROM head"),
    "the head's size raised": Attack("UPDATE head SET size = 5"),
    "the head's size lowered": Attack("UPDATE head SET size = 3"),
    "the head's size negative": Attack("UPDATE head SET size = -1"),
    "an old head restored": Attack("DELETE FROM head; INSERT INTO head SELECT * FROM old_head"),
    "an old head under the new size": Attack(
        "UPDATE head SET signed = (SELECT signed FROM old_head)", running=False
    ),
    "the head edited": Attack(
        "UPDATE head SET signed = CAST(replace(signed, 'a', 'b') AS BLOB)", running=False
    ),
    "the head emptied": Attack("UPDATE head SET signed = x''", running=False),
    "a co-signed head of nobody's": Attack("UPDATE head SET cosigned = x'7b7d'", running=False),
    "the log cut with its head": Attack(
        "DELETE FROM entries WHERE number > 0; DELETE FROM head; INSERT INTO head SELECT * FROM old_head"
    ),
    "tables dropped": Attack("DROP TABLE records; DROP TABLE entries; DROP TABLE head"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_database_that_was_touched_is_not_loaded(journal: Journal, directory: Path, attack: Attack) -> None:
    opened(directory)
    execute(directory, attack.script)
    with pytest.raises(BrokerError):
        opened(directory)


@pytest.mark.parametrize(
    "attack",
    [attack for attack in ATTACKS.values() if attack.running],
    ids=[name for name, attack in ATTACKS.items() if attack.running],
)
def test_a_running_broker_finds_what_was_touched(journal: Journal, directory: Path, attack: Attack) -> None:
    look(journal)
    execute(directory, attack.script)
    with pytest.raises(BrokerError):
        look(journal)


@pytest.mark.parametrize(
    "attack",
    [attack for attack in ATTACKS.values() if not attack.running],
    ids=[name for name, attack in ATTACKS.items() if not attack.running],
)
def test_what_a_running_broker_does_not_look_at_changes_nothing_of_what_it_reads(
    journal: Journal, directory: Path, attack: Attack
) -> None:
    before = (journal.read("resource", "a"), journal.read("rule", "a"), all_entries(journal))
    execute(directory, attack.script)
    assert (journal.read("resource", "a"), journal.read("rule", "a"), all_entries(journal)) == before


def snapshot(directory: Path, target: Path) -> None:
    copy(directory / tables.DATABASE, target)


def copy(source: Path, target: Path) -> None:
    """SQLite's own way, which readers of the target survive."""
    one, two = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(two)
    one.close()
    two.close()


def test_a_whole_older_database_under_a_running_broker_is_found(
    journal: Journal, directory: Path, tmp_path: Path
) -> None:
    snapshot(directory, tmp_path / "older")
    put(journal, "a", b"the third a")
    copy(tmp_path / "older", directory / tables.DATABASE)
    for act in (
        journal.catch_up,
        lambda: journal.read("resource", "b"),
        lambda: put(journal, "c", b"c"),
        lambda: look(journal),
    ):
        with pytest.raises(RollbackFound):
            act()


def test_an_older_database_that_grew_again_is_another_history(
    journal: Journal, directory: Path, tmp_path: Path
) -> None:
    snapshot(directory, tmp_path / "older")
    put(journal, "a", b"the third a")
    copy(tmp_path / "older", directory / tables.DATABASE)
    fork = opened(directory)
    for number in range(3):
        put(fork, "a", b"another history %d" % number)
    with pytest.raises(AuditDamaged):
        journal.catch_up()


def test_an_older_copy_is_loaded_after_a_restart_which_is_why_there_are_witnesses(
    journal: Journal, directory: Path, tmp_path: Path
) -> None:
    snapshot(directory, tmp_path / "older")
    put(journal, "a", b"the third a")
    copy(tmp_path / "older", directory / tables.DATABASE)
    assert opened(directory).size == 4


def test_everything_is_there_after_a_restart(journal: Journal, directory: Path) -> None:
    again = opened(directory)
    assert again.read("resource", "a") == journal.read("resource", "a")
    assert again.head == journal.head
    assert again.names("resource") == ["a", "b"]
    assert all_entries(again) == all_entries(journal)
    head = verify_head(again.head, log_key=KEY.public_key().public_bytes_raw())
    assert (head.size, head.root) == (4, again.root(4).hex())
    assert all_entries(again)[-1].state == head.state


def test_a_log_of_another_key_is_not_loaded(journal: Journal, directory: Path) -> None:
    other = Journal(engine_of(directory), Ed25519PrivateKey.generate(), now=lambda: NOW)
    with pytest.raises(AuditDamaged):
        other.load()


def test_an_entry_names_what_changed_and_the_root_of_all_that_stands(journal: Journal) -> None:
    entry = all_entries(journal)[2]
    (change,) = entry.changes
    assert (change.kind, change.name, change.version, change.slot) == ("resource", "a", 2, 0)
    assert len({one.state for one in all_entries(journal)}) == 4


def test_a_change_without_an_entry_cannot_be(journal: Journal) -> None:
    with pytest.raises(AssertionError):
        journal.transact(lambda transaction: transaction.put("resource", "c", b"c"))
    assert journal.read("resource", "c") is None
    assert journal.size == 4


def test_proofs_lead_to_the_signed_roots(journal: Journal) -> None:
    bodies = journal.entries(0, 4)
    for size in range(1, 5):
        for number in range(size):
            merkle.verify_inclusion(
                bodies[number], number, size, journal.inclusion(number, size), journal.root(size)
            )
        merkle.verify_consistency(size, 4, journal.root(size), journal.root(4), journal.consistency(size, 4))


def test_a_rewrapped_record_keeps_its_version_and_needs_no_entry(journal: Journal, directory: Path) -> None:
    journal.transact(lambda transaction: transaction.rewrap("resource", "a", b"anew"))
    for one in (journal, opened(directory)):
        stored = one.read("resource", "a")
        assert stored is not None
        assert (stored.version, stored.body, stored.wrapped) == (2, b"the second a", b"anew")
        assert one.size == 4
    with pytest.raises(KeystoreError):
        journal.transact(lambda transaction: transaction.rewrap("resource", "none", b"anew"))


# -- several processes -----------------------------------------------------------------------------------------------


def test_what_one_process_writes_another_reads(journal: Journal, directory: Path) -> None:
    other = opened(directory)
    seen: list[tuple[str, str]] = []
    other.listen(seen.extend)
    assert put(journal, "a", b"the third a") == 3
    stored = other.read("resource", "a")
    assert stored is not None
    assert stored.body == b"the third a"
    assert seen == [("resource", "a")]
    assert put(other, "a", b"the fourth a") == 4
    assert put(journal, "new", b"n") == 1
    assert [one.read("resource", "a") for one in (journal, other)] == [other.read("resource", "a")] * 2


def test_two_replicas_under_eight_threads_count_every_increment_once(
    journal: Journal, directory: Path
) -> None:
    replicas = [journal, opened(directory)]

    def increment(transaction: Transaction) -> int:
        stored = transaction.get("counter", "n")
        number = 1 + (0 if stored is None else int(stored.body))
        transaction.put("counter", "n", b"%d" % number)
        transaction.log(Fact("counter", "done", reason=str(number)))
        return number

    def work(thread: int) -> list[int]:
        return [replicas[thread % 2].transact(increment) for _ in range(12)]

    with ThreadPoolExecutor(8) as pool:
        numbers = sorted(number for found in pool.map(work, range(8)) for number in found)
    assert numbers == list(range(1, 97))
    for one in (*replicas, opened(directory)):
        one.catch_up()
        assert one.size == 100
        stored = one.read("counter", "n")
        assert stored is not None
        assert stored.body == b"96"
    assert replicas[0].root(100) == replicas[1].root(100)
    assert [entry.reason for entry in all_entries(replicas[1])[4:]] == [
        str(number) for number in range(1, 97)
    ]


def test_whoever_reads_while_others_write_is_never_told_of_damage(journal: Journal, directory: Path) -> None:
    other, stop, failures = opened(directory), threading.Event(), []

    def read(one: Journal) -> None:
        while not stop.is_set():
            try:
                one.read("resource", "a")
                one.entries(0, one.size)
                one.root(one.size)
            except Exception as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=read, args=(one,)) for one in (journal, other, journal)]
    for thread in threads:
        thread.start()
    for number in range(40):
        put((journal, other)[number % 2], "a", b"%d" % number)
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def forged(key: Ed25519PrivateKey, journal: Journal, **changes: Any) -> tuple[bytes, bytes]:
    """An entry after the newest one, and a head over it that ``key`` signed."""
    body = encode_entry(structs.replace(all_entries(journal)[-1], number=journal.size, **changes))
    tree = merkle.Tree()
    for one in [*journal.entries(0, journal.size), body]:
        tree.append(merkle.leaf_hash(one))
    state = all_entries(journal)[-1].state
    head = TreeHead(
        log=log_id(journal.log_key), size=tree.size, root=tree.root().hex(), state=state, time=NOW
    )
    return body, encode_signed_head(sign_head(head, key))


def append(directory: Path, body: bytes, signed: bytes, size: int) -> None:
    database = sqlite3.connect(directory / tables.DATABASE, isolation_level=None)
    database.execute("INSERT INTO entries VALUES (?, ?)", (size - 1, body))
    database.execute("UPDATE head SET size = ?, signed = ?", (size, signed))
    database.close()


def test_an_appended_entry_under_a_stranger_s_signature_is_refused(journal: Journal, directory: Path) -> None:
    append(directory, *forged(Ed25519PrivateKey.generate(), journal, changes=()), 5)
    with pytest.raises(AuditDamaged):
        journal.catch_up()
    assert journal.size == 4


REWRITTEN: dict[str, Callable[[bytes], bytes]] = {
    "another reason": lambda body: body.replace(b"test", b"tost"),
    "a space": lambda body: body.replace(b":", b": ", 1),
    "another number": lambda body: body.replace(b'"number":4', b'"number":5'),
    "another slot": lambda body: body.replace(b'"slot":1', b'"slot":0'),
    "a slot too far": lambda body: body.replace(b'"slot":1', b'"slot":9'),
    "a slot below": lambda body: body.replace(b'"slot":1', b'"slot":-1'),
    "a version below": lambda body: body.replace(b'"version":2', b'"version":-2'),
    "a version too high": lambda body: body.replace(b'"version":2', b'"version":9007199254740991'),
    "a digest that is none": lambda body: body.replace(b'"digest":"', b'"digest":"zz'),
    "a kind that is none": lambda body: body.replace(b'"kind":"resource"', b'"kind":"secret"'),
    "another record": lambda body: body.replace(b'"name":"b"', b'"name":"z"'),
    "nothing": lambda _body: b"",
    "not JSON": lambda _body: b"\xff" * 40,
}


@pytest.mark.parametrize("rewrite", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_a_forged_entry_is_not_taken_over_and_the_genuine_one_still_is(
    journal: Journal, directory: Path, rewrite: Callable[[bytes], bytes]
) -> None:
    other = opened(directory)
    put(other, "b", b"the second b")
    genuine = other.entries(4, 5)[0]
    assert rewrite(genuine) != genuine
    database = sqlite3.connect(directory / tables.DATABASE, isolation_level=None)
    database.execute("UPDATE entries SET body = ? WHERE number = 4", (rewrite(genuine),))
    before = (journal.size, journal.root(4), journal.held("resource", "b"))
    for _ in range(2):
        with pytest.raises(AuditDamaged):
            journal.catch_up()
        assert (journal.size, journal.root(4), journal.held("resource", "b")) == before
    with pytest.raises(AuditDamaged):
        put(journal, "c", b"c")
    database.execute("UPDATE entries SET body = ? WHERE number = 4", (genuine,))
    database.close()
    assert put(journal, "c", b"c") == 1
    assert journal.size == 6
    assert opened(directory).root(6) == journal.root(6)


def test_a_head_over_other_records_than_its_entries_tell_is_refused(
    journal: Journal, directory: Path
) -> None:
    """Signed by the log's own key: a broker of ours that fails, or a key that leaked."""
    body, _ = forged(KEY, journal, changes=())
    tree = merkle.Tree()
    for one in [*journal.entries(0, 4), body]:
        tree.append(merkle.leaf_hash(one))
    head = TreeHead(log=log_id(journal.log_key), size=5, root=tree.root().hex(), state="00" * 32, time=NOW)
    append(directory, body, encode_signed_head(sign_head(head, KEY)), 5)
    with pytest.raises(AuditDamaged, match="does not lead"):
        journal.catch_up()


# -- group commit ----------------------------------------------------------------------------------------------------


def together(journal: Journal, jobs: list[Callable[[Transaction], Any]]) -> list[Any]:
    """Results or errors of jobs that share one transaction: the first holds the writers' lock until all wait."""
    held, go = threading.Event(), threading.Event()

    def first(transaction: Transaction) -> None:
        held.set()
        assert go.wait(10)
        transaction.log(FACT)

    def run(job: Callable[[Transaction], Any]) -> Any:
        try:
            return journal.transact(job)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(jobs) + 1) as pool:
        waiting = pool.submit(run, first)
        assert held.wait(10)
        futures = [pool.submit(run, job) for job in jobs]
        while len(journal._queue) < len(jobs):
            pass
        go.set()
        assert waiting.result() is None
        return [future.result() for future in futures]


def test_jobs_of_many_threads_share_a_commit_and_each_has_its_own_outcome(
    journal: Journal, directory: Path
) -> None:
    commits = []
    sa.event.listen(journal._engine, "commit", commits.append)

    def job(number: int) -> Callable[[Transaction], int]:
        def work(transaction: Transaction) -> int:
            version = transaction.put("counter", "shared", b"%d" % number)
            transaction.put("resource", f"of {number}", b"x")
            transaction.log(Fact("counter", "done", reason=str(number)))
            transaction.keep_evidence(f"{number:064x}", b"e", now=NOW)
            transaction.keep_document(f"{number:032x}", b"d")
            if number % 3 == 1:
                raise KeystoreError(f"job {number} has had enough")
            return version

        return work

    outcomes = together(journal, [job(number) for number in range(9)])
    assert len(commits) == 2
    failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, KeystoreError)]
    assert failed == [1, 4, 7]
    assert sorted(outcome for outcome in outcomes if isinstance(outcome, int)) == [1, 2, 3, 4, 5, 6]
    again = opened(directory)
    assert again.size == journal.size == 4 + 1 + 6
    assert {entry.reason for entry in all_entries(again)[5:]} == {"0", "2", "3", "5", "6", "8"}
    assert [name for name in again.names("resource") if name.startswith("of")] == [
        f"of {number}" for number in range(9) if number not in failed
    ]
    with tables.reading(engine_of(directory)) as connection:
        kept = {
            int(digest, 16) for digest in connection.execute(sa.select(tables.evidence.c.digest)).scalars()
        }
        (document,) = connection.execute(sa.select(tables.state.c.id)).scalars()
    assert kept == {0, 2, 3, 5, 6, 8}
    assert int(document, 16) not in failed


def test_more_jobs_than_a_batch_holds_are_all_done(journal: Journal) -> None:
    def work(transaction: Transaction) -> int:
        stored = transaction.get("counter", "n")
        number = 1 + (0 if stored is None else int(stored.body))
        transaction.put("counter", "n", b"%d" % number)
        transaction.log(FACT)
        return number

    assert sorted(together(journal, [work] * 100)) == list(range(1, 101))


def test_a_transaction_sees_what_it_staged_and_what_those_before_it_staged(journal: Journal) -> None:
    def work(transaction: Transaction) -> None:
        assert transaction.version("resource", "a") == 2
        transaction.put("resource", "a", b"3")
        transaction.log(FACT)
        assert transaction.put("resource", "a", b"4") == 4
        assert transaction.version("resource", "a") == 4
        stored = transaction.get("resource", "a")
        assert stored is not None
        assert stored.body == b"4"
        transaction.log(FACT)

    journal.transact(work)
    versions = [change.version for entry in all_entries(journal)[4:] for change in entry.changes]
    assert versions == [3, 4]
    stored = journal.read("resource", "a")
    assert stored is not None
    assert (stored.version, stored.body) == (4, b"4")


# -- failing databases -----------------------------------------------------------------------------------------------


class Fails:
    """A database that raises at one kind of statement, once it is armed."""

    def __init__(self, engine: sa.Engine, statement: str, error: Exception) -> None:
        self.armed = True
        self._error = error
        if statement == "COMMIT":
            sa.event.listen(engine, "commit", self._raise)
        else:
            self._statement = statement
            sa.event.listen(engine, "before_cursor_execute", self._look)

    def _look(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(self._statement):
            self._raise()

    def _raise(self, *_: Any) -> None:
        if self.armed:
            raise self._error


FULL = sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("disk full"))


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (FULL, KeystoreUnavailable),
        (sa.exc.DatabaseError("x", {}, Exception()), KeystoreError),
        (OSError(), OSError),
    ],
    ids=["disk full", "malformed", "not SQLAlchemy's"],
)
@pytest.mark.parametrize(
    "statement",
    ["INSERT INTO records", "UPDATE records", "INSERT INTO entries", "UPDATE head", "BEGIN", "COMMIT"],
)
def test_a_database_that_fails_in_the_middle_changes_nothing(
    journal: Journal, directory: Path, statement: str, error: Exception, found: type[Exception]
) -> None:
    before = (
        journal.size,
        journal.root(4),
        journal.read("resource", "a"),
        journal.head,
        journal._state.root(),
    )
    if statement == "BEGIN":
        fails = Fails(journal._engine, "SELECT head.size", error)
    else:
        fails = Fails(journal._engine, statement, error)

    def work(transaction: Transaction) -> None:
        transaction.put("resource", "a", b"not to be")
        transaction.put("resource", "new", b"neither")
        transaction.log(FACT)

    with pytest.raises(found):
        journal.transact(work)
    fails.armed = False
    assert (
        journal.size,
        journal.root(4),
        journal.read("resource", "a"),
        journal.head,
        journal._state.root(),
    ) == before
    assert journal.read("resource", "new") is None
    assert put(journal, "a", b"the third a") == 3
    assert opened(directory).root(5) == journal.root(5)


def test_a_failing_database_fails_every_job_of_the_batch(journal: Journal) -> None:
    fails = Fails(journal._engine, "INSERT INTO entries", FULL)

    def work(transaction: Transaction) -> None:
        transaction.log(FACT)

    fails.armed = False
    held = threading.Event()

    def arm(transaction: Transaction) -> None:
        fails.armed = True
        held.set()
        transaction.log(FACT)

    outcomes = together(journal, [arm, work, work])
    assert all(isinstance(outcome, KeystoreUnavailable) for outcome in outcomes)
    fails.armed = False
    journal.transact(work)
    assert journal.size == 6


def test_an_error_of_the_driver_shows_nothing_of_what_was_written(journal: Journal) -> None:
    secret = b"CANARY-THAT-NOBODY-SEES"
    error = sa.exc.OperationalError("INSERT", {"body": secret}, sqlite3.OperationalError(secret.decode()))
    Fails(journal._engine, "INSERT INTO records", error)
    with pytest.raises(KeystoreUnavailable) as caught:
        put(journal, "new", secret)
    assert secret.decode() not in str(caught.value) + repr(caught.value)
    assert caught.value.__cause__ is None


# -- evidence and co-signed heads ------------------------------------------------------------------------------------


def test_of_evidence_the_newest_is_kept_whatever_else_is_logged(journal: Journal) -> None:
    def keep(number: int) -> None:
        def work(transaction: Transaction) -> None:
            transaction.log(FACT)
            transaction.keep_evidence(f"{number:064x}", b"evidence", now=NOW + number // 2, kept=5)

        journal.transact(work)
        if number % 2:
            journal.transact(
                lambda transaction: transaction.log(FACT)
            )  # so that sizes have no pattern to rely on

    def kept() -> list[int]:
        with tables.reading(journal._engine) as connection:
            return sorted(
                int(digest, 16)
                for digest in connection.execute(sa.select(tables.evidence.c.digest)).scalars()
            )

    for number in range(EVIDENCE_SWEPT + 1):
        keep(number)
    assert len(kept()) == 5
    assert kept()[0] >= EVIDENCE_SWEPT - 5
    for number in range(EVIDENCE_SWEPT + 1, 3 * EVIDENCE_SWEPT):
        keep(number)
        assert len(kept()) <= 5 + EVIDENCE_SWEPT


def test_evidence_that_was_altered_is_not_shown(journal: Journal, directory: Path) -> None:
    digest = "5e" * 32

    def work(transaction: Transaction) -> None:
        transaction.log(FACT)
        transaction.keep_evidence(digest, b"something else", now=NOW)

    journal.transact(work)
    assert journal.evidence("00" * 32) is None
    with pytest.raises(AuditDamaged):
        journal.evidence(digest)


def test_an_older_co_signed_head_never_takes_the_place_of_a_newer_one(
    journal: Journal, directory: Path
) -> None:
    older = journal.head
    put(journal, "a", b"the third a")
    journal.keep_cosigned(journal.head)
    journal.keep_cosigned(older)
    assert journal.cosigned is not None
    assert parse_head(journal.cosigned.head).size == 5
    assert opened(directory).cosigned == journal.cosigned


def test_a_co_signed_head_of_another_log_is_not_kept(journal: Journal) -> None:
    other = Ed25519PrivateKey.generate()
    head = TreeHead(
        log=log_id(other.public_key().public_bytes_raw()), size=9, root="00" * 32, state="00" * 32, time=NOW
    )
    with pytest.raises(HeadRefused):
        journal.keep_cosigned(sign_head(head, other))


def test_an_entry_that_changes_more_than_can_be_read_back_is_never_written(journal: Journal) -> None:
    def work(transaction: Transaction) -> None:
        for number in range(257):
            transaction.put("resource", f"r{number}", b"x")
        transaction.log(FACT)

    with pytest.raises(AuditDamaged):
        journal.transact(work)
    assert journal.size == 4
    assert parse_entry(journal.entries(3, 4)[0], 3).number == 3
