"""Laptop mode: the same machinery, whose owner is whoever knows the passphrase, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker_parts import CHEAP, NOW, PASSPHRASE, PATH, SECRET, Clock, all_entries, policy_for, workload
from cloister.broker.laptop import APPLICATION, OWNER, Laptop, owner_signer
from cloister.broker.state_key import StateKey
from cloister.broker.status_words import LAPTOP, status_words
from cloister.broker.wire import Status
from cloister.errors import KeystoreError, ManifestError, PolicyError, UnknownResource, UsageError


@pytest.fixture
def laptop(tmp_path: Path) -> Laptop:
    return Laptop.create(tmp_path / "state", PASSPHRASE, cost=CHEAP, now=Clock())


def test_what_is_put_is_there_after_opening_again(laptop: Laptop, tmp_path: Path) -> None:
    assert laptop.put(PATH, SECRET).version == 1
    again = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock())
    assert again.state.resources.read(PATH) == (1, SECRET)
    assert again.state.laptop


@pytest.mark.parametrize("passphrase", [b"another passphrase", PASSPHRASE + b" ", PASSPHRASE[:-1]])
def test_a_wrong_passphrase_is_refused(laptop: Laptop, tmp_path: Path, passphrase: bytes) -> None:
    with pytest.raises(KeystoreError, match="passphrase"):
        Laptop.open(tmp_path / "state", passphrase)


def test_a_new_repository_is_a_new_manifest_that_the_one_owner_signs(laptop: Laptop) -> None:
    laptop.put(PATH, SECRET)
    laptop.put("models/key/other", SECRET)
    laptop.allow("datasets/key/x", (policy_for(workload()),))
    manifests = laptop.state.authority.manifests()
    assert [sorted(one.manifest.resources) for one in manifests] == [[], ["models"], ["datasets", "models"]]
    assert manifests[-1].manifest.owners == {OWNER: laptop.signer.key}
    assert {entry.signers for entry in all_entries(laptop.state.journal) if entry.signers} == {(OWNER,)}
    assert manifests[-1].manifest.application == APPLICATION


def test_the_owner_s_key_comes_of_the_state_key_alone(laptop: Laptop) -> None:
    assert owner_signer(laptop.state.key).key == laptop.signer.key
    assert owner_signer(StateKey(bytes(32))).key != laptop.signer.key


def test_a_clock_that_was_set_back_does_not_stop_the_next_manifest(tmp_path: Path) -> None:
    clock = Clock()
    laptop = Laptop.create(tmp_path / "state", PASSPHRASE, cost=CHEAP, now=clock)
    laptop.put(PATH, SECRET)
    clock.now = NOW - 10_000
    again = Laptop.open(tmp_path / "state", PASSPHRASE, now=clock)
    again.put("datasets/key/x", SECRET)
    assert all(entry.time >= NOW for entry in all_entries(again.state.journal))


def test_two_who_use_one_state_at_once_see_each_other(laptop: Laptop, tmp_path: Path) -> None:
    other = Laptop.open(tmp_path / "state", PASSPHRASE, now=Clock())
    assert laptop.put(PATH, b"one").version == 1
    assert other.put("datasets/key/x", b"two").version == 1
    assert laptop.put("datasets/key/x", b"three").version == 2
    assert other.put(PATH, b"four").version == 2


def test_a_policy_that_is_none_changes_nothing(laptop: Laptop) -> None:
    size = laptop.state.journal.size
    with pytest.raises(PolicyError):
        laptop.allow(PATH, ("not a policy",))
    assert laptop.state.journal.size == size


def test_what_is_not_there_is_not_destroyed_or_rotated(laptop: Laptop) -> None:
    laptop.put(PATH, SECRET)
    with pytest.raises(UsageError):
        laptop.destroy("models/key/none")
    with pytest.raises(UnknownResource):
        laptop.rotate_key("datasets")
    with pytest.raises(ManifestError):
        laptop.destroy_key("datasets", 1)
    with pytest.raises(UsageError):
        laptop.destroy_key("models", 2)


def test_its_status_warns_first() -> None:
    status = Status(open=True, have=0, need=0, state="00" * 16, laptop=True)
    assert status_words(status)[0] == LAPTOP


def test_no_secret_is_shown(laptop: Laptop) -> None:
    laptop.put(PATH, SECRET)
    shown = repr(laptop) + repr(laptop.state) + repr(laptop.signer) + repr(laptop.administration)
    for secret in (SECRET, PASSPHRASE, laptop.state.key_for_peer()):
        assert secret.hex() not in shown
        assert repr(secret)[2:-1] not in shown
