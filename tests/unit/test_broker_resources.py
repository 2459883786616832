"""Sealed resources: what the owner of the disk, or of a key store, can do to them, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from broker_parts import CHEAP, NOW, PASSPHRASE, Clock, execute
from cloister.broker.audit import AuditDamaged, Fact
from cloister.broker.keystores import KeyDescription, Keystore
from cloister.broker.keystores.local import LocalKeystore
from cloister.broker.keystores.versioned import ForeignVersion, VersionedKeystore
from cloister.broker.laptop import Laptop
from cloister.broker.resources import LOCAL, MAX_RESOURCE, Resources, associated_data
from cloister.broker.state_key import StateKey
from cloister.broker.transaction import Transaction
from cloister.errors import BrokerError, KeystoreError, KeystoreUnavailable, UsageError

ONE, TWO = "models/key/one", "models/key/two"


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    laptop = Laptop.create(tmp_path / "state", PASSPHRASE, cost=CHEAP, now=Clock())
    laptop.put(ONE, b"1" * 32)
    laptop.put(TWO, b"2" * 32)
    return laptop


@pytest.fixture
def resources(laptop: Laptop) -> Resources:
    return laptop.state.resources


class Second(LocalKeystore):
    """Another key store of the same state, which can be out of reach."""

    reachable = True

    def describe(self, key: str) -> tuple[KeyDescription, ...]:
        return super().describe(self._there(key))

    def unwrap(self, key: str, wrapped: bytes, aad: bytes) -> bytes:
        return super().unwrap(self._there(key), wrapped, aad)

    def wrap(self, key: str, plaintext: bytes, aad: bytes) -> bytes:
        return super().wrap(self._there(key), plaintext, aad)

    def _there(self, key: str) -> str:
        if not self.reachable:
            raise KeystoreUnavailable("the store does not answer")
        return key


def test_resources_come_back_after_a_restart(laptop: Laptop, tmp_path: Path) -> None:
    again = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock()).state.resources
    assert again.read(ONE) == (1, b"1" * 32)
    assert again.read("models/key/none") is None
    assert (again.version(ONE), again.version("models/key/none")) == (1, 0)


def test_what_is_put_is_seen_by_a_process_that_was_there_before(laptop: Laptop, tmp_path: Path) -> None:
    other = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock())
    laptop.put(ONE, b"new")
    assert other.state.resources.read(ONE) == (2, b"new")


def test_the_associated_data_is_the_documented_vector() -> None:
    spec = (Path(__file__).parents[2] / "docs/spec/broker-state.md").read_text()
    assert f"`{associated_data('models/key/demo', 1).hex()}`" in spec


def _copied(column: str) -> str:
    return f"""UPDATE records SET {column} = (SELECT {column} FROM records WHERE kind = 'resource'
        AND name = '{TWO}') WHERE kind = 'resource' AND name = '{ONE}'"""  # noqa: S608 -- the columns below


ATTACKS = {
    "the wrapped key copied": _copied("wrapped"),
    "the body copied": _copied("body"),
    "both copied": f"{_copied('wrapped')}; {_copied('body')}",
    "the wrapped key emptied": "UPDATE records SET wrapped = x'' WHERE kind = 'resource'",
    "the wrapped key cut": "UPDATE records SET wrapped = substr(wrapped, 1, 40) WHERE kind = 'resource'",
    "the store's name alone": "UPDATE records SET wrapped = x'056c6f63616c' WHERE kind = 'resource'",
    "another store's name": "UPDATE records SET wrapped = x'056c6f63616d' || substr(wrapped, 7) WHERE kind = 'resource'",
    "a store's name of no letters": "UPDATE records SET wrapped = x'02fffe' WHERE kind = 'resource'",
    "a store's name too long": "UPDATE records SET wrapped = x'ff' || wrapped WHERE kind = 'resource'",
    "the body edited": "UPDATE records SET body = zeroblob(60) WHERE kind = 'resource'",
    "the body emptied": "UPDATE records SET body = x'' WHERE kind = 'resource'",
    "the version raised": "UPDATE records SET version = 2 WHERE kind = 'resource'",
}


@pytest.mark.parametrize("script", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_record_edited_on_disk_does_not_open(resources: Resources, tmp_path: Path, script: str) -> None:
    execute(tmp_path / "state", script)
    with pytest.raises(BrokerError):
        resources.read(ONE)


@pytest.mark.parametrize("column", ["wrapped", "body"])
def test_a_flipped_bit_in_a_sealed_column_is_refused(
    laptop: Laptop, resources: Resources, tmp_path: Path, column: str
) -> None:
    stored = laptop.state.journal.read("resource", ONE)
    assert stored is not None
    sealed = stored.wrapped if column == "wrapped" else stored.body
    for index in range(0, len(sealed), 3):
        altered = bytearray(sealed)
        altered[index] ^= 1 << (index % 8)
        script = (
            f"UPDATE records SET {column} = x'{altered.hex()}' WHERE kind = 'resource' AND name = '{ONE}'"  # noqa: S608
        )
        execute(tmp_path / "state", script)
        with pytest.raises(BrokerError):
            resources.read(ONE)
    execute(tmp_path / "state", f"UPDATE records SET {column} = x'{sealed.hex()}' WHERE name = '{ONE}'")  # noqa: S608
    assert resources.read(ONE) == (1, b"1" * 32)


def test_no_content_is_readable_on_disk(laptop: Laptop, tmp_path: Path) -> None:
    marker = b"CANARY-d41f-THAT-NOBODY-SEES"
    laptop.put(ONE, marker)
    assert all(marker not in path.read_bytes() for path in (tmp_path / "state").iterdir())


def test_neither_the_state_key_nor_the_key_store_alone_opens_a_resource(laptop: Laptop) -> None:
    journal, key = laptop.state.journal, laptop.state.key
    local = LocalKeystore(journal, key)
    other_state_key = Resources(journal, StateKey(bytes(32)), {LOCAL: local})
    with pytest.raises(KeystoreError):
        other_state_key.read(ONE)
    empty = LocalKeystore(journal, StateKey(bytes(32)))
    with pytest.raises(KeystoreError):
        Resources(journal, key, {LOCAL: empty}).read(ONE)


def test_the_same_content_is_never_sealed_to_the_same_bytes(laptop: Laptop) -> None:
    found = []
    for _ in range(3):
        laptop.put(ONE, b"1" * 32)
        stored = laptop.state.journal.read("resource", ONE)
        assert stored is not None
        found.append(stored.body)
    assert len(set(found)) == 3


@pytest.mark.parametrize("size", [0, MAX_RESOURCE + 1])
def test_a_resource_out_of_its_bounds_is_refused(resources: Resources, size: int) -> None:
    with pytest.raises(UsageError):
        resources.prepare(ONE, b"x" * size, owner="ada", now=NOW)


def test_of_two_who_replace_a_version_one_succeeds(laptop: Laptop, resources: Resources) -> None:
    prepared = [resources.prepare(ONE, content, owner="ada", now=NOW) for content in (b"first", b"second")]

    def work(number: int, transaction: Transaction) -> int:
        version = prepared[number](transaction)
        transaction.log(Fact("resource", "done"))
        return version

    assert laptop.state.journal.transact(lambda transaction: work(0, transaction)) == 2
    with pytest.raises(UsageError, match="somebody else"):
        laptop.state.journal.transact(lambda transaction: work(1, transaction))
    assert resources.read(ONE) == (2, b"first")


# -- rotation and destruction ------------------------------------------------------------------------------------------


def bodies(laptop: Laptop) -> dict[str, bytes]:
    found = {}
    for name in laptop.state.journal.names("resource"):
        stored = laptop.state.journal.read("resource", name)
        assert stored is not None
        found[name] = stored.body
    return found


def test_rotation_touches_no_body_and_everything_stays_readable(laptop: Laptop, tmp_path: Path) -> None:
    laptop.put("other/key/one", b"3" * 32)
    laptop.destroy(TWO)
    before = bodies(laptop)
    done = laptop.rotate_key("models")
    assert (done.version, done.rewrapped) == (2, 1)
    assert bodies(laptop) == before
    for one in (laptop, Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock())):
        assert one.state.resources.read(ONE) == (1, b"1" * 32)
        assert one.state.resources.read("other/key/one") == (1, b"3" * 32)
    laptop.destroy_key("models", 1)
    assert laptop.state.resources.read(ONE) == (1, b"1" * 32)


def test_a_key_version_that_is_destroyed_takes_what_it_alone_wrapped_with_it(
    laptop: Laptop, tmp_path: Path
) -> None:
    stored = laptop.state.journal.read("resource", ONE)
    assert stored is not None
    laptop.rotate_key("models")
    laptop.destroy_key("models", 1)
    script = f"UPDATE records SET wrapped = x'{stored.wrapped.hex()}' WHERE name = '{ONE}'"  # noqa: S608
    execute(tmp_path / "state", script)
    with pytest.raises(KeystoreError, match="version 1 of the key models was destroyed"):
        laptop.state.resources.read(ONE)
    laptop.destroy_key("models", 2)
    with pytest.raises(KeystoreError, match="was destroyed"):
        laptop.state.resources.read(TWO)
    with pytest.raises(KeystoreError, match="was destroyed"):
        laptop.put("models/key/three", b"x")


def test_a_shredded_resource_is_nothing_and_counts_on(laptop: Laptop) -> None:
    laptop.destroy(ONE)
    assert laptop.state.resources.read(ONE) is None
    assert laptop.state.resources.version(ONE) == 2
    laptop.put(ONE, b"again")
    assert laptop.state.resources.read(ONE) == (3, b"again")


def test_a_shredded_resource_does_not_come_back_from_an_old_row(laptop: Laptop, tmp_path: Path) -> None:
    execute(tmp_path / "state", "CREATE TABLE old AS SELECT * FROM records WHERE name = 'models/key/one'")
    laptop.destroy(ONE)
    execute(
        tmp_path / "state",
        "DELETE FROM records WHERE name = 'models/key/one'; INSERT INTO records SELECT * FROM old",
    )
    with pytest.raises(AuditDamaged):
        laptop.state.resources.read(ONE)


# -- another key store -------------------------------------------------------------------------------------------------


def placed(laptop: Laptop) -> tuple[Resources, Second]:
    second = Second(laptop.state.journal, laptop.state.key)
    stores: dict[str, Keystore] = {
        LOCAL: LocalKeystore(laptop.state.journal, laptop.state.key),
        "second": second,
    }
    return Resources(laptop.state.journal, laptop.state.key, stores, placed={"datasets": "second"}), second


def test_a_repository_can_be_in_another_key_store_and_needs_it(laptop: Laptop) -> None:
    resources, second = placed(laptop)
    laptop._own("datasets")
    prepared = resources.prepare("datasets/key/one", b"d", owner="ada", now=NOW)

    def work(transaction: Transaction) -> None:
        prepared(transaction)
        transaction.log(Fact("resource", "done"))

    laptop.state.journal.transact(work)
    assert resources.read("datasets/key/one") == (1, b"d")
    assert resources.describe("datasets")[0] == "second"
    second.reachable = False
    with pytest.raises(KeystoreUnavailable):
        resources.read("datasets/key/one")
    with pytest.raises(KeystoreUnavailable):
        resources.prepare("datasets/key/two", b"d", owner="ada", now=NOW)
    assert resources.read(ONE) == (1, b"1" * 32)
    with pytest.raises(KeystoreError, match="does not know"):
        laptop.state.resources.read("datasets/key/one")


def test_a_store_that_is_not_there_is_refused_at_the_start(laptop: Laptop) -> None:
    with pytest.raises(UsageError, match="no key store"):
        Resources(laptop.state.journal, laptop.state.key, {}, placed={"models": "hsm"})


def test_the_owners_of_a_new_key_may_have_a_long_name(resources: Resources) -> None:
    resources.ensure_key(
        "many", owner="all of " + ", ".join(f"owner{number}" for number in range(64)), now=NOW
    )
    assert resources.describe("many")[1][0].owner.startswith("all of owner0, owner1")


def test_a_key_that_another_process_made_just_before_is_used(
    laptop: Laptop, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = laptop.state.resources
    answers = iter((False, True))
    monkeypatch.setattr(resources, "has_key", lambda _repository: next(answers))
    resources.ensure_key("models", owner="ada", now=NOW)
    assert [one.version for one in resources.describe("models")[1]] == [1]


class Foreign(VersionedKeystore):
    """A store that two replicas share."""

    algorithm = "none"
    label = "test"

    def __init__(self, versions: dict[str, list[ForeignVersion]]) -> None:
        super().__init__()
        self.versions = versions

    def _read(self, key: str) -> tuple[ForeignVersion, ...]:
        return tuple(self.versions.get(key, ()))

    def _make(self, key: str, number: int, owner: str, now: int) -> ForeignVersion:
        made = ForeignVersion(number, now, owner, destroyed=False, handle=str(number))
        self.versions.setdefault(key, []).append(made)
        return made

    def _shred(self, key: str, version: ForeignVersion) -> None:
        self.versions[key][version.number - 1] = replace(version, destroyed=True)

    def _encrypt(self, key: str, version: ForeignVersion, plaintext: bytes, aad: bytes) -> bytes:
        return plaintext

    def _decrypt(self, key: str, version: ForeignVersion, body: bytes, aad: bytes) -> bytes:
        return body


class Replicas:
    """Two brokers on one state; ``meanwhile`` happens once, after the first of them has wrapped something."""

    def __init__(self, laptop: Laptop, other: Laptop, store: str) -> None:
        self.journals = laptop.state.journal, other.state.journal
        self.meanwhile: Callable[[], object] | None = None
        versions: dict[str, list[ForeignVersion]] = {}
        placed = {"apart": store} if store != LOCAL else {}
        self.one, self.two = (
            Resources(
                journal,
                laptop.state.key,
                {LOCAL: LocalKeystore(journal, laptop.state.key), "foreign": Foreign(versions)},
                placed=placed,
            )
            for journal in self.journals
        )
        stored = self.one._stores[store]
        wrap = stored.wrap

        def wrapped(key: str, plaintext: bytes, aad: bytes) -> bytes:
            found = wrap(key, plaintext, aad)
            if self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                self.journals[1].catch_up()
                meanwhile()
            return found

        stored.wrap = wrapped  # type: ignore[method-assign]

    def put(self, path: str, content: bytes) -> int:
        store = self.one.prepare(path, content, owner="ada", now=NOW)

        def work(transaction: Transaction) -> int:
            version = store(transaction)
            transaction.log(Fact("resource", "done", resource=path))
            return version

        return self.journals[0].transact(work)


@pytest.fixture(params=[LOCAL, "foreign"])
def replicas(request: pytest.FixtureRequest, laptop: Laptop, tmp_path: Path) -> Replicas:
    other = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock())
    return Replicas(laptop, other, request.param)


def test_a_rewrap_that_another_replica_overtook_never_brings_back_a_version_that_is_destroyed(
    replicas: Replicas,
) -> None:
    replicas.put("apart/key/a", b"secret")

    def overtake() -> None:
        assert replicas.two.rotate("apart", now=NOW, number=3)[0].version == 3
        for version in (1, 2):
            assert replicas.two.destroy_key("apart", version).state == "destroyed"

    replicas.meanwhile = overtake
    assert replicas.one.rotate("apart", now=NOW, number=2)[0].version == 2
    assert replicas.meanwhile is None
    for resources, journal in zip((replicas.one, replicas.two), replicas.journals, strict=True):
        journal.catch_up()
        assert resources.read("apart/key/a") == (1, b"secret")


def test_what_was_wrapped_under_a_version_that_another_replica_destroyed_is_not_stored(
    replicas: Replicas,
) -> None:
    replicas.put("apart/key/a", b"secret")

    def overtake() -> None:
        replicas.two.rotate("apart", now=NOW, number=2)
        replicas.two.destroy_key("apart", 1)

    replicas.meanwhile = overtake
    with pytest.raises(UsageError, match="the key of apart was changed just now"):
        replicas.put("apart/key/b", b"only copy")
    replicas.put("apart/key/b", b"only copy")
    assert replicas.one.read("apart/key/b") == (1, b"only copy")
    assert replicas.one.read("apart/key/a") == (1, b"secret")


def test_a_key_that_others_change_all_the_time_ends_in_one_line(replicas: Replicas) -> None:
    replicas.put("apart/key/a", b"secret")

    def again() -> None:
        replicas.two.rotate("apart", now=NOW, number=len(replicas.two.describe("apart")[1]) + 1)
        replicas.two.destroy_key("apart", len(replicas.two.describe("apart")[1]) - 1)
        replicas.meanwhile = again

    replicas.meanwhile = again
    with pytest.raises(KeystoreUnavailable, match="changed by others all the time"):
        replicas.one.rewrap("apart")
    replicas.meanwhile = None
    assert replicas.one.read("apart/key/a") == (1, b"secret")
