"""The embedded key store keeps to what every key store does, and what it destroys is gone from the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from broker_parts import CHEAP, NOW, PASSPHRASE, Clock, execute
from cloister.broker.audit import AuditDamaged
from cloister.broker.keystores import Keystore
from cloister.broker.keystores.local import SEAL_LABEL, LocalKeystore, _place
from cloister.broker.laptop import Laptop
from cloister.broker.state_key import StateKey, unseal
from cloister.errors import KeystoreError
from keystore_contract import AAD, OWNER, SECRET, KeystoreContract


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop.create(tmp_path / "state", PASSPHRASE, cost=CHEAP, now=Clock())


class TestContract(KeystoreContract):
    """Each store is over a journal of its own, as two processes have."""

    flip_step = 5

    @pytest.fixture
    def open_store(self, laptop: Laptop, tmp_path: Path) -> Callable[[], Keystore]:
        def make() -> Keystore:
            state = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock()).state
            return LocalKeystore(state.journal, state.key)

        return make


@pytest.fixture
def store(laptop: Laptop) -> LocalKeystore:
    return LocalKeystore(laptop.state.journal, laptop.state.key)


def test_a_destroyed_version_is_in_no_byte_of_the_database(laptop: Laptop, tmp_path: Path) -> None:
    """Not even sealed: whoever has the state key finds nothing of it, neither in the table nor in freed pages."""
    made: list[bytes] = []

    def entropy(count: int) -> bytes:
        made.append(bytes([len(made) + 1]) * count)
        return made[-1]

    store = LocalKeystore(laptop.state.journal, laptop.state.key, entropy=entropy)
    store.generate("models", owner=OWNER, now=NOW)
    key = made[0]
    before = laptop.state.journal.read("key", "models")
    assert before is not None
    assert key.hex()[:16] not in before.body.hex()
    store.rotate("models", now=NOW)
    store.destroy("models", 1)
    stored = laptop.state.journal.read("key", "models")
    assert stored is not None
    plain = unseal(laptop.state.key.cipher(SEAL_LABEL), stored.body, _place("models", stored.version))
    assert key not in plain
    laptop.state.journal._engine.dispose()
    execute(tmp_path / "state", "PRAGMA wal_checkpoint(TRUNCATE)")
    disk = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert before.body not in disk
    assert before.body[12:60] not in disk
    assert stored.body in disk


def test_keys_are_on_the_disk_only_sealed(laptop: Laptop, tmp_path: Path) -> None:
    secret = b"CANARY-key-that-nobody-sees-----"
    store = LocalKeystore(laptop.state.journal, laptop.state.key, entropy=lambda count: secret[:count])
    store.generate("models", owner=OWNER, now=NOW)
    disk = b"".join(path.read_bytes() for path in (tmp_path / "state").iterdir())
    assert secret not in disk
    assert (
        secret[:12] in disk
    )  # the nonce, which this entropy makes of the same bytes: so it is there, and sealed


def test_every_act_is_in_the_log(store: LocalKeystore, laptop: Laptop) -> None:
    size = laptop.state.journal.size
    store.generate("models", owner=OWNER, now=NOW)
    store.rotate("models", now=NOW)
    store.destroy("models", 1)
    store.wrap("models", SECRET, AAD)
    assert laptop.state.journal.size == size + 3


ATTACKS = {
    "the record of another key": """UPDATE records SET body = (SELECT body FROM records WHERE kind = 'key' AND name = 'two')
        WHERE kind = 'key' AND name = 'one'""",
    "an older record": """UPDATE records SET body = (SELECT body FROM old), version = (SELECT version FROM old)
        WHERE kind = 'key' AND name = 'one'""",
    "zeros": "UPDATE records SET body = zeroblob(length(body)) WHERE kind = 'key' AND name = 'one'",
    "nothing": "DELETE FROM records WHERE kind = 'key' AND name = 'one'",
}


@pytest.mark.parametrize("script", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_key_record_that_was_touched_unwraps_nothing(
    store: LocalKeystore, laptop: Laptop, tmp_path: Path, script: str
) -> None:
    """Restoring an old record would bring a destroyed version back."""
    for name in ("one", "two"):
        store.generate(name, owner=OWNER, now=NOW)
    wrapped = store.wrap("one", SECRET, AAD)
    execute(
        tmp_path / "state", "CREATE TABLE old AS SELECT * FROM records WHERE kind = 'key' AND name = 'one'"
    )
    store.rotate("one", now=NOW)
    store.destroy("one", 1)
    execute(tmp_path / "state", script)
    with pytest.raises(AuditDamaged):
        store.unwrap("one", wrapped, AAD)


def test_another_state_key_opens_no_key(laptop: Laptop, store: LocalKeystore) -> None:
    store.generate("models", owner=OWNER, now=NOW)
    with pytest.raises(KeystoreError):
        LocalKeystore(laptop.state.journal, StateKey(bytes(32))).describe("models")


def test_a_store_shows_no_key(store: LocalKeystore) -> None:
    store.generate("models", owner=OWNER, now=NOW)
    content = store._read("models")
    shown = repr(store) + repr(content)
    assert content.versions[0].key.hex() not in shown
    assert repr(content.versions[0].key) not in shown
